//! Output of a running job: its log, its progress, its measurements. A message may arrive twice; log lines are
//! numbered, so that readers drop the lines that they already have.

use serde::{Deserialize, Serialize};

use crate::{ids::Lease, time::Timestamp};

/// Wire name of [`Progress`].
pub const PROGRESS: &str = "Progress.v1";
/// Wire name of [`LogLines`].
pub const LOG_LINES: &str = "LogLines.v1";
/// Wire name of [`JobMetrics`].
pub const JOB_METRICS: &str = "JobMetrics.v1";

/// The progress of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Progress {
    /// The attempt.
    pub lease: Lease,
    /// From 0 to 1.
    pub fraction: f32,
    /// The job's own words for its present work.
    #[serde(default)]
    pub message: String,
    /// When it was said, by the machine's clock.
    pub occurred_at: Timestamp,
}

/// The stream that a line came from.
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
    /// The attempt.
    pub lease: Lease,
    /// Number of the first of these lines in the attempt's log, counted from 0.
    pub first_line: u64,
    /// The lines, without line ends.
    pub lines: Vec<LogLine>,
}

/// A line of a job's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// The stream that the line came from.
    pub stream: LogStream,
    /// When the line was written, by the machine's clock.
    pub at: Timestamp,
    /// The text. The job wrote it: escape it wherever it is shown.
    pub text: String,
}

/// Measurements that a job reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobMetrics {
    /// The attempt.
    pub lease: Lease,
    /// When it was said, by the machine's clock.
    pub occurred_at: Timestamp,
    /// Name and value of each measurement.
    pub values: Vec<(String, f64)>,
}
