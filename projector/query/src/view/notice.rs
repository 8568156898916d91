//! Notices of changes. The projector publishes them, and the web server uses them to update open pages.

use gpubnb_events::Seq;
use serde::{Deserialize, Serialize};

use super::{JobView, MachineView, TrailEvent};

/// A notice that a job, a machine or an account changed. The subject of the message has its id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// The sequence of the last event that the notice includes; zero for a notice of a heartbeat. A page that then
    /// sends a query gives this sequence as `min_seq`.
    pub seq: Seq,
    /// The state after the change.
    pub news: NewState,
}

/// The state after a change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewState {
    /// The notice has no state, because the state is too large or is not published. The receiver must send a query.
    Ask,
    /// The state of a job.
    Job(Box<JobChange>),
    /// The state of a machine.
    Machine(Box<MachineView>),
}

/// A job after a change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobChange {
    /// The job after the change.
    pub job: JobView,
    /// The number of events in the job's trail before the change.
    pub before: u32,
    /// The events that the change added to the trail.
    pub trail: Vec<TrailEvent>,
}
