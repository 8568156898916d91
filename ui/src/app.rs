//! What handlers share.

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
    access::{Paces, People, Sessions, Streams},
    live::{Board, Changes},
    requested::requested,
    transfer::Room,
};

/// Where machines find the broker.
#[derive(Debug, Clone)]
pub(crate) struct Broker {
    /// Its address.
    pub(crate) url: String,
    /// The authority that signed its certificate, if it is not a public one (PEM).
    pub(crate) authority: Option<String>,
}

/// What handlers share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) people: People,
    pub(crate) sessions: Sessions,
    pub(crate) paces: Paces,
    /// Streams of events that are open.
    pub(crate) streams: Streams,
    /// Whether a proxy of ours stands before us, and names the address that a request comes from.
    pub(crate) behind_proxy: bool,
    /// The broker, as machines reach it.
    pub(crate) broker: Broker,
    pub(crate) caller: Caller,
    pub(crate) queries: QueryClient,
    pub(crate) js: Context,
    pub(crate) artifacts: ObjectStore,
    pub(crate) inputs: ObjectStore,
    /// Room for files that are being put.
    pub(crate) room: Room,
    pub(crate) changes: Changes,
    /// The machines of the market.
    pub(crate) board: Board,
    /// Places for searches through whole logs.
    pub(crate) searches: Arc<Semaphore>,
    pub(crate) transfer: TransferKey,
    pub(crate) clock: Arc<dyn Clock>,
}

impl App {
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Gives a command in an actor's name.
    pub(crate) async fn command<T: DeserializeOwned>(
        &self,
        area: &str,
        verb: &str,
        actor: Actor,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Failure> {
        let call = self.caller.call(subject::command(area, verb), actor, body);
        trace::within(&trace::apart(), requested(), About::default(), call).await
    }

    /// The same, about a job: in the job's trace.
    pub(crate) async fn job_command<T: DeserializeOwned>(
        &self,
        verb: &str,
        actor: Actor,
        job: JobId,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Failure> {
        let call = self.caller.call(subject::command("job", verb), actor, body);
        trace::within(&trace::of_job(job), requested(), About::job(job), call).await
    }
}
