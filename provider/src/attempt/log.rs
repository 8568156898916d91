//! Forwards the log of a job: reads the log from Docker, and publishes it in small chunks.
//!
//! While the broker is away, the worker reads no further. Docker keeps the log on disk, so nothing is lost and the
//! worker needs no memory. Docker returns the log in *frames* of at most 16 KiB.

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
    watch::{RunSignals, wait_until},
};

/// Longest time between the first line of a chunk and its publication. A large chunk is published sooner.
const FLUSH_DELAY: Duration = Duration::from_millis(50);
/// A chunk with this many lines or metrics is large.
const MAX_CHUNK_LINES: usize = 256;
/// A chunk with this many bytes of log is large.
const MAX_CHUNK_BYTES: usize = 64 * 1024;
/// Most bytes of log in one second. More is a flood.
const MAX_BYTES_PER_SECOND: u64 = 4 << 20;
/// Pause before the next read of the log, if the container has not ended or a read failed.
const RETRY: Duration = Duration::from_millis(500);
/// A shorter log, in bytes, is read a second time when the container has ended. That is faster than to wait until
/// Docker closes the followed log, which takes milliseconds.
const SHORT_LOG: u64 = 256 * 1024;
/// Most reads of an ended container's log.
const MAX_READS: u32 = 5;
/// Most failed reads of an ended container's log. With the pause `RETRY` that is two minutes, for a restart of Docker.
const MAX_FAILURES: u32 = 240;

/// Forwards the log until the container has ended and its whole log is published. If the job writes too much, sets the
/// signal `log_flooded` and reads no further.
pub(super) async fn forward(context: &AttemptContext, signals: &RunSignals) {
    let mut ended = signals.container_ended();
    let mut chunk = Chunk::new(context);
    let mut reader = LogReader::new(context.tools.max_log);
    let (mut tries, mut failures) = (0, 0);
    while tries < MAX_READS {
        let had_ended = *ended.borrow();
        match reader.read(&mut chunk, !had_ended, &mut ended).await {
            ReadResult::AtEnd if had_ended => break,
            // Either the container ends now, or Docker does not answer. In both cases read the rest of the log next.
            ReadResult::AtEnd => drop(timeout(RETRY, wait_until(&mut ended, |ended| *ended)).await),
            ReadResult::Flood => {
                signals.set_log_flooded();
                break;
            }
            ReadResult::Failed(e) => {
                debug!(error = %e, "reading the log failed: continuing from the same frame");
                sleep(RETRY).await;
                failures += u32::from(had_ended);
                if failures < MAX_FAILURES {
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

/// The reason why a read of the log stopped.
enum ReadResult {
    /// The log has no more frames at this moment.
    AtEnd,
    /// The job writes too much, or too fast.
    Flood,
    Failed(bollard::errors::Error),
}

/// Reads the log, and continues where the last read stopped.
struct LogReader {
    meter: RateMeter,
    lines: LineJoiner,
    /// Number of frames that were read. Each read begins at the first frame of the log and skips this number of frames,
    /// because the log of a container only grows.
    frames: usize,
}

impl LogReader {
    fn new(max_total: u64) -> Self {
        Self { meter: RateMeter::new(max_total, Instant::now()), lines: LineJoiner::default(), frames: 0 }
    }

    /// Reads the frames after the last read. With `follow`, reads until the container has ended; otherwise reads the
    /// frames that exist.
    async fn read(&mut self, chunk: &mut Chunk<'_>, follow: bool, ended: &mut watch::Receiver<bool>) -> ReadResult {
        let mut frames = Box::pin(chunk.context.container.log(follow));
        let mut to_skip = self.frames;
        loop {
            let is_short = self.meter.total < SHORT_LOG;
            let frame = tokio::select! {
                biased;
                frame = frames.next() => frame,
                () = sleep_until(chunk.flush_at), if chunk.has_content() => {
                    chunk.flush().await;
                    continue;
                }
                () = wait_until(ended, |ended| *ended), if follow && is_short => return ReadResult::AtEnd,
            };
            // An error is not a frame, so it is not skipped.
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
            if self.meter.add_bytes(bytes.len() as u64, Instant::now()) {
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

/// Counts the bytes of a log in total and in the current second.
struct RateMeter {
    /// Largest total, bytes.
    max_total: u64,
    total: u64,
    /// When the current second began.
    second: Instant,
    in_second: u64,
}

impl RateMeter {
    fn new(max_total: u64, now: Instant) -> Self {
        Self { max_total, total: 0, second: now, in_second: 0 }
    }

    /// Adds bytes. Returns true if there are now too many bytes in total or in the current second.
    fn add_bytes(&mut self, bytes: u64, now: Instant) -> bool {
        if now.duration_since(self.second) > Duration::from_secs(1) {
            self.second = now;
            self.in_second = 0;
        }
        self.in_second += bytes;
        self.total += bytes;
        self.total > self.max_total || self.in_second > MAX_BYTES_PER_SECOND
    }
}

/// Lines, progress and metrics that were read, but are not published yet.
struct Chunk<'a> {
    context: &'a AttemptContext,
    lines: Vec<LogLine>,
    /// Bytes of the lines.
    bytes: usize,
    /// Number of the first line of the chunk in the whole log, counted from 0.
    first_line: u64,
    progress: Option<Progress>,
    metrics: Vec<JobMetrics>,
    /// When the chunk must be published.
    flush_at: Instant,
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
            flush_at: Instant::now(),
        }
    }

    fn has_content(&self) -> bool {
        !self.lines.is_empty() || self.progress.is_some() || !self.metrics.is_empty()
    }

    fn is_large(&self) -> bool {
        self.lines.len() >= MAX_CHUNK_LINES || self.bytes >= MAX_CHUNK_BYTES || self.metrics.len() >= MAX_CHUNK_LINES
    }

    fn push(&mut self, line: JobLine) {
        if !self.has_content() {
            self.flush_at = Instant::now() + FLUSH_DELAY;
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

/// The id of a chunk, by which the broker drops a second copy. A worker that reads the log again after a restart makes
/// the same id for the same lines. If the chunk then has more lines, it gets another id.
fn chunk_id(lease: Lease, first_line: u64, count: u64) -> String {
    format!("{lease}.{first_line}.{count}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::Seq;

    #[test]
    fn a_log_is_limited_in_total_and_in_each_second() {
        let began = Instant::now();
        let after = |millis| began + Duration::from_millis(millis);
        let mut meter = RateMeter::new(3 * MAX_BYTES_PER_SECOND, began);
        assert!(!meter.add_bytes(MAX_BYTES_PER_SECOND, began), "the most that one second allows");
        assert!(meter.add_bytes(1, after(900)), "too much in one second");
        let mut meter = RateMeter::new(2 * MAX_BYTES_PER_SECOND, began);
        assert!(!meter.add_bytes(MAX_BYTES_PER_SECOND, began));
        assert!(!meter.add_bytes(MAX_BYTES_PER_SECOND, after(1_001)), "the next second begins at 0");
        assert!(meter.add_bytes(1, after(60_000)), "too much in total");
    }

    #[test]
    fn the_same_lines_have_the_same_id_and_more_lines_have_another() {
        let lease = Lease(Seq(7));
        assert_eq!(chunk_id(lease, 0, 2), chunk_id(lease, 0, 2));
        assert_ne!(chunk_id(lease, 0, 2), chunk_id(lease, 0, 3));
        assert_ne!(chunk_id(lease, 0, 2), chunk_id(Lease(Seq(8)), 0, 2));
    }
}
