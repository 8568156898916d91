//! From what a job writes to lines, progress and metrics. Hostile input: bounded, never interpreted further.
//!
//! The convention, usable from any language: a line of its own on standard output,
//! `::progress <0..1> <message>` or `::metric <name>=<number> …`.

use gpubnb_events::{
    Timestamp,
    output::{LogLine, LogStream},
};

/// Longest line that is kept; the rest of it is cut off.
const MAX_LINE: usize = 8 * 1024;
/// Longest message of a progress line, in characters.
const MAX_MESSAGE: usize = 200;
/// Most metrics in one line.
const MAX_METRICS: usize = 32;
const CUT: &str = " … (cut)";

/// What a line is.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    /// A line of the log.
    Line(LogLine),
    /// How far the job is.
    Progress(f32, String),
    /// Measurements.
    Metrics(Vec<(String, f64)>),
}

/// Joins what Docker cuts into frames (16 KiB) back into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    stdout: Partial,
    stderr: Partial,
}

#[derive(Debug, Default)]
struct Partial {
    text: Vec<u8>,
    at: Option<Timestamp>,
}

impl Lines {
    /// Takes in a frame that begins with Docker's own time.
    pub(super) fn push(&mut self, stream: LogStream, frame: &[u8]) -> Option<Said> {
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
        let complete = text.last() == Some(&b'\n');
        let room = MAX_LINE.saturating_sub(partial.text.len());
        partial.text.extend_from_slice(&text[..text.len().min(room + 1)]);
        if !complete {
            return None;
        }
        let text = std::mem::take(&mut partial.text);
        partial.at = None;
        Some(said(stream, at, &text))
    }

    /// What is left when a stream ends without a newline.
    pub(super) fn finish(&mut self) -> Vec<Said> {
        let mut left = Vec::new();
        for (stream, partial) in [(LogStream::Stdout, &mut self.stdout), (LogStream::Stderr, &mut self.stderr)] {
            if !partial.text.is_empty() {
                left.push(said(stream, partial.at.unwrap_or(Timestamp::EPOCH), &partial.text));
            }
        }
        left
    }
}

fn said(stream: LogStream, at: Timestamp, bytes: &[u8]) -> Said {
    let mut text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_LINE)]).into_owned();
    if bytes.len() > MAX_LINE {
        text.push_str(CUT);
    }
    let text = text.trim_end_matches(['\n', '\r']);
    if stream == LogStream::Stdout
        && let Some(said) = convention(text)
    {
        return said;
    }
    Said::Line(LogLine { stream, at, text: text.to_owned() })
}

fn convention(text: &str) -> Option<Said> {
    if let Some(rest) = text.strip_prefix("::progress ") {
        let (fraction, message) = rest.trim_start().split_once(' ').unwrap_or((rest.trim(), ""));
        let fraction: f32 = fraction.parse().ok().filter(|f: &f32| f.is_finite())?;
        let message = message.trim().chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect();
        return Some(Said::Progress(fraction.clamp(0.0, 1.0), message));
    }
    let pairs = text.strip_prefix("::metric ")?.split_whitespace().take(MAX_METRICS);
    let values: Option<Vec<_>> = pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let value: f64 = value.parse().ok().filter(|v: &f64| v.is_finite())?;
            (!name.is_empty() && name.len() <= 64).then(|| (name.to_owned(), value))
        })
        .collect();
    values.filter(|v| !v.is_empty()).map(Said::Metrics)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(lines: &mut Lines, text: &str) -> Option<Said> {
        lines.push(LogStream::Stdout, format!("2026-02-02T02:40:00.123456789Z {text}").as_bytes())
    }

    #[test]
    fn the_convention_is_read_and_everything_else_is_a_line() {
        let mut lines = Lines::default();
        assert_eq!(
            push(&mut lines, "::progress 0.25 epoch 3 of 12\n"),
            Some(Said::Progress(0.25, "epoch 3 of 12".to_owned()))
        );
        assert_eq!(push(&mut lines, "::progress 7\n"), Some(Said::Progress(1.0, String::new())));
        let metrics = vec![("loss".to_owned(), 0.5), ("accuracy".to_owned(), 0.9)];
        assert_eq!(push(&mut lines, "::metric loss=0.5 accuracy=0.9\n"), Some(Said::Metrics(metrics)));
        for plain in ["::progress nan x", "::progress", "::metric loss", "hello", "", " ::progress 1"] {
            let said = push(&mut lines, &format!("{plain}\n"));
            assert!(matches!(&said, Some(Said::Line(line)) if line.text == plain), "{plain:?} {said:?}");
        }
    }

    #[test]
    fn frames_are_joined_and_long_lines_are_cut() {
        let mut lines = Lines::default();
        assert_eq!(push(&mut lines, "one "), None);
        let Some(Said::Line(line)) = push(&mut lines, "line\n") else { panic!("a line") };
        assert_eq!(line.text, "one line");
        assert_eq!(line.at.to_string(), "2026-02-02T02:40:00.123Z");
        for _ in 0..100 {
            assert_eq!(push(&mut lines, &"x".repeat(16 * 1024)), None);
        }
        let Some(Said::Line(line)) = push(&mut lines, "end\n") else { panic!("a line") };
        assert!(line.text.len() < MAX_LINE + 20 && line.text.ends_with(CUT));
    }

    #[test]
    fn the_last_line_needs_no_newline_and_bytes_need_no_meaning() {
        let mut lines = Lines::default();
        lines.push(LogStream::Stderr, b"2026-02-02T02:40:00Z \xff\x00 end");
        assert!(matches!(&lines.finish()[..], [Said::Line(line)] if line.text.ends_with("end")));
    }
}
