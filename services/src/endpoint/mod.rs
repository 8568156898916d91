//! The command endpoints: `cmd.account.*`, `cmd.job.*`, `cmd.market.*`, `cmd.machine.<id>.*`.
//!
//! They read a request, name the command and the actor, and leave the decision to the domain. They are
//! served over a connection that may publish to inboxes only.

mod edge;
mod machine;

use std::future::Future;

use gpubnb_events::{
    Actor, Seq,
    command::Done,
    rpc::{Failure, Incoming, RefusalKind, Requester, Server},
    transfer::TransferKey,
};
use serde::Serialize;
use serde_json::Value;

use crate::execute::Executor;

/// What endpoints need.
#[derive(Clone)]
pub(crate) struct Endpoints {
    pub(crate) executor: Executor,
    pub(crate) upload: Option<Upload>,
}

/// Where workers put files.
#[derive(Clone)]
pub(crate) struct Upload {
    pub(crate) url: String,
    pub(crate) key: TransferKey,
}

/// Serves them all.
pub(crate) async fn serve(server: &Server, endpoints: Endpoints) -> Result<(), async_nats::Error> {
    edge::serve(server, &endpoints).await?;
    machine::serve(server, &endpoints).await
}

/// Serves one endpoint whose handler is a function of the endpoints and the request.
async fn endpoint<F, Fut, T>(
    server: &Server,
    endpoints: &Endpoints,
    subject: String,
    requester: Requester,
    handler: F,
) -> Result<(), async_nats::Error>
where
    F: Fn(Endpoints, Incoming) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, Failure>> + Send + 'static,
    T: Serialize,
{
    let endpoints = endpoints.clone();
    let name: String = subject.chars().filter(|c| *c != '*').map(|c| if c == '.' { '-' } else { c }).collect();
    server
        .endpoint(&name, subject, requester, move |incoming| {
            let answer = handler(endpoints.clone(), incoming);
            async move { answer.await.and_then(|value| to_json(&value)) }
        })
        .await
}

fn to_json(value: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(value).map_err(|e| Failure::Unavailable(format!("the answer could not be written: {e}")))
}

fn done(seq: Seq) -> Done {
    Done { seq }
}

/// The account in whose name a request is.
fn account_of(actor: Actor) -> Result<gpubnb_events::AccountId, Failure> {
    match actor {
        Actor::Account(id) => Ok(id),
        _ => Err(Failure::Refused(gpubnb_events::rpc::Refusal {
            name: "NotAllowed".to_owned(),
            kind: RefusalKind::Forbidden,
            field: None,
            message: "Only an account may do this.".to_owned(),
        })),
    }
}
