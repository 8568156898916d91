//! The report of an attempt. The worker makes the report when the attempt has ended, and writes it to the outbox: a
//! file in the attempt's directory. The worker then uploads the files of the job, and delivers the report. After a
//! crash the worker reads the report from the outbox, so that the reason of the end is not lost.

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::Duration,
};

use gpubnb_events::{
    Clock as _, SystemClock,
    command::{Done, Exit, Grant, Outcome, Report, UploadGrant},
    manifest,
    signed_log::{LogChain, SignedLog},
    spec::{Artifact, LeftOut, LeftOutReason, Usage},
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    artifacts::{self, Collected},
    context::AttemptContext,
    door::AttemptDoor,
    end::AttemptEnd,
    job_disk, upload,
    watch::wait_for_value,
};

/// The outbox: the file of a report that is not delivered yet.
const OUTBOX: &str = "outbox.json";
/// Largest outbox that is read, bytes. A report with the most files, 1,000, is smaller.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Longest time between the end of a program and its report without an announcement of the exit.
const REPORT_SOON: Duration = Duration::from_secs(1);

/// A report that is not delivered to the platform yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PendingReport {
    pub(super) report: Report,
    /// The permit to upload the files; `None` if there are no files, or if the market stores no files.
    upload: Option<UploadGrant>,
}

/// Makes the report of an ended attempt: lists and signs its files, and starts to write the report to the outbox.
pub(super) async fn make_report(context: &AttemptContext, grant: &Grant, end: AttemptEnd) -> PendingReport {
    let (job, lease, disk) = (context.job, context.lease, context.disk());
    let usage = Some(end.usage());
    let mut outcome = end.outcome(|| job_disk::fullness(&disk));
    let mut collected = Collected::default();
    if end.has_run() {
        match artifacts::collect(disk.output(), grant.spec.resources.output.bytes()).await {
            Ok(found) => collected = found,
            // If the job failed, its own reason is more important than the failure to list its files.
            Err(problem) if outcome == Outcome::Completed => outcome = problem.outcome(),
            Err(problem) => info!(%job, lease = lease.0.0, problem = problem.detail(), "the files are not listed"),
        }
    }
    info!(%job, lease = lease.0.0, ?outcome, "the attempt has ended");
    let Collected { files: outputs, left_out } = collected;
    let signature = sign(context, &outputs);
    let upload = grant.upload.clone().filter(|_| !outputs.is_empty());
    let traffic = context.door.get().map(AttemptDoor::traffic);
    let occurred_at = SystemClock.now();
    let report = Report { job, lease, outcome, outputs, left_out, usage, traffic, occurred_at, signature, log: None };
    let pending = PendingReport { report, upload };
    pending.write_in_background(&context.directory());
    pending
}

/// The machine's signature over the list of files.
fn sign(context: &AttemptContext, outputs: &[Artifact]) -> Option<String> {
    sign_text(context, &manifest::signed_text(context.job, context.lease, outputs))
}

/// The log of the attempt, with the machine's signature.
fn sign_log(context: &AttemptContext, log: LogChain) -> Option<SignedLog> {
    let (lines, sha256) = (log.lines, log.sha256());
    let signature = sign_text(context, &SignedLog::signed_text(context.job, context.lease, lines, &sha256))?;
    Some(SignedLog { lines, sha256, signature })
}

fn sign_text(context: &AttemptContext, text: &str) -> Option<String> {
    let signed = context.tools.identity.keys.sign(text);
    signed.inspect_err(|e| warn!(error = format!("{e:#}"), "a report could not be signed")).ok()
}

/// Uploads the files and delivers the report. Tries until the market answers, even for hours. `log` is the log that was
/// published; `None` if the job's code never ran.
pub(super) async fn deliver(context: &AttemptContext, pending: PendingReport, log: Option<LogChain>) {
    let PendingReport { mut report, upload } = pending;
    report.log = log.and_then(|log| sign_log(context, log));
    context.tools.leases.set_ended(context.lease, report.occurred_at);
    if let Some(permit) = &upload {
        announce_exit(context, report.usage.unwrap_or_default()).await;
        let without_room = upload::upload_all(context, permit, &report.outputs).await;
        if !without_room.is_empty() {
            leave_out(&mut report, &without_room);
            report.signature = sign(context, &report.outputs);
        }
    }
    if let Err(refusal) = context.tools.platform.call_until_answered::<Done>("report", &report).await {
        warn!(job = %context.job, lease = context.lease.0.0, %refusal, "the platform refused the report");
    }
}

