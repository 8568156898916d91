//! The writer of OUTPUT: appends the log, the progress and the metrics of a job, for the machine that holds the lease.
//!
//! Each kind of output of a job on a machine has its own subject. A header of each message has the bytes of this output
//! so far. The broker appends a message only if the last message of the subject is still the one that the writer has
//! seen. So the byte budget of a job holds for all replicas of the services together, and no replica needs to remember
//! the bytes. The remembered positions only save the request for the last message.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_nats::{
    HeaderMap,
    jetstream::{
        Context,
        context::PublishErrorKind,
        message::{PublishMessage, StreamMessage},
        stream::{LastRawMessageErrorKind, Stream},
    },
};
use gpubnb_domain::{DomainError, World, account::Account};
use gpubnb_events::{
    Clock, JobId, Lease, MachineId, Millis, Seq, Timestamp,
    message::header,
    output::{JobMetrics, LogLine, LogLines, LogStream, Output, Progress},
    subject::{self, OutputKind},
};
use gpubnb_log::stream::OUTPUT;
use gpubnb_runtime::rpc::RpcError;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::output_room::{OutputRooms, RoomKey};

/// Longest wait for the broker.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Longest time of one addition. It is shorter than the time after which a worker sends the output again: a late
/// addition could come after newer output.
const ADD_TIMEOUT: Duration = Duration::from_secs(6);
/// Most positions that are remembered.
const MAX_POSITIONS: usize = 8_192;
/// The header with the bytes of the lease's output on this subject, up to the end of the message.
const BYTES: &str = "Gpubnb-Output-Bytes";
/// Most lines of a log.
const MAX_LINES_OF_LOG: u64 = 1 << 40;
/// The value of [`Position::bytes`] after a log was cut at its budget. No further line is appended.
const CUT: u64 = u64::MAX;
/// The bytes that a line of the log takes in the stream beside its text.
const STORED_LINE_COST: u64 = 64;
/// The bytes that a message takes in the stream beside its payload, for its subject and headers.
const MESSAGE_COST: u64 = 256;
/// The byte budget of progress, and of metrics: these bytes, and some more for each second since the job's submission.
const BASE_BUDGET: u64 = 16 << 20;
const BUDGET_PER_SECOND: u64 = 2 << 10;

/// Appends output to OUTPUT.
pub(crate) struct JobOutput {
    js: Context,
    stream: Stream<()>,
    /// Largest log of a job, bytes.
    max_log: u64,
    rooms: OutputRooms,
    positions: Mutex<HashMap<String, Position>>,
}

/// The end of one subject's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    /// The sequence of the last message; zero if there is none.
    seq: u64,
    lease: Option<Lease>,
    /// The number of the next line of the log.
    next_line: u64,
    /// The bytes of the lease's output so far.
    bytes: u64,
    /// A hash of the last message, by which a repetition is recognised.
    last: u64,
    /// The time in the last message of progress or metrics, by the machine's clock.
    last_at: Timestamp,
}

impl Default for Position {
    fn default() -> Self {
        Self { seq: 0, lease: None, next_line: 0, bytes: 0, last: 0, last_at: Timestamp::EPOCH }
    }
}

/// The decision what to append for one output.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// Nothing is appended: the output is in the stream already, comes too late, or is beyond the budget.
    Already,
    /// The message is appended. `payload` is the JSON of the output.
    Append { payload: Vec<u8>, next: Position },
}

/// The attempt for which output is added.
#[derive(Debug, Clone)]
pub(crate) struct OutputWriter {
    pub(crate) machine: MachineId,
    /// The time since the job was submitted.
    pub(crate) age: Millis,
    /// The room that the output takes.
    pub(crate) room: RoomKey,
    pub(crate) now: Timestamp,
}

/// The bytes that a message may add.
#[derive(Debug, Clone, Copy)]
struct Budget {
    /// Most bytes of the attempt's output of this kind.
    attempt: u64,
    /// The bytes that still fit into the account's room.
    room_left: u64,
    /// The size of the account's room.
    room: u64,
}

