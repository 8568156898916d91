//! Machines as people see them: offer, presence, what they run, and the record their reliability is made of.

use gpubnb_events::{
    AccountId, Event, HourlyRate, JobId, MachineId, MicroUsd, Millis, Recorded,
    event::{MachineListed, Reason, Settled},
    record::{self, Mark},
};
use gpubnb_query::view::{Day, MachineState};
use gpubnb_store::{RowBytes, StoreError, Table, WriteBatch};
use serde::{Deserialize, Serialize};

use super::rows::{DayRow, FaultRow, MachineRow};
use super::{Projection, account_key, job_key, key, machine_key};

/// `m<machine>` → row; `j<job>` → the machine that has the job in hand or had it last; `o<owner><machine>` and, for
/// machines that take jobs, `p<price><machine>` → nothing; `d<machine><day>` → what it earned on a day.
pub struct Machines;

/// First letter of a machine's row.
pub const ROW: u8 = b'm';

/// Key of a machine's row.
pub fn row_key(machine: MachineId) -> Vec<u8> {
    machine_key(ROW, machine)
}

/// The rows after a machine, by id.
pub fn after(table: &Table, machine: Option<MachineId>) -> impl Iterator<Item = Result<MachineRow, StoreError>> {
    let from = machine.map_or_else(|| vec![ROW], |machine| [row_key(machine), vec![0]].concat());
    table.range(from..vec![ROW + 1]).map(|entry| {
        let (key, bytes) = entry?;
        gpubnb_store::decode(&key, &bytes)
    })
}

/// The machines of an owner after one, by id.
pub fn of_owner(
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
        let id = key.get(17..).and_then(|id| id.try_into().ok()).and_then(|id| MachineId::from_bytes(id).ok());
        id.ok_or_else(|| StoreError::corrupt(&key, "no machine's id in it"))
    })
}

/// The lowest price of a machine that takes jobs.
pub fn cheapest(table: &Table) -> Result<Option<HourlyRate>, StoreError> {
    let Some(key) = table.scan_prefix([PRICE]).keys().next().transpose()? else { return Ok(None) };
    let price = key.get(1..9).and_then(|price| price.try_into().ok()).map(i64::from_be_bytes);
    Ok(price.map(|micros| HourlyRate(MicroUsd(micros))))
}

/// Prefix of a machine's days.
pub fn days(machine: MachineId) -> Vec<u8> {
    machine_key(b'd', machine)
}

const PRICE: u8 = b'p';

/// Its place among the prices, while it takes jobs. Prices are not negative: their bytes sort as they do.
fn price_key(row: &MachineRow) -> Option<Vec<u8>> {
    let price = row.offer.price.0.0.to_be_bytes();
    (row.state() == MachineState::Online).then(|| key(PRICE, &[&price, row.machine.as_bytes()]))
}

#[derive(Clone, Serialize, Deserialize)]
struct Holder {
    machine: MachineId,
}

