//! Passes on what a job says: follows its log in Docker and publishes it to OUTPUT in small chunks.
//!
//! When the broker is away nothing is lost and nothing is kept here: Docker keeps the log, and it is read on
//! when the broker is back.

use std::time::Duration;

use async_nats::HeaderMap;
use bollard::{container::LogOutput, query_parameters::LogsOptionsBuilder};
use futures_util::StreamExt;
use gpubnb_events::{
    Clock as _, JobId, Lease, SystemClock,
    message::header,
    output::{JOB_METRICS, JobMetrics, LOG_LINES, LogLine, LogLines, LogStream, PROGRESS, Progress},
    subject::{self, OutputKind},
};
use serde::Serialize;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, warn};

use super::{
    Tools,
    container::Container,
    lines::{Lines, Said},
    supervise::until,
};

/// A chunk goes out after this time, or when it is large.
const FLUSH: Duration = Duration::from_millis(50);
const CHUNK_LINES: usize = 256;
const CHUNK_BYTES: usize = 64 * 1024;
/// More in one second is a flood.
const MAX_PER_SECOND: u64 = 4 << 20;
const RETRY: Duration = Duration::from_millis(500);
const ACK: Duration = Duration::from_secs(3);

/// Up to this size a log is read again from its beginning when the container has ended: Docker needs
/// milliseconds to end a log that is followed.
const READ_AGAIN: u64 = 256 * 1024;
/// How often an ended container's log is asked for before it is given up; where Docker is away, for two minutes.
const TRIES: u32 = 5;
const MOST_FAILURES: u32 = 240;

/// Passes the log on until the container is over and nothing of it is left. Says so through `flood` when it
/// is too much, and reads no further.
pub(super) async fn follow(
    tools: &Tools,
    job: JobId,
    container: &Container,
    most: u64,
    flood: &watch::Sender<bool>,
    mut over: watch::Receiver<bool>,
) {
    let mut chunk = Chunk::new(tools, job, container);
    let mut reading = Reading { meter: Meter::new(most), lines: Lines::default(), frames: 0 };
    let (mut tries, mut failures) = (0, 0);
    while tries < TRIES {
        let was_over = *over.borrow();
        match reading.pump(&mut chunk, !was_over, &mut over).await {
            Pumped::Ended if was_over => break,
            // The container is over at once, and what is left is read; or Docker is not there, and it is read on then.
            Pumped::Ended => drop(timeout(RETRY, until(&mut over, |over| *over)).await),
            Pumped::Flood => {
                flood.send_replace(true);
                break;
            }
            Pumped::Failed(e) => {
                debug!(error = %e, "the log: read on where it broke off");
                sleep(RETRY).await;
                failures += u32::from(was_over);
                if failures < MOST_FAILURES {
                    continue;
                }
            }
        }
        tries += u32::from(was_over);
    }
    for said in reading.lines.finish() {
        chunk.take(said);
    }
    chunk.flush().await;
}

/// How one reading of the log ended.
enum Pumped {
    Ended,
    Flood,
    Failed(bollard::errors::Error),
}

/// How far the log was read.
struct Reading {
    meter: Meter,
    lines: Lines,
    /// Frames taken in; Docker's log of a container only grows.
    frames: usize,
}

impl Reading {
    /// Reads on: as it is written, or what there is.
    async fn pump(&mut self, chunk: &mut Chunk<'_>, follow: bool, over: &mut watch::Receiver<bool>) -> Pumped {
        let options = LogsOptionsBuilder::default().follow(follow).stdout(true).stderr(true).timestamps(true).build();
        let (docker, name) = (&chunk.tools.docker, &chunk.container.name);
        let mut frames = Box::pin(docker.logs(name, Some(options)));
        // What was taken in before. An error is none of that.
        let mut known = self.frames;
        loop {
            let short = self.meter.taken < READ_AGAIN;
            let frame = tokio::select! {
                biased;
                frame = frames.next() => frame,
                () = sleep_until(chunk.due), if chunk.is_dirty() => {
                    chunk.flush().await;
                    continue;
                }
                () = until(over, |over| *over), if follow && short => return Pumped::Ended,
            };
            if known > 0 && matches!(frame, Some(Ok(_))) {
                known -= 1;
                continue;
            }
            let (stream, bytes) = match frame {
                Some(Ok(LogOutput::StdErr { message })) => (LogStream::Stderr, message),
                Some(Ok(frame)) => (LogStream::Stdout, frame.into_bytes()),
                Some(Err(e)) => return Pumped::Failed(e),
                None => return Pumped::Ended,
            };
            self.frames += 1;
            if self.meter.exceeded_by(bytes.len() as u64) {
                return Pumped::Flood;
            }
            if let Some(said) = self.lines.push(stream, &bytes) {
                chunk.take(said);
            }
            if chunk.is_large() {
                chunk.flush().await;
            }
        }
    }
}