impl JobOutput {
    /// Opens the stream over the connection of the user `output`.
    pub(crate) async fn open(
        js: Context,
        max_log: u64,
        rooms: OutputRooms,
    ) -> Result<Self, async_nats::jetstream::context::GetStreamError> {
        let stream = js.get_stream_no_info(OUTPUT).await?;
        Ok(Self { js, stream, max_log, rooms, positions: Mutex::default() })
    }

    /// Counts what was written, until shutdown.
    pub(crate) async fn count(self: Arc<Self>, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
        self.rooms.run(clock.as_ref(), shutdown).await;
    }

    /// Appends output. Returns the sequence of the message in OUTPUT.
    pub(crate) async fn add(&self, writer: OutputWriter, job: JobId, output: Output) -> Result<Seq, RpcError> {
        check_size(&output)?;
        let subject = subject::output(writer.machine, job, output.kind());
        let added = tokio::time::timeout(ADD_TIMEOUT, self.add_to(&subject, &output, &writer)).await;
        self.rooms.flush_many(&writer.room, writer.now).await;
        added.map_err(|e| unavailable(&e))?.map(Seq)
    }

    /// Appends output to a subject. Tries again from the end of the subject if another replica has appended to it.
    async fn add_to(&self, subject: &str, output: &Output, writer: &OutputWriter) -> Result<u64, RpcError> {
        let budget = Budget {
            attempt: self.attempt_budget(output.kind(), writer.age),
            room_left: self.rooms.left(&writer.room, writer.now).await?,
            room: self.rooms.max_bytes(),
        };
        let mut known = self.positions().get(subject).copied();
        loop {
            let (position, is_fresh) = match known.take() {
                Some(position) => (position, false),
                None => (self.read_position(subject, output.kind()).await?, true),
            };
            match plan(&position, output, budget)? {
                // Another replica may have appended since this position was remembered: read it and plan again.
                Plan::Already if !is_fresh => {}
                Plan::Already => {
                    self.remember(subject, position);
                    return Ok(position.seq);
                }
                Plan::Append { payload, next } => {
                    let bytes = payload.len() as u64 + MESSAGE_COST;
                    if let Some(seq) = self.append(subject, output, payload, position.seq, next.bytes).await? {
                        self.remember(subject, Position { seq, ..next });
                        self.rooms.count(&writer.room, bytes);
                        return Ok(seq);
                    }
                }
            }
        }
    }

    /// The bytes of one kind of output that an attempt of this age may have.
    fn attempt_budget(&self, kind: OutputKind, age: Millis) -> u64 {
        match kind {
            OutputKind::Log => self.max_log,
            OutputKind::Progress | OutputKind::Metrics => BASE_BUDGET + BUDGET_PER_SECOND * (age.0 / 1_000),
        }
    }

