//! Figures of the whole market, for the first page of the site: for example, how many jobs wait. The lowest price is
//! not folded here: the projector reads it from the model of machines when it answers a query.

use gpubnb_events::{BatchId, Event, MachineId, Millis, Recorded};
use gpubnb_store::{StoreError, WriteBatch};
use serde::{Deserialize, Serialize};

use super::rows::FiguresRow;
use super::{Projection, machine_key};

/// Rows: `f` → figures; `c<machine>` → the machine's contribution to the figures.
pub struct MarketFigures;

/// The key of the figures.
pub const FIGURES_KEY: &[u8] = b"f";

/// A machine's contribution to the figures: zero after the machine is delisted.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct CountedMachine {
    machines: u32,
    gpus: u32,
}

impl Projection for MarketFigures {
    fn name(&self) -> &'static str {
        "figures"
    }

    fn version(&self) -> u32 {
        5
    }

    fn apply(&self, rows: &mut WriteBatch<'_>, _: &Recorded, event: &Event) -> Result<(), StoreError> {
        match event {
            Event::MachineListed(e) => {
                let hardware = &e.offer.hardware;
                let gpus = if hardware.simulated { 0 } else { u32::try_from(hardware.gpus.len()).unwrap_or(0) };
                count_machine(rows, e.machine, CountedMachine { machines: 1, gpus })
            }
            Event::MachineDelisted(e) => count_machine(rows, e.machine, CountedMachine::default()),
            Event::JobSubmitted(_)
            | Event::TasksOpened(_)
            | Event::HoldReleased(_)
            | Event::JobAssigned(_)
            | Event::Declined(_)
            | Event::Requeued(_)
            | Event::Completed(_)
            | Event::Failed(_)
            | Event::Cancelled(_)
            | Event::Settled(_) => rows.upsert::<FiguresRow>(FIGURES_KEY, |f| count_job(f, event)),
            _ => Ok(()),
        }
    }
}

/// Applies an event of a job to the figures.
fn count_job(f: &mut FiguresRow, event: &Event) {
    match event {
        Event::JobSubmitted(_) => f.queued += 1,
        // Two accounts submitted a job with the same id. The second submission made no job, and its hold is released
        // (docs/adr/0003). So the number of waiting jobs goes down again. A batch has no waiting jobs yet.
        Event::HoldReleased(e) if BatchId::of_task(e.job).is_some() => f.queued = f.queued.saturating_sub(1),
        Event::TasksOpened(e) => f.queued += e.up_to.saturating_sub(e.first),
        Event::JobAssigned(_) => {
            f.queued = f.queued.saturating_sub(1);
            f.active += 1;
        }
        Event::Declined(_) | Event::Requeued(_) => {
            f.active = f.active.saturating_sub(1);
            f.queued += 1;
        }
        Event::Completed(_) => f.active = f.active.saturating_sub(1),
        Event::Failed(e) => remove_ended_job(f, e.lease.is_some()),
        Event::Cancelled(e) => remove_ended_job(f, e.lease.is_some()),
        Event::Settled(e) => {
            f.settled += 1;
            f.cost += e.cost;
            f.fees += e.fee;
            f.metered = Millis(f.metered.0 + e.metering.as_ref().map_or(0, |m| m.billed.0));
        }
        _ => {}
    }
}

/// Removes an ended job from its count: `active` if the job had a machine, `queued` if not.
fn remove_ended_job(f: &mut FiguresRow, has_machine: bool) {
    let counter = if has_machine { &mut f.active } else { &mut f.queued };
    *counter = counter.saturating_sub(1);
}

fn count_machine(rows: &mut WriteBatch<'_>, machine: MachineId, now: CountedMachine) -> Result<(), StoreError> {
    let mut before = CountedMachine::default();
    rows.upsert::<CountedMachine>(&machine_key(b'c', machine), |counted| before = std::mem::replace(counted, now))?;
    rows.upsert::<FiguresRow>(FIGURES_KEY, |f| {
        f.machines = (f.machines + now.machines).saturating_sub(before.machines);
        f.gpus = (f.gpus + now.gpus).saturating_sub(before.gpus);
    })
}

