//! Forwards what a job writes: follows its log in Docker and publishes it in small chunks.
//!
//! While the broker is away nothing is lost, and nothing is kept in memory: Docker keeps the log, and the worker reads
//! on when the broker is back.

use std::time::Duration;

use bollard::container::LogOutput;
use futures_util::StreamExt;
use gpubnb_events::{
    Clock as _, Lease, SystemClock,
    output::{JOB_METRICS, JobMetrics, LOG_LINES, LogLine, LogLines, LogStream, PROGRESS, Progress},
    subject::OutputKind,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::debug;

use super::{
    context::AttemptContext,
    log_lines::{JobLine, LineJoiner},
    publish::publish,
    watch::{RunSignals, until},
};

/// A chunk is published after this time, or sooner where it is large.
const FLUSH: Duration = Duration::from_millis(50);
const CHUNK_LINES: usize = 256;
const CHUNK_BYTES: usize = 64 * 1024;
/// More bytes than these in one second are a flood.
const MAX_PER_SECOND: u64 = 4 << 20;
const RETRY: Duration = Duration::from_millis(500);
/// A log up to this size is read a second time when the container has ended. That is faster than to wait until Docker
/// ends a log that is followed, which takes it milliseconds.
const READ_AGAIN: u64 = 256 * 1024;
/// How often the log of an ended container is read before the worker gives up.
const TRIES: u32 = 5;
/// How often reading the log of an ended container may fail: for two minutes, while Docker is away.
const MOST_FAILURES: u32 = 240;

/// Forwards the log until the container has ended and nothing of the log is left. Where the job writes too much,
/// signals that and reads no further.
pub(super) async fn forward(context: &AttemptContext, signals: &RunSignals) {
    let mut ended = signals.container_ended();
    let mut chunk = Chunk::new(context);
    let mut reader = LogReader::new(context.tools.max_log);
    let (mut tries, mut failures) = (0, 0);
    while tries < TRIES {
        let had_ended = *ended.borrow();
        match reader.read(&mut chunk, !had_ended, &mut ended).await {
            ReadResult::AtEnd if had_ended => break,
            // Either the container ends now, and its last lines are read next; or Docker went away, and the log is read
            // on when Docker is back.
            ReadResult::AtEnd => drop(timeout(RETRY, until(&mut ended, |ended| *ended)).await),
            ReadResult::Flood => {
                signals.set_log_flooded();
                break;
            }
            ReadResult::Failed(e) => {
                debug!(error = %e, "reading the log failed: it is read on from the same place");
                sleep(RETRY).await;
                failures += u32::from(had_ended);
                if failures < MOST_FAILURES {
                    continue;
                }
            }
        }
        tries += u32::from(had_ended);
    }
    for line in reader.lines.finish() {
        chunk.push(line);
    }
    chunk.flush().await;
}

/// Why a reading of the log stopped.
enum ReadResult {
    /// There is no more log at present.
    AtEnd,
    /// The job writes too much.
    Flood,
    Failed(bollard::errors::Error),
}

/// How far the log was read.
struct LogReader {
    meter: RateMeter,
    lines: LineJoiner,
    /// Frames of Docker's log that were read. The log of a container only grows, so that each reading, which begins at
    /// the first frame, skips so many.
    frames: usize,
}

impl LogReader {
    fn new(most: u64) -> Self {
        Self { meter: RateMeter::new(most, Instant::now()), lines: LineJoiner::default(), frames: 0 }
    }

    /// Reads on: with `follow` until the container has ended, else what is there.
    async fn read(&mut self, chunk: &mut Chunk<'_>, follow: bool, ended: &mut watch::Receiver<bool>) -> ReadResult {
        let mut frames = Box::pin(chunk.context.container.log(follow));
        let mut to_skip = self.frames;
        loop {
            let is_short = self.meter.total < READ_AGAIN;
            let frame = tokio::select! {
                biased;
                frame = frames.next() => frame,
                () = sleep_until(chunk.due), if chunk.is_dirty() => {
                    chunk.flush().await;
                    continue;
                }
                () = until(ended, |ended| *ended), if follow && is_short => return ReadResult::AtEnd,
            };
            // An error is no frame of the log, and not skipped.
            if to_skip > 0 && matches!(frame, Some(Ok(_))) {
                to_skip -= 1;
                continue;
            }
            let (stream, bytes) = match frame {
                Some(Ok(LogOutput::StdErr { message })) => (LogStream::Stderr, message),
                Some(Ok(frame)) => (LogStream::Stdout, frame.into_bytes()),
                Some(Err(e)) => return ReadResult::Failed(e),
                None => return ReadResult::AtEnd,
            };
            self.frames += 1;
            if self.meter.is_exceeded_by(bytes.len() as u64, Instant::now()) {
                return ReadResult::Flood;
            }
            if let Some(line) = self.lines.push(stream, &bytes) {
                chunk.push(line);
            }
            if chunk.is_large() {
                chunk.flush().await;
            }
        }
    }
}

/// Counts bytes: in all, and in the present second.
struct RateMeter {
    most: u64,
    total: u64,
    second: Instant,
    in_second: u64,
}

impl RateMeter {
    fn new(most: u64, now: Instant) -> Self {
        Self { most, total: 0, second: now, in_second: 0 }
    }

    /// Counts some more bytes, and says whether there are too many now.
    fn is_exceeded_by(&mut self, bytes: u64, now: Instant) -> bool {
        if now.duration_since(self.second) > Duration::from_secs(1) {
            self.second = now;
            self.in_second = 0;
        }
        self.in_second += bytes;
        self.total += bytes;
        self.total > self.most || self.in_second > MAX_PER_SECOND
    }
}

/// The lines, progress and metrics that were read and are not published yet.
struct Chunk<'a> {
    context: &'a AttemptContext,
    lines: Vec<LogLine>,
    bytes: usize,
    first_line: u64,
    progress: Option<Progress>,
    metrics: Vec<JobMetrics>,
    /// When the chunk is to be published.
    due: Instant,
}

