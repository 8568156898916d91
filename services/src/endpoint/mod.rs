//! The command endpoints: `cmd.account.*`, `cmd.job.*`, `cmd.market.*`, `cmd.machine.<id>.*`.
//!
//! They read a request, name the command and the actor, and leave the decision to the domain. They are
//! served over a connection that may publish to inboxes only.

mod edge;
mod enrollment;
mod letters;
mod machine;

use std::{future::Future, num::NonZeroU32, sync::Arc};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use gpubnb_domain::Command;
use gpubnb_events::{
    Actor, MachineId, RefusalKind, Seq,
    command::{ChangeMachine, Done, MachineChange},
};
use gpubnb_runtime::{
    permit::TransferKey,
    rpc::{Failure, Incoming, Requester, Server},
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    credentials::{Issuer, Revoker},
    enrollment::Enrollments,
    execute::Executor,
    secrets::JobEnv,
};

/// What endpoints need.
#[derive(Clone)]
pub(crate) struct Endpoints {
    pub(crate) executor: Executor,
    pub(crate) files: Option<Files>,
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) revoker: Revoker,
    pub(crate) secrets: JobEnv,
    /// Dead letters, as they were found last.
    pub(crate) letters: letters::Found,
    /// How often a machine may ask, so that none keeps the others from being answered.
    pub(crate) pace: Arc<DefaultKeyedRateLimiter<MachineId>>,
}

/// Requests a second of one machine, and in a burst: one with many slots starts and ends jobs in rows.
const MACHINE_PACE: NonZeroU32 = NonZeroU32::new(50).unwrap();
const MACHINE_BURST: NonZeroU32 = NonZeroU32::new(1_000).unwrap();

/// The pace of machines.
pub(crate) fn machine_pace() -> Arc<DefaultKeyedRateLimiter<MachineId>> {
    Arc::new(RateLimiter::keyed(Quota::per_second(MACHINE_PACE).allow_burst(MACHINE_BURST)))
}

impl Endpoints {
    fn enrollments(&self) -> &Enrollments {
        &self.revoker.enrollments
    }
}

/// Where workers get and put files.
#[derive(Clone)]
pub(crate) struct Files {
    pub(crate) url: String,
    pub(crate) key: TransferKey,
}

/// Serves them all.
pub(crate) async fn serve(server: &Server, endpoints: Endpoints) -> Result<(), async_nats::Error> {
    edge::serve(server, &endpoints).await?;
    enrollment::serve(server, &endpoints).await?;
    letters::serve(server, &endpoints).await?;
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
    let pace = endpoints.pace.clone();
    let name: String = subject.chars().filter(|c| *c != '*').map(|c| if c == '.' { '-' } else { c }).collect();
    server
        .endpoint(&name, subject, requester, move |incoming| {
            let hasty = matches!(incoming.actor, Actor::Machine(machine) if pace.check_key(&machine).is_err());
            let answer = handler(endpoints.clone(), incoming);
            async move {
                if hasty {
                    return Err(Failure::Unavailable(
                        "this machine asks too often; it should wait a little".to_owned(),
                    ));
                }
                answer.await.and_then(|value| to_json(&value))
            }
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
        _ => Err(Failure::Refused(gpubnb_events::Refusal {
            name: "NotAllowed".to_owned(),
            kind: RefusalKind::Forbidden,
            field: None,
            message: "Only an account may do this.".to_owned(),
        })),
    }
}

/// What an owner wants of a machine, said on a page or on the machine itself.
async fn change_machine(e: Endpoints, r: Incoming) -> Result<Done, Failure> {
    let change: ChangeMachine = r.parse()?;
    let changed = e.executor.execute(r.actor, &Command::ChangeMachine(change)).await.map(done)?;
    if change.wish == MachineChange::Delist {
        // Its credential ends with its offer.
        e.revoker.look();
    }
    Ok(changed)
}
