//! Finds stuck jobs: jobs that have been in one state for too long. Each is reported with its likely cause and remedy.

use gpubnb_events::{Clock as _, JobId, Millis, SystemClock, Timestamp};
use gpubnb_model::{
    batches::{self, Batches},
    jobs::{self, Jobs},
    rows::JobRow,
};
use gpubnb_query::view::{JobState, ops::StuckJob};
use gpubnb_store::StoreError;

use crate::{fold::Tables, telemetry::Telemetry};

/// The most unsettled jobs that are checked.
const MAX_CHECKED: usize = 50_000;
/// The most stuck jobs in the answer.
const MAX_STUCK: usize = 200;
/// The longest normal time in the state `Queued`.
const MAX_QUEUED: Millis = Millis(10 * 60_000);
/// The longest normal time in the state `Assigned`.
const MAX_ASSIGNED: Millis = Millis(90_000);
/// The longest normal time in the state `Accepted`.
const MAX_ACCEPTED: Millis = Millis(30 * 60_000);
/// The longest normal time in the state `Running` after the job's time limit.
const MAX_OVER_LIMIT: Millis = Millis(360_000);
/// The longest normal time between the end of a job and its settlement.
const MAX_UNSETTLED: Millis = Millis(60_000);
/// The longest normal time for which the report of an ended attempt waits in its machine's outbox (the file of a
/// report that the worker has not delivered yet).
const MAX_UNREPORTED: Millis = Millis(120_000);

/// The stuck jobs: first the jobs that were too long in one state (by the limits above, or `stuck_after` if that is
/// shorter), oldest first; then the jobs whose machine cannot deliver the report of the end.
pub(super) fn jobs(
    tables: &Tables,
    telemetry: &Telemetry,
    stuck_after: Option<Millis>,
) -> Result<Vec<StuckJob>, StoreError> {
    let (table, all_batches, now) = (tables.of(&Jobs)?, tables.of(&Batches)?, SystemClock.now());
    let mut found = Vec::new();
    for key in table.scan_prefix(jobs::UNSETTLED_PREFIX).keys().take(MAX_CHECKED) {
        let key = key?;
        let id = key.get(1..).and_then(|id| id.try_into().ok()).and_then(|id| JobId::from_bytes(id).ok());
        let id = id.ok_or_else(|| StoreError::corrupt(&key, "the key has no job id"))?;
        let Some(row) = gpubnb_store::get::<JobRow>(&table, &jobs::row_key(id))? else { continue };
        // Most of a batch waits for the rest of it.
        let is_waiting_task = row.spec.task.as_ref().filter(|_| row.state == JobState::Queued);
        if let Some(task) = is_waiting_task
            && batches::is_running(&all_batches, task.batch)?
        {
            continue;
        }
        found.extend(check_job(&row, now, stuck_after));
        if found.len() >= MAX_STUCK {
            break;
        }
    }
    for (machine, lease) in telemetry.unreported_ends() {
        let Some(since) = lease.ended_at.filter(|since| now.since(*since) > MAX_UNREPORTED) else { continue };
        let Some(row) = gpubnb_store::get::<JobRow>(&table, &jobs::row_key(lease.job))? else { continue };
        // A heartbeat may name any lease. Only the job's live lease on the machine that sent the heartbeat counts.
        let is_live = row.attempts.last().is_some_and(|a| (a.machine, a.lease) == (machine, lease.lease));
        let is_stuck = matches!(row.state, JobState::Running | JobState::Collecting) && is_live;
        if is_stuck && found.len() < MAX_STUCK && found.iter().all(|stuck| stuck.job != row.job) {
            found.push(new_stuck_job(&row, since, IN_OUTBOX));
        }
    }
    Ok(found)
}

/// The cause and the remedy if a report waits in the machine's outbox.
const IN_OUTBOX: (&str, &str) = (
    "it ended on its machine, but its report or files still wait there: a slow line, or the market does not answer",
    "check that the web server and gpubnb-services answer; the machine keeps trying by itself",
);

fn new_stuck_job(row: &JobRow, since: Timestamp, (cause, remedy): (&str, &str)) -> StuckJob {
    let (cause, remedy) = (cause.to_owned(), remedy.to_owned());
    StuckJob { job: row.job, name: row.spec.name.clone(), state: row.state, since, cause, remedy }
}

/// Reports a job as stuck if the job has been in its state for too long.
fn check_job(row: &JobRow, now: Timestamp, stuck_after: Option<Millis>) -> Option<StuckJob> {
    let assigned = row.attempts.last().map_or(row.submitted_at, |attempt| attempt.assigned_at);
    let (since, limit, cause, remedy) = match row.state {
        // A job that came back waits since its last attempt, or since the pause after that attempt.
        JobState::Queued => (
            row.retry_at.unwrap_or(assigned).max(assigned),
            MAX_QUEUED,
            "no machine fits its limits, or none is free",
            "its page says why it waits; cancel it, or add machines",
        ),
        JobState::Assigned => (
            assigned,
            MAX_ASSIGNED,
            "the machine does not answer, and the scheduler has not taken the job back",
            "see whether gpubnb-services runs and has a leader",
        ),
        JobState::Accepted => (
            assigned,
            MAX_ACCEPTED,
            "the machine has been fetching the image or the files for very long",
            "the job's page shows the progress of the download; cancel the job if nothing moves",
        ),
        JobState::Running => {
            let limit = Millis(row.limits.time.millis().0 + MAX_OVER_LIMIT.0);
            (
                row.started_at.unwrap_or(assigned),
                limit,
                "it runs past its time limit: neither the worker nor the watchdog has ended it",
                "check that gpubnb-services runs and has a leader; cancel the job",
            )
        }
        JobState::Collecting => {
            let (cause, remedy) = IN_OUTBOX;
            (row.exited_at.unwrap_or(assigned), MAX_UNREPORTED, cause, remedy)
        }
        JobState::Completed | JobState::Failed | JobState::Cancelled => (
            row.ended_at.unwrap_or(assigned),
            MAX_UNSETTLED,
            "it has ended and is not settled",
            "check that gpubnb-services runs and has a leader: it settles every ended job that it finds",
        ),
    };
    (now.since(since) > stuck_after.map_or(limit, |stuck_after| stuck_after.min(limit)))
        .then(|| new_stuck_job(row, since, (cause, remedy)))
}
