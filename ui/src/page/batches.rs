//! The pages of batches: the list, and one batch with a grid of its tasks, its cost and its worst failures.

use std::{convert::Infallible, fmt::Write as _, time::Duration};

use askama::Template;
use axum::{
    extract::State,
    response::{
        Html, Redirect,
        sse::{Event, Sse},
    },
};
use futures_util::Stream;
use gpubnb_events::{Aggregate, BatchId, JobId, MicroUsd, Seq, Timestamp, event::CloseReason};
use gpubnb_query::{
    request::{BatchesQuery, TaskOrder, TasksQuery},
    view::{BatchView, JobState, Page, TaskView},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Layout, csrf_field, render_fragment, render_page};
use crate::{
    access::SignedIn,
    app::App,
    batches,
    error::{PageError, Problem},
    extract::{Form, Path, Query},
    format,
    live::parts::{self, PagePart},
    state::Change,
};

/// The number of batches on one page of the list.
const BATCHES_PER_PAGE: u32 = 25;
/// The number of tasks on one page of a batch.
const TASKS_PER_PAGE: u32 = 50;
/// An hour, milliseconds.
const HOUR: i64 = 3_600_000;
/// The most cells of the grid. With more tasks, a cell stands for several of them.
const MAX_CELLS: usize = 1_000;
/// The most cells that are links to their task.
const MAX_LINKS: usize = 400;

#[derive(Template)]
#[template(path = "batches.html")]
struct BatchesPage {
    layout: Layout,
    page: Page<BatchView>,
    is_first_page: bool,
    now: Timestamp,
}

/// Query parameters of the list.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ListQuery {
    #[serde(default)]
    cursor: String,
}

/// `GET /batches`
pub(crate) async fn list(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(query): Query<ListQuery>,
) -> Result<Html<String>, PageError> {
    let is_first_page = query.cursor.is_empty();
    let cursor = Some(query.cursor).filter(|cursor| !cursor.is_empty());
    let query = BatchesQuery { account: signed_in.account, cursor, limit: BATCHES_PER_PAGE };
    let page = app.queries.batches(signed_in.actor(), query, Seq::ZERO).await?;
    let layout = Layout::new("Batches", "jobs", signed_in.viewer);
    Ok(render_page(&BatchesPage { layout, page, is_first_page, now: app.now() })?)
}

/// The filters of the tasks and the position in their list, as query parameters.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct TaskFilters {
    /// A state such as `Failed`; empty for all, the worst first.
    #[serde(default)]
    state: String,
    /// The number of tasks to skip.
    #[serde(default)]
    skip: u32,
    /// The sequence of the viewer's last command, which the page must show.
    #[serde(default)]
    seq: u64,
}

/// The choices of the state filter.
const STATES: [(JobState, &str); 5] = [
    (JobState::Failed, "failed"),
    (JobState::Running, "running"),
    (JobState::Queued, "waiting"),
    (JobState::Completed, "completed"),
    (JobState::Cancelled, "cancelled"),
];

impl TaskFilters {
    fn query(&self, batch: BatchId) -> TasksQuery {
        let state = STATES.into_iter().map(|(state, _)| state).find(|state| state.name() == self.state);
        let order = if state.is_some() { TaskOrder::Number } else { TaskOrder::WorstFirst };
        TasksQuery { batch, state, order, skip: self.skip, limit: TASKS_PER_PAGE }
    }

    fn address(&self, path: &str, state: &str, skip: u32) -> String {
        let filters = Self { state: state.to_owned(), skip, seq: self.seq };
        serde_urlencoded::to_string(&filters).map(|query| format!("{path}?{query}")).unwrap_or_default()
    }
}

#[derive(Template)]
#[template(path = "batch.html")]
struct BatchPage {
    layout: Layout,
    batch: BatchView,
    is_own: bool,
    filters: TaskFilters,
    summary: String,
    grid: String,
    tasks: String,
}

