//! The services and the state that handlers share.

use std::sync::Arc;

use async_nats::jetstream::{Context, object_store::ObjectStore};
use gpubnb_events::{Actor, Clock, JobId, Timestamp, subject};
use gpubnb_query::QueryClient;
use gpubnb_runtime::{
    permit::TransferKey,
    rpc::{Caller, Failure},
    trace::{self, About},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Semaphore;

use crate::{
    access::{OpenStreams, RateLimits, Sessions, Users},
    request_span,
    state::{Changes, MachineCache, UploadQuota},
};

/// The broker, as machines reach it.
#[derive(Debug, Clone)]
pub(crate) struct Broker {
    /// Its address.
    pub(crate) url: String,
    /// The certificate of the authority that signed the broker's (PEM), if that is not a public authority.
    pub(crate) authority: Option<String>,
}

/// The services and the state that handlers share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) users: Users,
    pub(crate) sessions: Sessions,
    pub(crate) rate_limits: RateLimits,
    pub(crate) streams: OpenStreams,
    /// True if a proxy of ours stands before this server and names the address that a request comes from.
    pub(crate) behind_proxy: bool,
    pub(crate) broker: Broker,
    pub(crate) caller: Caller,
    pub(crate) queries: QueryClient,
    pub(crate) js: Context,
    pub(crate) artifacts: ObjectStore,
    pub(crate) inputs: ObjectStore,
    pub(crate) upload_quota: UploadQuota,
    pub(crate) changes: Changes,
    pub(crate) machines: MachineCache,
    /// Permits for searches through whole logs.
    pub(crate) searches: Arc<Semaphore>,
    pub(crate) transfer: TransferKey,
    pub(crate) clock: Arc<dyn Clock>,
}

impl App {
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Sends a command in an actor's name.
    pub(crate) async fn command<T: DeserializeOwned>(
        &self,
        area: &str,
        verb: &str,
        actor: Actor,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Failure> {
        let call = self.caller.call(subject::command(area, verb), actor, body);
        trace::within(&trace::apart(), request_span::current(), About::default(), call).await
    }

    /// Sends a command about a job. It becomes part of the job's trace.
    pub(crate) async fn job_command<T: DeserializeOwned>(
        &self,
        verb: &str,
        actor: Actor,
        job: JobId,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Failure> {
        let call = self.caller.call(subject::command("job", verb), actor, body);
        trace::within(&trace::of_job(job), request_span::current(), About::job(job), call).await
    }
}
