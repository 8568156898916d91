//! The read models. Each is a *projection*: a name, a version, and one pure function `apply` from the rows and an event
//! to the changed rows. A replay of the log therefore gives the same rows, byte for byte.
//!
//! Belongs here: projections, the rows that they write, and reading these rows. Must not come here: a clock,
//! randomness, floating point, or any I/O but a model's own rows. The crate depends on nothing that could bring them
//! in.

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

/// The rules of a read model.
pub trait Projection: Send + Sync {
    /// The model's name.
    fn name(&self) -> &'static str;
    /// The version of the rows and the rules. A new version gets a new table, which is folded from the first event.
    fn version(&self) -> u32;
    /// The name and the version, under which the store keeps the model's table.
    fn model_version(&self) -> gpubnb_store::ModelVersion<'static> {
        gpubnb_store::ModelVersion { name: self.name(), version: self.version() }
    }
    /// Applies one event to the rows.
    fn apply(&self, rows: &mut WriteBatch<'_>, recorded: &Recorded, event: &Event) -> Result<(), StoreError>;
    /// Applies a quarantined message to the rows. Nearly all models skip it.
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

/// The model that has a row for an aggregate, and the key of that row.
pub fn of_aggregate(of: Aggregate) -> (Box<dyn Projection>, Vec<u8>) {
    match of {
        Aggregate::Job(id) => (Box::new(jobs::Jobs), jobs::row_key(id)),
        Aggregate::Machine(id) => (Box::new(machines::Machines), machines::row_key(id)),
        Aggregate::Account(id) => (Box::new(ledger::Ledger), ledger::balance_key(id)),
    }
}

/// The answer made of an aggregate's row, as JSON; `None` where there is no row. `table` is that of the aggregate's
/// model.
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

/// The aggregates whose trails an event belongs to.
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

/// A key: one letter, then the bytes of ids and of big-endian numbers, so that keys sort as the ids and numbers do.
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
