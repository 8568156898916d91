//! The history of the market: the prices and the free machines of each model of GPU by the hour, and what became of the
//! jobs by the day.

use std::collections::BTreeMap;

use gpubnb_events::{
    Event, HourlyRate, JobId, MachineId, MicroUsd, Millis, Recorded, Timestamp,
    event::{Fault, MachineListed},
};
use gpubnb_query::view::{Day, MachineState, ModelHour, NO_GPU};
use gpubnb_store::{StoreError, Table, WriteBatch};
use serde::{Deserialize, Serialize};

use super::machine_state::StateFacts;
use super::rows::{MarketDayRow, ModelHourRow};
use super::{Projection, job_key, key, machine_key};

/// Rows: `m<machine>` → [`Offered`]; `j<job>` → [`JobTimes`], until the job is settled; `g<model>` → [`ModelNow`];
/// `h<length of the model><model><hour>` → [`ModelHourRow`]; `d<day>` → [`MarketDayRow`].
///
/// An hour in which nothing changed has no row: the row of the last earlier hour is true of this hour, too.
pub struct MarketHistory;

/// The present offer and state of a machine.
#[derive(Clone, Serialize, Deserialize)]
struct Offered {
    model: String,
    price: HourlyRate,
    slots: u32,
    wanted: MachineState,
    presence: MachineState,
    away: bool,
    running: u32,
}

impl Offered {
    fn of(e: &MachineListed) -> Self {
        let model = e.offer.hardware.gpus.first().map_or(NO_GPU, |gpu| gpu.model.as_str());
        Self {
            model: model.to_owned(),
            price: e.offer.price,
            slots: e.offer.slots,
            wanted: MachineState::Online,
            presence: MachineState::Online,
            away: false,
            running: 0,
        }
    }

    fn facts(&mut self) -> StateFacts<'_> {
        StateFacts { wanted: &mut self.wanted, presence: &mut self.presence, away: &mut self.away }
    }

    /// The machine's part in the row of its model; `None` while the machine takes no jobs.
    fn counted(&self) -> Option<Counted> {
        let state = MachineState::from_facts(self.wanted, self.presence, self.away, self.running == 0);
        let price = three_digits(self.price.0.0);
        (state == MachineState::Online).then(|| Counted {
            model: self.model.clone(),
            price,
            is_free: self.running < self.slots,
        })
    }
}

/// A machine that takes jobs, as it is counted in the row of its model.
#[derive(PartialEq, Eq)]
struct Counted {
    model: String,
    /// The price in micro-dollars, rounded to three digits.
    price: i64,
    is_free: bool,
}

/// The machines of one model that take jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelNow {
    /// The hour of the last change, as the number of hours since 1970.
    pub hour: u32,
    /// The number of machines with each price. Prices are rounded to three digits, so that the row stays small.
    prices: BTreeMap<i64, u32>,
    /// The number of machines that could begin a job.
    free: u32,
}

impl ModelNow {
    /// The row of the hour of the last change.
    pub fn row(&self) -> ModelHourRow {
        let machines: u32 = self.prices.values().sum();
        let at = |rank: u32| {
            let mut passed = 0;
            let price = self.prices.iter().find(|(_, count)| {
                passed += **count;
                passed >= rank
            });
            price.map(|(price, _)| HourlyRate(MicroUsd(*price)))
        };
        ModelHourRow {
            hour: self.hour,
            machines,
            free: self.free,
            lowest: at(1),
            median: at(machines.div_ceil(2).max(1)),
        }
    }

    fn add(&mut self, counted: &Counted) {
        *self.prices.entry(counted.price).or_default() += 1;
        self.free += u32::from(counted.is_free);
    }

    fn remove(&mut self, counted: &Counted) {
        if let Some(count) = self.prices.get_mut(&counted.price) {
            *count = count.saturating_sub(1);
        }
        self.prices.retain(|_, count| *count > 0);
        self.free = self.free.saturating_sub(u32::from(counted.is_free));
    }
}

/// A job that is not settled.
#[derive(Clone, Serialize, Deserialize)]
struct JobTimes {
    submitted_at: Timestamp,
    /// The machine that has the job.
    machine: Option<MachineId>,
    was_assigned: bool,
    ended_at: Option<Timestamp>,
}

/// A price of which only the first three digits are not zero, rounded to the nearest: 359,912 becomes 360,000.
fn three_digits(micros: i64) -> i64 {
    let mut unit = 1;
    while micros / unit >= 1_000 {
        unit *= 10;
    }
    (micros + unit / 2) / unit * unit
}

/// The key prefix of the rows of models.
pub const MODELS_PREFIX: &[u8] = b"g";

fn model_key(model: &str) -> Vec<u8> {
    key(b'g', &[model.as_bytes()])
}

