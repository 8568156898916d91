//! Batches: from a request to the command, the second try of the tasks that failed, and the table of results. The page
//! and the API use this module.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use axum::http::StatusCode;
use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_events::{
    AccountId, Actor, BatchId, Seq,
    batch::MAX_AGE,
    batch_request::BatchRequest,
    command::{BatchQuote, CancelBatch, Done, SubmitBatch, SubmittedBatch},
    event::{CloseReason, Reason},
    job_request::JobRequest,
};
use gpubnb_query::{
    request::{TaskOrder, TasksQuery},
    view::{BatchView, JobState, TaskView},
};

use gpubnb_runtime::rpc::RpcError;
use tokio::sync::Semaphore;
use tracing::warn;

use crate::{access::SignedIn, app::App, error::Problem, live::log, submission::Submission};

/// The number of tasks that are read with one query.
const TASKS_PER_QUERY: u32 = 200;
/// The most columns of measurements in a table of results: each name of a measurement makes one.
const MAX_METRICS: usize = 100;
/// The tables of results that are made at the same time.
static TABLES: Semaphore = Semaphore::const_new(2);
/// The number of tasks whose measurements are read at the same time.
const CONCURRENT_READS: usize = 8;

/// A batch that is ready to be quoted or submitted.
pub(crate) struct BatchSubmission {
    pub(crate) job: Submission,
    command: SubmitBatch,
}

impl BatchSubmission {
    /// Finds the digest of the image, and the sizes and hashes of the files and datasets.
    pub(crate) async fn prepare(app: &App, account: AccountId, request: BatchRequest) -> Result<Self, Problem> {
        if request.job.job.is_some() {
            return Err(Problem::invalid(
                "job",
                "A batch has its id in the field `batch`: leave the id of the job out.",
            ));
        }
        // The cheap check comes first: a sweep of a million tasks needs no look at a registry.
        request.task_list().map_err(Problem::from)?;
        let earlier = match request.batch {
            Some(batch) => app.queries.batch(Actor::Account(account), batch, Seq::ZERO).await.ok(),
            None => None,
        };
        let batch = request.batch.unwrap_or_else(BatchId::generate);
        let earlier = earlier.map(|known| known.spec);
        let job =
            Submission::prepare_with(app, account, request.job.clone(), (batch.as_job(), MAX_AGE), earlier).await?;
        let command = request.into_command(batch, job.command().clone()).map_err(Problem::from)?;
        Ok(Self { job, command })
    }

    pub(crate) async fn submit(self, app: &App, actor: Actor) -> Result<SubmittedBatch, Problem> {
        self.job.check_complete()?;
        let submitted = app.command("batch", "submit", actor, &self.command).await;
        let submitted: SubmittedBatch = submitted.map_err(|refused| self.job.explain(refused))?;
        self.job.note(app, actor, submitted.seq);
        Ok(submitted)
    }

    pub(crate) async fn quote(&self, app: &App, actor: Actor) -> Result<BatchQuote, Problem> {
        let quoted = app.command("batch", "quote", actor, &self.command).await;
        quoted.map_err(|refused| self.job.explain(refused))
    }

    /// The image that the tasks run.
    pub(crate) fn image(&self) -> &str {
        &self.command.job.spec.image
    }
}

/// Reads all tasks of a batch that are in a state, in the order of their numbers.
async fn all_tasks(
    app: &App,
    signed_in: SignedIn,
    batch: &BatchView,
    state: Option<JobState>,
) -> Result<Vec<TaskView>, Problem> {
    let (mut found, mut skip) = (Vec::new(), 0);
    loop {
        let id = batch.batch;
        let query = TasksQuery { batch: id, state, order: TaskOrder::Number, skip, limit: TASKS_PER_QUERY };
        // Another projector may be behind the one that answered about the batch.
        let page = app.queries.tasks(signed_in.actor(), query, batch.seq).await?;
        found.extend(page.rows);
        match page.next.and_then(|next| next.parse().ok()) {
            Some(next) => skip = next,
            None => return Ok(found),
        }
    }
}

/// Cancels the rest of a batch. A repeated request succeeds, too, although a batch that is over has left the services.
pub(crate) async fn cancel(app: &App, signed_in: SignedIn, batch: BatchId) -> Result<Done, Problem> {
    let cancelled = app.command("batch", "cancel", signed_in.actor(), &CancelBatch { batch }).await;
    if let Err(RpcError::Refused(refusal)) = &cancelled
        && refusal.name == "UnknownBatch"
    {
        let view = app.queries.batch(signed_in.actor(), batch, Seq::ZERO).await?;
        if view.closed == Some(CloseReason::Cancelled) {
            return Ok(Done { seq: view.seq });
        }
        return Err(Problem::new(StatusCode::CONFLICT, "WrongState", "All tasks of the batch have ended."));
    }
    Ok(cancelled?)
}

