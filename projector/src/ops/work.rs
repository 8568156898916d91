//! Work through the whole log beside the service: rebuilding a model, and verifying all of them. One of each at a time,
//! each in its own tree or database, at the pace the machine allows; what answers meanwhile is not touched. What a
//! verification does is in `verify`.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use gpubnb_events::{Clock as _, ProjectorId, Recorded, Seq, SystemClock};
use gpubnb_log::Log;
use gpubnb_query::view::ops::{Progress, Rebuild, Verification};
use gpubnb_store::{Database, StoreError};
use tokio::sync::watch;

use super::{background::Background, verify::verified};
use crate::{
    fold::{Adoption, Model, Tables},
    serve::Applied,
};

/// A rebuilt model is handed over when it is so near.
const NEAR: u64 = 1_000;

/// What runs, and what ran last.
#[derive(Clone)]
pub(crate) struct Work {
    /// Whose work it is.
    pub(crate) projector: ProjectorId,
    pub(crate) log: Log,
    pub(crate) db: Database,
    pub(crate) tables: Tables,
    pub(crate) adoption: Adoption,
    pub(crate) applied: watch::Receiver<Applied>,
    /// Whose signed heads are believed.
    pub(crate) keys: Vec<String>,
    /// Where a verification has its database.
    pub(crate) scratch: PathBuf,
    pub(crate) background: Background,
    pub(crate) state: Arc<Mutex<State>>,
}

/// What operators see of it.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) rebuilds: BTreeMap<&'static str, Rebuild>,
    pub(crate) verification: Option<Verification>,
}

/// Why something does not begin.
pub(crate) enum NotNow {
    /// There is no such model.
    Unknown,
    /// One runs already.
    Runs,
}

impl Work {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on with the rebuilds that were cut off when the process ended, and removes what a verification left. Call before
    /// anybody can ask.
    pub(crate) fn go_on(&self) -> Result<(), StoreError> {
        Database::remove(&self.scratch)?;
        for projection in gpubnb_model::all() {
            if self.db.is_rebuilding(projection.name())? && self.rebuild(projection.name()).is_ok() {
                tracing::info!(model = projection.name(), "a rebuild that was cut off goes on");
            }
        }
        Ok(())
    }

    /// Begins to rebuild a model beside the one that answers.
    pub(crate) fn rebuild(&self, name: &str) -> Result<(), NotNow> {
        let projection = gpubnb_model::all().into_iter().find(|p| p.name() == name).ok_or(NotNow::Unknown)?;
        let name = projection.name();
        let mut state = self.state();
        if state.rebuilds.get(name).is_some_and(|r| r.swapped_at.is_none() && r.failed.is_none()) {
            return Err(NotNow::Runs);
        }
        let progress = Progress { at: Seq::ZERO, until: self.applied.borrow().seq, per_second: 0 };
        state.rebuilds.insert(name, Rebuild { progress, swapped_at: None, failed: None });
        drop(state);
        let work = self.clone();
        self.background.spawn(async move {
            let rebuilt = work.rebuilt(projection).await.and_then(|()| Ok(work.db.end_rebuild(name)?));
            // One that fails because everything ends goes on at the next start.
            if rebuilt.is_err()
                && !work.background.stops()
                && let Err(e) = work.db.end_rebuild(name)
            {
                tracing::warn!(error = %e, model = name, "a rebuild that was given up is tried again at the next start");
            }
            if let Some(rebuild) = work.state().rebuilds.get_mut(name) {
                match rebuilt {
                    Ok(()) => {
                        rebuild.progress.at = rebuild.progress.until;
                        rebuild.swapped_at = Some(SystemClock.now());
                    }
                    Err(why) => rebuild.failed = Some(why.to_string()),
                }
            }
        });
        Ok(())
    }

    async fn rebuilt(&self, projection: Box<dyn gpubnb_model::Projection>) -> anyhow::Result<()> {
        let name = projection.name();
        let current = self.tables.named(name)?;
        let table = self.db.spare(projection.model_version(), &current)?;
        let mut rebuilt = Model::new(projection, table.clone())?;
        let from = rebuilt.checkpoint();
        if from > Seq::ZERO {
            tracing::info!(model = name, after = from.0, "a rebuild goes on");
        }
        let (mut follower, began) = (self.log.follow(from.next()), Instant::now());
        // One event at the least is left for the fold that goes on: it is what makes it swap.
        while rebuilt.checkpoint().0 + NEAR < self.last().0 {
            let mut batch = follower.next_batch().await;
            let (read, last) = (batch.len(), self.last());
            batch.retain(|r| r.seq < last);
            // What was cut off is not read again here: the fold that goes on reads it.
            let cut = batch.len() < read;
            fold(&mut rebuilt, &batch)?;
            if cut {
                break;
            }
            // It can be cut off here.
            tokio::task::yield_now().await;
            let progress = Progress::since(began.elapsed(), from, rebuilt.checkpoint(), self.last());
            if let Some(rebuild) = self.state().rebuilds.get_mut(name) {
                rebuild.progress = progress;
            }
        }
        let mut applied = self.applied.clone();
        self.adoption.adopt(rebuilt);
        // The fold goes on with both until they are equally far; then the new one answers.
        loop {
            // In this order: what does not wait any more is swapped, or given up.
            let waits = self.adoption.waits(name);
            if self.tables.named(name)?.name() == table.name() {
                return Ok(());
            }
            anyhow::ensure!(waits, "it stopped, or could not be swapped in: see the log");
            applied.changed().await?;
        }
    }

    /// What every running model has taken in.
    pub(super) fn last(&self) -> Seq {
        self.applied.borrow().seq
    }

    /// Begins to verify.
    pub(crate) fn verify(&self) -> Result<(), NotNow> {
        let mut state = self.state();
        if state.verification.as_ref().is_some_and(|v| v.ended_at.is_none()) {
            return Err(NotNow::Runs);
        }
        state.verification = Some(Verification {
            began_at: SystemClock.now(),
            progress: Progress { at: Seq::ZERO, until: self.last(), per_second: 0 },
            ended_at: None,
            failed: None,
            models: Vec::new(),
            violations: Vec::new(),
            heads: 0,
            quarantined: Vec::new(),
        });
        drop(state);
        let work = self.clone();
        self.background.spawn(async move {
            let verified = verified(&work).await;
            work.note(|v| {
                v.ended_at = Some(SystemClock.now());
                match verified {
                    Ok(models) => v.models = models,
                    Err(why) => v.failed = Some(why.to_string()),
                }
            });
        });
        Ok(())
    }

    /// Changes what operators see of the verification.
    pub(super) fn note(&self, change: impl FnOnce(&mut Verification)) {
        if let Some(verification) = self.state().verification.as_mut() {
            change(verification);
        }
    }
}

/// Folds a batch, or says where the model stops.
pub(super) fn fold(model: &mut Model, batch: &[Recorded]) -> anyhow::Result<()> {
    model.fold(batch).map_err(|(seq, e)| anyhow::anyhow!("{} at sequence {seq}: {e}", model.name()))
}
