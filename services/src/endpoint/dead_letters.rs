//! Dead letters, for operators. A *dead letter* is a job message in the stream DISPATCH that no machine works on: the
//! time to accept the job is over, and either nobody has accepted it or the lease in the message is over. A machine
//! without a consumer, which cannot fetch job messages, is also reported as a dead letter. Each dead letter has its
//! likely cause and a remedy. If the market can apply the remedy, operators do so with `cmd.market.remedy`.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use async_nats::jetstream::{consumer, context::ConsumerInfoErrorKind, stream::Stream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_domain::{World, job::Phase, machine::Availability};
use gpubnb_events::{
    MachineId, Refusal, RefusalKind, Seq, Timestamp,
    dead_letter::{DeadLetter, DeadLetterReason, DeadMessage, Remedied, Remedy},
    subject,
};
use gpubnb_log::{
    dispatch::lease_of,
    message,
    stream::{DISPATCH, machine_consumer, provision_machine},
};
use gpubnb_runtime::rpc::{Incoming, Requester, RpcError, Server};
use tracing::info;

use super::context::{EndpointContext, endpoint, only_operators};

/// An answer is reused for this long.
const CACHE_LIFETIME: Duration = Duration::from_secs(5);
/// Time limit for reading DISPATCH for one answer.
const READ_TIMEOUT: Duration = Duration::from_secs(6);
/// Machines whose messages are read at the same time.
const MAX_CONCURRENT: usize = 32;
/// Most messages that are read for one machine, besides those of the jobs that the machine holds.
const MAX_PER_MACHINE: usize = 20;
/// Most dead letters in one answer.
const MAX_LETTERS: usize = 200;

pub(super) async fn serve(server: &Server, e: &EndpointContext) -> Result<(), async_nats::Error> {
    endpoint(server, e, subject::command("market", "letters"), Requester::Edge, letters).await?;
    endpoint(server, e, subject::command("market", "remedy"), Requester::Edge, remedy).await
}

fn unavailable(e: impl std::error::Error + 'static) -> RpcError {
    RpcError::unavailable("the waiting job messages cannot be read now; try again", &e)
}

async fn letters(e: EndpointContext, r: Incoming) -> Result<Vec<DeadLetter>, RpcError> {
    only_operators(r.actor)?;
    // Requests that wait for the lock reuse the answer of the first request. A failure is cached as well, so that a
    // broker that does not answer is not asked again at once.
    let mut cached = e.dead_letters.lock().await;
    if let Some((_, letters)) = cached.as_ref().filter(|(at, _)| at.elapsed() < CACHE_LIFETIME) {
        return letters.clone();
    }
    let letters = tokio::time::timeout(READ_TIMEOUT, all_letters(&e)).await.map_err(unavailable).flatten();
    *cached = Some((Instant::now(), letters.clone()));
    letters
}

/// The dead letters of all machines on the market.
async fn all_letters(e: &EndpointContext) -> Result<Vec<DeadLetter>, RpcError> {
    // An older state does not know the newest leases, and would report their messages as dead letters.
    e.executor.catch_up().await?;
    let stream = e.executor.log.jetstream().get_stream_no_info(DISPATCH).await.map_err(unavailable)?;
    let consumers: Vec<consumer::Info> = stream.consumers().try_collect().await.map_err(unavailable)?;
    let mut consumers: HashMap<String, consumer::Info> = consumers.into_iter().map(|c| (c.name.clone(), c)).collect();
    let machines: Vec<MachineId> = e.executor.replica.read(|w| {
        let on_market = w.machines().filter(|(_, m)| m.availability != Availability::Delisted);
        on_market.map(|(id, _)| *id).collect()
    });
    let machines = machines.into_iter().map(|machine| (machine, consumers.remove(&machine_consumer(machine))));
    let reads: Vec<_> = machines.map(|(machine, info)| letters_with_consumer(e, &stream, machine, info)).collect();
    let reads = futures_util::stream::iter(reads).buffered(MAX_CONCURRENT);
    let found: Vec<Vec<DeadLetter>> = reads.try_collect().await?;
    Ok(found.into_iter().flatten().take(MAX_LETTERS).collect())
}

/// The dead letters of one machine. `info` describes the machine's consumer; `None` if there is no consumer.
async fn letters_with_consumer(
    e: &EndpointContext,
    stream: &Stream<()>,
    machine: MachineId,
    info: Option<consumer::Info>,
) -> Result<Vec<DeadLetter>, RpcError> {
    let name = e.executor.replica.read(|w| w.machine(machine).map(|m| m.offer.name.clone()));
    let machine_name = name.unwrap_or_default();
    let letter = |trouble, message| DeadLetter { machine, machine_name: machine_name.clone(), trouble, message };
    let Some(info) = info else { return Ok(vec![letter(DeadLetterReason::NoConsumer, None)]) };
    let overdue = overdue_messages(e, stream, machine, &info).await?;
    Ok(overdue.into_iter().map(|(trouble, message)| letter(trouble, Some(message))).collect())
}

