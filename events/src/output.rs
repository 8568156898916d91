//! What a job says while it runs. At least once: a chunk names its place, readers drop what they have.

use serde::{Deserialize, Serialize};

use crate::{ids::Lease, time::Timestamp};

/// Wire name of [`Progress`].
pub const PROGRESS: &str = "Progress.v1";
/// Wire name of [`LogLines`].
pub const LOG_LINES: &str = "LogLines.v1";
/// Wire name of [`JobMetrics`].
pub const JOB_METRICS: &str = "JobMetrics.v1";

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Progress {
    /// The attempt.
    pub lease: Lease,
    /// From 0 to 1.
    pub fraction: f32,
    /// What it does, in its own words.
    #[serde(default)]
    pub message: String,
    /// By the machine's clock.
    pub occurred_at: Timestamp,
}

/// Which of the two streams a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A run of log lines of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLines {
    /// The attempt.
    pub lease: Lease,
    /// Number of the first line, from 0, over the attempt's whole log.
    pub first_line: u64,
    /// The lines, without their ends.
    pub lines: Vec<LogLine>,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Where it came from.
    pub stream: LogStream,
    /// When, by the machine's clock.
    pub at: Timestamp,
    /// What it says. Hostile text: escape it.
    pub text: String,
}

/// Measurements of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobMetrics {
    /// The attempt.
    pub lease: Lease,
    /// By the machine's clock.
    pub occurred_at: Timestamp,
    /// Name and value.
    pub values: Vec<(String, f64)>,
}
