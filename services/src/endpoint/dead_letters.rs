//! Dead letters: job messages in DISPATCH that nobody works on. Operators are told of each, with its likely cause and
//! the remedy.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use async_nats::jetstream::{consumer, context::ConsumerInfoErrorKind, stream::Stream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_domain::{World, job::Phase, machine::Availability};
use gpubnb_events::{
    MachineId, Refusal, RefusalKind, Seq, Timestamp,
    dead_letter::{DeadLetter, DeadMessage, Remedied, Remedy, Trouble},
    subject,
};
use gpubnb_log::{
    dispatch::lease_of,
    stream::{DISPATCH, machine_consumer, provision_machine},
};
use gpubnb_runtime::rpc::{Failure, Incoming, Requester, Server};
use tracing::info;

use super::context::{Endpoints, endpoint, only_operators};

/// How long the last answer is given again.
const FRESH: Duration = Duration::from_secs(5);
/// How long one look at DISPATCH may take.
const PATIENCE: Duration = Duration::from_secs(6);
/// Machines whose messages are read at the same time.
const AT_ONCE: usize = 32;
/// Most messages that are read for one machine.
const MOST_OF_ONE: usize = 20;
/// Most dead letters in one answer.
const MOST: usize = 200;

pub(super) async fn serve(server: &Server, e: &Endpoints) -> Result<(), async_nats::Error> {
    endpoint(server, e, subject::command("market", "letters"), Requester::Edge, letters).await?;
    endpoint(server, e, subject::command("market", "remedy"), Requester::Edge, remedy).await
}

fn broker(e: impl std::error::Error + 'static) -> Failure {
    Failure::unavailable("the broker does not tell which job messages wait; try again", &e)
}

async fn letters(e: Endpoints, r: Incoming) -> Result<Vec<DeadLetter>, Failure> {
    only_operators(r.actor)?;
    // The lock makes one request look on behalf of all that ask at the same time. A failure is kept as well: a broker
    // that does not answer is not asked again at once.
    let mut found = e.dead_letters.lock().await;
    if let Some((_, letters)) = found.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
        return letters.clone();
    }
    let letters = tokio::time::timeout(PATIENCE, look(&e)).await.map_err(broker).flatten();
    *found = Some((Instant::now(), letters.clone()));
    letters
}

async fn look(e: &Endpoints) -> Result<Vec<DeadLetter>, Failure> {
    // On an older state, a lease that has just begun would look as if it were over.
    e.executor.catch_up().await?;
    let stream = e.executor.log.jetstream().get_stream_no_info(DISPATCH).await.map_err(broker)?;
    let consumers: Vec<consumer::Info> = stream.consumers().try_collect().await.map_err(broker)?;
    let mut consumers: HashMap<String, consumer::Info> = consumers.into_iter().map(|c| (c.name.clone(), c)).collect();
    let machines: Vec<MachineId> = e.executor.replica.read(|w| {
        let on_market = w.machines().filter(|(_, m)| m.availability != Availability::Delisted);
        on_market.map(|(id, _)| *id).collect()
    });
    let machines = machines.into_iter().map(|machine| (machine, consumers.remove(&machine_consumer(machine))));
    let looks: Vec<_> = machines.map(|(machine, info)| of_one(e, &stream, machine, info)).collect();
    let looks = futures_util::stream::iter(looks).buffered(AT_ONCE);
    let found: Vec<Vec<DeadLetter>> = looks.try_collect().await?;
    Ok(found.into_iter().flatten().take(MOST).collect())
}

/// The dead letters of one machine. `info` describes its consumer; `None`: it has none.
async fn of_one(
    e: &Endpoints,
    stream: &Stream<()>,
    machine: MachineId,
    info: Option<consumer::Info>,
) -> Result<Vec<DeadLetter>, Failure> {
    let name = e.executor.replica.read(|w| w.machine(machine).map(|m| m.offer.name.clone()));
    let machine_name = name.unwrap_or_default();
    let letter = |trouble, message| DeadLetter { machine, machine_name: machine_name.clone(), trouble, message };
    let Some(info) = info else { return Ok(vec![letter(Trouble::NoConsumer, None)]) };
    let waiting = waiting(e, stream, machine, &info).await?;
    Ok(waiting.into_iter().map(|(trouble, message)| letter(trouble, Some(message))).collect())
}

