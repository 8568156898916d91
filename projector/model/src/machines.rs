//! The model of machines: a row for each machine, with its offer, its presence (online or silent), its running jobs,
//! and the counts of successes and faults from which its reliability is computed.

use gpubnb_events::{
    AccountId, Event, HourlyRate, JobId, MachineId, MicroUsd, Millis, Recorded,
    event::{MachineListed, Reason, Settled},
    record::{self, AttemptResult},
};
use gpubnb_query::view::{Day, MachineState};
use gpubnb_store::{RowBytes, StoreError, Table, WriteBatch};
use serde::{Deserialize, Serialize};

use super::machine_state::StateFacts;
use super::rows::{DayRow, FaultRow, MachineRow};
use super::{Projection, account_key, job_key, key, machine_key};

/// Rows: `m<machine>` → [`MachineRow`]; `j<job>` → the machine of the job's last assignment; `d<machine><day>` → the
/// sums of a day's settlements. Keys without a value: `o<owner><machine>` and, while the machine takes jobs,
/// `p<price><machine>`.
pub struct Machines;

/// The first letter of the key of a machine's row.
pub const ROW_PREFIX: u8 = b'm';

/// The key of a machine's row.
pub fn row_key(machine: MachineId) -> Vec<u8> {
    machine_key(ROW_PREFIX, machine)
}

/// The rows of all machines after `machine` in the order of ids; all rows if `machine` is `None`.
pub fn rows_after(table: &Table, machine: Option<MachineId>) -> impl Iterator<Item = Result<MachineRow, StoreError>> {
    let from = machine.map_or_else(|| vec![ROW_PREFIX], |machine| [row_key(machine), vec![0]].concat());
    table.range(from..vec![ROW_PREFIX + 1]).map(|entry| {
        let (key, bytes) = entry?;
        gpubnb_store::decode(&key, &bytes)
    })
}

/// The machines of an owner after `machine` in the order of ids; all of them if `machine` is `None`.
pub fn owned_by(
    table: &Table,
    owner: AccountId,
    machine: Option<MachineId>,
) -> impl Iterator<Item = Result<MachineId, StoreError>> {
    let prefix = account_key(b'o', owner);
    let from = machine.map_or_else(|| prefix.clone(), |machine| [&prefix[..], machine.as_bytes(), &[0]].concat());
    let ids = table
        .range(from..)
        .keys()
        .take_while(move |key: &Result<RowBytes, StoreError>| key.as_ref().map_or(true, |k| k.starts_with(&prefix)));
    ids.map(|key| {
        let key = key?;
        // The key is the letter `o`, then the owner's id (16 bytes), then the machine's id.
        let id = key.get(17..).and_then(|id| id.try_into().ok()).and_then(|id| MachineId::from_bytes(id).ok());
        id.ok_or_else(|| StoreError::corrupt(&key, "the key has no machine id"))
    })
}

/// The lowest price of all machines that take jobs; `None` if no machine takes jobs.
pub fn cheapest(table: &Table) -> Result<Option<HourlyRate>, StoreError> {
    let Some(key) = table.scan_prefix([PRICE_PREFIX]).keys().next().transpose()? else { return Ok(None) };
    let price = key.get(1..9).and_then(|price| price.try_into().ok()).map(i64::from_be_bytes);
    Ok(price.map(|micros| HourlyRate(MicroUsd(micros))))
}

/// The key prefix of a machine's sums by day.
pub fn days_prefix(machine: MachineId) -> Vec<u8> {
    machine_key(b'd', machine)
}

const PRICE_PREFIX: u8 = b'p';

/// The key of a machine in the index of prices; `None` if the machine takes no jobs. Prices are never negative, so
/// their bytes sort as the prices do.
fn price_key(row: &MachineRow) -> Option<Vec<u8>> {
    let price = row.offer.price.0.0.to_be_bytes();
    (row.state() == MachineState::Online).then(|| key(PRICE_PREFIX, &[&price, row.machine.as_bytes()]))
}

/// The machine of a job's last assignment.
#[derive(Clone, Serialize, Deserialize)]
struct Holder {
    machine: MachineId,
}

