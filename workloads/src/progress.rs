//! The lines on standard output through which a job reports its progress.
//!
//! * `::progress <fraction 0..1> <message>` reports the finished share. The message is free text.
//! * `::metric <name>=<number> [<name>=<number> ...]` reports measured values.
//! * Every other line is a log line.
//!
//! Each line is flushed at once, so that a reader sees the line without delay.

use std::fmt::Write as _;
use std::io::{self, Stdout, Write};

use crate::error::Error;

/// Formats a progress line, without the line end.
///
/// A fraction outside 0 to 1 is clamped, NaN becomes 0, and control characters in the message
/// become spaces, so the result is always a single line.
pub fn progress_line(fraction: f64, message: &str) -> String {
    let fraction = if fraction.is_nan() { 0.0 } else { fraction.clamp(0.0, 1.0) };
    let line = format!("::progress {fraction:.4} {}", one_line(message));
    line.trim_end().to_owned()
}

/// Formats a metric line, without the line end; `None` if no value is finite.
///
/// Values have six significant digits; values that are not finite are left out. Characters other
/// than letters, digits, `_`, `-` and `.` in a name become `_`.
pub fn metric_line(values: &[(&str, f64)]) -> Option<String> {
    let mut line = String::from("::metric");
    for (name, value) in values.iter().filter(|(_, value)| value.is_finite()) {
        let name: String = name.chars().map(name_char).collect();
        // Writing into a string cannot fail.
        let _ = write!(line, " {name}={}", six_digits(*value));
    }
    (line != "::metric").then_some(line)
}

/// Rounds to six significant digits, to keep the line short.
fn six_digits(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

fn name_char(c: char) -> char {
    if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') { c } else { '_' }
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Writes the lines of a job and flushes after each line.
#[derive(Debug)]
pub struct Reporter<W: Write> {
    out: W,
    last_percent: Option<u32>,
}

impl Reporter<Stdout> {
    /// Reports on standard output, which the worker reads.
    pub fn stdout() -> Self {
        Self::new(io::stdout())
    }
}

impl<W: Write> Reporter<W> {
    /// Reports into any writer.
    pub fn new(out: W) -> Self {
        Self { out, last_percent: None }
    }

    /// Reports the finished share of the job.
    pub fn progress(&mut self, fraction: f64, message: &str) -> Result<(), Error> {
        self.line(&progress_line(fraction, message))
    }

    /// Reports that `done` of `all` steps are done, but only once for each whole percent.
    ///
    /// A job of many small steps would otherwise flood its own log with progress lines.
    pub fn step(&mut self, done: u32, all: u32, message: &str) -> Result<(), Error> {
        let percent = u64::from(done) * 100 / u64::from(all.max(1));
        let percent = u32::try_from(percent).unwrap_or(100);
        if self.last_percent == Some(percent) {
            return Ok(());
        }
        self.last_percent = Some(percent);
        self.progress(f64::from(done) / f64::from(all.max(1)), message)
    }

    /// Reports measured values.
    pub fn metric(&mut self, values: &[(&str, f64)]) -> Result<(), Error> {
        metric_line(values).map_or(Ok(()), |line| self.line(&line))
    }

    /// Writes a log line.
    pub fn log(&mut self, text: &str) -> Result<(), Error> {
        self.line(&one_line(text))
    }

    fn line(&mut self, line: &str) -> Result<(), Error> {
        writeln!(self.out, "{line}").and_then(|()| self.out.flush()).map_err(Error::Log)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_progress_line_has_a_fraction_and_a_message() {
        assert_eq!(progress_line(0.25, "a quarter"), "::progress 0.2500 a quarter");
        assert_eq!(progress_line(1.0, ""), "::progress 1.0000");
    }

    #[test]
    fn a_progress_line_stays_one_line_within_bounds() {
        assert_eq!(progress_line(-3.0, "a\nb\tc"), "::progress 0.0000 a b c");
        assert_eq!(progress_line(f64::INFINITY, "x"), "::progress 1.0000 x");
        assert_eq!(progress_line(f64::NAN, "x"), "::progress 0.0000 x");
    }

    #[test]
    fn a_metric_line_lists_names_and_numbers() {
        assert_eq!(
            metric_line(&[("loss", 0.5), ("test accuracy", 1.0)]).as_deref(),
            Some("::metric loss=0.5 test_accuracy=1")
        );
        assert_eq!(
            metric_line(&[("a", 1.0 / 3.0), ("b", 1_234_567.8)]).as_deref(),
            Some("::metric a=0.333333 b=1234570")
        );
        assert_eq!(metric_line(&[("loss", f64::NAN)]), None);
        assert_eq!(metric_line(&[]), None);
    }

    #[test]
    fn steps_within_the_same_percent_are_reported_once() {
        let mut out = Vec::new();
        let mut reporter = Reporter::new(&mut out);
        for done in 1..=1000 {
            reporter.step(done, 1000, "").unwrap();
        }
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 101);
        assert_eq!(text.lines().last(), Some("::progress 1.0000"));
    }

    #[test]
    fn every_line_ends_with_one_line_end() {
        let mut out = Vec::new();
        let mut reporter = Reporter::new(&mut out);
        reporter.log("hello\nworld").unwrap();
        reporter.metric(&[("a", 2.0)]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "hello world\n::metric a=2\n");
    }
}
