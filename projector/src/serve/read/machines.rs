//! Machines, their readings, and the attempts that their record counts.

use gpubnb_events::{Actor, MachineId};
use gpubnb_model::{
    jobs::{self, Jobs},
    machines::{self, Machines},
    rows::MachineRow,
};
use gpubnb_query::{
    request::{MACHINES_AT_ONCE, MachinesOfQuery, ReadingsQuery},
    view::{MachineState, MachineView, Outcome, Reading},
};
use gpubnb_runtime::rpc::Failure;

use super::{ReadModels, broken};
use crate::serve::access::{may_see, not_found};

/// Most attempts at a machine that one answer lists.
const OUTCOMES: usize = 20;
/// Minutes of load shown beside a machine.
const SPARKLINE: usize = 60;

impl ReadModels {
    pub(crate) fn with_heartbeat(&self, row: MachineRow) -> MachineView {
        let (heartbeat, load) = self.live.of(row.machine, SPARKLINE);
        MachineView { listed: row.into(), heartbeat, load }
    }

    /// The machines after one, by id: as many as fit into one message, whatever they say of themselves.
    pub(crate) fn machines(&self, after: Option<MachineId>) -> Result<Vec<MachineView>, Failure> {
        let table = self.tables.of(&Machines).map_err(broken)?;
        let rows =
            machines::after(&table, after).filter(|row| !matches!(row, Ok(m) if m.wanted == MachineState::Delisted));
        let rows: Result<Vec<_>, _> = rows.take(MACHINES_AT_ONCE).collect();
        Ok(rows.map_err(broken)?.into_iter().map(|row| self.with_heartbeat(row)).collect())
    }

    /// The machines of an owner after one, by id, delisted ones too.
    pub(crate) fn machines_of(&self, actor: Actor, query: MachinesOfQuery) -> Result<Vec<MachineView>, Failure> {
        if !may_see(actor, query.owner) {
            return Err(not_found("account"));
        }
        let table = self.tables.of(&Machines).map_err(broken)?;
        let ids = machines::of_owner(&table, query.owner, query.after).take(MACHINES_AT_ONCE);
        ids.map(|id| self.machine(id.map_err(broken)?)).collect()
    }

    /// The attempts that a machine's record counts: everybody may see how it went, and nobody whose they were.
    pub(crate) fn outcomes(&self, machine: MachineId) -> Result<Vec<Outcome>, Failure> {
        let table = self.tables.of(&Jobs).map_err(broken)?;
        jobs::outcomes(&table, machine, OUTCOMES).map_err(broken)
    }

    pub(crate) fn readings(&self, query: ReadingsQuery) -> Vec<Reading> {
        self.live.readings(query.machine, query.minutes as usize)
    }

    pub(crate) fn machine_row(&self, id: MachineId) -> Result<Option<MachineRow>, Failure> {
        let table = self.tables.of(&Machines).map_err(broken)?;
        gpubnb_store::get(&table, &machines::row_key(id)).map_err(broken)
    }

    pub(crate) fn machine(&self, id: MachineId) -> Result<MachineView, Failure> {
        self.machine_row(id)?.map(|row| self.with_heartbeat(row)).ok_or_else(|| not_found("machine"))
    }
}