impl BatchPage {
    fn live_address(&self) -> String {
        self.filters.address(&format!("/batches/{}/live", self.batch.batch), &self.filters.state, self.filters.skip)
    }

    /// The address of the page with another filter.
    fn address(&self, state: &str) -> String {
        self.filters.address(&format!("/batches/{}", self.batch.batch), state, 0)
    }
}

#[derive(Template)]
#[template(path = "batch_summary.html")]
struct BatchSummary<'a> {
    batch: &'a BatchView,
    csrf: String,
    /// False for an operator who looks at the batch of another.
    is_own: bool,
    /// The id of the batch that the button *Try the failed tasks again* submits.
    retry: BatchId,
    now: Timestamp,
}

/// A part of the bar, in thousandths of its length.
struct BarPart {
    class: char,
    from: u64,
    share: u64,
}

impl BatchSummary<'_> {
    /// The parts of the bar: the tasks in each state.
    fn bar(&self) -> Vec<BarPart> {
        let counts = self.batch.counts;
        let parts = [('c', counts.completed), ('f', counts.failed), ('r', counts.running), ('x', counts.cancelled)];
        let mut from = 0;
        let part = |(class, number): (char, u32)| {
            let share = (u64::from(number) * 1_000).div_ceil(u64::from(self.batch.tasks.max(1)));
            let part = BarPart { class, from, share };
            from += share;
            part
        };
        parts.into_iter().filter(|(_, number)| *number > 0).map(part).collect()
    }

    /// The number of tasks that have ended.
    fn ended(&self) -> u32 {
        let counts = self.batch.counts;
        counts.completed + counts.failed + counts.cancelled
    }

    /// The cost of all tasks, if the others cost as much as those that were settled; `None` before the first.
    fn estimate(&self) -> Option<MicroUsd> {
        let paid = i64::from(self.batch.settled.saturating_sub(self.batch.counts.cancelled));
        let left = i64::from(self.batch.tasks - self.ended());
        let rest = self.batch.cost.0.checked_mul(left)?.checked_div(paid)?;
        (left > 0).then_some(self.batch.cost + MicroUsd(rest))
    }

    /// Why the batch opens no more tasks, as a sentence.
    fn reason(&self) -> String {
        match self.batch.closed {
            None | Some(CloseReason::Finished) => String::new(),
            Some(CloseReason::Cancelled) if self.is_own => "You cancelled the rest.".to_owned(),
            Some(CloseReason::Cancelled) => "The rest was cancelled.".to_owned(),
            Some(CloseReason::TooManyFailures) => {
                format!("More than {} tasks failed, so the rest was cancelled.", self.batch.max_failures)
            }
            Some(CloseReason::TooOld) => "The batch was two weeks old, so the rest was cancelled.".to_owned(),
        }
    }
}

/// The badge's tone of a batch.
pub(crate) fn tone(batch: &BatchView) -> &'static str {
    match (batch.closed, batch.is_over()) {
        (None, _) if batch.has_begun() => "live",
        (None, _) => "calm",
        (Some(_), false) => "warn",
        (Some(CloseReason::Finished), true) if batch.counts.failed == 0 => "good",
        (Some(CloseReason::Cancelled), true) => "calm",
        (Some(_), true) => "bad",
    }
}

#[derive(Template)]
#[template(path = "batch_tasks.html")]
struct TaskTable<'a> {
    batch: &'a BatchView,
    rows: Vec<TaskRow>,
    next: Option<u32>,
    filters: &'a TaskFilters,
    now: Timestamp,
}

/// A row of the table.
struct TaskRow {
    task: TaskView,
    /// True if the task has a page of its own.
    is_open: bool,
    /// The values of the parameters, in the order of the columns.
    values: Vec<String>,
    /// The name of the machine.
    machine: String,
    billed: String,
}

