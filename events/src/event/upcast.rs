//! Payloads of old versions of events, and the conversion of each into the newest version (an *upcast*).
//!
//! An upcast is a pure function of the old payload. It adds no information that the payload does not contain.

use serde::Deserialize;

use super::machine::{Check, MachineTested, Speed};
use crate::ids::MachineId;

/// `MachineTested.v1`, which has no field `speed`. The upcast parses the speed from the texts of the checks.
#[derive(Deserialize)]
pub(super) struct MachineTestedV1 {
    machine: MachineId,
    checks: Vec<Check>,
}

impl From<MachineTestedV1> for MachineTested {
    fn from(MachineTestedV1 { machine, checks }: MachineTestedV1) -> Self {
        Self { machine, speed: Speed::from_checks(&checks), checks }
    }
}
