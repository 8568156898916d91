//! The output of jobs, read from the stream OUTPUT: from any position, and then as it comes. A reader drops lines that
//! it has read already, because workers repeat messages.

use std::{collections::HashMap, time::Duration};

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
use gpubnb_log::stream::OUTPUT;
use gpubnb_query::view::JobView;

use crate::{app::App, error::Problem};

/// How long reading waits for the broker.
const PATIENCE: Duration = Duration::from_secs(5);

/// A piece of a job's output.
#[derive(Debug)]
pub(crate) enum Said {
    /// A line of the log: its attempt, its number within the attempt, its text.
    Line(Lease, u64, LogLine),
    Progress(Progress),
    Metrics(JobMetrics),
}

/// A message of OUTPUT.
pub(crate) struct OutputMessage {
    pub(crate) seq: u64,
    /// Messages that are stored already and come after this one.
    pub(crate) pending: u64,
    pub(crate) said: Vec<Said>,
}

/// Reads messages, and drops lines that came before.
#[derive(Default)]
pub(crate) struct OutputReader {
    /// The number of the next line of each attempt.
    next: HashMap<Lease, u64>,
}

impl OutputReader {
    /// Reads a message of a machine. Output for a lease counts only if it comes from the machine that holds the lease.
    pub(crate) fn read(&mut self, message: &Message, attempts: &HashMap<Lease, MachineId>) -> Option<OutputMessage> {
        let info = message.info().ok()?;
        let (seq, pending) = (info.stream_sequence, info.pending);
        let (machine, _, kind) = subject::parse_output(&message.subject)?;
        let own = |lease: Lease| attempts.get(&lease) == Some(&machine);
        let said = match kind {
            OutputKind::Log => serde_json::from_slice::<LogLines>(&message.payload)
                .ok()
                .filter(|chunk| own(chunk.lease))
                .map(|chunk| self.lines(chunk))
                .unwrap_or_default(),
            OutputKind::Progress => serde_json::from_slice::<Progress>(&message.payload)
                .ok()
                .filter(|progress| own(progress.lease))
                .map(Said::Progress)
                .into_iter()
                .collect(),
            OutputKind::Metrics => serde_json::from_slice::<JobMetrics>(&message.payload)
                .ok()
                .filter(|metrics| own(metrics.lease))
                .map(Said::Metrics)
                .into_iter()
                .collect(),
        };
        Some(OutputMessage { seq, pending, said })
    }

    fn lines(&mut self, chunk: LogLines) -> Vec<Said> {
        let next = self.next.entry(chunk.lease).or_insert(0);
        let numbered = (chunk.first_line..).zip(chunk.lines).filter(|(number, _)| *number >= *next);
        let fresh: Vec<_> = numbered.map(|(number, line)| Said::Line(chunk.lease, number, line)).collect();
        if let Some(Said::Line(_, number, _)) = fresh.last() {
            *next = number + 1;
        }
        fresh
    }
}

/// The machine that holds each lease.
pub(crate) fn attempts(row: &JobView) -> HashMap<Lease, MachineId> {
    row.attempts.iter().map(|a| (a.lease, a.machine)).collect()
}

/// The problem of a broker that does not answer.
pub(super) fn unavailable(e: &dyn std::fmt::Display) -> Problem {
    Problem::from(gpubnb_runtime::rpc::Failure::Unavailable(format!("reading output: {e}")))
}

/// All output of a job, beginning at a sequence of OUTPUT.
pub(crate) async fn follow(
    app: &App,
    job: JobId,
    from: u64,
) -> Result<impl Stream<Item = Message> + Unpin + use<>, Problem> {
    follow_subject(app, subject::output_of_job(job), from).await
}

/// The messages of one subject of OUTPUT, beginning at a sequence.
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

/// Most bytes of output in one answer, because a whole answer is held in memory.
const MOST_BYTES: usize = 2 << 20;

/// The output of a job so far, up to about `most` pieces or two mebibytes, and the sequence at which to read on.
pub(crate) async fn so_far(
    app: &App,
    row: &JobView,
    from: u64,
    most: usize,
) -> Result<(Vec<Said>, Option<u64>), Problem> {
    let attempts = attempts(row);
    let subjects: Vec<_> = row.attempts.iter().map(|a| subject::output_of(a.machine, row.job)).collect();
    if subjects.is_empty() || !any(app, &subjects, from).await? {
        return Ok((Vec::new(), None));
    }
    let mut reader = OutputReader::default();
    let mut messages = follow(app, row.job, from).await?;
    let (mut said, mut bytes) = (Vec::new(), 0);
    while let Ok(Some(message)) = tokio::time::timeout(PATIENCE, messages.next()).await {
        bytes += message.payload.len();
        let Some(heard) = reader.read(&message, &attempts) else { continue };
        said.extend(heard.said);
        if heard.pending == 0 {
            return Ok((said, None));
        }
        if said.len() >= most || bytes >= MOST_BYTES {
            return Ok((said, Some(heard.seq + 1)));
        }
    }
    Ok((said, None))
}

/// True if there is a message to read. A consumer without a message would wait for one.
async fn any(app: &App, subjects: &[String], from: u64) -> Result<bool, Problem> {
    use async_nats::jetstream::stream::DirectGetErrorKind::NotFound;
    let stream = app.js.get_stream_no_info(OUTPUT).await.map_err(|e| unavailable(&e))?;
    for subject in subjects {
        match stream.direct_get_next_for_subject(subject.clone(), Some(from.max(1))).await {
            Ok(_) => return Ok(true),
            Err(e) if e.kind() == NotFound => {}
            Err(e) => return Err(unavailable(&e)),
        }
    }
    Ok(false)
}

/// The newest progress of a job's present attempt.
pub(crate) async fn progress(app: &App, row: &JobView) -> Option<Progress> {
    // A job writes nothing before it has started.
    let attempt = row.attempt().filter(|_| row.started_at.is_some())?;
    let stream = app.js.get_stream_no_info(OUTPUT).await.ok()?;
    let subject = subject::output(attempt.machine, row.job, OutputKind::Progress);
    // Either the job has reported none yet or the broker is away: in both cases there is no progress to show.
    let message = stream.direct_get_last_for_subject(subject).await.ok()?;
    let progress: Progress = serde_json::from_slice(&message.payload).ok()?;
    (progress.lease == attempt.lease).then_some(progress)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::{Seq, Timestamp, output::LogStream};

    #[test]
    fn lines_that_were_heard_before_are_dropped() {
        let mut reader = OutputReader::default();
        let lease = Lease(Seq(1));
        let line = |text: &str| LogLine { stream: LogStream::Stdout, at: Timestamp::EPOCH, text: text.to_owned() };
        let chunk =
            |first_line, texts: &[&str]| LogLines { lease, first_line, lines: texts.iter().map(|t| line(t)).collect() };
        assert_eq!(reader.lines(chunk(0, &["a", "b"])).len(), 2);
        assert_eq!(reader.lines(chunk(0, &["a", "b", "c"])).len(), 1);
        assert_eq!(reader.lines(chunk(1, &["b"])).len(), 0);
        assert_eq!(reader.lines(chunk(3, &["d"])).len(), 1);
    }
}
