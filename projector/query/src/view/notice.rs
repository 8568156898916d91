//! Notices of changes, for live pages.

use gpubnb_events::Seq;
use serde::{Deserialize, Serialize};

use super::{JobView, MachineView, TrailEvent};

/// A notice that a job, a machine or an account changed. The subject of the message names which.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// The sequence of the change. A page that asks because of this notice names it as `min_seq`.
    pub seq: Seq,
    /// The state after the change.
    pub news: News,
}

/// The state after a change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// The state is too large for a notice: the page must ask.
    Ask,
    /// The state of a job.
    Job(Box<JobNews>),
    /// The state of a machine.
    Machine(Box<MachineView>),
}

/// A job after a change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobNews {
    /// The job after the change.
    pub job: JobView,
    /// The number of events in the job's trail before the change.
    pub before: u32,
    /// The events that the change added to the trail.
    pub trail: Vec<TrailEvent>,
}