/// Counts bytes: in all, and in the present second.
struct Meter {
    most: u64,
    taken: u64,
    second: Instant,
    in_second: u64,
}

impl Meter {
    fn new(most: u64) -> Self {
        Self { most, taken: 0, second: Instant::now(), in_second: 0 }
    }

    fn exceeded_by(&mut self, bytes: u64) -> bool {
        if self.second.elapsed() > Duration::from_secs(1) {
            self.second = Instant::now();
            self.in_second = 0;
        }
        self.in_second += bytes;
        self.taken += bytes;
        self.taken > self.most || self.in_second > MAX_PER_SECOND
    }
}

/// What was said and is not published yet.
struct Chunk<'a> {
    tools: &'a Tools,
    job: JobId,
    container: &'a Container,
    lines: Vec<LogLine>,
    bytes: usize,
    first_line: u64,
    progress: Option<Progress>,
    metrics: Vec<JobMetrics>,
    due: Instant,
}

impl<'a> Chunk<'a> {
    fn new(tools: &'a Tools, job: JobId, container: &'a Container) -> Self {
        Self {
            tools,
            job,
            container,
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

    fn take(&mut self, said: Said) {
        if !self.is_dirty() {
            self.due = Instant::now() + FLUSH;
        }
        let (lease, occurred_at) = (self.container.lease, SystemClock.now());
        match said {
            Said::Line(line) => {
                self.bytes += line.text.len();
                self.lines.push(line);
            }
            // Only the newest matters.
            Said::Progress(fraction, message) => {
                self.progress = Some(Progress { lease, fraction, message, occurred_at });
            }
            Said::Metrics(values) => self.metrics.push(JobMetrics { lease, occurred_at, values }),
        }
    }

    async fn flush(&mut self) {
        let lease = self.container.lease;
        if !self.lines.is_empty() {
            let lines = std::mem::take(&mut self.lines);
            let (first_line, count) = (self.first_line, lines.len() as u64);
            let chunk = LogLines { lease, first_line, lines };
            // The same lines have the same id; more lines from the same place on have another.
            let id = format!("{lease}.{first_line}.{count}");
            self.publish(OutputKind::Log, LOG_LINES, &chunk, Some(id)).await;
            self.first_line += count;
            self.bytes = 0;
        }
        for metrics in std::mem::take(&mut self.metrics) {
            self.publish(OutputKind::Metrics, JOB_METRICS, &metrics, None).await;
        }
        if let Some(progress) = self.progress.take() {
            self.publish(OutputKind::Progress, PROGRESS, &progress, None).await;
        }
    }

    async fn publish(&self, kind: OutputKind, wire_name: &str, value: &impl Serialize, id: Option<String>) {
        publish(self.tools, self.job, kind, wire_name, value, id).await;
    }
}

/// Which attempt something is said of.
#[derive(Clone, Copy)]
pub(super) struct Of<'a> {
    pub(super) tools: &'a Tools,
    pub(super) job: JobId,
    pub(super) lease: Lease,
}

impl Of<'_> {
    /// Says how far an attempt is before its code runs. What cannot be sent at once is not kept: the next says more.
    pub(super) async fn say_progress(self, fraction: f32, message: String) {
        let progress = Progress { lease: self.lease, fraction, message, occurred_at: SystemClock.now() };
        drop(timeout(ACK, publish(self.tools, self.job, OutputKind::Progress, PROGRESS, &progress, None)).await);
    }
}

/// Publishes until the broker has it.
async fn publish(
    tools: &Tools,
    job: JobId,
    kind: OutputKind,
    wire_name: &str,
    value: &impl Serialize,
    id: Option<String>,
) {
    let Ok(payload) = serde_json::to_vec(value) else {
        warn!(wire_name, "cannot be written");
        return;
    };
    let subject = subject::output(tools.machine, job, kind);
    let mut headers = HeaderMap::new();
    headers.insert(header::TYPE, wire_name);
    if let Some(id) = id {
        headers.insert(header::ID, id);
    }
    loop {
        let sent = tools.js.publish_with_headers(subject.clone(), headers.clone(), payload.clone().into()).await;
        let problem = match sent {
            Ok(ack) => match timeout(ACK, ack).await {
                Ok(Ok(_)) => return,
                Ok(Err(e)) => e.to_string(),
                Err(e) => e.to_string(),
            },
            Err(e) => e.to_string(),
        };
        debug!(problem, "output: said again");
        sleep(RETRY).await;
    }
}
