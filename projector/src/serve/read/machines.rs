//! Queries about machines: their rows, their readings, and the attempts that their record counts.

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
/// Minutes of load that are answered with a machine.
const SPARKLINE: usize = 60;

impl ReadModels {
    pub(crate) fn with_heartbeat(&self, row: MachineRow) -> MachineView {
        let (heartbeat, load) = self.telemetry.of(row.machine, SPARKLINE);
        MachineView { listed: row.into(), heartbeat, load }
    }

    /// The machines after one, by id, without those that are delisted. A full answer fits into one message of the
    /// broker.
    pub(crate) fn machines(&self, after: Option<MachineId>) -> Result<Vec<MachineView>, Failure> {
        let table = self.tables.of(&Machines).map_err(broken)?;
        let rows =
            machines::after(&table, after).filter(|row| !matches!(row, Ok(m) if m.wanted == MachineState::Delisted));
        let rows: Result<Vec<_>, _> = rows.take(MACHINES_AT_ONCE).collect();
        Ok(rows.map_err(broken)?.into_iter().map(|row| self.with_heartbeat(row)).collect())
    }

    /// The machines of an owner after one, by id, also those that are delisted.
    pub(crate) fn machines_of(&self, actor: Actor, query: MachinesOfQuery) -> Result<Vec<MachineView>, Failure> {
        if !may_see(actor, query.owner) {
            return Err(not_found("account"));
        }
        let table = self.tables.of(&Machines).map_err(broken)?;
        let ids = machines::of_owner(&table, query.owner, query.after).take(MACHINES_AT_ONCE);
        ids.map(|id| self.machine(id.map_err(broken)?)).collect()
    }

    /// The newest attempts that a machine's record counts. Everybody may see how they ended; whose jobs they were is
    /// left out.
    pub(crate) fn outcomes(&self, machine: MachineId) -> Result<Vec<Outcome>, Failure> {
        let table = self.tables.of(&Jobs).map_err(broken)?;
        jobs::outcomes(&table, machine, OUTCOMES).map_err(broken)
    }

    pub(crate) fn readings(&self, query: ReadingsQuery) -> Vec<Reading> {
        self.telemetry.readings(query.machine, query.minutes as usize)
    }

    pub(crate) fn machine_row(&self, id: MachineId) -> Result<Option<MachineRow>, Failure> {
        let table = self.tables.of(&Machines).map_err(broken)?;
        gpubnb_store::get(&table, &machines::row_key(id)).map_err(broken)
    }

    pub(crate) fn machine(&self, id: MachineId) -> Result<MachineView, Failure> {
        self.machine_row(id)?.map(|row| self.with_heartbeat(row)).ok_or_else(|| not_found("machine"))
    }
}

#[cfg(test)]
mod tests {
    use gpubnb_events::event::{MachineDelisted, Reason};
    use gpubnb_model::testing::{History, account, job, machine};

    use super::*;
    use crate::serve::read::refusal;

    fn actor(number: u16) -> Actor {
        Actor::Account(account(number))
    }

    /// The machines 1 to `last` of account 2.
    fn listed(last: u16) -> History {
        let mut history = History::default();
        for number in 1..=last {
            history.listed(account(2), machine(number));
        }
        history
    }

    fn ids(machines: &[MachineView]) -> Vec<MachineId> {
        machines.iter().map(|view| view.listed.machine).collect()
    }

    #[test]
    fn machines_come_by_id_part_by_part() {
        let read = ReadModels::after(&listed(65));
        let first = read.machines(None).unwrap();
        assert_eq!((first.len(), ids(&first)[0], ids(&first)[63]), (MACHINES_AT_ONCE, machine(1), machine(64)));
        assert_eq!(ids(&read.machines(Some(machine(64))).unwrap()), [machine(65)]);
        assert_eq!(ids(&read.machines(Some(machine(65))).unwrap()), []);
        let owned = |after| read.machines_of(actor(2), MachinesOfQuery { owner: account(2), after }).unwrap();
        assert_eq!(owned(None).len(), MACHINES_AT_ONCE);
        assert_eq!(ids(&owned(Some(machine(64)))), [machine(65)]);
        assert_eq!(ids(&owned(Some(machine(65)))), []);
    }

    #[test]
    fn a_market_without_machines_has_an_empty_list() {
        let read = ReadModels::after(&History::default());
        assert_eq!(read.machines(None).unwrap(), []);
    }

    #[test]
    fn delisted_machines_are_in_their_owners_list_only() {
        let mut history = listed(3);
        history.record(MachineDelisted { machine: machine(2) });
        history.listed(account(3), machine(4));
        let read = ReadModels::after(&history);
        assert_eq!(ids(&read.machines(None).unwrap()), [machine(1), machine(3), machine(4)]);
        let query = MachinesOfQuery { owner: account(2), after: None };
        assert_eq!(ids(&read.machines_of(actor(2), query).unwrap()), [machine(1), machine(2), machine(3)]);
        assert_eq!(refusal(read.machines_of(actor(3), query)), "NotFound: There is no such account.");
    }

    #[test]
    fn one_machine_is_there_or_not() {
        let read = ReadModels::after(&listed(1));
        assert_eq!(read.machine(machine(1)).unwrap().listed.owner, account(2));
        assert_eq!(refusal(read.machine(machine(2))), "NotFound: There is no such machine.");
    }

    #[test]
    fn everybody_sees_the_newest_attempts_that_a_record_counts() {
        let mut history = listed(1);
        for number in 1..=21 {
            history.submitted(account(1), job(number));
            let lease = history.assigned(job(number), machine(1));
            history.failed(job(number), Some(lease), Reason::OutOfMemory);
        }
        let outcomes = ReadModels::after(&history).outcomes(machine(1)).unwrap();
        assert_eq!(outcomes.len(), OUTCOMES);
        assert!(outcomes.is_sorted_by_key(|outcome| std::cmp::Reverse(outcome.lease.0)));
        let text = serde_json::to_string(&outcomes).unwrap();
        assert!(!text.contains(&account(1).to_string()) && !text.contains(&job(21).to_string()), "{text}");
    }
}