impl TaskRow {
    fn new(app: &App, batch: &BatchView, task: TaskView) -> Self {
        let machine = task.machine.and_then(|machine| app.machines.machine(machine));
        let value = |name: &String| task.parameters.get(name).cloned().unwrap_or_default();
        Self {
            is_open: task.number < batch.opened,
            values: batch.parameters.iter().map(value).collect(),
            machine: machine.map_or_else(|| "unnamed machine".to_owned(), |m| m.listed.offer.name.clone()),
            billed: task.billed.map_or_else(|| "–".to_owned(), format::duration),
            task,
        }
    }
}

impl TaskTable<'_> {
    fn next_address(&self, skip: u32) -> String {
        self.filters.address(&format!("/batches/{}", self.batch.batch), &self.filters.state, skip)
    }
}

/// The class of a cell of the grid.
fn cell_class(state: JobState) -> char {
    match state {
        JobState::Failed => 'f',
        JobState::Assigned | JobState::Accepted | JobState::Running | JobState::Collecting => 'r',
        JobState::Queued => 'q',
        JobState::Cancelled => 'x',
        JobState::Completed => 'c',
    }
}

/// The state that a cell of several tasks shows: the one that a person must see first.
fn cell_state(states: &[JobState]) -> JobState {
    let weight = |state: &JobState| "frqxc".find(cell_class(*state));
    states.iter().copied().min_by_key(weight).unwrap_or(JobState::Queued)
}

/// The grid of tasks as HTML: a cell for each task, or for several tasks.
fn grid(batch: &BatchView, states: &[JobState]) -> String {
    let per_cell = states.len().div_ceil(MAX_CELLS).max(1);
    let counts = batch.counts;
    let mut html = format!(
        "<div class=\"task-grid\" role=\"img\" aria-label=\"{} completed, {} failed, {} running, {} waiting, {} \
         cancelled\">",
        counts.completed, counts.failed, counts.running, counts.waiting, counts.cancelled
    );
    for (cell, tasks) in states.chunks(per_cell).enumerate() {
        let class = cell_class(cell_state(tasks));
        let link = batch.batch.task(u32::try_from(cell).unwrap_or(u32::MAX)).filter(|_| states.len() <= MAX_LINKS);
        // A task that was not opened has no page. Writing into a text cannot fail.
        let _ = match link.filter(|_| u32::try_from(cell).is_ok_and(|number| number < batch.opened)) {
            Some(job) => write!(html, "<a class={class} href=/jobs/{job} tabindex=-1></a>"),
            None => write!(html, "<i class={class}></i>"),
        };
    }
    html.push_str("</div>");
    if per_cell > 1 {
        let _ = write!(html, "<p class=\"hint\">Each square stands for {per_cell} tasks, and shows the worst.</p>");
    }
    html
}

/// The id of the batch that a second try of this one is. It is the same for every page within an hour, so a form that
/// is sent twice is one batch, also after the page was loaded again.
fn retry_id(batch: &BatchView, now: Timestamp) -> BatchId {
    let hour = now.millis().div_euclid(HOUR) * HOUR;
    let digest = Sha256::digest(format!("try {} of {} again at {hour}", batch.batch, batch.account));
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&hour.to_be_bytes()[2..]);
    bytes[6..].copy_from_slice(&digest[..10]);
    // The version and the variant of the id.
    bytes[6] = 0x70 | (bytes[6] & 0x0f);
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    JobId::from_bytes(bytes).map_or_else(|_| BatchId::generate(), BatchId::beginning_like)
}

/// The parts of the page that live updates replace.
struct Fragments {
    summary: String,
    grid: String,
    tasks: String,
}

