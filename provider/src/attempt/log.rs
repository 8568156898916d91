//! Forwards the log of a job: reads the log from Docker, and publishes it in small chunks.
//!
//! While the market is away, the worker reads no further. Docker keeps the log on disk, so nothing is lost and the
//! worker needs no memory. Docker returns the log in *frames* of at most 16 KiB.

use std::{path::Path, time::Duration};

use bollard::container::LogOutput;
use futures_util::StreamExt;
use gpubnb_events::{
    Clock as _, Millis, SystemClock, Timestamp,
    output::{JobMetrics, LINE_COST, LogLine, LogLines, LogStream, Output, Progress},
    signed_log::LogChain,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::debug;

use super::{
    context::AttemptContext,
    log_lines::{Frame, JobLine, LineJoiner},
    publish::publish,
    watch::{RunSignals, wait_until},
};
use crate::json_file;

/// The file with the position in the log, in the attempt's directory.
const POSITION_FILE: &str = "log.json";
/// The file with a line of the worker itself that is being published, in the attempt's directory.
const NOTE_FILE: &str = "note.json";
/// Longest time between the first line of a chunk and its publication. A large chunk is published sooner.
const FLUSH_DELAY: Duration = Duration::from_millis(50);
/// A chunk with this many lines or metrics is large.
const MAX_CHUNK_LINES: usize = 256;
/// A chunk with this many bytes of log, as JSON, is large. A large chunk is sent at once, so it has at most this and
/// one line (`MAX_LINE_BYTES`), which is less than a request may have.
const MAX_CHUNK_BYTES: usize = 64 * 1024;
/// Most bytes of a line, as JSON. JSON takes six bytes for a control character.
const MAX_LINE_BYTES: usize = 128 * 1024;
/// Longest time over which a flood is measured, in milliseconds of Docker's timestamps.
const FLOOD_WINDOW: Millis = Millis(10_000);
/// Most bytes of log in one `FLOOD_WINDOW`. More is a flood, which takes the machine's processor time.
const MAX_BYTES_IN_WINDOW: u64 = 40 << 20;
/// Pause before the next read of the log, if the container has not ended or a read failed.
const RETRY: Duration = Duration::from_millis(500);
/// A log with fewer bytes is read again from its start when the container has ended. That is faster than to wait until
/// Docker closes the stream of a followed log, which takes milliseconds.
const SHORT_LOG: u64 = 256 * 1024;
/// Most reads of an ended container's log.
const MAX_READS: u32 = 5;
/// Most failed reads of an ended container's log. With the pause `RETRY` that is two minutes, for a restart of Docker.
const MAX_FAILURES: u32 = 240;

/// Forwards the log until the container has ended and its whole log is published. If the log is longer than the
/// worker's limit, the rest is left out and the job goes on. If the job floods its log, sets the signal `log_flooded`
/// and reads no further. Returns the digest of the published lines; `None` if an older worker began the log.
pub(super) async fn forward(context: &AttemptContext, signals: &RunSignals) -> Option<LogChain> {
    let mut ended = signals.container_ended();
    let mut reader = LogReader::at(LogPosition::saved(&context.directory()), context.tools.max_log);
    let mut chunk = Chunk::new(context, reader.position);
    let mut notes = context.notes.receiver.lock().await;
    publish_saved_note(context, &reader.position).await;
    let (mut tries, mut failures) = (0, 0);
    wait_for_content(signals, &mut reader, &mut chunk, &mut notes).await;
    while tries < MAX_READS {
        let had_ended = *ended.borrow();
        match reader.read(&mut chunk, !had_ended, &mut ended, &mut notes).await {
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
    while let Ok(note) = notes.try_recv() {
        reader.publish_note(&mut chunk, note).await;
    }
    chunk.flush().await;
    for line in reader.lines.finish() {
        reader.keep(&mut chunk, line);
        // A chunk with the last lines of both streams could be too large for a request.
        chunk.flush().await;
    }
    reader.position.chain
}

/// Waits until the container writes something, or has ended. Docker is not asked before that: to follow a log costs
/// Docker time, which a short job needs itself.
async fn wait_for_content(
    signals: &RunSignals,
    reader: &mut LogReader,
    chunk: &mut Chunk<'_>,
    notes: &mut mpsc::Receiver<String>,
) {
    let (mut has_written, mut ended) = (signals.has_written(), signals.container_ended());
    loop {
        tokio::select! {
            () = wait_until(&mut has_written, |has_written| *has_written) => return,
            () = wait_until(&mut ended, |ended| *ended) => return,
            Some(note) = notes.recv() => reader.publish_note(chunk, note).await,
        }
    }
}

/// A line of the worker itself, which may not be published yet.
#[derive(Serialize, Deserialize)]
struct SavedNote {
    /// Number of the line in the whole log.
    number: u64,
    line: LogLine,
}

/// Publishes the line that a former run of the worker saved. If the line is published already, the market drops the
/// repetition.
async fn publish_saved_note(context: &AttemptContext, position: &LogPosition) {
    let note = context.directory().join(NOTE_FILE);
    let saved: Option<SavedNote> = json_file::saved(&note);
    // A line that the position does not count was not kept.
    if let Some(SavedNote { number, line }) = saved.filter(|saved| saved.number < position.lines) {
        let lines = LogLines { lease: context.lease, first_line: number, lines: vec![line] };
        publish(context, Output::Log(lines)).await;
    }
    let _ = std::fs::remove_file(note);
}

/// The reason why a read of the log stopped.
enum ReadResult {
    /// The log has no more frames at this moment.
    AtEnd,
    /// The job writes faster than the machine can bear.
    Flood,
    Failed(bollard::errors::Error),
}

/// A position in a container's log, between two lines of both streams. The position of the last published line is
/// saved, so that a worker that is started again neither loses a line nor publishes one twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct LogPosition {
    /// Number of frames before the position. The log of a container only grows, so frames can be counted.
    frames: usize,
    /// Number of lines before the position.
    lines: u64,
    /// Bytes of the log before the position, as the limit counts them.
    bytes: u64,
    /// True if the limit was reached, so that lines are left out from here on.
    is_cut: bool,
    /// The digest of the lines before the position; `None` in a position that an older worker saved.
    #[serde(default)]
    chain: Option<LogChain>,
}

impl Default for LogPosition {
    fn default() -> Self {
        Self { frames: 0, lines: 0, bytes: 0, is_cut: false, chain: Some(LogChain::default()) }
    }
}

impl LogPosition {
    fn saved(dir: &Path) -> Self {
        json_file::saved(&dir.join(POSITION_FILE)).unwrap_or_default()
    }

    /// Saves the position, whole or not at all. Without a saved position, the log is read from its start.
    fn save(&self, dir: &Path) {
        if let Err(e) = json_file::save(&dir.join(POSITION_FILE), self) {
            debug!(error = %e, "the position in a log could not be saved");
        }
    }
}

/// Reads the log, and continues where the last read stopped.
struct LogReader {
    meter: FloodMeter,
    lines: LineJoiner,
    /// The position after the frames that were read.
    position: LogPosition,
    /// Largest log, bytes.
    max_total: u64,
}

impl LogReader {
    fn at(position: LogPosition, max_total: u64) -> Self {
        Self { meter: FloodMeter::new(), lines: LineJoiner::default(), position, max_total }
    }

    /// Reads the frames after the last read. With `follow`, reads until the container has ended; otherwise reads the
    /// frames that exist.
    async fn read(
        &mut self,
        chunk: &mut Chunk<'_>,
        follow: bool,
        ended: &mut watch::Receiver<bool>,
        notes: &mut mpsc::Receiver<String>,
    ) -> ReadResult {
        // After the limit, only new frames are read, for progress and metrics. The earlier frames are not skipped one
        // by one, because Docker may have deleted some of them in a rotation of the log.
        let only_new = self.position.is_cut;
        let mut frames = Box::pin(chunk.context.container.log(follow, only_new));
        let mut to_skip = if only_new { 0 } else { self.position.frames };
        loop {
            let is_short = self.position.bytes < SHORT_LOG;
            let frame = tokio::select! {
                biased;
                frame = frames.next() => frame,
                () = sleep_until(chunk.flush_at), if chunk.has_content() => {
                    chunk.flush().await;
                    continue;
                }
                // A note is published only between two lines of the job, so that the saved position is after the note.
                Some(note) = notes.recv(), if !self.lines.has_partial() => {
                    self.publish_note(chunk, note).await;
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
            self.position.frames += 1;
            let frame = Frame::parse(stream, &bytes);
            self.position.bytes += frame.text.len() as u64 + LINE_COST;
            if self.meter.is_flooded_by(frame.at, frame.text.len() as u64) {
                return ReadResult::Flood;
            }
            if let Some(line) = self.lines.push(&frame) {
                self.keep(chunk, line);
            }
            if chunk.is_large() {
                chunk.flush().await;
            }
        }
    }

    /// Publishes a line of the worker itself in the log of the job. Docker's log does not have this line, so the line
    /// and the position after it are saved first. After a crash, [`publish_saved_note`] publishes the line.
    async fn publish_note(&mut self, chunk: &mut Chunk<'_>, text: String) {
        chunk.flush().await;
        self.position.bytes += text.len() as u64 + LINE_COST;
        let line = LogLine { stream: LogStream::Stderr, at: SystemClock.now(), text, cut: 0 };
        let note = chunk.context.directory().join(NOTE_FILE);
        let saved = SavedNote { number: self.position.lines, line: line.clone() };
        if let Err(e) = json_file::save(&note, &saved) {
            debug!(error = %e, "a line of the worker could not be saved");
        }
        self.keep(chunk, JobLine::Log(line));
        chunk.save_position();
        chunk.flush().await;
        let _ = std::fs::remove_file(note);
    }

    /// Adds a line to the chunk, unless the log has reached its limit. Progress and metrics have no limit.
    fn keep(&mut self, chunk: &mut Chunk<'_>, line: JobLine) {
        match line {
            JobLine::Log(_) if self.position.is_cut => {}
            JobLine::Log(line) if self.position.bytes > self.max_total => {
                self.position.is_cut = true;
                let text = format!("the log is cut here: a job keeps {} MiB of its log", self.max_total >> 20);
                self.keep_line(chunk, LogLine { stream: LogStream::Stderr, at: line.at, text, cut: 0 });
            }
            JobLine::Log(line) => self.keep_line(chunk, line),
            JobLine::Progress(fraction, message) => chunk.set_progress(fraction, message),
            JobLine::Metrics(values) => chunk.push_metrics(values),
        }
        if !self.lines.has_partial() {
            chunk.position = self.position;
        }
    }

    fn keep_line(&mut self, chunk: &mut Chunk<'_>, line: LogLine) {
        let (line, bytes) = cut_to_fit(line);
        self.position.lines += 1;
        if let Some(chain) = &mut self.position.chain {
            chain.add(&line);
        }
        chunk.push_line(line, bytes);
    }
}

/// Measures how fast a job writes, by the times at which the job wrote, and not by the times at which the worker read:
/// a worker that reads late reads fast.
#[derive(Debug)]
struct FloodMeter {
    /// When the current window began.
    since: Timestamp,
    in_window: u64,
}

impl FloodMeter {
    fn new() -> Self {
        Self { since: Timestamp::EPOCH, in_window: 0 }
    }

    /// Adds bytes that the job wrote at a time. Returns true if there are now too many bytes in the current window.
    fn is_flooded_by(&mut self, at: Timestamp, bytes: u64) -> bool {
        if at.since(self.since) > FLOOD_WINDOW || at < self.since {
            (self.since, self.in_window) = (at, 0);
        }
        self.in_window += bytes;
        self.in_window > MAX_BYTES_IN_WINDOW
    }
}

/// Lines, progress and metrics that were read, but are not published yet.
struct Chunk<'a> {
    context: &'a AttemptContext,
    lines: Vec<LogLine>,
    /// Bytes of the lines as JSON.
    bytes: usize,
    /// Number of the first line of the chunk in the whole log, counted from 0.
    first_line: u64,
    /// The position after the lines of the chunk, or an earlier one if the next line is not complete.
    position: LogPosition,
    /// The position that was saved last.
    saved: LogPosition,
    progress: Option<Progress>,
    metrics: Vec<JobMetrics>,
    /// When the chunk must be published.
    flush_at: Instant,
}

impl<'a> Chunk<'a> {
    fn new(context: &'a AttemptContext, position: LogPosition) -> Self {
        Self {
            context,
            lines: Vec::new(),
            bytes: 0,
            first_line: position.lines,
            position,
            saved: position,
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

    /// Sets the time at which the chunk must be published, if it has no content yet.
    fn begin(&mut self) {
        if !self.has_content() {
            self.flush_at = Instant::now() + FLUSH_DELAY;
        }
    }

    /// Adds a line that has this many bytes as JSON.
    fn push_line(&mut self, line: LogLine, bytes: usize) {
        self.begin();
        self.bytes += bytes;
        self.lines.push(line);
    }

    /// Replaces the progress: only the newest matters.
    fn set_progress(&mut self, fraction: f32, message: String) {
        self.begin();
        let (lease, occurred_at) = (self.context.lease, SystemClock.now());
        self.progress = Some(Progress { lease, fraction, message, occurred_at });
    }

    fn push_metrics(&mut self, values: Vec<(String, f64)>) {
        self.begin();
        let (lease, occurred_at) = (self.context.lease, SystemClock.now());
        self.metrics.push(JobMetrics { lease, occurred_at, values });
    }

    async fn flush(&mut self) {
        let (context, lease) = (self.context, self.context.lease);
        if !self.lines.is_empty() {
            let lines = std::mem::take(&mut self.lines);
            let (first_line, count) = (self.first_line, lines.len() as u64);
            let chunk = LogLines { lease, first_line, lines };
            publish(context, Output::Log(chunk)).await;
            self.first_line += count;
            self.bytes = 0;
        }
        for metrics in std::mem::take(&mut self.metrics) {
            publish(context, Output::Metrics(metrics)).await;
        }
        if let Some(progress) = self.progress.take() {
            publish(context, Output::Progress(progress)).await;
        }
        self.save_position();
    }

    fn save_position(&mut self) {
        if self.position != self.saved {
            self.position.save(&self.context.directory());
            self.saved = self.position;
        }
    }
}

/// Cuts a line that is too large as JSON. Returns the bytes that the line has as JSON.
fn cut_to_fit(mut line: LogLine) -> (LogLine, usize) {
    let mut bytes = 0;
    for (position, c) in line.text.char_indices() {
        let size = match c {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            c if c < ' ' => 6,
            c => c.len_utf8(),
        };
        if bytes + size > MAX_LINE_BYTES {
            line.cut += (line.text.len() - position) as u64;
            line.text.truncate(position);
            break;
        }
        bytes += size;
    }
    (line, bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        attempt::testing::{StubDocker, attempt},
        lease_table::LeaseTable,
    };

    #[test]
    fn a_flood_is_measured_by_the_times_at_which_the_job_wrote() {
        let at = |millis| Timestamp::EPOCH.plus(Millis(millis));
        let mut meter = FloodMeter::new();
        assert!(!meter.is_flooded_by(at(20_000), MAX_BYTES_IN_WINDOW), "the most that one window allows");
        assert!(meter.is_flooded_by(at(29_000), 1), "too much in one window");
        assert!(!meter.is_flooded_by(at(31_000), MAX_BYTES_IN_WINDOW), "the next window begins at 0");
        assert!(!meter.is_flooded_by(at(5_000), MAX_BYTES_IN_WINDOW), "the wall clock was set back");
    }

    #[tokio::test]
    async fn a_log_is_cut_at_its_limit_with_a_word_and_progress_goes_on() {
        let (state, docker) = (tempfile::tempdir().unwrap(), StubDocker::start().await);
        let context = attempt(state.path(), &docker, &Arc::new(LeaseTable::new(1))).await;
        let mut chunk = Chunk::new(&context, LogPosition::default());
        let mut reader = LogReader::at(LogPosition::default(), 10);
        let line = |text: &str| {
            let at = Timestamp::EPOCH;
            JobLine::Log(LogLine { stream: LogStream::Stdout, at, text: text.to_owned(), cut: 0 })
        };
        reader.position.bytes = 10;
        reader.keep(&mut chunk, line("kept"));
        reader.position.bytes = 11;
        for text in ["cut", "left out"] {
            reader.keep(&mut chunk, line(text));
        }
        reader.keep(&mut chunk, JobLine::Progress(0.5, String::new()));
        let texts: Vec<_> = chunk.lines.iter().map(|l| l.text.as_str()).collect();
        assert_eq!(texts, ["kept", "the log is cut here: a job keeps 0 MiB of its log"]);
        assert!(chunk.progress.is_some());
        assert_eq!((chunk.position.lines, chunk.position.is_cut), (2, true));
    }

    #[test]
    fn a_line_of_control_characters_is_cut_to_fit_into_a_request() {
        let line = |text: String| LogLine { stream: LogStream::Stdout, at: SystemClock.now(), text, cut: 3 };
        for text in ["\u{1}".repeat(65_536), "\"".repeat(65_536), "é\u{1b}".repeat(30_000)] {
            let length = text.len() as u64;
            let (cut, bytes) = cut_to_fit(line(text));
            let json = serde_json::to_string(&cut.text).unwrap().len() - 2;
            assert_eq!((bytes, cut.text.len() as u64 + cut.cut), (json, length + 3));
            assert!(json <= MAX_LINE_BYTES);
        }
        assert_eq!(cut_to_fit(line("whole".to_owned())).0.text, "whole");
    }

    #[test]
    fn a_saved_position_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(LogPosition::saved(dir.path()), LogPosition::default());
        let position = LogPosition { frames: 7, lines: 5, bytes: 99, is_cut: true, ..LogPosition::default() };
        position.save(dir.path());
        assert_eq!(LogPosition::saved(dir.path()), position);
        // An older worker saved no digest. The log that it began is signed by nobody.
        std::fs::write(dir.path().join(POSITION_FILE), r#"{"frames":7,"lines":5,"bytes":99,"is_cut":true}"#).unwrap();
        assert_eq!(LogPosition::saved(dir.path()), LogPosition { chain: None, ..position });
    }
}