/// Messages that have waited for one machine for longer than a machine has to accept a job.
async fn waiting(
    e: &Endpoints,
    stream: &Stream<()>,
    machine: MachineId,
    info: &consumer::Info,
) -> Result<Vec<(Trouble, DeadMessage)>, Failure> {
    let mut found = Vec::new();
    if info.num_pending == 0 && info.num_ack_pending == 0 {
        return Ok(found);
    }
    let (filter, mut next) = (subject::dispatch_of(machine), info.ack_floor.stream_sequence + 1);
    for _ in 0..MOST_OF_ONE {
        let Ok(raw) = stream.get_first_raw_message_by_subject(&filter, next).await else { break };
        next = raw.sequence + 1;
        let at = Timestamp::from_nanos(raw.time.unix_timestamp_nanos());
        let (job, lease) = (subject::job_of_dispatch(&raw.subject), lease_of(Some(&raw.headers)));
        let Some((job, lease)) = job.zip(lease) else { continue };
        let message = DeadMessage { seq: Seq(raw.sequence), job, lease, since: at };
        let given = raw.sequence <= info.delivered.stream_sequence;
        if e.executor.clock.now().since(at) > e.executor.settings.accept_within {
            found.extend(e.executor.replica.read(|w| trouble_with(w, machine, &message, given)).map(|t| (t, message)));
        }
    }
    Ok(found)
}

/// The trouble with an old message; `None` while its attempt goes on.
fn trouble_with(world: &World, machine: MachineId, message: &DeadMessage, given: bool) -> Option<Trouble> {
    let held = world.machine(machine).and_then(|m| m.leases.get(&message.job));
    if held != Some(&message.lease) {
        return Some(Trouble::LeaseOver);
    }
    let assigned = world.job(message.job).is_some_and(|job| job.phase == Phase::Assigned);
    assigned.then_some(if given { Trouble::NotAccepted } else { Trouble::NotFetched })
}

async fn look_at(e: &Endpoints, machine: MachineId) -> Result<Vec<DeadLetter>, Failure> {
    e.executor.catch_up().await?;
    if e.executor.replica.read(|w| w.machine(machine).is_none_or(|m| m.availability == Availability::Delisted)) {
        return Ok(Vec::new());
    }
    let stream = e.executor.log.jetstream().get_stream_no_info(DISPATCH).await.map_err(broker)?;
    let info = match stream.consumer_info(machine_consumer(machine)).await {
        Ok(info) => Some(info),
        Err(e) if e.kind() == ConsumerInfoErrorKind::NotFound => None,
        Err(e) => return Err(broker(e)),
    };
    of_one(e, &stream, machine, info).await
}

async fn remedy(e: Endpoints, r: Incoming) -> Result<Remedied, Failure> {
    only_operators(r.actor)?;
    let Remedy { machine, seq } = r.parse()?;
    let letters = tokio::time::timeout(PATIENCE, look_at(&e, machine)).await.map_err(broker)??;
    let letter = letters.into_iter().find(|l| l.message.map(|m| m.seq) == seq);
    let gone = || {
        Failure::refused(Refusal::new("NoSuchLetter", RefusalKind::NotFound, "There is no such dead letter any more."))
    };
    let letter = letter.ok_or_else(gone)?;
    let js = e.executor.log.jetstream();
    match (letter.trouble, letter.message) {
        (Trouble::NoConsumer, _) => {
            let slots = e.executor.replica.read(|w| w.machine(machine).map_or(1, |m| m.offer.slots));
            provision_machine(&js, machine, slots).await.map_err(broker)?;
        }
        (Trouble::LeaseOver, Some(message)) => {
            // Up to this message only: the job may have been given to the machine again since.
            let stream = js.get_stream_no_info(DISPATCH).await.map_err(broker)?;
            let subject = subject::dispatch(machine, message.job);
            stream.purge().filter(subject).sequence(message.seq.0 + 1).await.map_err(broker)?;
        }
        _ => return Err(Failure::refused(Refusal::new("NoRemedy", RefusalKind::Conflict, letter.trouble.remedy()))),
    }
    info!(%machine, actor = %r.actor, trouble = ?letter.trouble, "a dead letter was dealt with");
    *e.dead_letters.lock().await = None;
    Ok(Remedied {})
}
