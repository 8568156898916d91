//! The data that a rebuild (`rebuild.rs`) and a verification (`verify.rs`) share: the log, the live models (from which
//! queries are answered), and the progress that operators see.
//!
//! Each model has at most one rebuild at a time, and there is at most one verification at a time. A rebuild writes into
//! a separate table, and a verification writes into a separate database.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gpubnb_events::{ProjectorId, Seq};
use gpubnb_log::Log;
use gpubnb_query::view::ops::{Rebuild, Verification};
use gpubnb_store::Database;
use tokio::sync::watch;

use super::background::Background;
use crate::{
    fold::{SwapQueue, Tables},
    serve::FoldProgress,
};

/// The data of a rebuild or a verification. Clones share the state.
#[derive(Clone)]
pub(crate) struct WorkContext {
    /// The id of this projector.
    pub(crate) projector: ProjectorId,
    pub(crate) log: Log,
    pub(crate) db: Database,
    pub(crate) tables: Tables,
    pub(crate) swap_queue: SwapQueue,
    pub(crate) applied: watch::Receiver<FoldProgress>,
    /// The public keys whose signed tree heads are trusted.
    pub(crate) keys: Vec<String>,
    /// The directory of the verification's database.
    pub(crate) scratch: PathBuf,
    pub(crate) background: Background,
    pub(crate) state: Arc<Mutex<WorkState>>,
}

/// The state of each model's last rebuild, and of the last verification. They may still be running.
#[derive(Default)]
pub(crate) struct WorkState {
    pub(crate) rebuilds: BTreeMap<&'static str, Rebuild>,
    pub(crate) verification: Option<Verification>,
}

/// The reason why a rebuild or a verification was not started.
pub(crate) enum StartError {
    /// There is no model of this name.
    UnknownModel,
    /// A rebuild of this model, or a verification, is already running.
    AlreadyRunning,
}

impl WorkContext {
    pub(crate) fn state(&self) -> MutexGuard<'_, WorkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last sequence that every running model has folded.
    pub(super) fn last_applied(&self) -> Seq {
        self.applied.borrow().seq
    }
}
