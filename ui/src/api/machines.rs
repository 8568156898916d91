//! Endpoints of machines: the machines on the market, the caller's own machines, and the requests that machines send
//! (enrolling, renewing the credential).

use axum::{Json, extract::State, http::StatusCode};
use gpubnb_events::{
    Actor, MachineId, Seq,
    command::{
        Challenge, ChangeMachine, CreateEnrollment, Done, EnrollmentCode, MachineChange, MachineCredential,
        RedeemEnrollment, RenewCredential, RequestChallenge, RevokeMachine, Revoked,
    },
    template::Template,
};
use gpubnb_query::{
    request::{DaysOf, ModelHistoryQuery, TrailOf},
    view::{
        AttemptOutcome, Day, Figures, MachineState, MachineView, MarketDay, ModelHistory, ModelHour, ModelSummary,
        Page, Reading, TrailEvent, TypicalRun,
    },
};
use gpubnb_runtime::rpc::RpcError;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::jobs::TrailPage;
use crate::{
    access::{Client, SignedIn, Viewer},
    app::App,
    earnings::MONTH,
    error::ApiError,
    extract::{JsonBody, Path, Query},
    market_filters::MarketFilters,
    prices::{default_model, recent_models},
};

/// The maximum number of machines in one answer.
const MAX_MACHINES: u32 = 500;

/// Query parameters that choose a page of the list of machines.
#[derive(Debug, Default, Deserialize, IntoParams)]
pub(crate) struct MachinePage {
    /// The `next` of the previous page.
    #[serde(default)]
    #[param(value_type = Option<String>)]
    cursor: Option<MachineId>,
    /// The most rows.
    #[serde(default)]
    limit: Option<u32>,
    /// The sequence of your last command, which the answer must include.
    #[serde(default)]
    min_seq: u64,
}

/// A machine with its state.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MachineRow {
    #[serde(flatten)]
    machine: MachineView,
    /// The state that pages show. Only a machine in the state `Online` takes jobs.
    state: MachineState,
    /// The number of jobs that the machine could take now.
    free_slots: u32,
}

impl From<MachineView> for MachineRow {
    fn from(machine: MachineView) -> Self {
        let state = machine.listed.state();
        let free_slots = if state == MachineState::Online { machine.listed.free_slots() } else { 0 };
        Self { machine, state, free_slots }
    }
}

/// `GET /machines`: a page of the machines on the market, in the order of their ids.
pub(crate) async fn list(
    State(app): State<App>,
    viewer: Viewer,
    Query(page): Query<MachinePage>,
    Query(filters): Query<MarketFilters>,
) -> Result<Json<Page<MachineRow>>, ApiError> {
    let limit = page.limit.unwrap_or(MAX_MACHINES).clamp(1, MAX_MACHINES) as usize;
    let mut rows = app.queries.machines(viewer.actor(), Seq(page.min_seq)).await?;
    rows.sort_by_key(|m| m.listed.machine);
    rows.retain(|m| filters.matches(m));
    rows.retain(|m| page.cursor.is_none_or(|cursor| m.listed.machine > cursor));
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(|m| m.listed.machine.to_string());
    Ok(Json(Page { rows: rows.into_iter().map(MachineRow::from).collect(), next }))
}

/// `GET /machines/{id}`: one machine.
pub(crate) async fn get(
    State(app): State<App>,
    viewer: Viewer,
    Path(machine): Path<MachineId>,
) -> Result<Json<MachineRow>, ApiError> {
    Ok(Json(app.queries.machine(viewer.actor(), machine, Seq::ZERO).await?.into()))
}

/// `GET /machines/{id}/events`: a page of the machine's trail.
pub(crate) async fn events(
    State(app): State<App>,
    viewer: Viewer,
    Path(machine): Path<MachineId>,
    Query(page): Query<TrailPage>,
) -> Result<Json<Page<TrailEvent>>, ApiError> {
    // This query answers 404 if there is no such machine.
    app.queries.machine(viewer.actor(), machine, page.seq()).await?;
    Ok(Json(app.queries.trail(viewer.actor(), page.query(TrailOf::Machine(machine)), page.seq()).await?))
}

