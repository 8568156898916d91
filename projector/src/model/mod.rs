//! The read models. Each is a name, a version and one `apply`; its rows come back byte for byte by replay.
//!
//! Architecture invariant: `apply` is a function of the rows and the event: no clock, no randomness, no I/O
//! but its own rows.

pub mod balances;
pub mod figures;
pub mod jobs;
pub mod ledger;
pub mod machines;
pub mod merkle;
pub mod timeline;

use gpubnb_events::{AccountId, Aggregate, Event, JobId, MachineId, Recorded};

use crate::store::{Rows, StoreError};

/// A read model.
pub trait Projection: Send + Sync {
    /// Its name; the name of its tree.
    fn name(&self) -> &'static str;
    /// Its version. Another version is another tree, built anew.
    fn version(&self) -> u32;
    /// Takes in one event.
    fn apply(&self, rows: &mut Rows<'_>, recorded: &Recorded, event: &Event) -> Result<(), StoreError>;
    /// Takes in a message that is no event of ours. Nearly all skip it.
    fn quarantined(&self, rows: &mut Rows<'_>, recorded: &Recorded) -> Result<(), StoreError> {
        let _ = (rows, recorded);
        Ok(())
    }
}

/// Every read model.
pub fn all() -> Vec<Box<dyn Projection>> {
    vec![
        Box::new(jobs::Jobs),
        Box::new(machines::Machines),
        Box::new(timeline::Timeline),
        Box::new(ledger::Ledger),
        Box::new(figures::MarketFigures),
        Box::new(merkle::Merkle),
    ]
}

/// Everything an event is part of the trail of.
pub fn touched(event: &Event) -> Vec<Aggregate> {
    let mut touched = vec![event.aggregate()];
    match event {
        Event::JobSubmitted(e) => touched.push(Aggregate::Job(e.job)),
        Event::JobAssigned(e) => touched.push(Aggregate::Machine(e.machine)),
        Event::Declined(e) => touched.push(Aggregate::Machine(e.machine)),
        Event::Requeued(e) => touched.push(Aggregate::Machine(e.excluded)),
        Event::Settled(e) => {
            touched.push(Aggregate::Account(e.consumer));
            touched.extend(e.provider.filter(|p| *p != e.consumer).map(Aggregate::Account));
        }
        _ => {}
    }
    touched
}

/// A key: one letter and the bytes of ids and numbers, so that it sorts as they do.
fn key(letter: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|p| p.len()).sum::<usize>());
    key.push(letter);
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

fn job_key(letter: u8, job: JobId) -> Vec<u8> {
    key(letter, &[job.as_bytes()])
}

fn machine_key(letter: u8, machine: MachineId) -> Vec<u8> {
    key(letter, &[machine.as_bytes()])
}

fn account_key(letter: u8, account: AccountId) -> Vec<u8> {
    key(letter, &[account.as_bytes()])
}