impl<'a> Chunk<'a> {
    fn new(context: &'a AttemptContext) -> Self {
        Self {
            context,
            lines: Vec::new(),
            bytes: 0,
            first_line: 0,
            progress: None,
            metrics: Vec::new(),
            due: Instant::now(),
        }
    }

    fn is_dirty(&self) -> bool {
        !self.lines.is_empty() || self.progress.is_some() || !self.metrics.is_empty()
    }

    fn is_large(&self) -> bool {
        self.lines.len() >= CHUNK_LINES || self.bytes >= CHUNK_BYTES || self.metrics.len() >= CHUNK_LINES
    }

    fn push(&mut self, line: JobLine) {
        if !self.is_dirty() {
            self.due = Instant::now() + FLUSH;
        }
        let (lease, occurred_at) = (self.context.lease, SystemClock.now());
        match line {
            JobLine::Log(line) => {
                self.bytes += line.text.len();
                self.lines.push(line);
            }
            // Only the newest progress matters.
            JobLine::Progress(fraction, message) => {
                self.progress = Some(Progress { lease, fraction, message, occurred_at });
            }
            JobLine::Metrics(values) => self.metrics.push(JobMetrics { lease, occurred_at, values }),
        }
    }

    async fn flush(&mut self) {
        let (context, lease) = (self.context, self.context.lease);
        if !self.lines.is_empty() {
            let lines = std::mem::take(&mut self.lines);
            let (first_line, count) = (self.first_line, lines.len() as u64);
            let chunk = LogLines { lease, first_line, lines };
            publish(context, OutputKind::Log, LOG_LINES, &chunk, Some(chunk_id(lease, first_line, count))).await;
            self.first_line += count;
            self.bytes = 0;
        }
        for metrics in std::mem::take(&mut self.metrics) {
            publish(context, OutputKind::Metrics, JOB_METRICS, &metrics, None).await;
        }
        if let Some(progress) = self.progress.take() {
            publish(context, OutputKind::Progress, PROGRESS, &progress, None).await;
        }
    }
}

/// The id of a chunk. A worker that reads the log a second time after a restart makes the same id of the same lines,
/// and another id where more lines follow the same first one.
fn chunk_id(lease: Lease, first_line: u64, count: u64) -> String {
    format!("{lease}.{first_line}.{count}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::Seq;

    #[test]
    fn a_log_is_bounded_in_all_and_in_each_second() {
        let began = Instant::now();
        let after = |millis| began + Duration::from_millis(millis);
        let mut meter = RateMeter::new(3 * MAX_PER_SECOND, began);
        assert!(!meter.is_exceeded_by(MAX_PER_SECOND, began), "as much as a second allows");
        assert!(meter.is_exceeded_by(1, after(900)), "too much in one second");
        let mut meter = RateMeter::new(2 * MAX_PER_SECOND, began);
        assert!(!meter.is_exceeded_by(MAX_PER_SECOND, began));
        assert!(!meter.is_exceeded_by(MAX_PER_SECOND, after(1_001)), "the next second begins at nothing");
        assert!(meter.is_exceeded_by(1, after(60_000)), "too much in all");
    }

    #[test]
    fn the_same_lines_have_the_same_id_and_more_lines_another() {
        let lease = Lease(Seq(7));
        assert_eq!(chunk_id(lease, 0, 2), chunk_id(lease, 0, 2));
        assert_ne!(chunk_id(lease, 0, 2), chunk_id(lease, 0, 3));
        assert_ne!(chunk_id(lease, 0, 2), chunk_id(Lease(Seq(8)), 0, 2));
    }
}
