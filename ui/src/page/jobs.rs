//! The jobs of an account: filter, search, live.

use std::{convert::Infallible, time::Duration};

use askama::Template;
use axum::{
    extract::State,
    response::{
        Html,
        sse::{Event, Sse},
    },
};
use futures_util::Stream;
use gpubnb_events::{Aggregate, Seq, Timestamp};
use gpubnb_projector::{
    client::JobsQuery,
    view::{JobRow, JobState, Page},
};
use serde::{Deserialize, Serialize};

use super::{Chrome, fragment, html};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    extract::Query,
    live::fragment as live_fragment,
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
    rows: String,
}

#[derive(Template)]
#[template(path = "jobs_rows.html")]
struct Rows {
    filters: Filters,
    page: Page<JobRow>,
    now: Timestamp,
}

async fn rows(app: &App, signed_in: SignedIn, filters: &Filters, seq: Seq) -> Result<String, Problem> {
    let page = app.queries.jobs(signed_in.actor(), filters.query(signed_in), seq).await?;
    fragment(&Rows { filters: filters.clone(), page, now: app.now() })
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(filters): Query<Filters>,
) -> Result<Html<String>, PageError> {
    let rows = rows(&app, signed_in, &filters, Seq::ZERO).await?;
    Ok(html(&JobsPage { chrome: Chrome::new("Jobs", "jobs", signed_in.viewer), filters, rows })?)
}

pub(crate) async fn live(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(filters): Query<Filters>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    // Whose a job is, a notice does not say: the list is asked again, at this pace at most.
    let matters = |a| matches!(a, Aggregate::Job(_));
    live_fragment::stream(changes, "rows", Duration::from_millis(500), matters, move |seq| {
        let (app, filters) = (app.clone(), filters.clone());
        async move { rows(&app, signed_in, &filters, seq).await }
    })
}