/// Reads a batch and renders the parts of its page.
async fn load(
    app: &App,
    signed_in: SignedIn,
    id: BatchId,
    filters: &TaskFilters,
    min_seq: Seq,
) -> Result<(BatchView, Fragments), Problem> {
    let actor = signed_in.reading_actor();
    let batch = app.queries.batch(actor, id, min_seq).await?;
    let (states, page) = tokio::try_join!(
        app.queries.task_states(actor, id, min_seq),
        app.queries.tasks(actor, filters.query(id), min_seq),
    )?;
    let rows = page.rows.into_iter().map(|task| TaskRow::new(app, &batch, task));
    let now = app.now();
    let next = page.next.and_then(|next| next.parse().ok());
    let tasks = TaskTable { batch: &batch, rows: rows.collect(), next, filters, now };
    let fragments = Fragments {
        summary: render_fragment(&BatchSummary {
            batch: &batch,
            csrf: csrf_field(signed_in.viewer),
            is_own: batch.account == signed_in.account,
            retry: retry_id(&batch, now),
            now,
        })?,
        grid: grid(&batch, &states),
        tasks: render_fragment(&tasks)?,
    };
    Ok((batch, fragments))
}

/// `GET /batches/{batch}`
pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(id): Path<BatchId>,
    Query(filters): Query<TaskFilters>,
) -> Result<Html<String>, PageError> {
    let (batch, fragments) = load(&app, signed_in, id, &filters, Seq(filters.seq)).await?;
    let layout = Layout::new(batch.spec.name.clone(), "jobs", signed_in.viewer);
    let Fragments { summary, grid, tasks } = fragments;
    Ok(render_page(&BatchPage {
        is_own: batch.account == signed_in.account,
        layout,
        batch,
        filters,
        summary,
        grid,
        tasks,
    })?)
}

/// `GET /batches/{batch}/live`
pub(crate) async fn live(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(id): Path<BatchId>,
    Query(filters): Query<TaskFilters>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, PageError> {
    app.queries.batch(signed_in.reading_actor(), id, Seq::ZERO).await?;
    let is_relevant = move |change: &Change| change.aggregate == Aggregate::Batch(id);
    Ok(parts::stream(app.changes.clone(), Duration::from_secs(1), is_relevant, move |seq| {
        let (app, filters) = (app.clone(), filters.clone());
        async move {
            let (_, fragments) = load(&app, signed_in, id, &filters, seq.max(Seq(filters.seq))).await?;
            let Fragments { summary, grid, tasks } = fragments;
            Ok(vec![
                PagePart::new("batch-summary", summary),
                PagePart::new("batch-grid", grid),
                PagePart::new("batch-tasks", tasks),
            ])
        }
    }))
}

/// `POST /batches/{batch}/cancel`
pub(crate) async fn cancel(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(batch): Path<BatchId>,
) -> Result<Redirect, PageError> {
    let done = batches::cancel(&app, signed_in, batch).await?;
    Ok(Redirect::to(&format!("/batches/{batch}?seq={}", done.seq)))
}

/// The form of the button *Try the failed tasks again*.
#[derive(Debug, Deserialize)]
pub(crate) struct Retry {
    /// The id of the new batch.
    id: BatchId,
}

/// `POST /batches/{batch}/retry`
pub(crate) async fn retry(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(batch): Path<BatchId>,
    Form(form): Form<Retry>,
) -> Result<Redirect, PageError> {
    let submitted = batches::retry(&app, signed_in, batch, form.id).await?;
    Ok(Redirect::to(&format!("/batches/{}?seq={}", submitted.batch, submitted.seq)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_states_of_the_filter_have_the_words_of_the_grid() {
        assert_eq!(STATES.map(|(_, words)| words), ["failed", "running", "waiting", "completed", "cancelled"]);
    }

    #[test]
    fn a_cell_of_several_tasks_shows_the_worst() {
        use JobState::{Cancelled, Completed, Failed, Queued, Running};
        assert_eq!(cell_state(&[Completed, Failed, Running]), Failed);
        assert_eq!(cell_state(&[Completed, Running, Queued]), Running);
        assert_eq!(cell_state(&[Completed, Cancelled]), Cancelled);
        assert_eq!(cell_state(&[Completed]), Completed);
    }
}
