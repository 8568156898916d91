//! State that the handlers of this replica share.
//!
//! Belongs here: state that stays in memory between requests, and the tasks that update this state. Must not come here:
//! a handler, or anything that needs [`crate::app::App`], because `App` contains this state.

mod changes;
mod datasets;
mod ledger_sums;
mod machine_cache;
pub(crate) mod notifications;
mod stores;
pub(crate) mod uploads;
mod worker_program;

pub(crate) use self::{
    changes::{Change, Changes, next_change, pending_changes},
    datasets::{Datasets, StoredDataset},
    ledger_sums::RecentSums,
    machine_cache::MachineCache,
    notifications::Notifications,
    stores::watch_stores,
    uploads::Uploads,
    worker_program::{WORKER_PROGRAM, WorkerProgram},
};
