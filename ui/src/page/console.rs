//! The operator's console: stuck jobs, dead letters, read models, verification, streams, and the list of all events.
//!
//! A dead letter is a job message in the stream DISPATCH that no machine works on, or a machine that cannot fetch its
//! job messages.
//!
//! The doctor is the list of checks of the deployment, such as the settings of the broker and its streams.

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
    ops::{Platform, StuckJob},
};
use gpubnb_runtime::rpc::RpcError;
use serde::Deserialize;

use super::{
    Layout,
    console_tiles::{Overview, Tiles},
    render_fragment, render_page,
};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    event_search::EventSearch,
    extract::{Form, Path, Query},
    live::parts::{self, PagePart},
    state::Change,
    transfer::{StoreUse, store_uses},
};

#[derive(Template)]
#[template(path = "console.html")]
struct ConsolePage {
    layout: Layout,
    /// The HTML of the parts, in the order of [`PART_IDS`].
    parts: [String; 7],
    /// The card of the stores of files. It is not updated live: listing all files each second would cost too much.
    files: String,
}

#[derive(Template)]
#[template(path = "console_files.html")]
struct FilesCard {
    /// The stores, or the reason why they could not be read.
    stores: Result<Vec<StoreUse>, Problem>,
}

#[derive(Template)]
#[template(path = "console_streams.html")]
struct StreamsCard<'a> {
    platform: &'a Platform,
}

#[derive(Template)]
#[template(path = "console_models.html")]
struct ModelsCard<'a> {
    platform: &'a Platform,
    csrf: &'a str,
    now: Timestamp,
}

#[derive(Template)]
#[template(path = "console_verification.html")]
struct VerificationCard<'a> {
    platform: &'a Platform,
    csrf: &'a str,
    now: Timestamp,
}

#[derive(Template)]
#[template(path = "console_stuck.html")]
struct StuckCard<'a> {
    stuck: Vec<StuckJob>,
    csrf: &'a str,
    now: Timestamp,
}

#[derive(Template)]
#[template(path = "console_letters.html")]
struct LettersCard<'a> {
    /// The dead letters, or the reason why they could not be read.
    letters: Result<Vec<DeadLetter>, RpcError>,
    /// Number of messages that the broker has not copied to DISPATCH yet.
    behind: u64,
    csrf: &'a str,
    now: Timestamp,
}

#[derive(Template)]
#[template(path = "console_doctor.html")]
struct DoctorCard {
    /// The checks, or the reason why they could not be run.
    checks: Result<Vec<Check>, RpcError>,
}

impl DoctorCard {
    fn failed_count(&self, checks: &[Check]) -> usize {
        checks.iter().filter(|check| !check.passed).count()
    }
}

/// Timeout of the dead letters, of the deployment checks and of the stores of files. Without it, they would delay the
/// other parts.
const SLOW_PART_TIMEOUT: Duration = Duration::from_secs(1);
const PART_IDS: [&str; 7] = ["tiles", "stuck", "letters", "models", "verification", "streams", "doctor"];

async fn render_parts(app: &App, signed_in: SignedIn) -> Result<[String; 7], Problem> {
    let actor = signed_in.operator_actor();
    let letters = async {
        let timed_out = |_| Err(RpcError::Unavailable("the services did not answer in time".to_owned()));
        tokio::time::timeout(SLOW_PART_TIMEOUT, dead_letters(app, actor)).await.unwrap_or_else(timed_out)
    };
    let doctor = async {
        let timed_out = |_| Err(RpcError::Unavailable("the projector did not answer in time".to_owned()));
        tokio::time::timeout(SLOW_PART_TIMEOUT, app.queries.doctor(actor)).await.unwrap_or_else(timed_out)
    };
    let sums = async {
        let timed_out = |_| Err(RpcError::Unavailable("the ledger was not summed in time".to_owned()));
        tokio::time::timeout(SLOW_PART_TIMEOUT, app.ledger_sums.recent(&app.queries, actor, app.now()))
            .await
            .unwrap_or_else(timed_out)
    };
    let (platform, stuck, sums, letters, checks) =
        tokio::join!(app.queries.platform(actor), app.queries.stuck(actor), sums, letters, doctor);
    let (platform, stuck, now) = (&platform?, stuck?, app.now());
    let behind = platform.streams.iter().filter_map(|s| s.behind).max().unwrap_or(0);
    let csrf = &super::csrf_field(signed_in.viewer);
    let tiles = Tiles::new(&Overview {
        platform,
        stuck: &stuck,
        letters: letters.as_deref(),
        checks: checks.as_deref(),
        sums: sums.as_ref(),
        now,
    });
    Ok([
        render_fragment(&tiles)?,
        render_fragment(&StuckCard { stuck, csrf, now })?,
        render_fragment(&LettersCard { letters, behind, csrf, now })?,
        render_fragment(&ModelsCard { platform, csrf, now })?,
        render_fragment(&VerificationCard { platform, csrf, now })?,
        render_fragment(&StreamsCard { platform })?,
        render_fragment(&DoctorCard { checks })?,
    ])
}

