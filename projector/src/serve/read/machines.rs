//! The queries about machines: their rows, their readings (load, temperature and so on), and the outcomes of their
//! attempts. An attempt is one assignment of a job to a machine.

use gpubnb_events::{Actor, MachineId};
use gpubnb_model::{
    jobs::{self, Jobs},
    machines::{self, Machines},
    rows::MachineRow,
};
use gpubnb_query::{
    request::{MACHINES_PER_ANSWER, MachinesOfQuery, ReadingsQuery},
    view::{AttemptOutcome, MachineState, MachineView, Reading},
};
use gpubnb_runtime::rpc::RpcError;

use super::{ReadModels, store_failure};
use crate::serve::access::{may_see, not_found};

/// The most outcomes in one answer.
const MAX_OUTCOMES: usize = 20;
/// The number of minutes in the load chart of a machine. Minutes without a heartbeat are not in the chart.
const LOAD_MINUTES: usize = 60;

impl ReadModels {
    pub(crate) fn with_heartbeat(&self, row: MachineRow) -> MachineView {
        let (heartbeat, load) = self.telemetry.heartbeat_and_load(row.machine, LOAD_MINUTES);
        MachineView { listed: row.into(), heartbeat, load }
    }

    /// The listed machines whose ids follow `after`, sorted by id. The number of machines is limited so that the answer
    /// fits into one message.
    pub(crate) fn machines(&self, after: Option<MachineId>) -> Result<Vec<MachineView>, RpcError> {
        let table = self.tables.of(&Machines).map_err(store_failure)?;
        let rows = machines::rows_after(&table, after)
            .filter(|row| !matches!(row, Ok(m) if m.wanted == MachineState::Delisted));
        let rows: Result<Vec<_>, _> = rows.take(MACHINES_PER_ANSWER).collect();
        Ok(rows.map_err(store_failure)?.into_iter().map(|row| self.with_heartbeat(row)).collect())
    }

    /// The machines of an owner whose ids follow `query.after`, sorted by id. The answer includes delisted machines.
    pub(crate) fn machines_of(&self, actor: Actor, query: MachinesOfQuery) -> Result<Vec<MachineView>, RpcError> {
        if !may_see(actor, query.owner) {
            return Err(not_found("account"));
        }
        let table = self.tables.of(&Machines).map_err(store_failure)?;
        let ids = machines::owned_by(&table, query.owner, query.after).take(MACHINES_PER_ANSWER);
        ids.map(|id| self.machine(id.map_err(store_failure)?)).collect()
    }

    /// The outcomes of a machine's newest attempts. Everybody may see the outcomes, so they name neither the job nor
    /// the consumer.
    pub(crate) fn outcomes(&self, machine: MachineId) -> Result<Vec<AttemptOutcome>, RpcError> {
        let table = self.tables.of(&Jobs).map_err(store_failure)?;
        jobs::outcomes(&table, machine, MAX_OUTCOMES).map_err(store_failure)
    }

    pub(crate) fn readings(&self, query: ReadingsQuery) -> Vec<Reading> {
        self.telemetry.readings(query.machine, query.minutes as usize)
    }

    pub(crate) fn machine_row(&self, id: MachineId) -> Result<Option<MachineRow>, RpcError> {
        let table = self.tables.of(&Machines).map_err(store_failure)?;
        gpubnb_store::get(&table, &machines::row_key(id)).map_err(store_failure)
    }

    pub(crate) fn machine(&self, id: MachineId) -> Result<MachineView, RpcError> {
        self.machine_row(id)?.map(|row| self.with_heartbeat(row)).ok_or_else(|| not_found("machine"))
    }
}

#[cfg(test)]
mod tests {
    use gpubnb_events::event::{MachineDelisted, Reason};
    use gpubnb_model::testing::{History, account, job, machine};

    use super::*;
    use crate::serve::read::expect_refusal;

    fn actor(number: u16) -> Actor {
        Actor::Account(account(number))
    }

    /// A history in which account 2 has listed the machines 1 to `last`.
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
    fn the_pages_of_machines_are_sorted_by_id() {
        let read = ReadModels::from_history(&listed(65));
        let first = read.machines(None).unwrap();
        assert_eq!((first.len(), ids(&first)[0], ids(&first)[63]), (MACHINES_PER_ANSWER, machine(1), machine(64)));
        assert_eq!(ids(&read.machines(Some(machine(64))).unwrap()), [machine(65)]);
        assert_eq!(ids(&read.machines(Some(machine(65))).unwrap()), []);
        let owned = |after| read.machines_of(actor(2), MachinesOfQuery { owner: account(2), after }).unwrap();
        assert_eq!(owned(None).len(), MACHINES_PER_ANSWER);
        assert_eq!(ids(&owned(Some(machine(64)))), [machine(65)]);
        assert_eq!(ids(&owned(Some(machine(65)))), []);
    }

    #[test]
    fn a_market_without_machines_has_an_empty_list() {
        let read = ReadModels::from_history(&History::default());
        assert_eq!(read.machines(None).unwrap(), []);
    }

    #[test]
    fn only_the_owners_list_has_delisted_machines() {
        let mut history = listed(3);
        history.record(MachineDelisted { machine: machine(2) });
        history.listed(account(3), machine(4));
        let read = ReadModels::from_history(&history);
        assert_eq!(ids(&read.machines(None).unwrap()), [machine(1), machine(3), machine(4)]);
        let query = MachinesOfQuery { owner: account(2), after: None };
        assert_eq!(ids(&read.machines_of(actor(2), query).unwrap()), [machine(1), machine(2), machine(3)]);
        assert_eq!(expect_refusal(read.machines_of(actor(3), query)), "NotFound: There is no such account.");
    }

    #[test]
    fn an_unknown_machine_is_not_found() {
        let read = ReadModels::from_history(&listed(1));
        assert_eq!(read.machine(machine(1)).unwrap().listed.owner, account(2));
        assert_eq!(expect_refusal(read.machine(machine(2))), "NotFound: There is no such machine.");
    }

    #[test]
    fn the_outcomes_of_a_machine_are_newest_first_and_name_no_job_or_consumer() {
        let mut history = listed(1);
        for number in 1..=21 {
            history.submitted(account(1), job(number));
            let lease = history.assigned(job(number), machine(1));
            history.failed(job(number), Some(lease), Reason::OutOfMemory);
        }
        let outcomes = ReadModels::from_history(&history).outcomes(machine(1)).unwrap();
        assert_eq!(outcomes.len(), MAX_OUTCOMES);
        assert!(outcomes.is_sorted_by_key(|outcome| std::cmp::Reverse(outcome.lease.0)));
        let text = serde_json::to_string(&outcomes).unwrap();
        assert!(!text.contains(&account(1).to_string()) && !text.contains(&job(21).to_string()), "{text}");
    }
}
