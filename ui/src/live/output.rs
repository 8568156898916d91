//! Reading the output of jobs (log lines, progress, metrics) from the stream OUTPUT, beginning at any sequence. Workers
//! may send a message twice, so a reader drops lines that it has already read.

use std::{collections::HashMap, fmt, str::FromStr, time::Duration};

use async_nats::jetstream::{
    Message,
    consumer::{DeliverPolicy, push::OrderedConfig},
};
use futures_util::{Stream, StreamExt};
use gpubnb_events::{
    JobId, Lease, MachineId,
    output::{JobMetrics, LogLine, LogLines, Progress},
    subject::{self, OutputKind},
};
use gpubnb_log::{message, stream::OUTPUT};
use gpubnb_query::view::JobView;
use serde::Deserialize;

use crate::{app::App, error::Problem};

/// The maximum wait for the next message from the broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

/// One item of a job's output.
#[derive(Debug)]
pub(crate) enum OutputItem {
    /// A line of the log, with the lease of its attempt and its line number (from 0) within the attempt.
    Line(Lease, u64, LogLine),
    Progress(Progress),
    Metrics(JobMetrics),
}

/// The content of one message of the stream OUTPUT.
pub(crate) struct OutputMessage {
    /// The message's sequence in OUTPUT.
    pub(crate) seq: u64,
    /// The number of stored messages that follow this message.
    pub(crate) pending: u64,
    pub(crate) items: Vec<OutputItem>,
}

/// A place in the output of a job. As text: the sequence in OUTPUT, and the lease and number of the next line if lines
/// were read before, such as `812` or `812-40-77`. If the worker has sent a message twice, the reader recognises the
/// repeated lines by the number of the next line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutputCursor {
    /// The sequence in OUTPUT.
    pub(crate) seq: u64,
    /// The lease and the number of the next line.
    pub(crate) line: Option<(Lease, u64)>,
}

impl OutputCursor {
    /// The beginning of the output.
    pub(crate) const START: Self = Self { seq: 1, line: None };
}

impl fmt::Display for OutputCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some((lease, line)) => write!(f, "{}-{lease}-{line}", self.seq),
            None => write!(f, "{}", self.seq),
        }
    }
}

impl FromStr for OutputCursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "this is not the `next` of an earlier answer".to_owned();
        let mut parts = text.splitn(3, '-');
        let seq = parts.next().and_then(|seq| seq.parse().ok()).ok_or_else(wrong)?;
        let line = match (parts.next(), parts.next()) {
            (None, _) => None,
            (Some(lease), Some(line)) => Some((lease.parse().ok(), line.parse().ok())),
            (Some(_), None) => return Err(wrong()),
        };
        let line = line.map(|(lease, line)| lease.zip(line).ok_or_else(wrong)).transpose()?;
        Ok(Self { seq, line })
    }
}

/// Decodes messages of OUTPUT, and drops lines that it has already returned.
#[derive(Default)]
pub(crate) struct OutputReader {
    /// The number of the next line, by the attempt's lease.
    next: HashMap<Lease, u64>,
}

impl OutputReader {
    /// A reader that goes on at a cursor.
    fn at(cursor: OutputCursor) -> Self {
        Self { next: cursor.line.into_iter().collect() }
    }

    /// The cursor at which a reader goes on: the sequence `seq`, and the next line of the newest attempt. Earlier
    /// attempts write no more lines.
    pub(crate) fn cursor(&self, seq: u64) -> OutputCursor {
        OutputCursor { seq, line: self.next.iter().max().map(|(lease, line)| (*lease, *line)) }
    }

    /// Decodes a message. Output for a lease is dropped unless the sender is the machine that holds the lease, as
    /// `machines` tells. `None` if the message is not output of a job.
    pub(crate) fn read(&mut self, message: &Message, machines: &HashMap<Lease, MachineId>) -> Option<OutputMessage> {
        let info = message.info().ok()?;
        let (seq, pending) = (info.stream_sequence, info.pending);
        let (machine, _, kind) = subject::parse_output(&message.subject)?;
        let is_holder = |lease: Lease| machines.get(&lease) == Some(&machine);
        let items = match kind {
            OutputKind::Log => serde_json::from_slice::<LogLines>(&message.payload)
                .ok()
                .filter(|chunk| is_holder(chunk.lease))
                .map(|chunk| self.lines(chunk))
                .unwrap_or_default(),
            OutputKind::Progress => serde_json::from_slice::<Progress>(&message.payload)
                .ok()
                .filter(|progress| is_holder(progress.lease))
                .map(OutputItem::Progress)
                .into_iter()
                .collect(),
            OutputKind::Metrics => serde_json::from_slice::<JobMetrics>(&message.payload)
                .ok()
                .filter(|metrics| is_holder(metrics.lease))
                .map(OutputItem::Metrics)
                .into_iter()
                .collect(),
        };
        Some(OutputMessage { seq, pending, items })
    }

    fn lines(&mut self, chunk: LogLines) -> Vec<OutputItem> {
        let next = self.next.entry(chunk.lease).or_insert(0);
        let numbered = (chunk.first_line..).zip(chunk.lines).filter(|(number, _)| *number >= *next);
        let fresh: Vec<_> = numbered.map(|(number, line)| OutputItem::Line(chunk.lease, number, line)).collect();
        if let Some(OutputItem::Line(_, number, _)) = fresh.last() {
            *next = number + 1;
        }
        fresh
    }
}

/// The lease that a message of OUTPUT names.
pub(crate) fn lease_of(message: &Message) -> Option<Lease> {
    #[derive(Deserialize)]
    struct AnyOutput {
        lease: Lease,
    }
    serde_json::from_slice::<AnyOutput>(&message.payload).ok().map(|output| output.lease)
}

