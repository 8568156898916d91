//! What is still to be said of an attempt that has ended, kept on disk until it is said: the report, and the permit for its
//! files. After a crash it is said as it would have been, with the reason that was found then.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use gpubnb_events::command::{Report, UploadGrant};
use serde::{Deserialize, Serialize};

const FILE: &str = "outbox.json";
/// Largest outbox that is read: a manifest has 1,000 files at most.
const MOST: u64 = 4 << 20;

/// What is still to be said of one attempt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Outbox {
    pub(super) report: Report,
    /// Where its files go; `None` where they are put, or the market keeps none.
    pub(super) upload: Option<UploadGrant>,
}

impl Outbox {
    /// What is kept in an attempt's directory. A file that cannot be read is as good as none: the container is looked at again.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        let path = dir.join(FILE);
        let read = match fs::metadata(&path) {
            Ok(metadata) if metadata.len() <= MOST => fs::read(&path),
            Ok(_) => return None,
            Err(e) => Err(e),
        };
        match read {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .inspect_err(|e| tracing::warn!(path = %path.display(), error = %e, "an outbox cannot be read"))
                .ok(),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => {
                tracing::warn!(path = %path.display(), error = %e, "an outbox cannot be read");
                None
            }
        }
    }

    /// Keeps it beside what comes next. Where the directory is gone the attempt has left nothing, or all is said already.
    pub(super) fn keep_beside(&self, dir: &Path) {
        let (outbox, dir) = (self.clone(), dir.to_owned());
        tokio::task::spawn_blocking(move || match outbox.keep(&dir) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                let lease = outbox.report.lease.0.0;
                tracing::warn!(lease, error = %e, "its ending is not kept: a crash now would have it found out anew");
            }
            _ => {}
        });
    }

    /// On the disk, whole or not at all, and readable by the worker only, for the permit is a secret.
    fn keep(&self, dir: &Path) -> std::io::Result<()> {
        let (path, partial) = (dir.join(FILE), dir.join("outbox.partial"));
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&partial, &path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::{JobId, Lease, Millis, Seq, Timestamp, command::Outcome, event::Reason, spec::Usage};

    #[test]
    fn what_is_kept_is_read_as_it_was_and_half_a_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Outbox::read(dir.path()).is_none());
        let report = Report {
            job: JobId::generate(),
            lease: Lease(Seq(7)),
            outcome: Outcome::Failed { reason: Reason::TimeLimit, detail: String::new() },
            outputs: Vec::new(),
            usage: Some(Usage { run: Millis(5) }),
            occurred_at: Timestamp::EPOCH,
            signature: None,
        };
        Outbox { report: report.clone(), upload: None }.keep(dir.path()).unwrap();
        assert_eq!(Outbox::read(dir.path()).unwrap().report, report);
        fs::write(dir.path().join(FILE), "{\"repo").unwrap();
        assert!(Outbox::read(dir.path()).is_none());
    }
}
