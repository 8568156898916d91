//! The state that all endpoints share ([`EndpointContext`]), the function that serves one endpoint, and the refusals
//! that several endpoints use.

use std::{future::Future, num::NonZeroU32, sync::Arc, time::Instant};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use gpubnb_events::{AccountId, Actor, MachineId, Refusal, RefusalKind, Seq, command::Done, dead_letter::DeadLetter};
use gpubnb_runtime::{
    permit::PermitKey,
    rpc::{Incoming, Requester, RpcError, Server},
};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::Mutex;

use crate::{
    account_secrets::AccountSecrets,
    credentials::{Issuer, Revoker},
    enrollment::Enrollments,
    execute::Executor,
    job_output::JobOutput,
    secrets::JobSecrets,
};

/// The last answer about dead letters and its time; `None` before the first answer.
pub(crate) type CachedLetters = Arc<Mutex<Option<(Instant, Result<Vec<DeadLetter>, RpcError>)>>>;

/// The state that endpoints share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct EndpointContext {
    pub(crate) executor: Executor,
    pub(crate) file_transfer: Option<FileTransfer>,
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) revoker: Revoker,
    pub(crate) secrets: JobSecrets,
    pub(crate) account_secrets: AccountSecrets,
    pub(crate) dead_letters: CachedLetters,
    pub(crate) output: Arc<JobOutput>,
    /// The rate limit of the output of each machine.
    pub(crate) output_rate: Arc<DefaultKeyedRateLimiter<MachineId>>,
    /// The rate limit of each machine, so that one machine cannot block the others.
    pub(crate) machine_rate: Arc<DefaultKeyedRateLimiter<MachineId>>,
}

/// Requests a second that one machine may send.
const MACHINE_RATE: NonZeroU32 = NonZeroU32::new(50).unwrap();
/// Requests that one machine may send in a burst: a machine with many slots starts and ends many jobs at once.
const MACHINE_BURST: NonZeroU32 = NonZeroU32::new(1_000).unwrap();

/// Messages of output that one machine may send in a second, and in a burst: each of its jobs sends about 20 in a
/// second.
const OUTPUT_RATE: NonZeroU32 = NonZeroU32::new(500).unwrap();
const OUTPUT_BURST: NonZeroU32 = NonZeroU32::new(2_000).unwrap();

/// A new rate limiter for the output of machines.
pub(crate) fn new_output_rate() -> Arc<DefaultKeyedRateLimiter<MachineId>> {
    Arc::new(RateLimiter::keyed(Quota::per_second(OUTPUT_RATE).allow_burst(OUTPUT_BURST)))
}

/// A new rate limiter for machines.
pub(crate) fn new_machine_rate() -> Arc<DefaultKeyedRateLimiter<MachineId>> {
    Arc::new(RateLimiter::keyed(Quota::per_second(MACHINE_RATE).allow_burst(MACHINE_BURST)))
}

impl EndpointContext {
    pub(super) fn enrollments(&self) -> &Enrollments {
        &self.revoker.enrollments
    }
}

/// The access of workers to the files of jobs: the address of the web server, and the key that signs permits.
#[derive(Clone)]
pub(crate) struct FileTransfer {
    pub(crate) url: String,
    pub(crate) key: PermitKey,
}

/// Serves one endpoint whose handler is a function of the shared state and the request.
pub(super) async fn endpoint<F, Fut, T>(
    server: &Server,
    context: &EndpointContext,
    subject: String,
    requester: Requester,
    handler: F,
) -> Result<(), async_nats::Error>
where
    F: Fn(EndpointContext, Incoming) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, RpcError>> + Send + 'static,
    T: Serialize,
{
    let rate = Arc::clone(&context.machine_rate);
    endpoint_with_rate(server, context, subject, (requester, rate), handler).await
}

/// Like [`endpoint`], with another rate limit for machines.
pub(super) async fn endpoint_with_rate<F, Fut, T>(
    server: &Server,
    context: &EndpointContext,
    subject: String,
    (requester, rate): (Requester, Arc<DefaultKeyedRateLimiter<MachineId>>),
    handler: F,
) -> Result<(), async_nats::Error>
where
    F: Fn(EndpointContext, Incoming) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, RpcError>> + Send + 'static,
    T: Serialize,
{
    let context = context.clone();
    let name: String = subject.chars().filter(|c| *c != '*').map(|c| if c == '.' { '-' } else { c }).collect();
    server
        .endpoint(&name, subject, requester, move |incoming| {
            let is_too_fast = matches!(incoming.actor, Actor::Machine(machine) if rate.check_key(&machine).is_err());
            let answer = handler(context.clone(), incoming);
            async move {
                if is_too_fast {
                    return Err(RpcError::asks_too_often());
                }
                answer.await.and_then(|value| to_json(&value))
            }
        })
        .await
}

fn to_json(value: &impl Serialize) -> Result<Value, RpcError> {
    serde_json::to_value(value).map_err(|e| RpcError::unavailable("the answer could not be written", &e))
}

pub(super) fn done(seq: Seq) -> Done {
    Done { seq }
}

/// The account in whose name a request is made.
pub(super) fn account_of(actor: Actor) -> Result<AccountId, RpcError> {
    match actor {
        Actor::Account(id) => Ok(id),
        _ => Err(not_allowed("Only an account may do this.")),
    }
}

/// Refuses everybody but operators.
pub(super) fn only_operators(actor: Actor) -> Result<(), RpcError> {
    match actor {
        Actor::Operator(_) => Ok(()),
        _ => Err(not_allowed("Only an operator may do this.")),
    }
}

fn not_allowed(message: &str) -> RpcError {
    RpcError::refused(Refusal::new("NotAllowed", RefusalKind::Forbidden, message))
}