#[cfg(test)]
mod tests {
    use gpubnb_events::event::{MachineDelisted, Reason};

    use super::*;
    use crate::testing::{BILLED, COST, FEE, History, account, job, machine};

    fn fold(history: &History) -> FiguresRow {
        gpubnb_store::get(&history.fold(&MarketFigures), FIGURES_KEY).unwrap().unwrap_or_default()
    }

    /// The number of queued jobs and of active jobs.
    fn jobs(history: &History) -> (u32, u32) {
        let figures = fold(history);
        (figures.queued, figures.active)
    }

    #[test]
    fn a_job_is_counted_as_queued_or_as_active() {
        let mut history = History::default();
        history.submitted(account(1), job(1));
        assert_eq!(jobs(&history), (1, 0));
        let lease = history.assigned(job(1), machine(1));
        assert_eq!(jobs(&history), (0, 1));
        history.declined(job(1), lease, machine(1));
        assert_eq!(jobs(&history), (1, 0));
        let lease = history.assigned(job(1), machine(2));
        history.requeued(job(1), lease, machine(2), Reason::ProviderLost);
        assert_eq!(jobs(&history), (1, 0));
        let lease = history.assigned(job(1), machine(3));
        history.completed(job(1), lease);
        assert_eq!(jobs(&history), (0, 0));
    }

    #[test]
    fn a_job_that_ends_leaves_the_queued_or_the_active_count() {
        let mut history = History::default();
        for number in 1..=4 {
            history.submitted(account(1), job(number));
        }
        let (third, fourth) = (history.assigned(job(3), machine(1)), history.assigned(job(4), machine(1)));
        assert_eq!(jobs(&history), (2, 2));
        history.failed(job(1), None, Reason::NoMachine);
        history.cancelled(job(2), None);
        assert_eq!(jobs(&history), (0, 2));
        history.failed(job(3), Some(third), Reason::OutOfMemory);
        history.cancelled(job(4), Some(fourth));
        assert_eq!(jobs(&history), (0, 0));
    }

    #[test]
    fn a_settlement_adds_cost_fee_and_time() {
        let mut history = History::default();
        history.whole_job(job(1), account(1), (account(2), machine(1)));
        history.submitted(account(1), job(2));
        history.cancelled(job(2), None);
        history.settled(job(2), account(1), None);
        let figures = fold(&history);
        assert_eq!((figures.settled, figures.cost, figures.fees, figures.metered), (2, COST, FEE, BILLED));
    }

    #[test]
    fn a_machine_is_counted_once_while_it_is_listed() {
        let mut history = History::default();
        let counted = |history: &History| {
            let figures = fold(history);
            (figures.machines, figures.gpus)
        };
        history.listed(account(2), machine(1));
        history.listed(account(2), machine(2));
        assert_eq!(counted(&history), (2, 2));
        // The machine is listed again, with a second GPU.
        history.listed_with(account(2), machine(1), |e| {
            let gpu = e.offer.hardware.gpus[0].clone();
            e.offer.hardware.gpus.push(gpu);
        });
        assert_eq!(counted(&history), (2, 3));
        history.record(MachineDelisted { machine: machine(1) });
        history.record(MachineDelisted { machine: machine(1) });
        assert_eq!(counted(&history), (1, 1));
        history.listed(account(2), machine(1));
        assert_eq!(counted(&history), (2, 2));
    }

    #[test]
    fn simulated_gpus_are_not_counted() {
        let mut history = History::default();
        history.listed_with(account(2), machine(1), |e| e.offer.hardware.simulated = true);
        let figures = fold(&history);
        assert_eq!((figures.machines, figures.gpus), (1, 0));
    }
}
