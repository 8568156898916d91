//! Rebuilding: one model folded anew from the log, beside the model that answers, and swapped in when both are equally
//! far.

use std::time::Instant;

use anyhow::Context as _;
use gpubnb_events::{Clock as _, Seq, SystemClock};
use gpubnb_model::Projection;
use gpubnb_query::view::ops::{Progress, Rebuild};
use gpubnb_store::{Database, StoreError};

use super::context::{NotStarted, WorkContext};
use crate::fold::Model;

/// Events that may be left when a rebuilt model is handed over to the fold.
const NEAR: u64 = 1_000;

/// Resumes the rebuilds that were cut off when the process ended, and removes the database that a verification left.
/// Call this before anybody can ask for work.
pub(crate) fn resume_all(context: &WorkContext) -> Result<(), StoreError> {
    Database::remove(&context.scratch)?;
    for projection in gpubnb_model::all() {
        if context.db.is_rebuilding(projection.name())? && start(context, projection.name()).is_ok() {
            tracing::info!(model = projection.name(), "resuming a rebuild that was cut off");
        }
    }
    Ok(())
}

/// Starts to rebuild a model beside the one that answers.
pub(crate) fn start(context: &WorkContext, name: &str) -> Result<(), NotStarted> {
    let projection = gpubnb_model::all().into_iter().find(|p| p.name() == name).ok_or(NotStarted::UnknownModel)?;
    let name = projection.name();
    let mut state = context.state();
    if state.rebuilds.get(name).is_some_and(|r| r.swapped_at.is_none() && r.failed.is_none()) {
        return Err(NotStarted::Running);
    }
    let progress = Progress { at: Seq::ZERO, until: context.last(), per_second: 0 };
    state.rebuilds.insert(name, Rebuild { progress, swapped_at: None, failed: None });
    drop(state);
    let own = context.clone();
    context.background.spawn(async move {
        let rebuilt = rebuild(&own, projection).await.and_then(|()| Ok(own.db.end_rebuild(name)?));
        finish(&own, name, rebuilt);
    });
    Ok(())
}

/// Notes how a rebuild ended.
fn finish(context: &WorkContext, name: &str, rebuilt: anyhow::Result<()>) {
    // A rebuild that fails because the process ends is resumed at the next start.
    if rebuilt.is_err()
        && !context.background.stops()
        && let Err(e) = context.db.end_rebuild(name)
    {
        let error = &e as &dyn std::error::Error;
        tracing::warn!(error, model = name, "a rebuild that was given up will be tried again at the next start");
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

async fn rebuild(context: &WorkContext, projection: Box<dyn Projection>) -> anyhow::Result<()> {
    let name = projection.name();
    let current = context.tables.named(name)?;
    let table = context.db.spare(projection.model_version(), &current)?;
    let mut rebuilt = Model::new(projection, table.clone())?;
    let from = rebuilt.checkpoint();
    if from > Seq::ZERO {
        tracing::info!(model = name, after = from.0, "a rebuild goes on");
    }
    let (mut follower, began) = (context.log.follow(from.next()), Instant::now());
    // At least one event is left for the running fold: the swap happens when the fold takes in an event.
    while rebuilt.checkpoint().0 + NEAR < context.last().0 {
        let mut batch = follower.next_batch().await;
        let (read, last) = (batch.len(), context.last());
        batch.retain(|r| r.seq < last);
        // Events that are left out here are not lost: the running fold reads them again.
        let cut = batch.len() < read;
        rebuilt.fold(&batch)?;
        if cut {
            break;
        }
        // A shutdown cuts the rebuild off at this await; without it, a fast broker would leave none.
        tokio::task::yield_now().await;
        let progress = Progress::since(began.elapsed(), from, rebuilt.checkpoint(), context.last());
        if let Some(rebuild) = context.state().rebuilds.get_mut(name) {
            rebuild.progress = progress;
        }
    }
    let mut applied = context.applied.clone();
    context.adoption.adopt(rebuilt);
    // The running fold takes events into both models until they are equally far; then the new one answers.
    loop {
        // `waits` is read first: a model that no longer waits was either swapped in before this line, or given up.
        let waits = context.adoption.waits(name);
        if context.tables.named(name)?.name() == table.name() {
            return Ok(());
        }
        anyhow::ensure!(waits, "it stopped, or could not be swapped in: see the log");
        applied.changed().await.context("the fold ended")?;
    }
}
