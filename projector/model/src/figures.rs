//! FiguresRow of the whole market, for its first page.

use gpubnb_events::{Event, MachineId, Millis, Recorded};
use gpubnb_store::{StoreError, WriteBatch};
use serde::{Deserialize, Serialize};

use super::rows::FiguresRow;
use super::{Projection, machine_key};

/// `f` → figures; `c<machine>` → what it counts for.
pub struct MarketFigures;

/// Key of the figures.
pub const FIGURES: &[u8] = b"f";

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Counted {
    machines: u32,
    gpus: u32,
}

impl Projection for MarketFigures {
    fn name(&self) -> &'static str {
        "figures"
    }

    fn version(&self) -> u32 {
        3
    }

    fn apply(&self, rows: &mut WriteBatch<'_>, _: &Recorded, event: &Event) -> Result<(), StoreError> {
        match event {
            Event::MachineListed(e) => {
                let hardware = &e.offer.hardware;
                let gpus = if hardware.simulated { 0 } else { u32::try_from(hardware.gpus.len()).unwrap_or(0) };
                count(rows, e.machine, Counted { machines: 1, gpus })
            }
            Event::MachineDelisted(e) => count(rows, e.machine, Counted::default()),
            Event::JobSubmitted(_)
            | Event::JobAssigned(_)
            | Event::Declined(_)
            | Event::Requeued(_)
            | Event::Completed(_)
            | Event::Failed(_)
            | Event::Cancelled(_)
            | Event::Settled(_) => rows.upsert::<FiguresRow>(FIGURES, |f| of_job(f, event)),
            _ => Ok(()),
        }
    }
}

/// What an event of a job changes.
fn of_job(f: &mut FiguresRow, event: &Event) {
    match event {
        Event::JobSubmitted(_) => f.queued += 1,
        Event::JobAssigned(_) => {
            f.queued = f.queued.saturating_sub(1);
            f.active += 1;
        }
        Event::Declined(_) | Event::Requeued(_) => {
            f.active = f.active.saturating_sub(1);
            f.queued += 1;
        }
        Event::Completed(_) => f.active = f.active.saturating_sub(1),
        Event::Failed(e) => ended(f, e.lease.is_some()),
        Event::Cancelled(e) => ended(f, e.lease.is_some()),
        Event::Settled(e) => {
            f.settled += 1;
            f.cost += e.cost;
            f.fees += e.fee;
            f.metered = Millis(f.metered.0 + e.metering.as_ref().map_or(0, |m| m.billed.0));
        }
        _ => {}
    }
}

fn ended(f: &mut FiguresRow, had_a_machine: bool) {
    let counter = if had_a_machine { &mut f.active } else { &mut f.queued };
    *counter = counter.saturating_sub(1);
}

fn count(rows: &mut WriteBatch<'_>, machine: MachineId, now: Counted) -> Result<(), StoreError> {
    let mut before = Counted::default();
    rows.upsert::<Counted>(&machine_key(b'c', machine), |counted| before = std::mem::replace(counted, now))?;
    rows.upsert::<FiguresRow>(FIGURES, |f| {
        f.machines = (f.machines + now.machines).saturating_sub(before.machines);
        f.gpus = (f.gpus + now.gpus).saturating_sub(before.gpus);
    })
}
