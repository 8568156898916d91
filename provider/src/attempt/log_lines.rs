//! Parses the bytes that a job writes into log lines, progress and metrics. The bytes are untrusted, so the length of a
//! line, the length of a message and the number of metrics are limited.
//!
//! A job reports its progress and its metrics by a line on standard output, such as `::progress 0.25 epoch 3 of 12` or
//! `::metric loss=0.5 accuracy=0.9`.

use gpubnb_events::{
    Timestamp,
    output::{LogLine, LogStream},
};

/// Longest line, bytes. The rest of a longer line is dropped.
const MAX_LINE: usize = 8 * 1024;
/// Longest message of a progress line, in characters.
const MAX_MESSAGE: usize = 200;
/// Most metrics in one line.
const MAX_METRICS: usize = 32;
/// The text that marks the end of a line that was too long.
const CUT: &str = " … (cut)";

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

/// Joins Docker's frames into lines. A frame is a part of a line, at most 16 KiB long.
#[derive(Debug, Default)]
pub(super) struct LineJoiner {
    stdout: PartialLine,
    stderr: PartialLine,
}

/// The beginning of a line that is not complete yet.
#[derive(Debug, Default)]
struct PartialLine {
    text: Vec<u8>,
    /// Docker's timestamp of the line's first frame.
    at: Option<Timestamp>,
}

impl LineJoiner {
    /// Adds a frame, which begins with Docker's timestamp. Returns the line if the frame completes it.
    pub(super) fn push(&mut self, stream: LogStream, frame: &[u8]) -> Option<JobLine> {
        let (time, text) = match frame.iter().position(|b| *b == b' ') {
            Some(space) => (&frame[..space], &frame[space + 1..]),
            None => (&frame[..0], frame),
        };
        let partial = match stream {
            LogStream::Stdout => &mut self.stdout,
            LogStream::Stderr => &mut self.stderr,
        };
        let at = std::str::from_utf8(time).ok().and_then(|t| t.parse().ok()).unwrap_or(Timestamp::EPOCH);
        let at = *partial.at.get_or_insert(at);
        let is_complete = text.last() == Some(&b'\n');
        let room = MAX_LINE.saturating_sub(partial.text.len());
        partial.text.extend_from_slice(&text[..text.len().min(room + 1)]);
        if !is_complete {
            return None;
        }
        let text = std::mem::take(&mut partial.text);
        partial.at = None;
        Some(parse(stream, at, &text))
    }

    /// Returns the last line of each stream that ended without a newline.
    pub(super) fn finish(&mut self) -> Vec<JobLine> {
        let mut last_lines = Vec::new();
        for (stream, partial) in [(LogStream::Stdout, &mut self.stdout), (LogStream::Stderr, &mut self.stderr)] {
            if !partial.text.is_empty() {
                last_lines.push(parse(stream, partial.at.unwrap_or(Timestamp::EPOCH), &partial.text));
            }
        }
        last_lines
    }
}

fn parse(stream: LogStream, at: Timestamp, bytes: &[u8]) -> JobLine {
    let mut text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_LINE)]).into_owned();
    if bytes.len() > MAX_LINE {
        text.push_str(CUT);
    }
    let text = text.trim_end_matches(['\n', '\r']);
    if stream == LogStream::Stdout
        && let Some(line) = progress_or_metrics(text)
    {
        return line;
    }
    JobLine::Log(LogLine { stream, at, text: text.to_owned() })
}

/// Parses a line of progress or metrics; `None` for an ordinary line, and for a malformed line.
fn progress_or_metrics(text: &str) -> Option<JobLine> {
    if let Some(rest) = text.strip_prefix("::progress ") {
        let (fraction, message) = rest.trim_start().split_once(' ').unwrap_or((rest.trim(), ""));
        let fraction: f32 = fraction.parse().ok().filter(|f: &f32| f.is_finite())?;
        let message = message.trim().chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect();
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

    fn push(lines: &mut LineJoiner, text: &str) -> Option<JobLine> {
        lines.push(LogStream::Stdout, format!("2026-02-02T02:40:00.123456789Z {text}").as_bytes())
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
        for _ in 0..100 {
            assert_eq!(push(&mut lines, &"x".repeat(16 * 1024)), None);
        }
        let Some(JobLine::Log(line)) = push(&mut lines, "end\n") else { panic!("a line") };
        assert!(line.text.len() < MAX_LINE + 20 && line.text.ends_with(CUT));
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
        let error = lines.push(LogStream::Stderr, b"2026-02-02T02:40:00Z ::progress 1\n");
        assert!(matches!(error, Some(JobLine::Log(line)) if line.text == "::progress 1"), "only stdout is parsed");
        assert!(matches!(push(&mut lines, "line\n"), Some(JobLine::Log(line)) if line.text == "out line"));
    }

    #[test]
    fn the_last_line_needs_no_newline_and_bytes_need_not_be_text() {
        let mut lines = LineJoiner::default();
        lines.push(LogStream::Stderr, b"2026-02-02T02:40:00Z \xff\x00 end");
        assert!(matches!(&lines.finish()[..], [JobLine::Log(line)] if line.text.ends_with("end")));
    }
}
