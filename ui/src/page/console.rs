//! The operator's console: stuck work, dead letters, models, verification, streams, and every event.

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
    Actor, MachineId, Seq, Timestamp,
    dead_letter::{DeadLetter, Remedied, Remedy},
    event::Check,
};
use gpubnb_query::view::{
    Page, TrailEvent,
    ops::{Platform, Stuck},
};
use gpubnb_runtime::rpc::Failure;
use serde::Deserialize;

use super::{Chrome, fragment, html};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    event_search::EventSearch,
    extract::{Form, Path, Query},
    live::parts::{self, PagePart},
    state::Change,
};

#[derive(Template)]
#[template(path = "console.html")]
struct Console {
    chrome: Chrome,
    parts: [String; 6],
}

#[derive(Template)]
#[template(path = "console_streams.html")]
struct StreamsCard<'a> {
    p: &'a Platform,
}

#[derive(Template)]
#[template(path = "console_models.html")]
struct ModelsCard<'a> {
    p: &'a Platform,
    csrf: &'a str,
    now: Timestamp,
}

#[derive(Template)]
#[template(path = "console_verification.html")]
struct VerificationCard<'a> {
    p: &'a Platform,
    csrf: &'a str,
    now: Timestamp,
}

#[derive(Template)]
#[template(path = "console_stuck.html")]
struct StuckCard<'a> {
    stuck: Vec<Stuck>,
    csrf: &'a str,
    now: Timestamp,
}

#[derive(Template)]
#[template(path = "console_letters.html")]
struct LettersCard<'a> {
    /// The dead letters, or the reason why they could not be read.
    letters: Result<Vec<DeadLetter>, Failure>,
    /// Messages that the broker has not copied to DISPATCH yet.
    behind: u64,
    csrf: &'a str,
    now: Timestamp,
}

#[derive(Template)]
#[template(path = "console_doctor.html")]
struct DoctorCard {
    /// The checks, or the reason why they could not be made.
    checks: Result<Vec<Check>, Failure>,
}

impl DoctorCard {
    fn bad(&self, checks: &[Check]) -> usize {
        checks.iter().filter(|check| !check.passed).count()
    }
}

/// How long the page waits for the dead letters and the checks, which take longer than the rest.
const SOON: Duration = Duration::from_secs(1);
const PARTS: [&str; 6] = ["streams", "models", "verification", "stuck", "letters", "doctor"];

async fn contents(app: &App, signed_in: SignedIn) -> Result<[String; 6], Problem> {
    let actor = signed_in.operator();
    let letters = async {
        let late = |_| Err(Failure::Unavailable("the services are still looking".to_owned()));
        tokio::time::timeout(SOON, letters(app, actor)).await.unwrap_or_else(late)
    };
    let doctor = async {
        let late = |_| Err(Failure::Unavailable("the projector is still looking".to_owned()));
        tokio::time::timeout(SOON, app.queries.doctor(actor)).await.unwrap_or_else(late)
    };
    let (platform, stuck, letters, checks) =
        tokio::join!(app.queries.platform(actor), app.queries.stuck(actor), letters, doctor);
    let (p, stuck, now) = (&platform?, stuck?, app.now());
    let behind = p.streams.iter().filter_map(|s| s.behind).max().unwrap_or(0);
    let csrf = &super::csrf_field(signed_in.viewer);
    Ok([
        fragment(&StreamsCard { p })?,
        fragment(&ModelsCard { p, csrf, now })?,
        fragment(&VerificationCard { p, csrf, now })?,
        fragment(&StuckCard { stuck, csrf, now })?,
        fragment(&LettersCard { letters, behind, csrf, now })?,
        fragment(&DoctorCard { checks })?,
    ])
}

pub(crate) async fn page(State(app): State<App>, signed_in: SignedIn) -> Result<Html<String>, PageError> {
    let parts = contents(&app, signed_in).await?;
    Ok(html(&Console { chrome: Chrome::new("Console", "console", signed_in.viewer), parts })?)
}

pub(crate) async fn live(
    State(app): State<App>,
    signed_in: SignedIn,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    let second = Duration::from_secs(1);
    parts::ticking(
        changes,
        second,
        second,
        |_| true,
        move |_| {
            let app = app.clone();
            async move {
                let contents = contents(&app, signed_in).await?;
                Ok(PARTS.into_iter().zip(contents).map(|(id, html)| PagePart::new(id, html)).collect())
            }
        },
    )
}

/// The messages of DISPATCH that no machine will work on.
pub(crate) async fn letters(app: &App, actor: Actor) -> Result<Vec<DeadLetter>, Failure> {
    app.command("market", "letters", actor, &()).await
}

/// The form that names a dead letter.
#[derive(Debug, Deserialize)]
pub(crate) struct ChosenLetter {
    machine: MachineId,
    seq: Option<Seq>,
}

/// Repairs what can be repaired about a dead letter.
pub(crate) async fn remedy(
    State(app): State<App>,
    signed_in: SignedIn,
    Form(ChosenLetter { machine, seq }): Form<ChosenLetter>,
) -> Result<Response, PageError> {
    let _: Remedied = app.command("market", "remedy", signed_in.operator(), &Remedy { machine, seq }).await?;
    Ok(Redirect::to("/console#letters").into_response())
}

/// Begins to rebuild a read model. The present one answers until the new one is ready.
pub(crate) async fn rebuild(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(model): Path<String>,
) -> Result<Response, PageError> {
    app.queries.rebuild(signed_in.operator(), &model).await?;
    Ok(Redirect::to("/console#models").into_response())
}

/// Begins to verify all models against the log.
pub(crate) async fn verify(State(app): State<App>, signed_in: SignedIn) -> Result<Response, PageError> {
    app.queries.verify(signed_in.operator()).await?;
    Ok(Redirect::to("/console#verification").into_response())
}

#[derive(Template)]
#[template(path = "console_events.html")]
struct EventsPage {
    chrome: Chrome,
    filters: EventSearch,
    rows: String,
}

#[derive(Template)]
#[template(path = "console_events_rows.html")]
struct EventRows {
    filters: EventSearch,
    page: Page<TrailEvent>,
    now: Timestamp,
}

impl EventRows {
    fn raw(&self, event: &TrailEvent) -> String {
        super::json(&event.body)
    }

    fn is_bad(&self, event: &str) -> bool {
        matches!(
            event,
            "Failed" | "Requeued" | "MachineLost" | "MachineSuspected" | "PayoutFailed" | "AccountSuspended"
        )
    }
}

async fn rows(app: &App, signed_in: SignedIn, filters: &EventSearch) -> Result<String, Problem> {
    let page = app.queries.events(signed_in.operator(), filters.query()?).await?;
    fragment(&EventRows { filters: filters.clone(), page, now: app.now() })
}

pub(crate) async fn events(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(filters): Query<EventSearch>,
) -> Result<Html<String>, PageError> {
    let rows = rows(&app, signed_in, &filters).await?;
    Ok(html(&EventsPage { chrome: Chrome::new("Events", "console", signed_in.viewer), filters, rows })?)
}

pub(crate) async fn events_live(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(filters): Query<EventSearch>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    // A change without a sequence is a heartbeat, which is no event.
    let matters = |change: &Change| change.seq > Seq::ZERO;
    parts::stream(changes, Duration::from_millis(500), matters, move |_| {
        let (app, filters) = (app.clone(), filters.clone());
        async move { Ok(vec![PagePart::new("events", rows(&app, signed_in, &filters).await?)]) }
    })
}