/// A template, and what its jobs usually take.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ListedTemplate {
    #[serde(flatten)]
    #[schema(inline)]
    template: Template,
    /// The usual time and cost of its jobs; `None` before the first completed run, and while nobody can say.
    typical: Option<TypicalRun>,
}

/// `GET /templates`: the approved templates of jobs.
pub(crate) async fn templates(State(app): State<App>, viewer: Viewer) -> Json<Vec<ListedTemplate>> {
    let listed = app.listed_templates(viewer.actor()).await.into_iter();
    Json(listed.map(|(template, typical)| ListedTemplate { template: Template::clone(&template), typical }).collect())
}

/// `GET /market/models`.
pub(crate) async fn models(State(app): State<App>, viewer: Viewer) -> Result<Json<Vec<ModelSummary>>, ApiError> {
    Ok(Json(recent_models(&app, viewer.actor()).await?))
}

/// The query parameters of [`history`].
#[derive(Debug, Deserialize, IntoParams)]
pub(crate) struct HistoryPeriod {
    /// The model of GPU, or `CPU only`; by default the GPU with the most machines.
    #[serde(default)]
    model: Option<String>,
    /// The number of hours back from now, from 1 to 744; by default 168, a week.
    #[serde(default)]
    hours: Option<u32>,
}

/// `GET /market/history`.
pub(crate) async fn history(
    State(app): State<App>,
    viewer: Viewer,
    Query(period): Query<HistoryPeriod>,
) -> Result<Json<ModelHistory>, ApiError> {
    let hours = period.hours.unwrap_or(168).clamp(1, 744);
    let from_hour = ModelHour::number(app.now()).saturating_sub(hours);
    let model = match period.model {
        Some(model) => model,
        None => default_model(&recent_models(&app, viewer.actor()).await?),
    };
    let query = ModelHistoryQuery { model, from_hour };
    Ok(Json(app.queries.model_history(viewer.actor(), query).await?))
}

/// `GET /market/days`.
pub(crate) async fn market_days(State(app): State<App>, viewer: Viewer) -> Result<Json<Vec<MarketDay>>, ApiError> {
    Ok(Json(app.queries.market_days(viewer.actor(), Day::number(app.now()).saturating_sub(MONTH - 1)).await?))
}

/// `GET /market`: the figures of the market.
pub(crate) async fn figures(State(app): State<App>, viewer: Viewer) -> Result<Json<Figures>, ApiError> {
    Ok(Json(app.queries.figures(viewer.actor()).await?))
}

/// `POST /machines/{id}/wish`: the owner changes the machine's state or price.
pub(crate) async fn change(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(machine): Path<MachineId>,
    JsonBody(change): JsonBody<MachineChange>,
) -> Result<Json<Done>, ApiError> {
    Ok(Json(app.command("market", "machine", signed_in.actor(), &ChangeMachine { machine, change }).await?))
}

/// `POST /enrollments`: creates a code with which one machine can enroll.
pub(crate) async fn create_code(
    State(app): State<App>,
    signed_in: SignedIn,
) -> Result<(StatusCode, Json<EnrollmentCode>), ApiError> {
    let code = app.command("enrollment", "create", signed_in.actor(), &CreateEnrollment {}).await?;
    Ok((StatusCode::CREATED, Json(code)))
}

/// The credential of an enrolled machine, and the broker to which it gives access.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Enrolled {
    #[serde(flatten)]
    credential: MachineCredential,
    /// Address of the broker.
    broker: String,
    /// Certificate (PEM) of the authority that signed the broker's certificate; `null` for a public authority.
    broker_authority: Option<String>,
}

fn enrolled(app: &App, credential: MachineCredential) -> Json<Enrolled> {
    let (broker, broker_authority) = (app.broker.url.clone(), app.broker.authority.clone());
    Json(Enrolled { credential, broker, broker_authority })
}

