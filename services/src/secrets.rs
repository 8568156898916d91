//! The secret values of jobs' environments. They are kept sealed while the job lives, given to the machine that runs
//! the job, and deleted before the job is settled. No event and no read model holds them.

use std::sync::Arc;

use async_nats::jetstream::{self, kv};
use gpubnb_events::{
    JobId,
    command::{SealedEnv, SubmitJob},
};
use gpubnb_log::stream::JOBENV;
use gpubnb_runtime::rpc::Failure;

use crate::credentials::{Sealing, Secrets};

/// The bucket of sealed values, and the key that opens them.
#[derive(Clone)]
pub(crate) struct JobEnv {
    bucket: kv::Store,
    sealing: Arc<Sealing>,
}

/// The answer while the bucket does not answer, or a secret cannot be sealed.
const UNAVAILABLE: &str = "the secrets of jobs cannot be reached now; try again";

fn unavailable(e: impl std::error::Error + 'static) -> Failure {
    Failure::unavailable(UNAVAILABLE, &e)
}

fn not_sealed(e: anyhow::Error) -> Failure {
    Failure::unavailable(UNAVAILABLE, e.as_ref())
}

impl JobEnv {
    /// Opens the bucket.
    pub(crate) async fn open(js: &jetstream::Context, sealing: Sealing) -> anyhow::Result<Self> {
        Ok(Self { bucket: js.get_key_value(JOBENV).await?, sealing: Arc::new(sealing) })
    }

    /// Keeps the values of a submission. Returns whether they are new: a repeated submission changes nothing.
    pub(crate) async fn keep(&self, submit: &SubmitJob) -> Result<bool, Failure> {
        if submit.env.is_empty() {
            return Ok(false);
        }
        let secrets: Secrets = submit.env.iter().map(|(name, value)| (name.clone(), value.0.clone())).collect();
        let kept = self.sealing.keep(&secrets).map_err(not_sealed)?;
        match self.bucket.create(submit.job.to_string(), kept.into()).await {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == kv::CreateErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(unavailable(e)),
        }
    }

    /// A job's values, sealed for the machine that runs the job.
    pub(crate) async fn seal_for(&self, job: JobId, sealing_key: &str) -> Result<Option<SealedEnv>, Failure> {
        let Some(kept) = self.bucket.get(job.to_string()).await.map_err(unavailable)? else { return Ok(None) };
        let sealed = self.sealing.for_machine(&kept, sealing_key).map_err(not_sealed)?;
        Ok(Some(SealedEnv { from: self.sealing.public_key(), sealed: gpubnb_events::hex(sealed) }))
    }

    /// Deletes a job's values for good.
    pub(crate) async fn forget(&self, job: JobId) -> Result<(), Failure> {
        self.bucket.purge(job.to_string()).await.map_err(unavailable)
    }
}
