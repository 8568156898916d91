//! The messages with the output of a running job: log lines (which are numbered), progress and measurements. The
//! services write these into the stream OUTPUT. Unfinished lines are sent by the worker itself, and no stream stores
//! them.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{JobId, Lease},
    subject::OutputKind,
    time::Timestamp,
};

/// The name of the type [`Progress`] in a message's header.
pub const PROGRESS: &str = "Progress.v1";
/// The name of the type [`LogLines`] in a message's header.
pub const LOG_LINES: &str = "LogLines.v1";
/// The name of the type [`JobMetrics`] in a message's header.
pub const JOB_METRICS: &str = "JobMetrics.v1";

/// Bytes that the worker adds for each line of a log, for its time and its number, when it compares the size of the
/// log with the limit. The text of the line counts, too.
pub const LINE_COST: u64 = 8;

/// `cmd.machine.<id>.output`: a machine adds output of an attempt. Answer: `Done` with the sequence in OUTPUT. A
/// repetition adds nothing. Only the machine that holds the lease may add output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AddOutput {
    /// The job.
    pub job: JobId,
    /// The output.
    pub output: Output,
}

/// Output of one attempt, as its machine sends it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// The progress of the job.
    Progress(Progress),
    /// Lines of the job's log.
    Log(LogLines),
    /// Measurements of the job.
    Metrics(JobMetrics),
}

impl Output {
    /// The lease of the attempt.
    pub const fn lease(&self) -> Lease {
        match self {
            Self::Progress(progress) => progress.lease,
            Self::Log(lines) => lines.lease,
            Self::Metrics(metrics) => metrics.lease,
        }
    }

    /// The kind in the subject of the message.
    pub const fn kind(&self) -> OutputKind {
        match self {
            Self::Progress(_) => OutputKind::Progress,
            Self::Log(_) => OutputKind::Log,
            Self::Metrics(_) => OutputKind::Metrics,
        }
    }

    /// The name of the type in the message's header.
    pub const fn wire_name(&self) -> &'static str {
        match self {
            Self::Progress(_) => PROGRESS,
            Self::Log(_) => LOG_LINES,
            Self::Metrics(_) => JOB_METRICS,
        }
    }

    /// The body of the message.
    pub fn payload(&self) -> Result<Vec<u8>, serde_json::Error> {
        match self {
            Self::Progress(progress) => serde_json::to_vec(progress),
            Self::Log(lines) => serde_json::to_vec(lines),
            Self::Metrics(metrics) => serde_json::to_vec(metrics),
        }
    }
}

/// The progress of a job, as the job reports it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Progress {
    /// The lease of the attempt that reports the progress.
    pub lease: Lease,
    /// The finished share of the work, from 0 to 1.
    pub fraction: f32,
    /// A text in which the job describes its present work.
    #[serde(default)]
    pub message: String,
    /// The time of the report, by the machine's clock.
    pub occurred_at: Timestamp,
}

/// The stream to which the job wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Consecutive log lines of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLines {
    /// The lease of the attempt that wrote the lines.
    pub lease: Lease,
    /// Number of the first of these lines in the attempt's log, counted from 0.
    pub first_line: u64,
    /// The lines, without line ends.
    pub lines: Vec<LogLine>,
}

/// The name of the type [`UnfinishedLines`] in a message's header.
pub const UNFINISHED_LINES: &str = "UnfinishedLines.v1";
/// Largest text of an unfinished line, bytes. Of a longer line, only the last bytes are sent.
pub const MAX_UNFINISHED: usize = 1024;

/// The lines that a job has begun and not finished, such as `loading… ` or a progress bar that writes over itself.
/// Each message replaces the former one. A finished line is in [`LogLines`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UnfinishedLines {
    /// The lease of the attempt that writes the lines.
    pub lease: Lease,
    /// The time of the message, by the machine's clock.
    pub occurred_at: Timestamp,
    /// The unfinished line of standard output: at most [`MAX_UNFINISHED`] bytes from an untrusted job. Empty if there
    /// is no unfinished line.
    pub stdout: String,
    /// The unfinished line of standard error, as `stdout`.
    pub stderr: String,
}

/// A line of a job's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// The stream to which the job wrote the line.
    pub stream: LogStream,
    /// The time at which the line was written, by the machine's clock.
    pub at: Timestamp,
    /// The text of the line, which comes from an untrusted job: escape the text wherever it is shown.
    pub text: String,
    /// The number of bytes at the end of the line that are left out, because the line is too long.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cut: u64,
}

impl LogLine {
    /// The note to show after the text. Empty if nothing was cut.
    pub fn cut_mark(&self) -> String {
        if self.cut == 0 { String::new() } else { format!(" … ({} more bytes are left out)", self.cut) }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes references
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

/// Measurements that a job reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobMetrics {
    /// The lease of the attempt that reports the measurements.
    pub lease: Lease,
    /// The time of the report, by the machine's clock.
    pub occurred_at: Timestamp,
    /// Name and value of each measurement.
    pub values: Vec<(String, f64)>,
}
