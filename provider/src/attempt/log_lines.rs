//! Parses the bytes that a job writes into log lines, progress and metrics. The bytes are untrusted, so the length of a
//! line, the length of a message and the number of metrics are limited.
//!
//! A job reports its progress and its metrics by a line on standard output, such as `::progress 0.25 epoch 3 of 12` or
//! `::metric loss=0.5 accuracy=0.9`.

use gpubnb_events::{
    Timestamp,
    output::{LogLine, LogStream},
    text::is_plain,
};

/// Longest line, bytes. The rest of a longer line is left out, and counted.
const MAX_LINE: usize = 64 * 1024;
/// Longest message of a progress line, in characters.
const MAX_MESSAGE: usize = 200;
/// Most metrics in one line.
const MAX_METRICS: usize = 32;

/// A line that a job wrote.
#[derive(Debug, PartialEq)]
pub(super) enum JobLine {
    /// An ordinary line of the log.
    Log(LogLine),
    /// The progress of the job, from 0 to 1, and its message.
    Progress(f32, String),
    /// Metrics of the job: names and values.
    Metrics(Vec<(String, f64)>),
}

/// A part of a line as Docker returns it, at most 16 KiB long.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    stream: LogStream,
    /// Docker's time at which the job wrote the part.
    pub(super) at: Timestamp,
    /// The part. It ends with a newline if it is the last of its line.
    pub(super) text: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Parses the bytes of a frame, which begin with Docker's timestamp.
    pub(super) fn parse(stream: LogStream, bytes: &'a [u8]) -> Self {
        let (time, text) = match bytes.iter().position(|b| *b == b' ') {
            Some(space) => (&bytes[..space], &bytes[space + 1..]),
            None => (&bytes[..0], bytes),
        };
        let at = std::str::from_utf8(time).ok().and_then(|t| t.parse().ok()).unwrap_or(Timestamp::EPOCH);
        Self { stream, at, text }
    }
}

/// Joins Docker's frames into lines.
///
/// A carriage return takes the writer back to the start of the line, so that progress bars write over themselves. Of
/// such a line only the newest state is kept. Example: `10 %\r20 %\r30 %\n` is the line `30 %`.
#[derive(Debug, Default)]
pub(super) struct LineJoiner {
    stdout: PartialLine,
    stderr: PartialLine,
}

/// The beginning of a line that is not complete yet.
#[derive(Debug, Default)]
struct PartialLine {
    text: Vec<u8>,
    /// The bytes that are left out after the text.
    cut: u64,
    /// The time of the line's first frame.
    at: Option<Timestamp>,
}

impl PartialLine {
    /// Appends a part of the line. What a carriage return overwrites is dropped.
    fn append(&mut self, mut text: &[u8]) {
        let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let end = text.iter().rposition(|byte| !is_end(byte)).map_or(0, |last| last + 1);
        let is_overwritten = self.text.last() == Some(&b'\r') && end > 0;
        let last_return = text[..end].iter().rposition(|byte| *byte == b'\r');
        if is_overwritten || last_return.is_some() {
            self.text.clear();
            self.cut = 0;
            text = &text[last_return.map_or(0, |at| at + 1)..];
        }
        let kept = text.len().min(MAX_LINE.saturating_sub(self.text.len()));
        self.text.extend_from_slice(&text[..kept]);
        // The line end is no part of the line.
        self.cut += text[kept..].iter().rposition(|byte| !is_end(byte)).map_or(0, |last| last as u64 + 1);
    }

    /// Takes the line. A line that is too long is cut between two characters.
    fn take(&mut self, stream: LogStream) -> JobLine {
        let Self { mut text, mut cut, at } = std::mem::take(self);
        while matches!(text.last(), Some(b'\n' | b'\r')) {
            text.pop();
        }
        if cut > 0 {
            let complete = match std::str::from_utf8(&text) {
                Err(e) if e.error_len().is_none() => e.valid_up_to(),
                _ => text.len(),
            };
            cut += (text.len() - complete) as u64;
            text.truncate(complete);
        }
        let line = LogLine {
            stream,
            at: at.unwrap_or(Timestamp::EPOCH),
            text: String::from_utf8_lossy(&text).into_owned(),
            cut,
        };
        match progress_or_metrics(&line.text) {
            Some(parsed) if stream == LogStream::Stdout => parsed,
            _ => JobLine::Log(line),
        }
    }
}