/// The key prefix of a model's hours. The length keeps `RTX 4090` apart from `RTX 4090 D`.
pub fn hours_prefix(model: &str) -> Vec<u8> {
    let length = u16::try_from(model.len()).unwrap_or(u16::MAX).to_be_bytes();
    key(b'h', &[&length, model.as_bytes()])
}

/// The state of a model's machines now; `None` if no machine ever had the model.
pub fn model_now(table: &Table, model: &str) -> Result<Option<ModelNow>, StoreError> {
    gpubnb_store::get(table, &model_key(model))
}

/// The key prefix of the days.
pub const DAYS_PREFIX: &[u8] = b"d";

impl Projection for MarketHistory {
    fn name(&self) -> &'static str {
        "history"
    }

    fn version(&self) -> u32 {
        2
    }

    fn apply(&self, rows: &mut WriteBatch<'_>, recorded: &Recorded, event: &Event) -> Result<(), StoreError> {
        count_in_day(rows, recorded, event)?;
        if let Event::TasksOpened(e) = event {
            let times = JobTimes { submitted_at: recorded.at, machine: None, was_assigned: false, ended_at: None };
            e.tasks().for_each(|(_, job)| rows.put(&job_key(b'j', job), times.clone()));
            return change_day(rows, recorded, |day| day.submitted += e.up_to.saturating_sub(e.first));
        }
        if let Some(job) = event.job() {
            return apply_to_job(rows, recorded, job, event);
        }
        let gpubnb_events::Aggregate::Machine(machine) = event.aggregate() else { return Ok(()) };
        if let Event::MachineListed(e) = event {
            return list(rows, recorded, e);
        }
        change_offer(rows, recorded, machine, |offered| match event {
            Event::MachineRepriced(e) => offered.price = e.price,
            Event::MachineSettingsRequested(e) => offered.price = e.settings.price,
            _ => offered.facts().apply(event),
        })
    }
}

/// Applies the events that have no job, or begin or end an attempt of a job.
fn apply_to_job(rows: &mut WriteBatch<'_>, recorded: &Recorded, job: JobId, event: &Event) -> Result<(), StoreError> {
    let row = job_key(b'j', job);
    match event {
        // A second submission of the same id by another account makes no job (docs/adr/0003).
        Event::JobSubmitted(_) if rows.get::<JobTimes>(&row)?.is_some() => Ok(()),
        Event::JobSubmitted(_) => {
            let times = JobTimes { submitted_at: recorded.at, machine: None, was_assigned: false, ended_at: None };
            rows.put(&row, times);
            change_day(rows, recorded, |day| day.submitted += 1)
        }
        Event::JobAssigned(e) => {
            let mut waited = None;
            rows.update::<JobTimes>(&row, |times| {
                times.machine = Some(e.machine);
                waited = (!times.was_assigned).then(|| recorded.at.since(times.submitted_at));
                times.was_assigned = true;
            })?;
            if let Some(waited) = waited {
                change_day(rows, recorded, |day| {
                    day.assigned += 1;
                    day.waited = Millis(day.waited.0.saturating_add(waited.0));
                })?;
            }
            change_offer(rows, recorded, e.machine, |offered| offered.running += 1)
        }
        Event::Declined(_) | Event::Requeued(_) | Event::Completed(_) | Event::Failed(_) | Event::Cancelled(_) => {
            let is_over = matches!(event, Event::Completed(_) | Event::Failed(_) | Event::Cancelled(_));
            let mut machine = None;
            rows.update::<JobTimes>(&row, |times| {
                machine = times.machine.take();
                times.ended_at = times.ended_at.or(is_over.then_some(recorded.at));
            })?;
            match machine {
                Some(machine) => {
                    change_offer(rows, recorded, machine, |offered| offered.running = offered.running.saturating_sub(1))
                }
                None => Ok(()),
            }
        }
        Event::Settled(_) => {
            let ended_at = rows.get::<JobTimes>(&row)?.and_then(|times| times.ended_at);
            rows.remove(&row);
            let took = ended_at.map_or(Millis(0), |ended| recorded.at.since(ended));
            change_day(rows, recorded, |day| {
                day.settled += 1;
                day.slowest_bill = day.slowest_bill.max(took);
            })
        }
        _ => Ok(()),
    }
}

fn list(rows: &mut WriteBatch<'_>, recorded: &Recorded, e: &MachineListed) -> Result<(), StoreError> {
    let row = machine_key(b'm', e.machine);
    let known: Option<Offered> = rows.get(&row)?;
    let before = known.as_ref().and_then(Offered::counted);
    let mut now = Offered::of(e);
    if let Some(known) = known {
        (now.wanted, now.presence, now.away, now.running) = (known.wanted, known.presence, known.away, known.running);
        now.facts().list_again();
    }
    let after = now.counted();
    rows.put(&row, now);
    move_counted(rows, recorded, before, after)
}

