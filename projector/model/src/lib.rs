//! The read models, pure: each is a name, a version and one `apply`, a function of the rows and the event. Its rows come
//! back byte for byte by replay.
//!
//! Belongs here: projections, the rows that they write, and reading these rows. Must not come here: a clock, randomness,
//! floating point, or I/O but a model's own rows. The crate depends on nothing that could bring them in.

#![deny(clippy::float_arithmetic)]

pub mod balances;
pub mod figures;
pub mod jobs;
pub mod ledger;
pub mod machines;
pub mod merkle;
pub mod rows;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod timeline;

use gpubnb_events::{AccountId, Aggregate, Event, JobId, MachineId, Recorded};
use gpubnb_query::view::{Balance, JobView, ListedMachine};
use gpubnb_store::{StoreError, Table, WriteBatch};
use serde::{Serialize, de::DeserializeOwned};

/// A read model.
pub trait Projection: Send + Sync {
    /// Its name; the name of its tree.
    fn name(&self) -> &'static str;
    /// Its version. Another version is another table, built anew.
    fn version(&self) -> u32;
    /// The projection's tables in the store.
    fn model_version(&self) -> gpubnb_store::ModelVersion<'static> {
        gpubnb_store::ModelVersion { name: self.name(), version: self.version() }
    }
    /// Takes in one event.
    fn apply(&self, rows: &mut WriteBatch<'_>, recorded: &Recorded, event: &Event) -> Result<(), StoreError>;
    /// Takes in a message that is no event of ours. Nearly all skip it.
    fn quarantined(&self, rows: &mut WriteBatch<'_>, recorded: &Recorded) -> Result<(), StoreError> {
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

/// The model that has one row for an aggregate, and the key of that row.
pub fn of_aggregate(of: Aggregate) -> (Box<dyn Projection>, Vec<u8>) {
    match of {
        Aggregate::Job(id) => (Box::new(jobs::Jobs), jobs::row_key(id)),
        Aggregate::Machine(id) => (Box::new(machines::Machines), machines::row_key(id)),
        Aggregate::Account(id) => (Box::new(ledger::Ledger), ledger::balance_key(id)),
    }
}

/// The answer that an aggregate's row in its model's table is made into; `None` where there is no row.
pub fn answer(table: &Table, of: Aggregate) -> Result<Option<serde_json::Value>, StoreError> {
    fn made<R: DeserializeOwned, A: From<R> + Serialize>(
        table: &Table,
        key: &[u8],
    ) -> Result<Option<serde_json::Value>, StoreError> {
        let row: Option<R> = gpubnb_store::get(table, key)?;
        let made = row.map(|row| serde_json::to_value(A::from(row)));
        made.transpose().map_err(|e| StoreError::corrupt(key, e))
    }
    let (_, key) = of_aggregate(of);
    match of {
        Aggregate::Job(_) => made::<rows::JobRow, JobView>(table, &key),
        Aggregate::Machine(_) => made::<rows::MachineRow, ListedMachine>(table, &key),
        Aggregate::Account(_) => made::<rows::BalanceRow, Balance>(table, &key),
    }
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
