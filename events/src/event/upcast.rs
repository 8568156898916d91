//! Events of versions that are written no more, read as what they would be today.
//!
//! An upcast is a pure function of the old payload: it invents nothing that was not in it.

use serde::{Deserialize, de::DeserializeOwned};

use super::{Check, DecodeError, Event, JobAssigned, MachineTested};
use crate::{ids::MachineId, record::Speed};

/// Reads an event of an older version.
pub(super) fn decode(wire_name: &str, payload: &[u8]) -> Result<Event, DecodeError> {
    match wire_name {
        "MachineTested.v1" => read::<MachineTestedV1>(wire_name, payload).map(|old| MachineTested::from(old).into()),
        // Its explanation was a sentence, which is read as one: `Chosen::Words`.
        "JobAssigned.v1" => read::<JobAssigned>(wire_name, payload).map(Into::into),
        unknown => Err(DecodeError::UnknownType(unknown.chars().take(64).collect())),
    }
}

fn read<T: DeserializeOwned>(wire_name: &str, payload: &[u8]) -> Result<T, DecodeError> {
    serde_json::from_slice(payload).map_err(|source| DecodeError::Payload { wire_name: wire_name.to_owned(), source })
}

/// Its speed was only in the texts of its checks, and whoever placed a job had to read them there.
#[derive(Deserialize)]
struct MachineTestedV1 {
    machine: MachineId,
    checks: Vec<Check>,
}

impl From<MachineTestedV1> for MachineTested {
    fn from(MachineTestedV1 { machine, checks }: MachineTestedV1) -> Self {
        Self { machine, speed: Speed::of(&checks), checks }
    }
}
