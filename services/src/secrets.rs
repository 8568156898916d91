//! The secret values of jobs' environments. A value is stored sealed (encrypted) until the job ends, sent to the
//! machine that runs the job, and deleted before the job is settled. No event and no read model contains a secret
//! value.

use std::sync::Arc;

use async_nats::jetstream::{self, kv};
use gpubnb_events::{
    AccountId, JobId,
    command::{SealedEnv, SubmitJob},
    refusal::{Refusal, RefusalKind},
};
use gpubnb_log::stream::JOBENV;
use gpubnb_runtime::rpc::RpcError;

use crate::credentials::{Sealing, Secrets};

/// The bucket of sealed values, and the key that opens them.
#[derive(Clone)]
pub(crate) struct JobSecrets {
    bucket: kv::Store,
    sealing: Arc<Sealing>,
}

/// Most bytes of a job's sealed values. The machine gets them in one message, with the rest of its grant.
const MAX_SEALED: usize = 128 * 1024;

/// The message if the bucket does not answer, or a secret cannot be sealed.
const UNAVAILABLE: &str = "the secrets of jobs cannot be reached now; try again";

fn unavailable(e: impl std::error::Error + 'static) -> RpcError {
    RpcError::unavailable(UNAVAILABLE, &e)
}

fn sealing_failed(e: anyhow::Error) -> RpcError {
    RpcError::unavailable(UNAVAILABLE, e.as_ref())
}

/// The bucket's key for the values of a job or of a batch ([`gpubnb_domain::job::Job::environment_id`]). Two accounts
/// may submit a job with the same id at once, and only one of them gets the job: the values of the other must neither
/// replace nor remove those of the job.
fn key(account: AccountId, job: JobId) -> String {
    format!("{account}.{job}")
}

impl JobSecrets {
    /// Opens the bucket.
    pub(crate) async fn open(js: &jetstream::Context, sealing: Arc<Sealing>) -> anyhow::Result<Self> {
        Ok(Self { bucket: js.get_key_value(JOBENV).await?, sealing })
    }

    /// Stores the values of a submission. Returns true if they are new: a repeated submission changes nothing.
    /// `named` are the values of the account's named secrets that the job gets.
    pub(crate) async fn store(&self, account: AccountId, submit: &SubmitJob, named: Secrets) -> Result<bool, RpcError> {
        let mut secrets = named;
        secrets.extend(submit.env.iter().map(|(name, value)| (name.clone(), value.0.clone())));
        if secrets.is_empty() {
            return Ok(false);
        }
        let sealed = self.sealing.seal(&secrets).map_err(sealing_failed)?;
        if sealed.len() > MAX_SEALED {
            let message = "The environment and the secrets of this job are too large together: at most 128 KiB.";
            let refusal = Refusal::new("InvalidField", RefusalKind::Invalid, message).with_field("secrets");
            return Err(RpcError::refused(refusal));
        }
        match self.bucket.create(key(account, submit.job), sealed.into()).await {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == kv::CreateErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(unavailable(e)),
        }
    }

    /// A job's values, sealed for the machine that runs the job.
    pub(crate) async fn seal_for(
        &self,
        (account, job): (AccountId, JobId),
        sealing_key: &str,
    ) -> Result<Option<SealedEnv>, RpcError> {
        let Some(stored) = self.bucket.get(key(account, job)).await.map_err(unavailable)? else { return Ok(None) };
        let sealed = self.sealing.reseal_for(&stored, sealing_key).map_err(sealing_failed)?;
        Ok(Some(SealedEnv { from: self.sealing.public_key(), sealed: gpubnb_events::hex(sealed) }))
    }

    /// Deletes a job's values and their history in the bucket.
    pub(crate) async fn delete(&self, account: AccountId, job: JobId) -> Result<(), RpcError> {
        self.bucket.purge(key(account, job)).await.map_err(unavailable)
    }
}
