//! The things that every endpoint needs: the executor, the keys, the rate limit of machines, and the ways to say no.

use std::{future::Future, num::NonZeroU32, sync::Arc, time::Instant};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use gpubnb_events::{AccountId, Actor, MachineId, Refusal, RefusalKind, Seq, command::Done, dead_letter::DeadLetter};
use gpubnb_runtime::{
    permit::TransferKey,
    rpc::{Failure, Incoming, Requester, Server},
};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::Mutex;

use crate::{
    credentials::{Issuer, Revoker},
    enrollment::Enrollments,
    execute::Executor,
    secrets::JobEnv,
};

/// The last answer about dead letters and the time of it; `None` before the first answer.
pub(crate) type CachedLetters = Arc<Mutex<Option<(Instant, Result<Vec<DeadLetter>, Failure>)>>>;

/// The state that endpoints share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Endpoints {
    pub(crate) executor: Executor,
    pub(crate) files: Option<Files>,
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) revoker: Revoker,
    pub(crate) secrets: JobEnv,
    pub(crate) dead_letters: CachedLetters,
    /// The rate limit of each machine, so that no machine keeps the others from being answered.
    pub(crate) machine_rate: Arc<DefaultKeyedRateLimiter<MachineId>>,
}

/// Requests a second that one machine may send.
const MACHINE_RATE: NonZeroU32 = NonZeroU32::new(50).unwrap();
/// Requests that one machine may send in a burst: a machine with many slots starts and ends many jobs at once.
const MACHINE_BURST: NonZeroU32 = NonZeroU32::new(1_000).unwrap();

/// The rate limit of machines, with nothing counted yet.
pub(crate) fn machine_rate() -> Arc<DefaultKeyedRateLimiter<MachineId>> {
    Arc::new(RateLimiter::keyed(Quota::per_second(MACHINE_RATE).allow_burst(MACHINE_BURST)))
}

impl Endpoints {
    pub(super) fn enrollments(&self) -> &Enrollments {
        &self.revoker.enrollments
    }
}

/// Where workers get and put the files of jobs.
#[derive(Clone)]
pub(crate) struct Files {
    pub(crate) url: String,
    pub(crate) key: TransferKey,
}

/// Serves one endpoint whose handler is a function of the shared state and the request.
pub(super) async fn endpoint<F, Fut, T>(
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
    let rate = endpoints.machine_rate.clone();
    let name: String = subject.chars().filter(|c| *c != '*').map(|c| if c == '.' { '-' } else { c }).collect();
    server
        .endpoint(&name, subject, requester, move |incoming| {
            let too_fast = matches!(incoming.actor, Actor::Machine(machine) if rate.check_key(&machine).is_err());
            let answer = handler(endpoints.clone(), incoming);
            async move {
                if too_fast {
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
    serde_json::to_value(value).map_err(|e| Failure::unavailable("the answer could not be written", &e))
}

pub(super) fn done(seq: Seq) -> Done {
    Done { seq }
}

/// The account in whose name a request is made.
pub(super) fn account_of(actor: Actor) -> Result<AccountId, Failure> {
    match actor {
        Actor::Account(id) => Ok(id),
        _ => Err(not_allowed("Only an account may do this.")),
    }
}

/// Refuses everybody but operators.
pub(super) fn only_operators(actor: Actor) -> Result<(), Failure> {
    match actor {
        Actor::Operator(_) => Ok(()),
        _ => Err(not_allowed("Only an operator may do this.")),
    }
}

fn not_allowed(message: &str) -> Failure {
    Failure::refused(Refusal::new("NotAllowed", RefusalKind::Forbidden, message))
}
