//! A rebuild folds one model from the first event of the log into a second table. Queries still read the old table.
//! When the second table has caught up, the fold swaps the tables.

use std::time::Instant;

use anyhow::Context as _;
use gpubnb_events::{Clock as _, Seq, SystemClock};
use gpubnb_model::Projection;
use gpubnb_query::view::ops::{Progress, Rebuild};
use gpubnb_store::{Database, StoreError};

use super::context::{StartError, WorkContext};
use crate::fold::Model;

/// A rebuilt model is handed to the fold when it has at most this many events left to fold.
const MAX_EVENTS_LEFT: u64 = 1_000;

/// Resumes the rebuilds that the end of the last process interrupted, and deletes the files of an interrupted
/// verification. Call this function before operators can start a rebuild or a verification.
pub(crate) fn resume_all(context: &WorkContext) -> Result<(), StoreError> {
    Database::remove(&context.scratch)?;
    for projection in gpubnb_model::all() {
        if context.db.is_rebuilding(projection.name())? && start(context, projection.name()).is_ok() {
            tracing::info!(model = projection.name(), "resuming an interrupted rebuild");
        }
    }
    Ok(())
}

/// Starts the rebuild of the model with this name, in the background.
pub(crate) fn start(context: &WorkContext, name: &str) -> Result<(), StartError> {
    let projection = gpubnb_model::all().into_iter().find(|p| p.name() == name).ok_or(StartError::UnknownModel)?;
    let name = projection.name();
    let mut state = context.state();
    if state.rebuilds.get(name).is_some_and(|r| r.swapped_at.is_none() && r.failed.is_none()) {
        return Err(StartError::AlreadyRunning);
    }
    let progress = Progress { at: Seq::ZERO, until: context.last_applied(), per_second: 0 };
    state.rebuilds.insert(name, Rebuild { progress, swapped_at: None, failed: None });
    drop(state);
    let task_context = context.clone();
    context.background.spawn(async move {
        let rebuilt = rebuild(&task_context, projection).await.and_then(|()| Ok(task_context.db.end_rebuild(name)?));
        finish(&task_context, name, rebuilt);
    });
    Ok(())
}

/// Records the result of a rebuild.
fn finish(context: &WorkContext, name: &str, rebuilt: anyhow::Result<()>) {
    // During a shutdown the rebuild stays recorded as unfinished, and is resumed at the next start.
    if rebuilt.is_err()
        && !context.background.is_stopping()
        && let Err(e) = context.db.end_rebuild(name)
    {
        let error = &e as &dyn std::error::Error;
        tracing::warn!(error, model = name, "a failed rebuild will be resumed at the next start");
    }
    if let Some(rebuild) = context.state().rebuilds.get_mut(name) {
        match rebuilt {
            Ok(()) => {
                rebuild.progress.at = rebuild.progress.until;
                rebuild.swapped_at = Some(SystemClock.now());
            }
            Err(e) => rebuild.failed = Some(format!("{e:#}")),
        }
    }
}

/// Rebuilds a model. Returns when the fold has swapped the tables.
async fn rebuild(context: &WorkContext, projection: Box<dyn Projection>) -> anyhow::Result<()> {
    let name = projection.name();
    let current = context.tables.by_name(name)?;
    let table = context.db.rebuild_table(projection.model_version(), &current)?;
    let mut rebuilt = Model::new(projection, table.clone())?;
    let from = rebuilt.checkpoint();
    if from > Seq::ZERO {
        tracing::info!(model = name, after = from.0, "a rebuild goes on");
    }
    let (mut follower, began) = (context.log.follow(from.next()), Instant::now());
    // At least one event is left for the fold, because the fold swaps the tables only after it has folded an event.
    while rebuilt.checkpoint().0 + MAX_EVENTS_LEFT < context.last_applied().0 {
        let mut batch = follower.next_batch().await;
        let (read, last) = (batch.len(), context.last_applied());
        batch.retain(|r| r.seq < last);
        // The fold reads the removed events again.
        let has_reached_last = batch.len() < read;
        rebuilt.fold(&batch)?;
        if has_reached_last {
            break;
        }
        // Lets a shutdown interrupt the rebuild. The other awaits may never yield if the broker is fast.
        tokio::task::yield_now().await;
        let progress = Progress::since(began.elapsed(), from, rebuilt.checkpoint(), context.last_applied());
        if let Some(rebuild) = context.state().rebuilds.get_mut(name) {
            rebuild.progress = progress;
        }
    }
    let mut applied = context.applied.clone();
    context.swap_queue.push(rebuilt);
    // Wait until the fold has swapped the tables.
    loop {
        // Read the queue before the table. Then a model that is neither in the queue nor swapped in has failed.
        let is_waiting = context.swap_queue.contains(name);
        if context.tables.by_name(name)?.name() == table.name() {
            return Ok(());
        }
        anyhow::ensure!(is_waiting, "the rebuilt model stopped, or could not be swapped in: see the projector's log");
        applied.changed().await.context("the fold ended")?;
    }
}