/// Moves the files for which the market had no room from the list of files to the list of what is left out.
fn leave_out(report: &mut Report, without_room: &[String]) {
    report.outputs.retain(|file| !without_room.contains(&file.path));
    let example = without_room.first().map(|path| artifacts::example(path)).unwrap_or_default();
    let entries = without_room.len() as u64;
    report.left_out.push(LeftOut { reason: LeftOutReason::StoreFull, entries, example });
}

/// Tells the market that the job's program has ended, if its report takes longer than [`REPORT_SOON`]: the rest of the
/// log and the list of files may take long. `usage` is set when the program has ended.
pub(super) async fn announce_slow_exit(context: &AttemptContext, usage: watch::Receiver<Option<Usage>>) {
    let usage = wait_for_value(&mut usage.clone(), |usage| *usage).await;
    tokio::time::sleep(REPORT_SOON).await;
    announce_exit(context, usage).await;
}

/// Tells the market that the job's program has ended. The market records that once.
async fn announce_exit(context: &AttemptContext, usage: Usage) {
    let exit = Exit { job: context.job, lease: context.lease, usage };
    if let Err(refusal) = context.tools.platform.call_until_answered::<Done>("exit", &exit).await {
        info!(job = %context.job, lease = context.lease.0.0, %refusal, "the platform refused the exit");
    }
}

impl PendingReport {
    /// Reads the outbox of a former run of the worker. Returns `None` if there is no outbox or it cannot be read. The
    /// worker then finds out from the container how the attempt ended.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        let path = dir.join(OUTBOX);
        let read = match fs::metadata(&path) {
            Ok(metadata) if metadata.len() <= MAX_FILE_BYTES => fs::read(&path),
            Ok(_) => return None,
            Err(e) => Err(e),
        };
        match read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from)) {
            Ok(pending) => Some(pending),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => {
                warn!(path = %path.display(), error = %e, "the outbox of an attempt cannot be read");
                None
            }
        }
    }

    /// Writes the outbox in the background. A missing directory is no error: the attempt has no files, or the report is
    /// already delivered.
    fn write_in_background(&self, dir: &Path) {
        let (pending, dir) = (self.clone(), dir.to_owned());
        tokio::task::spawn_blocking(move || match pending.write(&dir) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                let lease = pending.report.lease.0.0;
                warn!(lease, error = %e, "the outbox could not be written: a crash would lose the reason of the end");
            }
            _ => {}
        });
    }

    /// Writes the outbox atomically. Only the worker's user may read the file, because the permit is a secret.
    fn write(&self, dir: &Path) -> io::Result<()> {
        let (path, partial) = (dir.join(OUTBOX), dir.join("outbox.partial"));
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
    fn a_written_report_is_read_and_a_damaged_outbox_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        assert!(PendingReport::read(dir.path()).is_none());
        let report = Report {
            job: JobId::generate(),
            lease: Lease(Seq(7)),
            outcome: Outcome::Failed { reason: Reason::TimeLimit, detail: String::new() },
            outputs: Vec::new(),
            left_out: Vec::new(),
            usage: Some(Usage { run: Millis(5) }),
            traffic: None,
            occurred_at: Timestamp::EPOCH,
            signature: None,
            log: None,
        };
        PendingReport { report: report.clone(), upload: None }.write(dir.path()).unwrap();
        assert_eq!(PendingReport::read(dir.path()).unwrap().report, report);
        let mode = fs::metadata(dir.path().join(OUTBOX)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "the permit in the file is a secret");
        fs::write(dir.path().join(OUTBOX), "{\"repo").unwrap();
        assert!(PendingReport::read(dir.path()).is_none());
    }
}
