//! Jobs that have been in one state for too long, each with the likely cause and the remedy.

use gpubnb_events::{Clock as _, JobId, Millis, SystemClock, Timestamp};
use gpubnb_model::{
    jobs::{self, Jobs},
    rows::JobRow,
};
use gpubnb_query::view::{JobState, ops::Stuck};
use gpubnb_store::StoreError;

use crate::{fold::Tables, telemetry::Telemetry};

/// Most unsettled jobs that are looked at.
const LOOKED_AT: usize = 50_000;
/// Most stuck jobs in the answer.
const MOST_STUCK: usize = 200;
/// How long a job may be in each state before it counts as stuck.
const QUEUED: Millis = Millis(10 * 60_000);
const ASSIGNED: Millis = Millis(90_000);
const ACCEPTED: Millis = Millis(30 * 60_000);
const OVER_LIMIT: Millis = Millis(360_000);
const UNSETTLED: Millis = Millis(60_000);
/// How long the report of an ended attempt may wait in its machine's outbox.
const UNSAID: Millis = Millis(120_000);

/// The stuck jobs, the oldest first: those that have been in one state for longer than usual, or than `patience`; and
/// those whose machine cannot deliver its report of the end.
pub(super) fn jobs(tables: &Tables, telemetry: &Telemetry, patience: Option<Millis>) -> Result<Vec<Stuck>, StoreError> {
    let (table, now) = (tables.of(&Jobs)?, SystemClock.now());
    let mut found = Vec::new();
    for key in table.scan_prefix(jobs::UNSETTLED).keys().take(LOOKED_AT) {
        let key = key?;
        let id = key.get(1..).and_then(|id| id.try_into().ok()).and_then(|id| JobId::from_bytes(id).ok());
        let id = id.ok_or_else(|| StoreError::corrupt(&key, "no job's id in it"))?;
        let Some(row) = gpubnb_store::get::<JobRow>(&table, &jobs::row_key(id))? else { continue };
        found.extend(judged(&row, now, patience));
        if found.len() >= MOST_STUCK {
            break;
        }
    }
    for (machine, lease) in telemetry.unsaid() {
        let Some(since) = lease.ended_at.filter(|since| now.since(*since) > UNSAID) else { continue };
        let Some(row) = gpubnb_store::get::<JobRow>(&table, &jobs::row_key(lease.job))? else { continue };
        // A heartbeat may name any lease. It counts only for the live lease of a job on this very machine.
        let its_own = row.attempts.last().is_some_and(|a| (a.machine, a.lease) == (machine, lease.lease));
        let running = matches!(row.state, JobState::Running | JobState::Collecting) && its_own;
        if running && found.len() < MOST_STUCK && found.iter().all(|stuck| stuck.job != row.job) {
            found.push(stuck(&row, since, IN_OUTBOX));
        }
    }
    Ok(found)
}

const IN_OUTBOX: (&str, &str) = (
    "it ended on its machine, but its report or files still wait there: a slow line, or the market does not answer",
    "check that the web server and gpubnb-services answer; the machine keeps trying by itself",
);

fn stuck(row: &JobRow, since: Timestamp, (cause, remedy): (&str, &str)) -> Stuck {
    let (cause, remedy) = (cause.to_owned(), remedy.to_owned());
    Stuck { job: row.job, name: row.spec.name.clone(), state: row.state, since, cause, remedy }
}

fn judged(row: &JobRow, now: Timestamp, patience: Option<Millis>) -> Option<Stuck> {
    let assigned = row.attempts.last().map_or(row.submitted_at, |attempt| attempt.assigned_at);
    let (since, most, cause, remedy) = match row.state {
        JobState::Queued => (
            row.submitted_at,
            QUEUED,
            "no machine fits its limits, or none is free",
            "its page says why it waits; cancel it, or add machines",
        ),
        JobState::Assigned => (
            assigned,
            ASSIGNED,
            "the machine does not answer, and the scheduler has not taken the job back",
            "see whether gpubnb-services runs and has a leader",
        ),
        JobState::Accepted => (
            assigned,
            ACCEPTED,
            "the machine has been fetching the image or the files for very long",
            "the job's page shows the progress of the download; cancel the job if nothing moves",
        ),
        JobState::Running => {
            let limit = Millis(row.limits.time.millis().0 + OVER_LIMIT.0);
            (
                row.started_at.unwrap_or(assigned),
                limit,
                "it runs past its time limit: neither the worker nor the watchdog has ended it",
                "check that gpubnb-services runs and has a leader; cancel the job",
            )
        }
        JobState::Collecting => {
            let (cause, remedy) = IN_OUTBOX;
            (row.exited_at.unwrap_or(assigned), UNSAID, cause, remedy)
        }
        JobState::Completed | JobState::Failed | JobState::Cancelled => (
            row.ended_at.unwrap_or(assigned),
            UNSETTLED,
            "it has ended and is not settled",
            "check that gpubnb-services runs and has a leader: it settles every ended job that it finds",
        ),
    };
    (now.since(since) > patience.map_or(most, |patience| patience.min(most)))
        .then(|| stuck(row, since, (cause, remedy)))
}
