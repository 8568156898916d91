//! A failure of an attempt: the reason that the market is told, and the error that caused it.

use bollard::errors::Error;
use gpubnb_events::{command::Outcome, event::Reason};

/// A failure of an attempt.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(super) reason: Reason,
    cause: anyhow::Error,
}

impl Problem {
    /// A failure that this worker found out itself.
    pub(super) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, cause: anyhow::Error::msg(detail.into()) }
    }

    /// A failure with an error below it.
    pub(super) fn caused(reason: Reason, cause: impl Into<anyhow::Error>) -> Self {
        Self { reason, cause: cause.into() }
    }

    /// A failure that Docker reported. The text of the error is all there is to tell whose fault it is, since Docker
    /// has no error codes for these cases.
    pub(super) fn of_docker(e: Error) -> Self {
        let text = e.to_string();
        let mentions = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
        let reason = if mentions(&["no space left on device"]) {
            Reason::DiskFull
        } else if mentions(&[
            "executable file not found",
            "exec format error",
            "no such file or directory: unknown",
            "No command specified",
        ]) {
            Reason::BadImage
        } else {
            Reason::RuntimeMisconfigured
        };
        Self::caused(reason, e)
    }

    /// The error with all its causes, for people: `a.bin: permission denied`.
    pub(super) fn detail(&self) -> String {
        format!("{:#}", self.cause)
    }

    /// How the market is told of it.
    pub(super) fn outcome(&self) -> Outcome {
        Outcome::Failed { reason: self.reason, detail: self.detail() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn the_texts_of_docker_tell_whose_fault_a_failure_is() {
        for (text, reason) in [
            ("write /var/lib/docker/x: no space left on device", Reason::DiskFull),
            ("exec: \"trian\": executable file not found in $PATH", Reason::BadImage),
            ("exec /usr/bin/python: exec format error", Reason::BadImage),
            ("unknown or invalid runtime name: runsc", Reason::RuntimeMisconfigured),
        ] {
            let error = Error::DockerResponseServerError { status_code: 500, message: text.to_owned() };
            let problem = Problem::of_docker(error);
            assert_eq!(problem.reason, reason, "{text}");
            assert!(problem.detail().contains(text));
        }
    }

    #[test]
    fn the_market_is_told_every_cause() {
        let cause = std::io::Error::other("the device is gone");
        let cause = Err::<(), _>(cause).context("a.bin").unwrap_err();
        let Outcome::Failed { reason, detail } = Problem::caused(Reason::DiskFull, cause).outcome() else { panic!() };
        assert_eq!((reason, detail.as_str()), (Reason::DiskFull, "a.bin: the device is gone"));
    }
}
