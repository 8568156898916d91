//! Errors as text, together with their causes.

use std::{error::Error, fmt};

/// An error of any type, for functions whose failures have no type in common.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// An error and its causes on one line: `cannot read the log: the broker is unavailable: timed out`.
///
/// No error of this workspace repeats its source in its own text. Therefore a log line or a stored note writes the
/// `Chain` of an error, never the error alone. Errors of libraries may repeat their sources. Therefore a cause is left
/// out if the text before it already ends with the cause: `no connection: timed out` with the cause `timed out` stays
/// as it is.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        f.write_str(&text)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            let cause_text = cause.to_string();
            if !text.ends_with(&cause_text) {
                write!(f, ": {cause_text}")?;
                text = cause_text;
            }
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Link>>,
    }

    fn chain(texts: &[&'static str]) -> Link {
        let (text, rest) = texts.split_first().unwrap();
        Link { text, source: (!rest.is_empty()).then(|| Box::new(chain(rest))) }
    }

    #[test]
    fn every_cause_is_written_once() {
        assert_eq!(Chain(&chain(&["alone"])).to_string(), "alone");
        assert_eq!(Chain(&chain(&["a", "b", "c"])).to_string(), "a: b: c");
        assert_eq!(Chain(&chain(&["a", "b: c", "c", "d"])).to_string(), "a: b: c: d");
    }
}