/// `POST /speed`: reads and discards a body. A machine measures its upload speed with such requests.
pub(crate) async fn speed(sent: axum::body::Bytes) -> StatusCode {
    drop(sent);
    StatusCode::NO_CONTENT
}

/// `POST /enroll`: a machine exchanges an enrollment code for its credential. The code is the proof of access.
pub(crate) async fn redeem(
    State(app): State<App>,
    client: Client,
    JsonBody(redeem): JsonBody<RedeemEnrollment>,
) -> Result<Json<Enrolled>, ApiError> {
    app.rate_limits.count_guess(client.address)?;
    let redeemed = app.command("enrollment", "redeem", Actor::Machine(redeem.machine), &redeem).await;
    let is_wrong = matches!(&redeemed, Err(RpcError::Refused(refusal)) if refusal.name == "BadCode");
    if !is_wrong {
        app.rate_limits.take_back_guess(client.address);
    }
    let credential = redeemed?;
    Ok(enrolled(&app, credential))
}

/// `POST /machines/{id}/challenge`: creates a nonce, which the machine signs to renew its credential.
pub(crate) async fn challenge(
    State(app): State<App>,
    Path(machine): Path<MachineId>,
) -> Result<Json<Challenge>, ApiError> {
    let request = RequestChallenge { machine };
    Ok(Json(app.command("enrollment", "challenge", Actor::Machine(machine), &request).await?))
}

/// Body of `POST /machines/{id}/credential`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignedChallenge {
    /// Nonce of the challenge.
    nonce: String,
    /// Signature of the nonce with the machine's `NKey`, in base64url.
    signature: String,
}

/// `POST /machines/{id}/credential`: a machine renews its credential. The signature is the proof of access.
pub(crate) async fn renew(
    State(app): State<App>,
    Path(machine): Path<MachineId>,
    JsonBody(signed): JsonBody<SignedChallenge>,
) -> Result<Json<Enrolled>, ApiError> {
    let renew = RenewCredential { machine, nonce: signed.nonce, signature: signed.signature };
    let credential = app.command("enrollment", "renew", Actor::Machine(machine), &renew).await?;
    Ok(enrolled(&app, credential))
}

/// `DELETE /machines/{id}/credential`: the owner revokes the machine's credential. The revocation takes
/// effect at once.
pub(crate) async fn revoke(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(machine): Path<MachineId>,
) -> Result<StatusCode, ApiError> {
    app.command::<Revoked>("enrollment", "revoke", signed_in.actor(), &RevokeMachine { machine }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Query parameter that chooses a period up to the present.
#[derive(Debug, Default, Deserialize, IntoParams)]
pub(crate) struct Period {
    /// The length of the period in hours, from 1 to 24. The default is 1.
    hours: Option<u32>,
}

/// The measurements of a machine, one for each minute.
pub(crate) async fn readings(
    State(app): State<App>,
    viewer: Viewer,
    Path(machine): Path<MachineId>,
    Query(period): Query<Period>,
) -> Result<Json<Vec<Reading>>, ApiError> {
    let hours = period.hours.unwrap_or(1).clamp(1, 24);
    Ok(Json(app.queries.readings(viewer.actor(), machine, hours * 60).await?))
}

/// The outcomes of the newest attempts on a machine.
pub(crate) async fn outcomes(
    State(app): State<App>,
    viewer: Viewer,
    Path(machine): Path<MachineId>,
) -> Result<Json<Vec<AttemptOutcome>>, ApiError> {
    Ok(Json(app.queries.outcomes(viewer.actor(), machine).await?))
}

/// The earnings of the caller's own machine, one entry for each day.
pub(crate) async fn days(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(machine): Path<MachineId>,
) -> Result<Json<Vec<Day>>, ApiError> {
    Ok(Json(app.queries.days(signed_in.actor(), DaysOf::Machine(machine), MONTH, Seq::ZERO).await?))
}