    /// Appends a message after the message `last` of its subject. Returns `None` if another message was appended.
    async fn append(
        &self,
        subject: &str,
        output: &Output,
        payload: Vec<u8>,
        last: u64,
        bytes: u64,
    ) -> Result<Option<u64>, RpcError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::TYPE, output.wire_name());
        headers.insert(BYTES, bytes.to_string());
        let message =
            PublishMessage::build().headers(headers).expected_last_subject_sequence(last).payload(payload.into());
        let sent = async {
            match self.js.send_publish(subject.to_owned(), message).await?.await {
                Ok(ack) => Ok(Some(ack.sequence)),
                Err(e) if e.kind() == PublishErrorKind::WrongLastSequence => Ok(None),
                Err(e) => Err(e),
            }
        };
        let sent = tokio::time::timeout(TIMEOUT, sent).await;
        sent.map_err(|e| unavailable(&e))?.map_err(|e| unavailable(&e))
    }

    /// Reads the end of a subject's output from the broker that leads the stream: another broker may lag behind.
    async fn read_position(&self, subject: &str, kind: OutputKind) -> Result<Position, RpcError> {
        match tokio::time::timeout(TIMEOUT, self.stream.get_last_raw_message_by_subject(subject)).await {
            Err(e) => Err(unavailable(&e)),
            Ok(Ok(message)) => Ok(position_of(&message, kind)),
            Ok(Err(e)) if e.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(Position::default()),
            Ok(Err(e)) => Err(unavailable(&e)),
        }
    }

    /// Remembers a position, unless a later one is known.
    fn remember(&self, subject: &str, position: Position) {
        let mut positions = self.positions();
        if positions.len() >= MAX_POSITIONS {
            positions.clear();
        }
        let known = positions.entry(subject.to_owned()).or_default();
        if position.seq >= known.seq {
            *known = position;
        }
    }

    fn positions(&self) -> MutexGuard<'_, HashMap<String, Position>> {
        // A poisoned lock is used anyway: a panic of another thread cannot leave the map half written.
        self.positions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unavailable(e: &(dyn std::error::Error + 'static)) -> RpcError {
    RpcError::unavailable("the output cannot be stored now; try again", e)
}

fn to_payload(output: &Output) -> Result<Vec<u8>, RpcError> {
    output.payload().map_err(|e| RpcError::unavailable("the output cannot be written", &e))
}

fn hash_of(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    payload.hash(&mut hasher);
    hasher.finish()
}

/// The position after a message of the stream.
fn position_of(message: &StreamMessage, kind: OutputKind) -> Position {
    #[derive(Deserialize)]
    struct AnyOutput {
        lease: Lease,
        occurred_at: Option<Timestamp>,
    }
    let bytes = message.headers.get(BYTES).and_then(|bytes| bytes.as_str().parse().ok()).unwrap_or(0);
    let found = serde_json::from_slice::<AnyOutput>(&message.payload).ok();
    let lease = found.as_ref().map(|output| output.lease);
    let next_line = match kind {
        OutputKind::Log => serde_json::from_slice::<LogLines>(&message.payload)
            .map_or(0, |chunk| chunk.first_line.saturating_add(chunk.lines.len() as u64)),
        OutputKind::Progress | OutputKind::Metrics => 0,
    };
    let last_at = found.as_ref().and_then(|output| output.occurred_at).unwrap_or(Timestamp::EPOCH);
    Position { seq: message.sequence, lease, next_line, bytes, last: hash_of(&message.payload), last_at }
}

/// Refuses a message with more than a worker ever sends.
fn check_size(output: &Output) -> Result<(), RpcError> {
    const MAX_LINES: usize = 1_024;
    const MAX_BYTES: usize = 192 << 10;
    const MAX_TEXT: usize = 1_000;
    let is_small = match output {
        Output::Log(chunk) => {
            chunk.lines.len() <= MAX_LINES && chunk.lines.iter().map(|line| line.text.len()).sum::<usize>() <= MAX_BYTES
        }
        Output::Progress(progress) => progress.message.len() <= MAX_TEXT,
        Output::Metrics(metrics) => {
            metrics.values.len() <= 64 && metrics.values.iter().all(|(name, _)| name.len() <= MAX_TEXT)
        }
    };
    if is_small { Ok(()) } else { Err(RpcError::refused(DomainError::field("output", "The output is too large."))) }
}

/// Decides what is appended after a position. A repetition, and the part of a chunk that is in the stream, are left
/// out. A log that reaches its budget is cut, and ends with a line that says so.
fn plan(position: &Position, output: &Output, budget: Budget) -> Result<Plan, RpcError> {
    let before = if position.lease == Some(output.lease()) {
        *position
    } else {
        Position { seq: position.seq, lease: Some(output.lease()), ..Position::default() }
    };
    let chunk = match output {
        Output::Log(chunk) => chunk,
        Output::Progress(Progress { occurred_at, .. }) | Output::Metrics(JobMetrics { occurred_at, .. }) => {
            return plan_newest(&before, output, *occurred_at, budget);
        }
    };
    if before.bytes == CUT || chunk.first_line > MAX_LINES_OF_LOG {
        return Ok(Plan::Already);
    }
    // Lines before the chunk may be missing, for example because the stream was restored from a backup. The log then
    // goes on with a gap in its numbers.
    let skipped = before.next_line.saturating_sub(chunk.first_line);
    let next_line = before.next_line.max(chunk.first_line);
    let new = chunk.lines.iter().skip(usize::try_from(skipped).unwrap_or(usize::MAX));
    let Some((lines, bytes)) = within(new, before.bytes, budget) else { return Ok(Plan::Already) };
    let next_line = next_line + lines.len() as u64;
    let kept = LogLines { lease: chunk.lease, first_line: next_line - lines.len() as u64, lines };
    let payload = to_payload(&Output::Log(kept))?;
    let last = hash_of(&payload);
    Ok(Plan::Append { payload, next: Position { next_line, bytes, last, ..before } })
}

/// Decides whether a message of progress or metrics is appended. An older message, which was late, is left out.
fn plan_newest(before: &Position, output: &Output, at: Timestamp, budget: Budget) -> Result<Plan, RpcError> {
    let payload = to_payload(output)?;
    let (last, added) = (hash_of(&payload), payload.len() as u64);
    let bytes = before.bytes.saturating_add(added);
    if last == before.last || at < before.last_at || bytes > budget.attempt || added + MESSAGE_COST > budget.room_left {
        return Ok(Plan::Already);
    }
    Ok(Plan::Append { payload, next: Position { bytes, last, last_at: at, ..*before } })
}

/// The lines within the budget, and the bytes of the log after these lines. `None` if there is no line.
fn within<'a>(lines: impl Iterator<Item = &'a LogLine>, before: u64, budget: Budget) -> Option<(Vec<LogLine>, u64)> {
    let (mut kept, mut bytes) = (Vec::new(), before);
    for line in lines {
        bytes = bytes.saturating_add(line.text.len() as u64 + STORED_LINE_COST);
        let text = if bytes > budget.attempt {
            Some(format!("the log is cut here: the market keeps {} MiB of a job's log", budget.attempt >> 20))
        } else if bytes - before + MESSAGE_COST > budget.room_left {
            Some(format!(
                "the log is cut here: the output of your jobs takes your share of the market's room, {} MiB; \
                 accounts without money have one share together",
                budget.room >> 20
            ))
        } else {
            None
        };
        if let Some(text) = text {
            kept.push(LogLine { stream: LogStream::Stderr, at: line.at, text, cut: 0 });
            return Some((kept, CUT));
        }
        kept.push(line.clone());
    }
    (!kept.is_empty()).then_some((kept, bytes))
}

