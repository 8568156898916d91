//! A failure of an attempt: the reason for the market, and the error that caused the failure.

use bollard::errors::Error;
use gpubnb_events::{command::Outcome, event::Reason};

/// A failure of an attempt. The reason decides who pays, and whether the job starts again on another machine.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(super) reason: Reason,
    cause: anyhow::Error,
}

impl Problem {
    /// A failure that the worker detected. `detail` is a text for people.
    pub(super) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, cause: anyhow::Error::msg(detail.into()) }
    }

    /// A failure that an error caused.
    pub(super) fn caused(reason: Reason, cause: impl Into<anyhow::Error>) -> Self {
        Self { reason, cause: cause.into() }
    }

    /// A failure that Docker reported. The reason is derived from the text of the error, because Docker has no error
    /// codes for these cases.
    pub(super) fn of_docker(e: Error) -> Self {
        let text = e.to_string();
        let mentions = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
        // The image has a file, or a loop of links, where one of the job's directories is mounted.
        let is_blocked_mount = mentions(&["/leases/", "/datasets/", "Cannot mkdir: "])
            && mentions(&["not a directory", "too many levels of symbolic links", "read-only file system"]);
        let reason = if mentions(&["no space left on device"]) {
            Reason::DiskFull
        } else if is_blocked_mount
            || mentions(&[
                "executable file not found",
                "exec format error",
                "no such file or directory: unknown",
                "No command specified",
            ])
        {
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

    /// The outcome in the report to the market.
    pub(super) fn outcome(&self) -> Outcome {
        Outcome::Failed { reason: self.reason, detail: self.detail() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn the_reason_is_derived_from_dockers_text() {
        for (text, reason) in [
            ("write /var/lib/docker/x: no space left on device", Reason::DiskFull),
            ("exec: \"trian\": executable file not found in $PATH", Reason::BadImage),
            ("exec /usr/bin/python: exec format error", Reason::BadImage),
            (
                "error mounting \"/s/leases/7/disk/output\" to rootfs at \"/output\": not a directory: Are you trying \
                 to mount a directory onto a file (or vice-versa)?",
                Reason::BadImage,
            ),
            ("Cannot mkdir: /output is not a directory", Reason::BadImage),
            ("fork/exec /opt/nvidia/hook: not a directory", Reason::RuntimeMisconfigured),
            ("unknown or invalid runtime name: runsc", Reason::RuntimeMisconfigured),
        ] {
            let error = Error::DockerResponseServerError { status_code: 500, message: text.to_owned() };
            let problem = Problem::of_docker(error);
            assert_eq!(problem.reason, reason, "{text}");
            assert!(problem.detail().contains(text));
        }
    }

    #[test]
    fn the_outcome_contains_every_cause() {
        let cause = std::io::Error::other("the device is gone");
        let cause = Err::<(), _>(cause).context("a.bin").unwrap_err();
        let Outcome::Failed { reason, detail } = Problem::caused(Reason::DiskFull, cause).outcome() else { panic!() };
        assert_eq!((reason, detail.as_str()), (Reason::DiskFull, "a.bin: the device is gone"));
    }
}