/// Submits a new batch of the tasks that failed or were cancelled, with the id `retried_as`. The tasks keep their
/// indices and parameters.
pub(crate) async fn retry(
    app: &App,
    signed_in: SignedIn,
    batch: BatchId,
    retried_as: BatchId,
) -> Result<SubmittedBatch, Problem> {
    let view = app.queries.batch(signed_in.actor(), batch, Seq::ZERO).await?;
    if !view.is_over() {
        let detail = "Some tasks have not ended. Wait for them, or cancel the batch.";
        return Err(Problem::invalid("batch", detail));
    }
    if view.spec.env.iter().any(|name| !view.spec.secrets.contains(name)) {
        let detail = "The values of the batch's environment are deleted. Submit the batch again with its values, or \
            use named secrets.";
        return Err(Problem::invalid("env", detail));
    }
    let mut tasks = all_tasks(app, signed_in, &view, Some(JobState::Failed)).await?;
    tasks.extend(all_tasks(app, signed_in, &view, Some(JobState::Cancelled)).await?);
    tasks.sort_by_key(|task| task.number);
    if tasks.is_empty() {
        return Err(Problem::invalid("batch", "All tasks completed: there is nothing to try again."));
    }
    let indices: Vec<u32> = tasks.iter().map(|task| task.index).collect();
    let job = JobRequest { job: None, ..app.request_again(&view.spec, &view.placement, &view.limits) };
    let (batch, max_running, max_failures) = (Some(retried_as), Some(view.max_running), Some(view.max_failures));
    let request = BatchRequest { batch, job, max_running, max_failures, ..BatchRequest::default() };
    let request = if view.parameters.is_empty() {
        let array = indices.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        BatchRequest { array: Some(array), ..request }
    } else {
        BatchRequest { tasks: tasks.into_iter().map(|task| task.parameters).collect(), indices, ..request }
    };
    BatchSubmission::prepare(app, signed_in.account, request).await?.submit(app, signed_in.actor()).await
}

/// The table of a batch's results as CSV: one line for each task, with its parameters, its result, and the last value
/// of each of its measurements.
pub(crate) async fn results_table(app: &App, signed_in: SignedIn, batch: BatchId) -> Result<String, Problem> {
    let _permit = TABLES.acquire().await.map_err(|e| Problem::internal(&e))?;
    let view = app.queries.batch(signed_in.actor(), batch, Seq::ZERO).await?;
    let view_seq = view.seq;
    let tasks = all_tasks(app, signed_in, &view, None).await?;
    let with_metrics = |task: TaskView| async move {
        // Only a program that has run can have measured anything.
        if task.started_at.is_none() {
            return Ok::<_, Problem>((task, BTreeMap::new()));
        }
        let read = async {
            let job = app.queries.job(signed_in.actor(), task.job, view_seq).await?;
            log::last_metrics(app, &job).await
        };
        // A task whose measurements cannot be read is in the table all the same.
        let metrics = read.await.unwrap_or_else(|problem| {
            warn!(job = %task.job, problem = problem.detail, "the measurements of a task are left out");
            BTreeMap::new()
        });
        Ok((task, metrics.into_iter().take(MAX_METRICS).collect()))
    };
    let reads = futures_util::stream::iter(tasks).map(with_metrics).buffered(CONCURRENT_READS);
    let rows: Vec<(TaskView, BTreeMap<String, f64>)> = reads.try_collect().await?;
    let metrics = rows.iter().flat_map(|(_, metrics)| metrics.keys()).collect::<BTreeSet<_>>();
    let metrics: BTreeSet<&String> = metrics.into_iter().take(MAX_METRICS).collect();
    let mut table = String::new();
    let fixed = ["index", "state", "reason", "seconds", "cost_usd", "machine", "job"];
    let parameters = view.parameters.iter();
    let head = fixed
        .iter()
        .map(|name| (*name).to_owned())
        .chain(parameters.cloned())
        .chain(metrics.iter().map(|n| (*n).clone()));
    write_line(&mut table, head);
    for (task, values) in &rows {
        let fixed = [
            task.index.to_string(),
            task.state.name().to_owned(),
            task.reason.map(Reason::description).unwrap_or_default(),
            task.billed.map(|billed| format!("{}.{:03}", billed.0 / 1_000, billed.0 % 1_000)).unwrap_or_default(),
            task.cost.map(|cost| format!("{}.{:06}", cost.0 / 1_000_000, cost.0 % 1_000_000)).unwrap_or_default(),
            task.machine.map(|machine| machine.to_string()).unwrap_or_default(),
            task.job.to_string(),
        ];
        let parameters = view.parameters.iter().map(|name| task.parameters.get(name).cloned().unwrap_or_default());
        let measured = metrics.iter().map(|name| values.get(*name).map(ToString::to_string).unwrap_or_default());
        write_line(&mut table, fixed.into_iter().chain(parameters).chain(measured));
    }
    Ok(table)
}

/// Writes a line of CSV (RFC 4180).
fn write_line(table: &mut String, fields: impl Iterator<Item = String>) {
    for (place, field) in fields.enumerate() {
        if place > 0 {
            table.push(',');
        }
        // A spreadsheet must not read a text of a job as a formula.
        let is_formula =
            field.starts_with(['=', '+', '@', '\t']) || (field.starts_with('-') && field.parse::<f64>().is_err());
        let field = if is_formula { format!("'{field}") } else { field };
        if field.contains([',', '"', '\n', '\r']) {
            // Writing into a text cannot fail.
            let _ = write!(table, "\"{}\"", field.replace('"', "\"\""));
        } else {
            table.push_str(&field);
        }
    }
    table.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_a_table_is_quoted_and_is_never_a_formula() {
        let mut table = String::new();
        let fields = ["a,b", "say \"x\"", "=1+1", "-5", "-x", "+1", "1e-3"].map(str::to_owned);
        write_line(&mut table, fields.into_iter());
        assert_eq!(table, "\"a,b\",\"say \"\"x\"\"\",'=1+1,-5,'-x,'+1,1e-3\n");
    }
}
