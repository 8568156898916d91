//! What handlers share.

use std::sync::Arc;

use async_nats::jetstream::{Context, object_store::ObjectStore};
use gpubnb_events::{
    Actor, Clock, Timestamp,
    rpc::{Caller, Failure},
    subject,
    transfer::TransferKey,
};
use gpubnb_projector::client::QueryClient;
use serde::{Serialize, de::DeserializeOwned};

use crate::{live::Changes, viewer::Accounts};

/// What handlers share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) accounts: Accounts,
    pub(crate) caller: Caller,
    pub(crate) queries: QueryClient,
    pub(crate) js: Context,
    pub(crate) artifacts: ObjectStore,
    pub(crate) changes: Changes,
    pub(crate) transfer: Option<TransferKey>,
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
        self.caller.call(subject::command(area, verb), actor, body).await
    }
}