fn change_offer(
    rows: &mut WriteBatch<'_>,
    recorded: &Recorded,
    machine: MachineId,
    change: impl FnOnce(&mut Offered),
) -> Result<(), StoreError> {
    let (mut before, mut after) = (None, None);
    rows.update::<Offered>(&machine_key(b'm', machine), |offered| {
        before = offered.counted();
        change(offered);
        after = offered.counted();
    })?;
    move_counted(rows, recorded, before, after)
}

/// Moves a machine between the rows of models, or within the row of its model.
fn move_counted(
    rows: &mut WriteBatch<'_>,
    recorded: &Recorded,
    before: Option<Counted>,
    after: Option<Counted>,
) -> Result<(), StoreError> {
    if before == after {
        return Ok(());
    }
    if let Some(before) = before {
        change_model(rows, recorded, &before.model, |now| now.remove(&before))?;
    }
    match after {
        Some(after) => change_model(rows, recorded, &after.model, |now| now.add(&after)),
        None => Ok(()),
    }
}

/// Changes the row of a model. The first change in a later hour first writes the row of the hour of the last change.
fn change_model(
    rows: &mut WriteBatch<'_>,
    recorded: &Recorded,
    model: &str,
    change: impl FnOnce(&mut ModelNow),
) -> Result<(), StoreError> {
    let hour = ModelHour::number(recorded.at);
    let mut finished = None;
    rows.upsert::<ModelNow>(&model_key(model), |now| {
        // The clock of a broker may have been set back: an hour that has a row is not begun again.
        if now.hour != 0 && hour > now.hour {
            finished = Some(now.row());
        }
        now.hour = now.hour.max(hour);
        change(now);
    })?;
    if let Some(finished) = finished {
        rows.put(&[hours_prefix(model), finished.hour.to_be_bytes().to_vec()].concat(), finished);
    }
    Ok(())
}

/// Counts an event in the row of its day.
fn count_in_day(rows: &mut WriteBatch<'_>, recorded: &Recorded, event: &Event) -> Result<(), StoreError> {
    let count: fn(&mut MarketDayRow) -> &mut u32 = match event {
        Event::Completed(_) => |day| &mut day.completed,
        Event::Failed(e) if e.reason.fault() == Fault::Consumer => |day| &mut day.failed,
        Event::Failed(_) => |day| &mut day.given_up,
        Event::Cancelled(_) => |day| &mut day.cancelled,
        Event::Requeued(e) if e.fault == Fault::Provider => |day| &mut day.machine_faults,
        Event::MachineLost(_) => |day| &mut day.machines_lost,
        _ => return Ok(()),
    };
    change_day(rows, recorded, |day| *count(day) += 1)
}

fn change_day(
    rows: &mut WriteBatch<'_>,
    recorded: &Recorded,
    change: impl FnOnce(&mut MarketDayRow),
) -> Result<(), StoreError> {
    let day = Day::number(recorded.at);
    rows.upsert::<MarketDayRow>(&key(b'd', &[&day.to_be_bytes()]), |row| {
        row.day = day;
        change(row);
    })
}

#[cfg(test)]
mod tests {
    use gpubnb_events::event::{MachineLost, MachinePaused, MachineRecovered, MachineRepriced, Reason};

    use super::*;
    use crate::testing::{FIRST_DAY, History, account, job, machine};

    const MODEL: &str = "RTX 4090";
    const HOUR: Millis = Millis(3_600_000);

    fn price(micros: i64) -> HourlyRate {
        HourlyRate(MicroUsd(micros))
    }

    fn listed(history: &mut History, number: u16, micros: i64) {
        history.listed_with(account(2), machine(number), |e| {
            e.offer.hardware.gpus[0].model = MODEL.to_owned();
            (e.offer.price, e.offer.slots) = (price(micros), 1);
        });
    }

    /// Machines, free machines, the lowest price and the median price of the model now.
    fn now(history: &History) -> (u32, u32, Option<HourlyRate>, Option<HourlyRate>) {
        let row = model_now(&history.fold(&MarketHistory), MODEL).unwrap().unwrap_or_default().row();
        (row.machines, row.free, row.lowest, row.median)
    }

    fn hours(history: &History) -> Vec<ModelHourRow> {
        let table = history.fold(&MarketHistory);
        let rows = table.scan_prefix(hours_prefix(MODEL)).map(|entry| {
            let (key, bytes) = entry.unwrap();
            gpubnb_store::decode(&key, &bytes).unwrap()
        });
        rows.collect()
    }

