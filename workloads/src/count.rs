//! The `count` job: numbered lines at a steady pace, then a chosen exit code.
//!
//! Use the job to try out logs, progress, cancellation and failures. The job computes nothing and
//! writes no file.

use std::io::Write;
use std::thread;
use std::time::Duration;

use crate::cli::CountOptions;
use crate::error::Error;
use crate::progress::Reporter;

/// Writes odd lines to the log and even lines to `errors`; returns the exit code from the options.
pub fn run<W: Write, E: Write>(
    options: &CountOptions,
    reporter: &mut Reporter<W>,
    errors: &mut E,
) -> Result<u8, Error> {
    for line in 1..=options.lines {
        if line > 1 {
            thread::sleep(Duration::from_millis(options.interval_ms));
        }
        if line % 2 == 1 {
            reporter.log(&format!("line {line}"))?;
        } else {
            writeln!(errors, "line {line}").and_then(|()| errors.flush()).map_err(Error::Log)?;
        }
        reporter.step(line, options.lines, &format!("{line} of {} lines", options.lines))?;
    }
    Ok(options.exit_code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_lines_are_logged_and_even_lines_go_to_the_errors() {
        let options = CountOptions { lines: 3, interval_ms: 0, exit_code: 7 };
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        let code = run(&options, &mut Reporter::new(&mut out), &mut errors).unwrap();
        assert_eq!(code, 7);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "line 1\n::progress 0.3333 1 of 3 lines\n::progress 0.6667 2 of 3 lines\n\
             line 3\n::progress 1.0000 3 of 3 lines\n"
        );
        assert_eq!(String::from_utf8(errors).unwrap(), "line 2\n");
    }
}
