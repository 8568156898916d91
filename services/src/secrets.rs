//! The values of jobs' environments: kept sealed while a job lives, given to the machine that runs it, deleted
//! before it is settled. They are in no event and in no read model.

use std::sync::Arc;

use async_nats::jetstream::{self, kv};
use gpubnb_events::{
    JobId,
    command::{SealedEnv, SubmitJob},
};
use gpubnb_log::stream::JOBENV;
use gpubnb_runtime::rpc::Failure;

use crate::credentials::{Sealing, Secrets};

/// The bucket, and the key to it.
#[derive(Clone)]
pub(crate) struct JobEnv {
    bucket: kv::Store,
    sealing: Arc<Sealing>,
}

fn unavailable(e: impl std::fmt::Display) -> Failure {
    Failure::Unavailable(format!("the secrets of jobs cannot be reached: {e}"))
}

impl JobEnv {
    /// Opens the bucket.
    pub(crate) async fn open(js: &jetstream::Context, sealing: Sealing) -> anyhow::Result<Self> {
        Ok(Self { bucket: js.get_key_value(JOBENV).await?, sealing: Arc::new(sealing) })
    }

    /// Keeps what a submission brings. Returns whether it is new: saying a submission again changes nothing.
    pub(crate) async fn keep(&self, submit: &SubmitJob) -> Result<bool, Failure> {
        if submit.env.is_empty() {
            return Ok(false);
        }
        let secrets: Secrets = submit.env.iter().map(|(name, value)| (name.clone(), value.0.clone())).collect();
        let kept = self.sealing.keep(&secrets).map_err(unavailable)?;
        match self.bucket.create(submit.job.to_string(), kept.into()).await {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == kv::CreateErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(unavailable(e)),
        }
    }

    /// The values, sealed for the machine that runs the job.
    pub(crate) async fn seal_for(&self, job: JobId, sealing_key: &str) -> Result<Option<SealedEnv>, Failure> {
        let Some(kept) = self.bucket.get(job.to_string()).await.map_err(unavailable)? else { return Ok(None) };
        let sealed = self.sealing.for_machine(&kept, sealing_key).map_err(unavailable)?;
        Ok(Some(SealedEnv { from: self.sealing.public_key(), sealed: gpubnb_events::hex(sealed) }))
    }

    /// Deletes them, for good.
    pub(crate) async fn forget(&self, job: JobId) -> Result<(), Failure> {
        self.bucket.purge(job.to_string()).await.map_err(unavailable)
    }
}