impl LineJoiner {
    /// Adds a frame. Returns the line if the frame completes it.
    pub(super) fn push(&mut self, frame: &Frame<'_>) -> Option<JobLine> {
        let partial = match frame.stream {
            LogStream::Stdout => &mut self.stdout,
            LogStream::Stderr => &mut self.stderr,
        };
        partial.at.get_or_insert(frame.at);
        partial.append(frame.text);
        (frame.text.last() == Some(&b'\n')).then(|| partial.take(frame.stream))
    }

    /// Returns true if a line of either stream is not complete.
    pub(super) fn has_partial(&self) -> bool {
        self.stdout.at.is_some() || self.stderr.at.is_some()
    }

    /// Returns the last line of each stream that ended without a newline.
    pub(super) fn finish(&mut self) -> Vec<JobLine> {
        let mut last_lines = Vec::new();
        for (stream, partial) in [(LogStream::Stdout, &mut self.stdout), (LogStream::Stderr, &mut self.stderr)] {
            if !partial.text.is_empty() {
                last_lines.push(partial.take(stream));
            }
        }
        last_lines
    }
}

/// Parses a line of progress or metrics; `None` for an ordinary line, and for a malformed line.
fn progress_or_metrics(text: &str) -> Option<JobLine> {
    if let Some(rest) = text.strip_prefix("::progress ") {
        let (fraction, message) = rest.trim_start().split_once(' ').unwrap_or((rest.trim(), ""));
        let fraction: f32 = fraction.parse().ok().filter(|f: &f32| f.is_finite())?;
        let message = message.trim().chars().filter(|c| is_plain(*c)).take(MAX_MESSAGE).collect();
        return Some(JobLine::Progress(fraction.clamp(0.0, 1.0), message));
    }
    let pairs = text.strip_prefix("::metric ")?.split_whitespace().take(MAX_METRICS);
    let values: Option<Vec<_>> = pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let value: f64 = value.parse().ok().filter(|v: &f64| v.is_finite())?;
            (!name.is_empty() && name.len() <= 64).then(|| (name.to_owned(), value))
        })
        .collect();
    values.filter(|v| !v.is_empty()).map(JobLine::Metrics)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push_to(lines: &mut LineJoiner, stream: LogStream, text: &[u8]) -> Option<JobLine> {
        lines.push(&Frame::parse(stream, &[b"2026-02-02T02:40:00.123456789Z ", text].concat()))
    }

    fn log(line: Option<JobLine>) -> LogLine {
        let Some(JobLine::Log(line)) = line else { panic!("{line:?}") };
        line
    }

    fn push(lines: &mut LineJoiner, text: &str) -> Option<JobLine> {
        push_to(lines, LogStream::Stdout, text.as_bytes())
    }

    #[test]
    fn progress_and_metrics_are_parsed_and_everything_else_is_a_log_line() {
        let mut lines = LineJoiner::default();
        assert_eq!(
            push(&mut lines, "::progress 0.25 epoch 3 of 12\n"),
            Some(JobLine::Progress(0.25, "epoch 3 of 12".to_owned()))
        );
        assert_eq!(push(&mut lines, "::progress 7\n"), Some(JobLine::Progress(1.0, String::new())));
        let metrics = vec![("loss".to_owned(), 0.5), ("accuracy".to_owned(), 0.9)];
        assert_eq!(push(&mut lines, "::metric loss=0.5 accuracy=0.9\n"), Some(JobLine::Metrics(metrics)));
        for plain in ["::progress nan x", "::progress", "::metric loss", "hello", "", " ::progress 1"] {
            let parsed = push(&mut lines, &format!("{plain}\n"));
            assert!(matches!(&parsed, Some(JobLine::Log(line)) if line.text == plain), "{plain:?} {parsed:?}");
        }
    }

    #[test]
    fn frames_are_joined_and_long_lines_are_cut() {
        let mut lines = LineJoiner::default();
        assert_eq!(push(&mut lines, "one "), None);
        let Some(JobLine::Log(line)) = push(&mut lines, "line\n") else { panic!("a line") };
        assert_eq!(line.text, "one line");
        assert_eq!(line.at.to_string(), "2026-02-02T02:40:00.123Z");
        assert!(!lines.has_partial());
        for _ in 0..100 {
            assert_eq!(push(&mut lines, &"é".repeat(8 * 1024)), None);
        }
        assert!(lines.has_partial());
        let line = log(push(&mut lines, "end\n"));
        assert_eq!((line.text.len(), line.cut), (MAX_LINE, 100 * 16 * 1024 + 3 - MAX_LINE as u64));
        push(&mut lines, "x");
        push(&mut lines, &"é".repeat(MAX_LINE));
        let line = log(push(&mut lines, "\n"));
        assert_eq!((line.text.len(), line.cut), (MAX_LINE - 1, MAX_LINE as u64 + 2), "cut between two characters");
    }

    #[test]
    fn of_a_line_that_writes_over_itself_the_newest_state_is_kept() {
        let mut lines = LineJoiner::default();
        assert_eq!(log(push(&mut lines, "10 %\r20 %\r30 %\n")).text, "30 %");
        assert_eq!(log(push(&mut lines, "windows line\r\n")).text, "windows line");
        assert_eq!(log(push(&mut lines, "done\r\r\n")).text, "done");
        // A frame may end anywhere.
        push(&mut lines, "10 %\r");
        push(&mut lines, "20");
        push(&mut lines, " %\r");
        assert_eq!(log(push(&mut lines, "\n")).text, "20 %");
        push(&mut lines, &"x".repeat(2 * MAX_LINE));
        assert_eq!(log(push(&mut lines, "\rshort\n")), LogLine { cut: 0, ..log(push(&mut lines, "short\n")) });
    }

    #[test]
    fn progress_and_metrics_are_limited() {
        let mut lines = LineJoiner::default();
        let message = "x".repeat(2 * MAX_MESSAGE);
        let parsed = push(&mut lines, &format!("::progress 0.5 {message}\u{7}\n"));
        assert!(matches!(parsed, Some(JobLine::Progress(_, message)) if message.len() == MAX_MESSAGE));
        let many: Vec<_> = (0..2 * MAX_METRICS).map(|n| format!("m{n}=1")).collect();
        let parsed = push(&mut lines, &format!("::metric {}\n", many.join(" ")));
        assert!(matches!(parsed, Some(JobLine::Metrics(values)) if values.len() == MAX_METRICS));
        let parsed = push(&mut lines, &format!("::metric {}=1\n", "n".repeat(65)));
        assert!(matches!(parsed, Some(JobLine::Log(_))), "a metric whose name is too long is a log line");
    }

    #[test]
    fn stdout_and_stderr_are_joined_separately() {
        let mut lines = LineJoiner::default();
        assert_eq!(push(&mut lines, "out "), None);
        let error = push_to(&mut lines, LogStream::Stderr, b"::progress 1\n");
        assert!(matches!(error, Some(JobLine::Log(line)) if line.text == "::progress 1"), "only stdout is parsed");
        assert!(matches!(push(&mut lines, "line\n"), Some(JobLine::Log(line)) if line.text == "out line"));
    }

    #[test]
    fn the_last_line_needs_no_newline_and_bytes_need_not_be_text() {
        let mut lines = LineJoiner::default();
        push_to(&mut lines, LogStream::Stderr, b"\xff\x00 end");
        assert!(matches!(&lines.finish()[..], [JobLine::Log(line)] if line.text.ends_with("end")));
        push(&mut lines, &"x".repeat(MAX_LINE + 7));
        assert!(matches!(&lines.finish()[..], [JobLine::Log(line)] if line.cut == 7));
    }
}
