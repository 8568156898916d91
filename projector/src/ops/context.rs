//! The surroundings of long work through the whole log: the log, the models that answer, and the state that operators
//! see.
//!
//! Belongs here: everything that a rebuild and a verification share. The work itself is in `rebuild.rs` and
//! `verify.rs`: one of each at a time, each in a table or database of its own, at the pace that the machine allows. The
//! models that answer meanwhile are not touched.

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
    fold::{Adoption, Tables},
    serve::Applied,
};

/// Clones share the state.
#[derive(Clone)]
pub(crate) struct WorkContext {
    /// The projector that does the work.
    pub(crate) projector: ProjectorId,
    pub(crate) log: Log,
    pub(crate) db: Database,
    pub(crate) tables: Tables,
    pub(crate) adoption: Adoption,
    pub(crate) applied: watch::Receiver<Applied>,
    /// The public keys whose signed tree heads are believed.
    pub(crate) keys: Vec<String>,
    /// The directory of a verification's database.
    pub(crate) scratch: PathBuf,
    pub(crate) background: Background,
    pub(crate) state: Arc<Mutex<WorkState>>,
}

/// The rebuilds and the verification that run, or ran last.
#[derive(Default)]
pub(crate) struct WorkState {
    pub(crate) rebuilds: BTreeMap<&'static str, Rebuild>,
    pub(crate) verification: Option<Verification>,
}

/// The reason why work does not start.
pub(crate) enum NotStarted {
    /// There is no model of this name.
    UnknownModel,
    /// The same work runs already.
    Running,
}

impl WorkContext {
    pub(crate) fn state(&self) -> MutexGuard<'_, WorkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last sequence that every running model has folded.
    pub(super) fn last(&self) -> Seq {
        self.applied.borrow().seq
    }
}
