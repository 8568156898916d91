//! The report of an attempt: made when the attempt has ended, kept on disk until the platform has it, and delivered
//! after the files. After a crash the worker delivers the report that it had kept, with the reason that was found then.

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use gpubnb_events::{
    Clock as _, SystemClock,
    command::{Done, Grant, Outcome, Report, UploadGrant},
    manifest,
    spec::Artifact,
};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{artifacts, context::AttemptContext, end::End, output_volume, upload};

const FILE: &str = "outbox.json";
/// Largest file that is read as a report: a manifest lists 1,000 files at most.
const MOST_BYTES: u64 = 4 << 20;

/// A report that the platform does not have yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PendingReport {
    pub(super) report: Report,
    /// The permit for the files; `None` where there are no files, or the market keeps none.
    upload: Option<UploadGrant>,
}

/// Makes the report of an attempt that has ended: lists and signs its files, and begins to write the report to the
/// disk.
pub(super) async fn conclude(context: &AttemptContext, grant: &Grant, end: End) -> PendingReport {
    let (job, lease, output) = (context.job, context.lease, context.output());
    let usage = Some(end.usage());
    let mut outcome = end.outcome(|| output_volume::is_full(&output));
    let mut outputs = Vec::new();
    if end.has_run() {
        match artifacts::collect(output, grant.spec.resources.output.bytes()).await {
            Ok(listed) => outputs = listed,
            // The reason for which a job failed is more important than that its files are not listed.
            Err(problem) if outcome == Outcome::Completed => outcome = problem.outcome(),
            Err(problem) => info!(%job, lease = lease.0.0, problem = problem.detail(), "its files are not listed"),
        }
    }
    info!(%job, lease = lease.0.0, ?outcome, "ended");
    let signature = sign(context, &outputs);
    let upload = grant.upload.clone().filter(|_| !outputs.is_empty());
    let report = Report { job, lease, outcome, outputs, usage, occurred_at: SystemClock.now(), signature };
    let pending = PendingReport { report, upload };
    pending.keep_in_background(&context.directory());
    pending
}

/// The machine's signature over the list of files.
fn sign(context: &AttemptContext, outputs: &[Artifact]) -> Option<String> {
    let text = manifest::signed_text(context.job, context.lease, outputs);
    let signed = context.tools.identity.keys.sign(&text);
    signed.inspect_err(|e| warn!(error = format!("{e:#}"), "the manifest is not signed")).ok()
}

/// Uploads the files and delivers the report, however long that takes: the market may be away for hours.
pub(super) async fn deliver(context: &AttemptContext, pending: PendingReport) {
    let PendingReport { report, upload } = pending;
    context.tools.leases.set_ended(context.lease, report.occurred_at);
    if let Some(permit) = &upload {
        upload::upload_all(context, permit, &report.outputs).await;
    }
    if let Err(refusal) = context.tools.platform.insist::<Done>("report", &report).await {
        warn!(job = %context.job, lease = context.lease.0.0, %refusal, "the report was refused");
    }
}

impl PendingReport {
    /// The report that a former run of the worker left in an attempt's directory. A file that cannot be read counts as
    /// none: the worker then looks at the container again.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        let path = dir.join(FILE);
        let read = match fs::metadata(&path) {
            Ok(metadata) if metadata.len() <= MOST_BYTES => fs::read(&path),
            Ok(_) => return None,
            Err(e) => Err(e),
        };
        match read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from)) {
            Ok(pending) => Some(pending),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => {
                warn!(path = %path.display(), error = %e, "a report cannot be read");
                None
            }
        }
    }

    /// Writes the report to the disk while the attempt goes on. Where the directory is gone, the attempt has left
    /// nothing, or the report is delivered already.
    fn keep_in_background(&self, dir: &Path) {
        let (pending, dir) = (self.clone(), dir.to_owned());
        tokio::task::spawn_blocking(move || match pending.keep(&dir) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                let lease = pending.report.lease.0.0;
                warn!(lease, error = %e, "the report is not on disk: a crash now would lose its reason");
            }
            _ => {}
        });
    }

    /// Writes the report to the disk, whole or not at all. Only the worker may read the file: the permit is a secret.
    fn keep(&self, dir: &Path) -> io::Result<()> {
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
    use gpubnb_events::{JobId, Lease, Millis, Seq, Timestamp, event::Reason, spec::Usage};
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_report_is_read_as_it_was_kept_and_half_a_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(PendingReport::read(dir.path()).is_none());
        let report = Report {
            job: JobId::generate(),
            lease: Lease(Seq(7)),
            outcome: Outcome::Failed { reason: Reason::TimeLimit, detail: String::new() },
            outputs: Vec::new(),
            usage: Some(Usage { run: Millis(5) }),
            occurred_at: Timestamp::EPOCH,
            signature: None,
        };
        PendingReport { report: report.clone(), upload: None }.keep(dir.path()).unwrap();
        assert_eq!(PendingReport::read(dir.path()).unwrap().report, report);
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "the permit in it is a secret");
        fs::write(dir.path().join(FILE), "{\"repo").unwrap();
        assert!(PendingReport::read(dir.path()).is_none());
    }
}