/// The messages for one machine that are older than the time limit for accepting a job.
async fn overdue_messages(
    e: &EndpointContext,
    stream: &Stream<()>,
    machine: MachineId,
    info: &consumer::Info,
) -> Result<Vec<(DeadLetterReason, DeadMessage)>, RpcError> {
    let mut found = Vec::new();
    if info.num_pending == 0 && info.num_ack_pending == 0 {
        return Ok(found);
    }
    let (filter, mut next) = (subject::dispatch_of(machine), info.ack_floor.stream_sequence + 1);
    // The messages of running jobs are acknowledged when the jobs end.
    let held = e.executor.replica.read(|w| w.machine(machine).map_or(0, |m| m.leases.len()));
    for _ in 0..MAX_PER_MACHINE + held {
        let Some(raw) = message::next_at_leader(stream, &filter, next).await? else { break };
        next = raw.sequence + 1;
        let at = Timestamp::from_nanos(raw.time.unix_timestamp_nanos());
        let (job, lease) = (subject::job_of_dispatch(&raw.subject), lease_of(Some(&raw.headers)));
        let Some((job, lease)) = job.zip(lease) else { continue };
        let message = DeadMessage { seq: Seq(raw.sequence), job, lease, since: at };
        let was_delivered = raw.sequence <= info.delivered.stream_sequence;
        if e.executor.clock.now().since(at) > e.executor.settings.accept_within {
            found.extend(
                e.executor.replica.read(|w| trouble_with(w, machine, &message, was_delivered)).map(|t| (t, message)),
            );
        }
    }
    Ok(found)
}

/// The trouble with an overdue message; `None` if the machine has accepted the job.
fn trouble_with(
    world: &World,
    machine: MachineId,
    message: &DeadMessage,
    was_delivered: bool,
) -> Option<DeadLetterReason> {
    let held = world.machine(machine).and_then(|m| m.leases.get(&message.job));
    if held != Some(&message.lease) {
        return Some(DeadLetterReason::LeaseOver);
    }
    let is_assigned = world.job(message.job).is_some_and(|job| job.phase == Phase::Assigned);
    is_assigned.then_some(if was_delivered { DeadLetterReason::NotAccepted } else { DeadLetterReason::NotFetched })
}

/// The dead letters of one machine; none if the machine is not on the market.
async fn letters_of(e: &EndpointContext, machine: MachineId) -> Result<Vec<DeadLetter>, RpcError> {
    e.executor.catch_up().await?;
    if e.executor.replica.read(|w| w.machine(machine).is_none_or(|m| m.availability == Availability::Delisted)) {
        return Ok(Vec::new());
    }
    let stream = e.executor.log.jetstream().get_stream_no_info(DISPATCH).await.map_err(unavailable)?;
    let info = match stream.consumer_info(machine_consumer(machine)).await {
        Ok(info) => Some(info),
        Err(e) if e.kind() == ConsumerInfoErrorKind::NotFound => None,
        Err(e) => return Err(unavailable(e)),
    };
    letters_with_consumer(e, &stream, machine, info).await
}

async fn remedy(e: EndpointContext, r: Incoming) -> Result<Remedied, RpcError> {
    only_operators(r.actor)?;
    let Remedy { machine, seq } = r.parse()?;
    let letters = tokio::time::timeout(READ_TIMEOUT, letters_of(&e, machine)).await.map_err(unavailable)??;
    let letter = letters.into_iter().find(|l| l.message.map(|m| m.seq) == seq);
    let gone =
        || RpcError::refused(Refusal::new("NoSuchLetter", RefusalKind::NotFound, "This dead letter does not exist."));
    let letter = letter.ok_or_else(gone)?;
    let js = e.executor.log.jetstream();
    match (letter.trouble, letter.message) {
        (DeadLetterReason::NoConsumer, _) => {
            let slots = e.executor.replica.read(|w| w.machine(machine).map_or(1, |m| m.offer.slots));
            provision_machine(&js, machine, slots).await.map_err(unavailable)?;
        }
        (DeadLetterReason::LeaseOver, Some(message)) => {
            // Purge up to this message only: a newer message may assign the job to the same machine again.
            let stream = js.get_stream_no_info(DISPATCH).await.map_err(unavailable)?;
            let subject = subject::dispatch(machine, message.job);
            stream.purge().filter(subject).sequence(message.seq.0 + 1).await.map_err(unavailable)?;
        }
        // The market cannot apply this remedy. The refusal tells the operator what to do.
        _ => return Err(RpcError::refused(Refusal::new("NoRemedy", RefusalKind::Conflict, letter.trouble.remedy()))),
    }
    info!(%machine, actor = %r.actor, trouble = ?letter.trouble, "the remedy for a dead letter was applied");
    *e.dead_letters.lock().await = None;
    Ok(Remedied {})
}