/// The attempt that may add output under a lease. Refuses a lease that is not live, or not of this job and machine. A
/// log begins when the job's program begins.
pub(crate) fn writer_of(
    world: &World,
    job: JobId,
    machine: MachineId,
    output: &Output,
    now: Timestamp,
) -> Result<OutputWriter, RpcError> {
    let needs_start = output.kind() == OutputKind::Log;
    let job = world.job(job).filter(|job| job.takes_output(machine, output.lease(), needs_start));
    let job = job.ok_or_else(|| RpcError::refused(DomainError::StaleLease))?;
    let has_money = |account: &Account| (account.available + account.held).0 > 0;
    let has_money = job.hold.0 > 0 || world.account(job.account).is_some_and(has_money);
    let room = RoomKey::of(job.account, has_money);
    Ok(OutputWriter { machine, age: now.since(job.submitted_at), room, now })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::{SystemClock, output::Progress};

    const LEASE: Lease = Lease(Seq(7));

    fn chunk(lease: Lease, first_line: u64, texts: &[&str]) -> Output {
        let line = |text: &&str| LogLine {
            stream: LogStream::Stdout,
            at: SystemClock.now(),
            text: (*text).to_owned(),
            cut: 0,
        };
        Output::Log(LogLines { lease, first_line, lines: texts.iter().map(line).collect() })
    }

    fn only_attempt(budget: u64) -> Budget {
        Budget { attempt: budget, room_left: u64::MAX, room: u64::MAX }
    }

    /// The texts that a plan appends, and the position after them.
    fn appended(position: &Position, output: &Output, budget: u64) -> Option<(u64, Vec<String>, Position)> {
        match plan(position, output, only_attempt(budget)).unwrap() {
            Plan::Already => None,
            Plan::Append { payload, next } => {
                let lines: LogLines = serde_json::from_slice(&payload).unwrap();
                Some((lines.first_line, lines.lines.into_iter().map(|line| line.text).collect(), next))
            }
        }
    }

    #[test]
    fn each_line_is_appended_once_in_its_order() {
        let start = Position::default();
        let (first, texts, next) = appended(&start, &chunk(LEASE, 0, &["a", "b"]), 1_000).unwrap();
        assert_eq!((first, texts.len(), next.next_line, next.bytes), (0, 2, 2, 2 * (1 + STORED_LINE_COST)));
        let next = Position { seq: 5, ..next };
        assert_eq!(appended(&next, &chunk(LEASE, 0, &["a", "b"]), 1_000), None, "a repetition");
        let (first, texts, after) = appended(&next, &chunk(LEASE, 1, &["b", "c"]), 1_000).unwrap();
        assert_eq!((first, texts, after.next_line), (2, vec!["c".to_owned()], 3), "lines that are there are left out");
        let (first, _, after) = appended(&next, &chunk(LEASE, 9, &["d"]), 1_000).unwrap();
        assert_eq!((first, after.next_line), (9, 10), "a gap stays a gap");
        assert_eq!(appended(&next, &chunk(LEASE, u64::MAX, &["e"]), 1_000), None);
        // The next attempt on the same machine begins anew, also with its budget.
        let (first, _, next) = appended(&next, &chunk(Lease(Seq(9)), 0, &["x"]), 1_000).unwrap();
        assert_eq!((first, next.lease, next.bytes), (0, Some(Lease(Seq(9))), 1 + STORED_LINE_COST));
    }

    #[test]
    fn a_log_ends_where_its_budget_ends_and_says_so() {
        let full = Position { seq: 5, lease: Some(LEASE), next_line: 3, bytes: 30, ..Position::default() };
        let (first, texts, next) = appended(&full, &chunk(LEASE, 3, &["a", "b", "c"]), 100).unwrap();
        assert_eq!((first, texts[0].as_str(), texts.len(), next.bytes), (3, "a", 2, CUT));
        assert!(texts[1].starts_with("the log is cut here"), "{texts:?}");
        assert_eq!(appended(&next, &chunk(LEASE, 6, &["d"]), 100), None, "nothing follows");
        let huge = chunk(LEASE, 0, &["x".repeat(300 << 10).as_str()]);
        assert!(check_size(&huge).is_err());
    }

    #[test]
    fn a_log_ends_where_its_accounts_room_ends_and_says_so() {
        let budget = Budget { attempt: 1 << 30, room_left: 2 * (1 + STORED_LINE_COST) + MESSAGE_COST, room: 3 << 20 };
        let Plan::Append { payload, next } =
            plan(&Position::default(), &chunk(LEASE, 0, &["a", "b", "c"]), budget).unwrap()
        else {
            panic!()
        };
        let lines: LogLines = serde_json::from_slice(&payload).unwrap();
        assert_eq!((lines.lines.len(), next.bytes), (3, CUT));
        assert!(lines.lines[2].text.contains("your share of the market's room, 3 MiB"), "{lines:?}");
        let progress = Progress { lease: LEASE, fraction: 0.5, message: String::new(), occurred_at: SystemClock.now() };
        let full = Budget { room_left: 10, ..budget };
        assert_eq!(plan(&Position::default(), &Output::Progress(progress), full).unwrap(), Plan::Already);
    }

    #[test]
    fn progress_is_appended_once_and_within_its_budget() {
        let now = SystemClock.now();
        let progress = |fraction: f32, occurred_at: Timestamp| {
            Output::Progress(Progress { lease: LEASE, fraction, message: "half".to_owned(), occurred_at })
        };
        let output = progress(0.5, now);
        let Plan::Append { next, .. } = plan(&Position::default(), &output, only_attempt(1_000)).unwrap() else {
            panic!()
        };
        assert_eq!(plan(&Position { seq: 1, ..next }, &output, only_attempt(1_000)).unwrap(), Plan::Already);
        let late = progress(0.4, Timestamp::from_millis(now.millis() - 1));
        assert_eq!(
            plan(&Position { seq: 1, ..next }, &late, only_attempt(1_000)).unwrap(),
            Plan::Already,
            "a late message"
        );
        assert_eq!(plan(&Position::default(), &output, only_attempt(10)).unwrap(), Plan::Already);
    }
}
