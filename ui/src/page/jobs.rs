//! The jobs of an account: filter, search, live.

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
    live::parts::{self, Part},
};

/// Filters, as in the address.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Filters {
    #[serde(default)]
    text: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    cursor: String,
    /// What its reader has brought about.
    #[serde(default)]
    seq: u64,
}

const STATES: [JobState; 7] = [
    JobState::Queued,
    JobState::Assigned,
    JobState::Accepted,
    JobState::Running,
    JobState::Completed,
    JobState::Failed,
    JobState::Cancelled,
];

impl Filters {
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
    filters: Filters,
    list: String,
}

#[derive(Template)]
#[template(path = "jobs_list.html")]
struct List {
    filters: Filters,
    rows: Vec<Row>,
    next: Option<String>,
}

impl List {
    /// Whether there is anything to cancel.
    fn some_go_on(&self) -> bool {
        self.rows.iter().any(|row| !row.job.state.is_over())
    }
}

#[derive(Template)]
#[template(path = "jobs_row.html")]
struct Row {
    job: JobView,
    /// The machine's name, where it has one and that is known.
    machine: Option<String>,
    now: Timestamp,
}

async fn list(app: &App, signed_in: SignedIn, filters: &Filters, seq: Seq) -> Result<List, Problem> {
    let Page { rows, next } = app.queries.jobs(signed_in.actor(), filters.query(signed_in), seq).await?;
    let now = app.now();
    let row = |job: JobView| {
        let machine =
            job.attempts.last().and_then(|a| app.board.machine(a.machine)).map(|m| m.listed.offer.name.clone());
        Row { job, machine, now }
    };
    Ok(List { filters: filters.clone(), rows: rows.into_iter().map(row).collect(), next })
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(filters): Query<Filters>,
) -> Result<Html<String>, PageError> {
    let list = fragment(&list(&app, signed_in, &filters, Seq(filters.seq)).await?)?;
    Ok(html(&JobsPage { chrome: Chrome::new("Jobs", "jobs", signed_in.viewer), filters, list })?)
}

pub(crate) async fn live(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(filters): Query<Filters>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    // Where a notice does not say whose the job is, the list is asked again.
    let matters = move |change: &crate::live::Change| {
        let own = change.job.as_ref().is_none_or(|news| news.job.account == signed_in.account);
        matches!(change.aggregate, Aggregate::Job(_)) && own
    };
    parts::stream(changes, Duration::from_millis(200), matters, move |seq| {
        let (app, filters) = (app.clone(), filters.clone());
        async move { parts_of(&list(&app, signed_in, &filters, seq.max(Seq(filters.seq))).await?) }
    })
}

fn parts_of(list: &List) -> Result<Vec<Part>, Problem> {
    let order: Vec<_> = list.rows.iter().map(|row| row.job.job.to_string()).collect();
    let key = format!("{} {}", list.some_go_on(), order.join(" "));
    let mut parts = vec![Part::frame("jobs-list", key, fragment(list)?)];
    for row in &list.rows {
        parts.push(Part::new(format!("j-{}", row.job.job), fragment(row)?));
    }
    Ok(parts)
}

/// Most jobs that are cancelled at once.
const AT_ONCE: usize = 100;

/// Cancels the jobs that were ticked. One that is over already is passed over.
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