    fn today(history: &History) -> MarketDayRow {
        let table = history.fold(&MarketHistory);
        gpubnb_store::get(&table, &key(b'd', &[&FIRST_DAY.to_be_bytes()])).unwrap().unwrap_or_default()
    }

    #[test]
    fn a_model_counts_the_machines_that_take_jobs_and_their_prices() {
        let mut history = History::default();
        for (number, micros) in [(1, 300_000), (2, 200_000), (3, 900_000)] {
            listed(&mut history, number, micros);
        }
        let (low, median) = (Some(price(200_000)), Some(price(300_000)));
        assert_eq!(now(&history), (3, 3, low, median));
        history.submitted(account(1), job(1));
        let lease = history.assigned(job(1), machine(2));
        assert_eq!(now(&history), (3, 2, low, median));
        history.completed(job(1), lease);
        assert_eq!(now(&history), (3, 3, low, median));
        history.record(MachineLost { machine: machine(2) });
        assert_eq!(now(&history), (2, 2, median, median));
        history.record(MachineRecovered { machine: machine(2) });
        history.record(MachinePaused { machine: machine(3), away: true });
        history.record(MachineRepriced { machine: machine(1), price: price(100_000) });
        assert_eq!(now(&history), (2, 2, Some(price(100_000)), Some(price(100_000))));
        // Another model takes the machine out of this one.
        history.listed_with(account(2), machine(1), |e| e.offer.hardware.gpus.clear());
        assert_eq!(now(&history), (1, 1, low, low));
    }

    #[test]
    fn a_changed_hour_gets_a_row_when_a_later_one_changes_something() {
        let mut history = History::default();
        listed(&mut history, 1, 500_000);
        assert_eq!(hours(&history), []);
        let first = ModelHour::number(history.now());
        history.advance_time(Millis(3 * HOUR.0));
        listed(&mut history, 2, 100_000);
        let [row] = hours(&history)[..] else { panic!("one row") };
        let only = Some(price(500_000));
        assert_eq!(row, ModelHourRow { hour: first, machines: 1, free: 1, lowest: only, median: only });
        history.advance_time(HOUR);
        history.record(MachineLost { machine: machine(1) });
        assert_eq!(
            hours(&history).iter().map(|row| (row.hour, row.machines)).collect::<Vec<_>>(),
            [(first, 1), (first + 3, 2)]
        );
    }

    #[test]
    fn prices_are_rounded_to_three_digits() {
        for (price, rounded) in [(0, 0), (500, 500), (12_500, 12_500), (359_912, 360_000), (9_999, 10_000)] {
            assert_eq!(three_digits(price), rounded);
        }
    }

    #[test]
    fn a_second_submission_of_an_id_changes_nothing() {
        let mut history = History::default();
        listed(&mut history, 1, 500_000);
        history.submitted(account(1), job(1));
        let lease = history.assigned(job(1), machine(1));
        history.submitted(account(3), job(1));
        assert_eq!(now(&history).1, 0, "the machine still runs the job");
        history.completed(job(1), lease);
        assert_eq!(now(&history).1, 1);
        assert_eq!((today(&history).submitted, today(&history).assigned), (1, 1));
    }

    #[test]
    fn models_whose_names_begin_alike_have_rows_of_their_own() {
        assert!(!hours_prefix("RTX 4090 D").starts_with(&hours_prefix("RTX 4090")));
        assert!(!hours_prefix("RTX 4090").starts_with(&hours_prefix("")));
    }

    #[test]
    fn a_day_counts_what_became_of_jobs_and_machines() {
        let mut history = History::default();
        listed(&mut history, 1, 500_000);
        for number in 1..=4 {
            history.submitted(account(1), job(number));
        }
        history.advance_time(Millis(2_000));
        let first = history.assigned(job(1), machine(1));
        history.requeued(job(1), first, machine(1), Reason::ProviderLost);
        let second = history.assigned(job(1), machine(1));
        history.completed(job(1), second);
        history.advance_time(Millis(5_000));
        history.settled(job(1), account(1), None);
        let third = history.assigned(job(2), machine(1));
        history.failed(job(2), Some(third), Reason::OutOfMemory);
        history.failed(job(3), None, Reason::NoMachine);
        history.cancelled(job(4), None);
        history.record(MachineLost { machine: machine(1) });
        let day = today(&history);
        assert_eq!((day.submitted, day.completed, day.failed, day.given_up, day.cancelled), (4, 1, 1, 1, 1));
        assert_eq!((day.machine_faults, day.machines_lost, day.settled, day.assigned), (1, 1, 1, 2));
        assert!(day.slowest_bill.0 >= 5_000 && day.waited.0 >= 2_000, "{day:?}");
    }
}