impl Projection for Machines {
    fn name(&self) -> &'static str {
        "machines"
    }

    fn version(&self) -> u32 {
        8
    }

    fn apply(&self, rows: &mut WriteBatch<'_>, recorded: &Recorded, event: &Event) -> Result<(), StoreError> {
        match event {
            Event::MachineListed(e) => return list_machine(rows, recorded, e),
            Event::JobAssigned(e) => {
                rows.put(&job_key(b'j', e.job), Holder { machine: e.machine });
                return update_row(rows, recorded, e.machine, |row| row.running.push(e.job));
            }
            _ => {}
        }
        if let Some(job) = event.job() {
            let holder = job_key(b'j', job);
            let Some(Holder { machine }) = rows.get(&holder)? else { return Ok(()) };
            if let Event::Settled(e) = event {
                rows.remove(&holder);
                add_to_day(rows, recorded, machine, e)?;
            }
            if let Some(update) = row_change(job, recorded, event) {
                return update_row(rows, recorded, machine, update);
            }
            return Ok(());
        }
        let gpubnb_events::Aggregate::Machine(machine) = event.aggregate() else { return Ok(()) };
        update_row(rows, recorded, machine, |row| match event {
            Event::MachineRepriced(e) => row.offer.price = e.price,
            Event::MachineSettingsRequested(e) => row.requested = row.offer.apply_request(&e.settings),
            Event::MachineTested(e) => row.checks.clone_from(&e.checks),
            _ => state_facts(row).apply(event),
        })
    }
}

fn state_facts(row: &mut MachineRow) -> StateFacts<'_> {
    StateFacts { wanted: &mut row.wanted, presence: &mut row.presence, away: &mut row.away }
}

/// A change of a machine's row.
type RowChange<'a> = Box<dyn FnOnce(&mut MachineRow) + 'a>;

/// The change of the machine's row that an event of its job makes; `None` if the event does not change the row.
fn row_change<'a>(job: JobId, recorded: &'a Recorded, event: &'a Event) -> Option<RowChange<'a>> {
    let detail = match event {
        Event::Declined(_) | Event::Cancelled(_) => {
            return Some(Box::new(move |row| row.running.retain(|held| *held != job)));
        }
        Event::Settled(e) => {
            return Some(Box::new(move |row| {
                row.earned += e.earned;
                let billed = e.metering.as_ref().map_or(Millis(0), |m| m.billed);
                row.metered = Millis(row.metered.0.saturating_add(billed.0));
            }));
        }
        Event::Failed(e) => e.detail.as_str(),
        Event::Requeued(e) => e.detail.as_str(),
        _ => "",
    };
    if !matches!(event, Event::Completed(_) | Event::Requeued(_) | Event::Failed(_)) {
        return None;
    }
    let (result, completed) = (record::attempt_result(event), matches!(event, Event::Completed(_)));
    Some(Box::new(move |row| {
        row.running.retain(|held| *held != job);
        match result {
            None => {}
            Some(AttemptResult::Success) => row.successes += 1,
            Some(AttemptResult::MachineFault(reason)) => {
                // `Preempted` means that the owner took the machine back, which is no defect of the machine.
                if reason != Reason::Preempted {
                    let (at, seq, detail) = (recorded.at, recorded.seq, detail.to_owned());
                    row.trouble = Some(FaultRow { job, reason, detail, at, seq });
                }
                *row.faults.entry(reason_name(reason)).or_default() += 1;
            }
        }
        if completed {
            row.trouble = None;
        }
    }))
}