impl Projection for Machines {
    fn name(&self) -> &'static str {
        "machines"
    }

    fn version(&self) -> u32 {
        6
    }

    fn apply(&self, rows: &mut WriteBatch<'_>, recorded: &Recorded, event: &Event) -> Result<(), StoreError> {
        match event {
            Event::MachineListed(e) => return list(rows, recorded, e),
            Event::JobAssigned(e) => {
                rows.put(&job_key(b'j', e.job), Holder { machine: e.machine });
                return change(rows, recorded, e.machine, |row| row.running.push(e.job));
            }
            _ => {}
        }
        if let Some(job) = event.job() {
            let holder = job_key(b'j', job);
            let Some(Holder { machine }) = rows.get(&holder)? else { return Ok(()) };
            if let Event::Settled(e) = event {
                rows.remove(&holder);
                earn(rows, recorded, machine, e)?;
            }
            if let Some(take_in) = of_job(job, recorded, event) {
                return change(rows, recorded, machine, take_in);
            }
            return Ok(());
        }
        let gpubnb_events::Aggregate::Machine(machine) = event.aggregate() else { return Ok(()) };
        change(rows, recorded, machine, |row| match event {
            Event::MachineRepriced(e) => row.offer.price = e.price,
            Event::MachinePaused(e) if e.away => row.away = true,
            Event::MachineResumed(e) if e.away => row.away = false,
            Event::MachinePaused(_) => row.wanted = MachineState::Paused,
            Event::MachineResumed(_) => row.wanted = MachineState::Online,
            Event::MachineDrainStarted(e) if e.maintenance => row.wanted = MachineState::Maintenance,
            Event::MachineDrainStarted(_) => row.wanted = MachineState::Draining,
            Event::MachineDelisted(_) => row.wanted = MachineState::Delisted,
            Event::MachineSuspected(_) => row.presence = MachineState::Suspect,
            Event::MachineLost(_) => row.presence = MachineState::Lost,
            Event::MachineRecovered(_) => row.presence = MachineState::Online,
            Event::MachineTested(e) => row.checks.clone_from(&e.checks),
            _ => {}
        })
    }
}

/// A change of a machine's row.
type Change<'a> = Box<dyn FnOnce(&mut MachineRow) + 'a>;

/// What an event of a job changes at the machine that has it.
fn of_job<'a>(job: JobId, recorded: &'a Recorded, event: &'a Event) -> Option<Change<'a>> {
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
    let mark = record::mark(event)?;
    let completed = matches!(event, Event::Completed(_));
    Some(Box::new(move |row| {
        row.running.retain(|held| *held != job);
        match mark {
            Mark::Success => row.successes += 1,
            Mark::Fault(reason) => {
                // That its owner wanted it is no trouble.
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

/// The name of a reason, without its numbers.
fn reason_name(reason: Reason) -> String {
    let text = format!("{reason:?}");
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// What it earned on a day.
fn earn(rows: &mut WriteBatch<'_>, recorded: &Recorded, machine: MachineId, e: &Settled) -> Result<(), StoreError> {
    let day = Day::of(recorded.at);
    rows.upsert::<DayRow>(&[days(machine), day.to_be_bytes().to_vec()].concat(), |sum| {
        sum.day = day;
        sum.earned += e.earned;
        sum.metered = Millis(sum.metered.0.saturating_add(e.metering.as_ref().map_or(0, |m| m.billed.0)));
        sum.jobs += 1;
    })
}

fn change(
    rows: &mut WriteBatch<'_>,
    recorded: &Recorded,
    machine: MachineId,
    take_in: impl FnOnce(&mut MachineRow),
) -> Result<(), StoreError> {
    let mut prices = (None, None);
    rows.update::<MachineRow>(&row_key(machine), |row| {
        let before = price_key(row);
        row.seq = recorded.seq;
        take_in(row);
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

fn list(rows: &mut WriteBatch<'_>, recorded: &Recorded, e: &MachineListed) -> Result<(), StoreError> {
    let known: Option<MachineRow> = rows.get(&row_key(e.machine))?;
    let before = known.as_ref().and_then(price_key);
    let mut public_keys = known.as_ref().map(|known| known.public_keys.clone()).unwrap_or_default();
    if let Some(public_key) = &e.public_key
        && public_keys.last() != Some(public_key)
    {
        public_keys.push(public_key.clone());
    }
    let row = match known {
        Some(known) => MachineRow {
            offer: e.offer.clone(),
            // The owner's pause goes on; only leaving the market ends with it.
            wanted: if known.wanted == MachineState::Delisted { MachineState::Online } else { known.wanted },
            presence: MachineState::Online,
            public_keys,
            seq: recorded.seq,
            ..known
        },
        None => MachineRow {
            machine: e.machine,
            owner: e.owner,
            public_keys,
            offer: e.offer.clone(),
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
