//! The list of the viewer's jobs: filters, search, live updates.

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

use super::{Chrome, fragment, html};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    extract::{Form, Query},
    live::parts::{self, PagePart},
    state::Change,
};

/// The filters, as they stand in the address.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct JobFilters {
    #[serde(default)]
    text: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    cursor: String,
    /// The sequence of the viewer's last command, which the list must show.
    #[serde(default)]
    seq: u64,
}

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

    fn address(&self, path: &str, cursor: &str) -> String {
        let filters = Self { cursor: cursor.to_owned(), ..self.clone() };
        serde_urlencoded::to_string(&filters).map(|q| format!("{path}?{q}")).unwrap_or_default()
    }
}

#[derive(Template)]
#[template(path = "jobs.html")]
struct JobsPage {
    chrome: Chrome,
    filters: JobFilters,
    list: String,
}

#[derive(Template)]
#[template(path = "jobs_list.html")]
struct JobList {
    filters: JobFilters,
    rows: Vec<ListedJob>,
    next: Option<String>,
}

impl JobList {
    /// True if there is a job to cancel.
    fn can_cancel_any(&self) -> bool {
        self.rows.iter().any(|row| !row.job.state.is_over())
    }
}

#[derive(Template)]
#[template(path = "jobs_row.html")]
struct ListedJob {
    job: JobView,
    /// The name of the job's machine, if the job has one and its name is known.
    machine: Option<String>,
    now: Timestamp,
}

async fn list(app: &App, signed_in: SignedIn, filters: &JobFilters, seq: Seq) -> Result<JobList, Problem> {
    let Page { rows, next } = app.queries.jobs(signed_in.actor(), filters.query(signed_in), seq).await?;
    let now = app.now();
    let row = |job: JobView| {
        let machine =
            job.attempts.last().and_then(|a| app.machines.machine(a.machine)).map(|m| m.listed.offer.name.clone());
        ListedJob { job, machine, now }
    };
    Ok(JobList { filters: filters.clone(), rows: rows.into_iter().map(row).collect(), next })
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(filters): Query<JobFilters>,
) -> Result<Html<String>, PageError> {
    let list = fragment(&list(&app, signed_in, &filters, Seq(filters.seq)).await?)?;
    Ok(html(&JobsPage { chrome: Chrome::new("Jobs", "jobs", signed_in.viewer), filters, list })?)
}

pub(crate) async fn live(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(filters): Query<JobFilters>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    // If a notice does not carry the job, it may be the viewer's, so the list is read again.
    let matters = move |change: &Change| {
        let own = change.job.as_ref().is_none_or(|news| news.job.account == signed_in.account);
        matches!(change.aggregate, Aggregate::Job(_)) && own
    };
    parts::stream(changes, Duration::from_millis(200), matters, move |seq| {
        let (app, filters) = (app.clone(), filters.clone());
        async move { parts_of(&list(&app, signed_in, &filters, seq.max(Seq(filters.seq))).await?) }
    })
}

fn parts_of(list: &JobList) -> Result<Vec<PagePart>, Problem> {
    let order: Vec<_> = list.rows.iter().map(|row| row.job.job.to_string()).collect();
    let key = format!("{} {}", list.can_cancel_any(), order.join(" "));
    let mut parts = vec![PagePart::frame("jobs-list", key, fragment(list)?)];
    for row in &list.rows {
        parts.push(PagePart::new(format!("j-{}", row.job.job), fragment(row)?));
    }
    Ok(parts)
}

/// Most jobs that one request cancels.
const AT_ONCE: usize = 100;

/// Cancels the selected jobs. A job that is over already is skipped.
pub(crate) async fn cancel(
    State(app): State<App>,
    signed_in: SignedIn,
    Form(ticked): Form<Vec<(String, String)>>,
) -> Result<Response, PageError> {
    let jobs = ticked.iter().filter(|(name, _)| name == "job").filter_map(|(_, id)| id.parse::<JobId>().ok());
    let mut seq = Seq::ZERO;
    for job in jobs.take(AT_ONCE) {
        let done = app.command::<Done>("job", "cancel", signed_in.actor(), &CancelJob { job }).await;
        match done {
            Ok(done) => seq = seq.max(done.seq),
            Err(gpubnb_runtime::rpc::Failure::Refused(_)) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(Redirect::to(&format!("/jobs?seq={seq}")).into_response())
}
