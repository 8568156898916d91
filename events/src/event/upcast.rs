//! Payloads of versions that are no longer written, and the conversion of each into the event of today.
//!
//! An upcast is a pure function of the old payload: it invents nothing that was not in it.

use serde::Deserialize;

use super::machine::{Check, MachineTested, Speed};
use crate::ids::MachineId;

/// `MachineTested.v1`: the speed stood only in the texts of the checks, and every reader had to parse it there.
#[derive(Deserialize)]
pub(super) struct MachineTestedV1 {
    machine: MachineId,
    checks: Vec<Check>,
}

impl From<MachineTestedV1> for MachineTested {
    fn from(MachineTestedV1 { machine, checks }: MachineTestedV1) -> Self {
        Self { machine, speed: Speed::of(&checks), checks }
    }
}