/// The name of a reason, without its fields: `NonZeroExit` for `NonZeroExit { code: 3 }`.
fn reason_name(reason: Reason) -> String {
    let text = format!("{reason:?}");
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// Adds a settlement to the day's sums of a machine.
fn add_to_day(
    rows: &mut WriteBatch<'_>,
    recorded: &Recorded,
    machine: MachineId,
    e: &Settled,
) -> Result<(), StoreError> {
    let day = Day::number(recorded.at);
    rows.upsert::<DayRow>(&[days_prefix(machine), day.to_be_bytes().to_vec()].concat(), |sum| {
        sum.day = day;
        sum.earned += e.earned;
        sum.metered = Millis(sum.metered.0.saturating_add(e.metering.as_ref().map_or(0, |m| m.billed.0)));
        sum.jobs += 1;
    })
}

/// Changes a machine's row and, if its price or its state changed, its key in the index of prices.
fn update_row(
    rows: &mut WriteBatch<'_>,
    recorded: &Recorded,
    machine: MachineId,
    update: impl FnOnce(&mut MachineRow),
) -> Result<(), StoreError> {
    let mut prices = (None, None);
    rows.update::<MachineRow>(&row_key(machine), |row| {
        let before = price_key(row);
        row.seq = recorded.seq;
        update(row);
        prices = (before, price_key(row));
    })?;
    move_price(rows, prices);
    Ok(())
}

fn move_price(rows: &mut WriteBatch<'_>, (before, after): (Option<Vec<u8>>, Option<Vec<u8>>)) {
    if before == after {
        return;
    }
    if let Some(before) = before {
        rows.remove(&before);
    }
    if let Some(after) = after {
        rows.put_key(after);
    }
}

fn list_machine(rows: &mut WriteBatch<'_>, recorded: &Recorded, e: &MachineListed) -> Result<(), StoreError> {
    let known: Option<MachineRow> = rows.get(&row_key(e.machine))?;
    let before = known.as_ref().and_then(price_key);
    let mut public_keys = known.as_ref().map(|known| known.public_keys.clone()).unwrap_or_default();
    if let Some(public_key) = &e.public_key
        && public_keys.last() != Some(public_key)
    {
        public_keys.push(public_key.clone());
    }
    let row = match known {
        Some(known) => {
            let requested = known.requested.and_then(|requested| requested.after_listing(&known.offer, &e.offer));
            let mut row = MachineRow { offer: e.offer.clone(), requested, public_keys, seq: recorded.seq, ..known };
            state_facts(&mut row).list_again();
            row
        }
        None => MachineRow {
            machine: e.machine,
            owner: e.owner,
            public_keys,
            offer: e.offer.clone(),
            requested: None,
            wanted: MachineState::Online,
            presence: MachineState::Online,
            away: false,
            trouble: None,
            checks: Vec::new(),
            listed_at: recorded.at,
            running: Vec::new(),
            successes: 0,
            faults: std::collections::BTreeMap::new(),
            earned: MicroUsd::ZERO,
            metered: Millis(0),
            seq: recorded.seq,
        },
    };
    rows.put_key(key(b'o', &[row.owner.as_bytes(), row.machine.as_bytes()]));
    move_price(rows, (before, price_key(&row)));
    rows.put(&row_key(e.machine), row);
    Ok(())
}

#[cfg(test)]
mod tests {
    use gpubnb_events::event::{
        Check, MachineDelisted, MachineDrainStarted, MachineLost, MachinePaused, MachineRecovered, MachineRepriced,
        MachineResumed, MachineSuspected,
    };

    use super::*;
    use crate::testing::{BILLED, DAY, EARNED, FIRST_DAY, History, account, job, machine};

    const FIXTURE_PRICE: HourlyRate = HourlyRate(MicroUsd(360_000));

    fn row(table: &Table) -> MachineRow {
        gpubnb_store::get(table, &row_key(machine(1))).unwrap().unwrap()
    }

    fn fold(history: &History) -> MachineRow {
        row(&history.fold(&Machines))
    }

    /// The state of machine 1, and the lowest price of all machines that take jobs.
    fn state(history: &History) -> (MachineState, Option<HourlyRate>) {
        let table = history.fold(&Machines);
        (row(&table).state(), cheapest(&table).unwrap())
    }

    fn history_of_listed_machine() -> History {
        let mut history = History::default();
        history.listed(account(2), machine(1));
        history
    }

    fn pause(away: bool) -> MachinePaused {
        MachinePaused { machine: machine(1), away }
    }

    fn resume(away: bool) -> MachineResumed {
        MachineResumed { machine: machine(1), away }
    }

    #[test]
    fn a_listed_machine_is_online_and_listed_for_its_owner() {
        let history = history_of_listed_machine();
        let table = history.fold(&Machines);
        let machine_row = row(&table);
        assert_eq!((machine_row.owner, machine_row.listed_at), (account(2), history.last().at));
        assert_eq!(state(&history), (MachineState::Online, Some(FIXTURE_PRICE)));
        let owned = |owner, after| owned_by(&table, owner, after).collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(owned(account(2), None), [machine(1)]);
        assert_eq!(owned(account(2), Some(machine(1))), []);
        assert_eq!(owned(account(1), None), []);
    }

    #[test]
    fn only_machines_that_take_jobs_are_in_the_index_of_prices() {
        let mut history = history_of_listed_machine();
        history.record(pause(false));
        assert_eq!(state(&history), (MachineState::Paused, None));
        history.record(resume(false));
        assert_eq!(state(&history), (MachineState::Online, Some(FIXTURE_PRICE)));
        history.record(MachineSuspected { machine: machine(1) });
        assert_eq!(state(&history), (MachineState::Suspect, None));
        history.record(MachineLost { machine: machine(1) });
        assert_eq!(state(&history), (MachineState::Lost, None));
        history.record(MachineRecovered { machine: machine(1) });
        assert_eq!(state(&history), (MachineState::Online, Some(FIXTURE_PRICE)));
        history.record(MachineDrainStarted { machine: machine(1), maintenance: false });
        assert_eq!(state(&history), (MachineState::Draining, None));
    }

    #[test]
    fn the_lowest_price_is_found_and_a_new_price_replaces_the_old_price() {
        let price = |micros| HourlyRate(MicroUsd(micros));
        let mut history = history_of_listed_machine();
        history.listed_with(account(2), machine(2), |e| e.offer.price = price(70_000));
        assert_eq!(cheapest(&history.fold(&Machines)).unwrap(), Some(price(70_000)));
        history.record(MachineRepriced { machine: machine(2), price: price(1_000_000) });
        assert_eq!(cheapest(&history.fold(&Machines)).unwrap(), Some(FIXTURE_PRICE));
        history.listed_with(account(2), machine(1), |e| e.offer.price = price(2_000_000));
        assert_eq!(cheapest(&history.fold(&Machines)).unwrap(), Some(price(1_000_000)));
        let table = history.fold(&Machines);
        assert_eq!(table.scan_prefix([PRICE_PREFIX]).count(), 2);
    }

    #[test]
    fn a_pause_and_the_owners_own_use_are_independent() {
        let mut history = history_of_listed_machine();
        history.record(pause(true));
        assert_eq!(state(&history), (MachineState::Away, None));
        history.record(pause(false));
        history.record(resume(true));
        assert_eq!(state(&history), (MachineState::Paused, None));
        history.record(resume(false));
        assert_eq!(state(&history).0, MachineState::Online);
    }

    #[test]
    fn a_silent_machine_in_maintenance_is_lost_only_while_a_job_runs() {
        let mut history = history_of_listed_machine();
        history.submitted(account(1), job(1));
        let lease = history.assigned(job(1), machine(1));
        history.record(MachineDrainStarted { machine: machine(1), maintenance: true });
        history.record(MachineLost { machine: machine(1) });
        assert_eq!(state(&history).0, MachineState::Lost);
        history.completed(job(1), lease);
        assert_eq!(state(&history).0, MachineState::Maintenance);
    }

    #[test]
    fn a_machine_that_is_listed_again_keeps_its_record_and_its_first_listing_time() {
        let mut history = history_of_listed_machine();
        let first = history.last().at;
        history.whole_job(job(1), account(1), (account(2), machine(1)));
        history.record(MachineDelisted { machine: machine(1) });
        assert_eq!(state(&history), (MachineState::Delisted, None));
        history.listed_with(account(2), machine(1), |e| e.public_key = Some("UNEW".to_owned()));
        assert_eq!(state(&history), (MachineState::Online, Some(FIXTURE_PRICE)));
        let machine = fold(&history);
        assert_eq!((machine.listed_at, machine.successes, machine.earned), (first, 1, EARNED));
        assert_eq!(machine.public_keys, ["UABC", "UNEW"]);
    }

    #[test]
    fn a_new_offer_does_not_end_a_pause() {
        let mut history = history_of_listed_machine();
        history.record(pause(false));
        history.record(MachineSuspected { machine: machine(1) });
        history.listed_with(account(2), machine(1), |e| e.offer.slots = 3);
        let machine = fold(&history);
        assert_eq!((machine.state(), machine.offer.slots), (MachineState::Paused, 3));
        assert_eq!(machine.public_keys, ["UABC"], "the same key is stored once");
    }

    #[test]
    fn a_declined_job_is_neither_a_success_nor_a_fault() {
        let mut history = history_of_listed_machine();
        history.submitted(account(1), job(1));
        let lease = history.assigned(job(1), machine(1));
        assert_eq!(fold(&history).running, [job(1)]);
        history.declined(job(1), lease, machine(1));
        let machine = fold(&history);
        assert_eq!((machine.running.len(), machine.successes, machine.faults.len()), (0, 0, 0));
    }

    #[test]
    fn a_fault_is_counted_and_shown_as_trouble_until_a_job_completes() {
        let mut history = history_of_listed_machine();
        history.submitted(account(1), job(1));
        let lease = history.assigned(job(1), machine(1));
        let seq = history.requeued(job(1), lease, machine(1), Reason::GpuLost);
        let at = history.last().at;
        let machine_row = fold(&history);
        assert_eq!((machine_row.running.len(), machine_row.successes), (0, 0));
        assert_eq!(machine_row.faults, [("GpuLost".to_owned(), 1)].into());
        let (reason, detail) = (Reason::GpuLost, "requeued".to_owned());
        assert_eq!(machine_row.trouble, Some(FaultRow { job: job(1), reason, detail, at, seq }));

        // A job that fails by its own fault counts as a success of the machine, but does not clear the trouble.
        history.submitted(account(1), job(2));
        let lease = history.assigned(job(2), machine(1));
        history.failed(job(2), Some(lease), Reason::NonZeroExit { code: 3 });
        let machine_row = fold(&history);
        assert_eq!((machine_row.successes, machine_row.trouble.is_some()), (1, true));

        history.submitted(account(1), job(3));
        let lease = history.assigned(job(3), machine(1));
        history.completed(job(3), lease);
        let machine_row = fold(&history);
        assert_eq!((machine_row.successes, machine_row.trouble), (2, None));
        assert_eq!(machine_row.faults, [("GpuLost".to_owned(), 1)].into());
    }

    #[test]
    fn a_preemption_by_the_owner_counts_as_a_fault_but_not_as_trouble() {
        let mut history = history_of_listed_machine();
        history.submitted(account(1), job(1));
        let lease = history.assigned(job(1), machine(1));
        history.requeued(job(1), lease, machine(1), Reason::Preempted);
        let machine = fold(&history);
        assert_eq!((machine.faults, machine.trouble), ([("Preempted".to_owned(), 1)].into(), None));
    }

    #[test]
    fn a_job_that_finds_no_machine_changes_no_record() {
        let mut history = history_of_listed_machine();
        history.submitted(account(1), job(1));
        let lease = history.assigned(job(1), machine(1));
        history.declined(job(1), lease, machine(1));
        history.failed(job(1), None, Reason::NoMachine);
        let machine = fold(&history);
        assert_eq!((machine.successes, machine.faults.len()), (0, 0));
    }

    #[test]
    fn earnings_are_summed_by_day() {
        let mut history = history_of_listed_machine();
        history.whole_job(job(1), account(1), (account(2), machine(1)));
        history.whole_job(job(2), account(1), (account(2), machine(1)));
        history.advance_time(DAY);
        history.whole_job(job(3), account(1), (account(2), machine(1)));
        let table = history.fold(&Machines);
        let machine_row = row(&table);
        assert_eq!(machine_row.earned, EARNED + EARNED + EARNED);
        assert_eq!(machine_row.metered, Millis(3 * BILLED.0));
        let days = table.scan_prefix(days_prefix(machine(1))).map(|entry| {
            let (key, bytes) = entry.unwrap();
            let day: DayRow = gpubnb_store::decode(&key, &bytes).unwrap();
            (day.day, day.jobs, day.earned, day.spent)
        });
        let expected = [(FIRST_DAY, 2, EARNED + EARNED, MicroUsd::ZERO), (FIRST_DAY + 1, 1, EARNED, MicroUsd::ZERO)];
        assert_eq!(days.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_new_self_test_replaces_the_last_one() {
        let mut history = history_of_listed_machine();
        let check = |id: &str| Check {
            id: id.to_owned(),
            actual: "1".to_owned(),
            required: String::new(),
            unit: String::new(),
            passed: true,
            remedy: String::new(),
            recommended: false,
        };
        for checks in [vec![check("disk.write"), check("cpu.matmul")], vec![check("disk.write")]] {
            history.tested(machine(1), checks);
        }
        assert_eq!(fold(&history).checks, [check("disk.write")]);
    }
}