pub(crate) async fn page(State(app): State<App>, signed_in: SignedIn) -> Result<Html<String>, PageError> {
    let parts = render_parts(&app, signed_in).await?;
    let timed_out =
        |_| Err(Problem::from(RpcError::Unavailable("the stores of files did not answer in time".to_owned())));
    let stores = tokio::time::timeout(SLOW_PART_TIMEOUT, store_uses(&app)).await.unwrap_or_else(timed_out);
    let files = render_fragment(&FilesCard { stores })?;
    Ok(render_page(&ConsolePage { layout: Layout::new("Console", "console", signed_in.viewer), parts, files })?)
}

pub(crate) async fn live(
    State(app): State<App>,
    signed_in: SignedIn,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    let second = Duration::from_secs(1);
    parts::stream_with_timer(
        changes,
        second,
        second,
        |_| true,
        move |_| {
            let app = app.clone();
            async move {
                let parts = render_parts(&app, signed_in).await?;
                Ok(PART_IDS.into_iter().zip(parts).map(|(id, html)| PagePart::new(id, html)).collect())
            }
        },
    )
}

async fn dead_letters(app: &App, actor: Actor) -> Result<Vec<DeadLetter>, RpcError> {
    app.command("market", "letters", actor, &()).await
}

/// The form of a dead letter's button.
#[derive(Debug, Deserialize)]
pub(crate) struct DeadLetterForm {
    machine: MachineId,
    /// The sequence of the message in DISPATCH; `None` if the machine cannot fetch any message.
    seq: Option<Seq>,
}

/// `POST /console/remedy`: applies the remedy for a dead letter.
pub(crate) async fn remedy(
    State(app): State<App>,
    signed_in: SignedIn,
    Form(DeadLetterForm { machine, seq }): Form<DeadLetterForm>,
) -> Result<Response, PageError> {
    let _: Remedied = app.command("market", "remedy", signed_in.operator_actor(), &Remedy { machine, seq }).await?;
    Ok(Redirect::to("/console#letters").into_response())
}

/// Starts the rebuild of a read model. The old model answers queries until the new one is ready.
pub(crate) async fn rebuild(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(model): Path<String>,
) -> Result<Response, PageError> {
    app.queries.rebuild(signed_in.operator_actor(), &model).await?;
    Ok(Redirect::to("/console#models").into_response())
}

/// Starts the verification of all read models against the log.
pub(crate) async fn verify(State(app): State<App>, signed_in: SignedIn) -> Result<Response, PageError> {
    app.queries.verify(signed_in.operator_actor()).await?;
    Ok(Redirect::to("/console#verification").into_response())
}

#[derive(Template)]
#[template(path = "console_events.html")]
struct EventSearchPage {
    layout: Layout,
    search: EventSearch,
    rows: String,
}

#[derive(Template)]
#[template(path = "console_events_rows.html")]
struct EventRows {
    search: EventSearch,
    page: Page<TrailEvent>,
    now: Timestamp,
}

impl EventRows {
    fn body_json(&self, event: &TrailEvent) -> String {
        super::pretty_json(&event.body)
    }

    fn is_failure(&self, event: &str) -> bool {
        matches!(
            event,
            "Failed" | "Requeued" | "MachineLost" | "MachineSuspected" | "PayoutFailed" | "AccountSuspended"
        )
    }
}

async fn render_rows(app: &App, signed_in: SignedIn, search: &EventSearch) -> Result<String, Problem> {
    let page = app.queries.events(signed_in.operator_actor(), search.query()?).await?;
    render_fragment(&EventRows { search: search.clone(), page, now: app.now() })
}

pub(crate) async fn events(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(search): Query<EventSearch>,
) -> Result<Html<String>, PageError> {
    let rows = render_rows(&app, signed_in, &search).await?;
    Ok(render_page(&EventSearchPage { layout: Layout::new("Events", "console", signed_in.viewer), search, rows })?)
}

pub(crate) async fn events_live(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(search): Query<EventSearch>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    // A change with the sequence 0 is a heartbeat: it added no event to the log.
    let is_relevant = |change: &Change| change.seq > Seq::ZERO;
    parts::stream(changes, Duration::from_millis(500), is_relevant, move |_| {
        let (app, search) = (app.clone(), search.clone());
        async move { Ok(vec![PagePart::new("events", render_rows(&app, signed_in, &search).await?)]) }
    })
}