/// The machines of a job's attempts, by lease.
pub(crate) fn machines_by_lease(row: &JobView) -> HashMap<Lease, MachineId> {
    row.attempts.iter().map(|a| (a.lease, a.machine)).collect()
}

/// The problem that is reported when the broker does not answer.
pub(super) fn unavailable(e: &dyn fmt::Display) -> Problem {
    Problem::from(gpubnb_runtime::rpc::RpcError::Unavailable(format!("reading output: {e}")))
}

/// Streams all output of a job, beginning at a sequence of OUTPUT.
pub(crate) async fn follow(
    app: &App,
    job: JobId,
    from: u64,
) -> Result<impl Stream<Item = Message> + Unpin + use<>, Problem> {
    follow_subject(app, subject::output_of_job(job), from).await
}

/// Streams the messages of one subject of OUTPUT, beginning at a sequence.
pub(super) async fn follow_subject(
    app: &App,
    filter_subject: String,
    from: u64,
) -> Result<impl Stream<Item = Message> + Unpin + use<>, Problem> {
    let config = OrderedConfig {
        deliver_subject: app.js.client().new_inbox(),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from.max(1) },
        filter_subject,
        ..Default::default()
    };
    let consumer = app.js.create_consumer_on_stream(config, OUTPUT).await.map_err(|e| unavailable(&e))?;
    let messages = consumer.messages().await.map_err(|e| unavailable(&e))?;
    Ok(Box::pin(messages.filter_map(|message| async move { message.ok() })))
}

/// The maximum size of one answer, in bytes. A whole answer is held in memory.
const MAX_BYTES: usize = 2 << 20;

/// Reads the stored output of a job, beginning at `from`: about `max_items` items, or [`MAX_BYTES`]. Returns the items
/// and the cursor of the next page, which is `None` at the end of the output.
pub(crate) async fn read_page(
    app: &App,
    row: &JobView,
    from: OutputCursor,
    max_items: usize,
) -> Result<(Vec<OutputItem>, Option<OutputCursor>), Problem> {
    let machines = machines_by_lease(row);
    let subjects: Vec<_> = row.attempts.iter().map(|a| subject::output_of(a.machine, row.job)).collect();
    if subjects.is_empty() || !has_messages(app, &subjects, from.seq).await? {
        return Ok((Vec::new(), None));
    }
    let mut reader = OutputReader::at(from);
    let mut messages = follow(app, row.job, from.seq).await?;
    let (mut items, mut bytes) = (Vec::new(), 0);
    while let Ok(Some(message)) = tokio::time::timeout(BROKER_TIMEOUT, messages.next()).await {
        bytes += message.payload.len();
        let (seq, pending) =
            message.info().map(|info| (info.stream_sequence, info.pending)).map_err(|e| unavailable(&e))?;
        items.extend(reader.read(&message, &machines).map(|output| output.items).unwrap_or_default());
        if pending == 0 {
            return Ok((items, None));
        }
        if items.len() >= max_items || bytes >= MAX_BYTES {
            return Ok((items, Some(reader.cursor(seq + 1))));
        }
    }
    // The end of the output was not reached.
    Err(unavailable(&"the broker does not send the rest"))
}

/// True if a message is stored at the sequence `from` or after it. Without this check, a consumer would wait for a
/// message that may never come.
async fn has_messages(app: &App, subjects: &[String], from: u64) -> Result<bool, Problem> {
    let stream = app.js.get_stream_no_info(OUTPUT).await.map_err(|e| unavailable(&e))?;
    for subject in subjects {
        let found = message::next(&app.js.client(), &stream, subject, from.max(1)).await;
        if found.map_err(|e| unavailable(&e))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The newest progress of a job's current attempt.
pub(crate) async fn progress(app: &App, row: &JobView) -> Option<Progress> {
    // Before its start, a job writes no progress.
    let attempt = row.attempt().filter(|_| row.started_at.is_some())?;
    let stream = app.js.get_stream_no_info(OUTPUT).await.ok()?;
    let subject = subject::output(attempt.machine, row.job, OutputKind::Progress);
    // If the job has not reported any progress, or if the broker is unreachable, there is no progress to show.
    let message = stream.direct_get_last_for_subject(subject).await.ok()?;
    let progress: Progress = serde_json::from_slice(&message.payload).ok()?;
    (progress.lease == attempt.lease).then_some(progress)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::{Seq, Timestamp, output::LogStream};

    #[test]
    fn a_cursor_is_written_and_read_again() {
        let lease = Lease(Seq(40));
        for cursor in [OutputCursor::START, OutputCursor { seq: 812, line: Some((lease, 77)) }] {
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
        for wrong in ["", "x", "1-2", "1-2-x", "1-2-3-4"] {
            assert!(wrong.parse::<OutputCursor>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn lines_that_were_already_read_are_dropped() {
        let mut reader = OutputReader::default();
        let lease = Lease(Seq(1));
        let line =
            |text: &str| LogLine { stream: LogStream::Stdout, at: Timestamp::EPOCH, text: text.to_owned(), cut: 0 };
        let chunk =
            |first_line, texts: &[&str]| LogLines { lease, first_line, lines: texts.iter().map(|t| line(t)).collect() };
        assert_eq!(reader.lines(chunk(0, &["a", "b"])).len(), 2);
        assert_eq!(reader.lines(chunk(0, &["a", "b", "c"])).len(), 1);
        assert_eq!(reader.lines(chunk(1, &["b"])).len(), 0);
        assert_eq!(reader.lines(chunk(3, &["d"])).len(), 1);
    }
}
