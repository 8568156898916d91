//! The read models. A *projection* is the rule of one read model: a name, a version, and one pure function `apply`,
//! which takes the rows and an event and changes the rows. To *fold* the log is to apply all its events in order.
//! Two folds of the same log therefore give the same rows, byte for byte.
//!
//! This crate contains the projections, their rows, and the functions that read these rows. It must not contain a
//! clock, randomness, floating point, or I/O other than the rows, and it depends on no crate that has them.

#![deny(clippy::float_arithmetic)]

pub mod balances;
pub mod batches;
pub mod figures;
pub mod jobs;
pub mod ledger;
mod machine_state;
pub mod machines;
pub mod market_history;
pub mod merkle;
pub mod rows;
pub mod template_runs;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod timeline;

use gpubnb_events::{AccountId, Aggregate, Event, JobId, MachineId, Recorded};
use gpubnb_query::view::{Balance, BatchView, JobView, ListedMachine};
use gpubnb_store::{StoreError, Table, WriteBatch};
use serde::{Serialize, de::DeserializeOwned};

/// The rules of a read model.
pub trait Projection: Send + Sync {
    /// The model's name.
    fn name(&self) -> &'static str;
    /// The version of the rows and of the rules. A new version gets a new table, which is folded from the first event.
    fn version(&self) -> u32;
    /// The name and the version, under which the store keeps the model's table.
    fn model_version(&self) -> gpubnb_store::ModelVersion<'static> {
        gpubnb_store::ModelVersion { name: self.name(), version: self.version() }
    }
    /// Applies one event to the rows.
    fn apply(&self, rows: &mut WriteBatch<'_>, recorded: &Recorded, event: &Event) -> Result<(), StoreError>;
    /// Applies a quarantined message: a message that is no valid event. Most models skip it.
    fn quarantined(&self, rows: &mut WriteBatch<'_>, recorded: &Recorded) -> Result<(), StoreError> {
        let _ = (rows, recorded);
        Ok(())
    }
}

/// All read models of the projector.
pub fn all() -> Vec<Box<dyn Projection>> {
    vec![
        Box::new(jobs::Jobs),
        Box::new(machines::Machines),
        Box::new(timeline::Timeline),
        Box::new(ledger::Ledger),
        Box::new(figures::MarketFigures),
        Box::new(market_history::MarketHistory),
        Box::new(template_runs::TemplateRuns),
        Box::new(batches::Batches),
        Box::new(merkle::Merkle),
    ]
}

/// The model that has the row of a job, machine, account or batch, and the key of that row.
pub fn model_of_aggregate(aggregate: Aggregate) -> (Box<dyn Projection>, Vec<u8>) {
    match aggregate {
        Aggregate::Job(id) => (Box::new(jobs::Jobs), jobs::row_key(id)),
        Aggregate::Machine(id) => (Box::new(machines::Machines), machines::row_key(id)),
        Aggregate::Account(id) => (Box::new(ledger::Ledger), ledger::balance_key(id)),
        Aggregate::Batch(id) => (Box::new(batches::Batches), batches::row_key(id)),
    }
}

/// Reads an aggregate's row and converts it to its view, as JSON. `None` if there is no row. `table` must be the table
/// of the model that [`model_of_aggregate`] names.
pub fn view_of_row(table: &Table, aggregate: Aggregate) -> Result<Option<serde_json::Value>, StoreError> {
    fn view<R: DeserializeOwned, V: From<R> + Serialize>(
        table: &Table,
        key: &[u8],
    ) -> Result<Option<serde_json::Value>, StoreError> {
        let row: Option<R> = gpubnb_store::get(table, key)?;
        let json = row.map(|row| serde_json::to_value(V::from(row)));
        json.transpose().map_err(|e| StoreError::corrupt(key, e))
    }
    let (_, key) = model_of_aggregate(aggregate);
    match aggregate {
        Aggregate::Job(_) => view::<rows::JobRow, JobView>(table, &key),
        Aggregate::Machine(_) => view::<rows::MachineRow, ListedMachine>(table, &key),
        Aggregate::Account(_) => view::<rows::BalanceRow, Balance>(table, &key),
        Aggregate::Batch(id) => {
            let view = batches::get(table, id)?.map(|batch| serde_json::to_value(BatchView::from(batch)));
            view.transpose().map_err(|e| StoreError::corrupt(&key, e))
        }
    }
}

/// The aggregates that an event affects: the event is in the trail of each of them. For example, `JobAssigned` affects
/// the job and the machine.
pub fn affected_aggregates(event: &Event) -> Vec<Aggregate> {
    let mut affected = vec![event.aggregate()];
    match event {
        Event::JobSubmitted(e) => affected.push(Aggregate::Job(e.job)),
        Event::BatchSubmitted(e) => affected.push(Aggregate::Batch(e.batch)),
        // The trail of a task begins with this event.
        Event::TasksOpened(e) => affected.extend(e.tasks().map(|(_, job)| Aggregate::Job(job))),
        Event::BatchClosed(e) => affected.push(Aggregate::Account(e.account)),
        Event::JobAssigned(e) => affected.push(Aggregate::Machine(e.machine)),
        Event::Declined(e) => affected.push(Aggregate::Machine(e.machine)),
        Event::Requeued(e) => affected.push(Aggregate::Machine(e.excluded)),
        Event::Settled(e) => {
            affected.push(Aggregate::Account(e.consumer));
            affected.extend(e.provider.filter(|p| *p != e.consumer).map(Aggregate::Account));
        }
        _ => {}
    }
    affected
}

/// The key of a row: one letter, then the bytes of ids and of big-endian numbers. So keys sort by these ids and
/// numbers.
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
