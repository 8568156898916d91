//! The page with the list of the viewer's jobs: filters, search, live updates, and cancelling several jobs at once.

use std::{convert::Infallible, time::Duration};

use askama::Template;
use axum::{
    extract::State,
    response::{
        Html, IntoResponse, Redirect, Response,
        sse::{Event, Sse},
    },
};
use futures_util::Stream;
use gpubnb_events::{
    Aggregate, JobId, Seq, Timestamp,
    command::{CancelJob, Done},
};
use gpubnb_query::{
    request::JobsQuery,
    view::{JobState, JobView, Page},
};
use serde::{Deserialize, Serialize};

use super::{Layout, render_fragment, render_page};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    extract::{Form, Query},
    live::parts::{self, PagePart},
    state::Change,
    transfer::has_money,
};

/// The filters and the position of the list, as query parameters. An empty filter is not applied.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct JobFilters {
    /// A part of a job's name, image or id.
    #[serde(default)]
    text: String,
    /// A job state such as `Queued`.
    #[serde(default)]
    state: String,
    /// The cursor from the previous page of the list; empty for the first page.
    #[serde(default)]
    cursor: String,
    /// The sequence of the viewer's last command, which the list must show.
    #[serde(default)]
    seq: u64,
}

/// The choices of the state filter.
const STATES: [JobState; 8] = [
    JobState::Queued,
    JobState::Assigned,
    JobState::Accepted,
    JobState::Running,
    JobState::Collecting,
    JobState::Completed,
    JobState::Failed,
    JobState::Cancelled,
];

impl JobFilters {
    fn query(&self, signed_in: SignedIn) -> JobsQuery {
        JobsQuery {
            account: Some(signed_in.account),
            machine: None,
            state: STATES.into_iter().find(|s| s.name() == self.state),
            text: Some(self.text.clone()).filter(|t| !t.is_empty()),
            cursor: Some(self.cursor.clone()).filter(|c| !c.is_empty()),
            limit: Some(50),
        }
    }

    /// True if these filters show every job.
    fn is_unfiltered(&self) -> bool {
        self.text.is_empty() && self.state.is_empty() && self.cursor.is_empty()
    }

    /// The address of the list page at `cursor` with these filters.
    fn address(&self, path: &str, cursor: &str) -> String {
        let filters = Self { cursor: cursor.to_owned(), ..self.clone() };
        serde_urlencoded::to_string(&filters).map(|q| format!("{path}?{q}")).unwrap_or_default()
    }
}

#[derive(Template)]
#[template(path = "jobs.html")]
struct JobsPage {
    layout: Layout,
    filters: JobFilters,
    list: String,
}

#[derive(Template)]
#[template(path = "jobs_list.html")]
struct JobList {
    filters: JobFilters,
    rows: Vec<ListedJob>,
    next: Option<String>,
    /// True if the account has money. Only read for an account without jobs, which sees its first steps.
    has_money: bool,
}

impl JobList {
    /// True if the account has no job at all.
    fn is_first_visit(&self) -> bool {
        self.rows.is_empty() && self.filters.is_unfiltered()
    }

    fn can_cancel_any(&self) -> bool {
        self.rows.iter().any(|row| !row.job.state.is_over())
    }
}

#[derive(Template)]
#[template(path = "jobs_row.html")]
struct ListedJob {
    job: JobView,
    /// The name of the newest attempt's machine; `None` if the job has no attempt or the machine is not in the cache.
    machine_name: Option<String>,
    now: Timestamp,
}

/// Reads the list from a read model that has folded the log at least up to `min_seq`.
async fn load_list(app: &App, signed_in: SignedIn, filters: &JobFilters, min_seq: Seq) -> Result<JobList, Problem> {
    let Page { rows, next } = app.queries.jobs(signed_in.actor(), filters.query(signed_in), min_seq).await?;
    let now = app.now();
    let row = |job: JobView| {
        let machine_name =
            job.attempts.last().and_then(|a| app.machines.machine(a.machine)).map(|m| m.listed.offer.name.clone());
        ListedJob { job, machine_name, now }
    };
    let rows: Vec<_> = rows.into_iter().map(row).collect();
    let is_first_visit = rows.is_empty() && filters.is_unfiltered();
    let has_money = is_first_visit && has_money(app, signed_in.actor(), signed_in.account).await?;
    Ok(JobList { filters: filters.clone(), rows, next, has_money })
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(filters): Query<JobFilters>,
) -> Result<Html<String>, PageError> {
    let list = render_fragment(&load_list(&app, signed_in, &filters, Seq(filters.seq)).await?)?;
    Ok(render_page(&JobsPage { layout: Layout::new("Jobs", "jobs", signed_in.viewer), filters, list })?)
}

pub(crate) async fn live(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(filters): Query<JobFilters>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    // A change without the job's new state may concern a job of the viewer, so it counts as relevant.
    let is_relevant = move |change: &Change| {
        let may_be_own = change.job.as_ref().is_none_or(|job_change| job_change.job.account == signed_in.account);
        matches!(change.aggregate, Aggregate::Job(_)) && may_be_own
    };
    parts::stream(changes, Duration::from_millis(200), is_relevant, move |seq| {
        let (app, filters) = (app.clone(), filters.clone());
        async move { page_parts(&load_list(&app, signed_in, &filters, seq.max(Seq(filters.seq))).await?) }
    })
}

/// The list as a container, and each row as a part of its own, so that a changed job sends only its row.
fn page_parts(list: &JobList) -> Result<Vec<PagePart>, Problem> {
    let order: Vec<_> = list.rows.iter().map(|row| row.job.job.to_string()).collect();
    let key = format!("{} {}", list.can_cancel_any(), order.join(" "));
    let mut parts = vec![PagePart::container("jobs-list", key, render_fragment(list)?)];
    for row in &list.rows {
        parts.push(PagePart::new(format!("j-{}", row.job.job), render_fragment(row)?));
    }
    Ok(parts)
}

/// Maximum number of jobs that one request cancels.
const MAX_CANCELLED: usize = 100;

/// `POST /jobs/cancel`: cancels the selected jobs. A job that has ended is skipped.
pub(crate) async fn cancel(
    State(app): State<App>,
    signed_in: SignedIn,
    Form(fields): Form<Vec<(String, String)>>,
) -> Result<Response, PageError> {
    let jobs = fields.iter().filter(|(name, _)| name == "job").filter_map(|(_, id)| id.parse::<JobId>().ok());
    let mut seq = Seq::ZERO;
    for job in jobs.take(MAX_CANCELLED) {
        let done = app.command::<Done>("job", "cancel", signed_in.actor(), &CancelJob { job }).await;
        match done {
            Ok(done) => seq = seq.max(done.seq),
            Err(gpubnb_runtime::rpc::RpcError::Refused(_)) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(Redirect::to(&format!("/jobs?seq={seq}")).into_response())
}
