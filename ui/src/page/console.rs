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
use gpubnb_query::{
    request::{EventsQuery, TrailOf},
    view::{
        Page, TrailEvent,
        ops::{Platform, Stuck},
    },
};
use gpubnb_runtime::rpc::Failure;
use serde::{Deserialize, Serialize};

use super::{Chrome, fragment, html};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    extract::{Form, Path, Query},
    live::parts::{self, Part},
};

#[derive(Template)]
#[template(path = "console.html")]
struct Console {
    chrome: Chrome,
    parts: [String; 6],
}

#[derive(Template)]
#[template(path = "console_streams.html")]
struct Streams<'a> {
    p: &'a Platform,
}

#[derive(Template)]
#[template(path = "console_models.html")]
struct Models<'a> {
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
    /// Why they are not known, if they are not.
    letters: Result<Vec<DeadLetter>, Failure>,
    /// Messages that the broker has not passed on to DISPATCH.
    behind: u64,
    csrf: &'a str,
    now: Timestamp,
}

#[derive(Template)]
#[template(path = "console_doctor.html")]
struct DoctorCard {
    /// Why they are not known, if they are not.
    checks: Result<Vec<Check>, Failure>,
}

impl DoctorCard {
    fn bad(&self, checks: &[Check]) -> usize {
        checks.iter().filter(|check| !check.passed).count()
    }
}

/// How long the page waits for what is looked for while it is shown.
const SOON: Duration = Duration::from_secs(1);
const PARTS: [&str; 6] = ["streams", "models", "verification", "stuck", "letters", "doctor"];

async fn contents(app: &App, signed_in: SignedIn) -> Result<[String; 6], Problem> {
    let actor = signed_in.operator();
    // Whoever looks at the rest does not wait for it.
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
        fragment(&Streams { p })?,
        fragment(&Models { p, csrf, now })?,
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
                Ok(PARTS.into_iter().zip(contents).map(|(id, html)| Part::new(id, html)).collect())
            }
        },
    )
}

/// What waits in DISPATCH and nobody works on.
pub(crate) async fn letters(app: &App, actor: Actor) -> Result<Vec<DeadLetter>, Failure> {
    app.command("market", "letters", actor, &()).await
}

/// Which dead letter, as the form says it.
#[derive(Debug, Deserialize)]
pub(crate) struct Which {
    machine: MachineId,
    seq: Option<Seq>,
}

/// Does what can be done about a dead letter.
pub(crate) async fn remedy(
    State(app): State<App>,
    signed_in: SignedIn,
    Form(Which { machine, seq }): Form<Which>,
) -> Result<Response, PageError> {
    let _: Remedied = app.command("market", "remedy", signed_in.operator(), &Remedy { machine, seq }).await?;
    Ok(Redirect::to("/console#letters").into_response())
}

/// Begins to rebuild a model beside the one that answers.
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

/// Filters of the events, as in the address.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Filters {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    event: String,
    /// The id of a job, machine or account.
    #[serde(default)]
    id: String,
    #[serde(default)]
    before: String,
}

impl Filters {
    pub(crate) fn query(&self) -> Result<EventsQuery, Problem> {
        let some = |text: &str| Some(text.trim().to_owned()).filter(|t| !t.is_empty());
        Ok(EventsQuery {
            before: self.before.parse().ok().map(Seq),
            // With an id, all that it is part of the trail of.
            kind: some(&self.kind).filter(|_| self.id.trim().is_empty()),
            event: some(&self.event),
            of: some(&self.id).map(|id| trail_of(&self.kind, &id)).transpose()?,
            limit: 100,
        })
    }

    fn address(&self, path: &str, before: &str) -> String {
        let filters = Self { before: before.to_owned(), ..self.clone() };
        serde_urlencoded::to_string(&filters).map(|q| format!("{path}?{q}")).unwrap_or_default()
    }

    /// Whether new events come in by themselves.
    fn follows(&self) -> bool {
        self.before.is_empty()
    }
}

/// What an id names. Ids look alike: the kind says which.
pub(super) fn trail_of(kind: &str, id: &str) -> Result<TrailOf, Problem> {
    let bad = |_| Problem::invalid("id", "This is not the id of a job, machine or account.");
    Ok(match kind {
        "account" => TrailOf::Account(id.parse().map_err(bad)?),
        "machine" => TrailOf::Machine(id.parse().map_err(bad)?),
        "job" | "" => TrailOf::Job(id.parse().map_err(bad)?),
        _ => return Err(Problem::invalid("kind", "Choose job, machine or account.")),
    })
}

#[derive(Template)]
#[template(path = "console_events.html")]
struct Events {
    chrome: Chrome,
    filters: Filters,
    rows: String,
}

#[derive(Template)]
#[template(path = "console_events_rows.html")]
struct EventRows {
    filters: Filters,
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

async fn rows(app: &App, signed_in: SignedIn, filters: &Filters) -> Result<String, Problem> {
    let page = app.queries.events(signed_in.operator(), filters.query()?).await?;
    fragment(&EventRows { filters: filters.clone(), page, now: app.now() })
}

pub(crate) async fn events(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(filters): Query<Filters>,
) -> Result<Html<String>, PageError> {
    let rows = rows(&app, signed_in, &filters).await?;
    Ok(html(&Events { chrome: Chrome::new("Events", "console", signed_in.viewer), filters, rows })?)
}

pub(crate) async fn events_live(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(filters): Query<Filters>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    // Heartbeats come without a sequence of their own: they are no events.
    let matters = |change: &crate::live::Change| change.seq > Seq::ZERO;
    parts::stream(changes, Duration::from_millis(500), matters, move |_| {
        let (app, filters) = (app.clone(), filters.clone());
        async move { Ok(vec![Part::new("events", rows(&app, signed_in, &filters).await?)]) }
    })
}
