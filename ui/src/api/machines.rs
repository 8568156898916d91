//! Machines: the list of the market, enrolling and revoking the caller's own machines, and the requests of machines.

use axum::{Json, extract::State, http::StatusCode};
use gpubnb_events::{
    Actor, MachineId, Seq,
    command::{
        AskChallenge, Challenge, ChangeMachine, CreateEnrollment, Done, EnrollmentCode, MachineChange,
        MachineCredential, RedeemEnrollment, RenewCredential, RevokeMachine, Revoked,
    },
    template::Template,
};
use gpubnb_query::{
    request::{DaysOf, TrailOf},
    view::{Day, Figures, MachineView, Outcome, Page, Reading, TrailEvent},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::jobs::Part;
use crate::{
    access::{Client, SignedIn, Viewer},
    app::App,
    earnings::MONTH,
    error::ApiError,
    extract::{JsonBody, Path, Query},
};

/// Most machines in one answer.
const MOST: u32 = 500;

/// A page of the list of machines.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct MachinePage {
    #[serde(default)]
    cursor: Option<MachineId>,
    #[serde(default)]
    limit: Option<u32>,
    #[serde(default)]
    min_seq: u64,
}

pub(crate) async fn list(
    State(app): State<App>,
    viewer: Viewer,
    Query(page): Query<MachinePage>,
) -> Result<Json<Page<MachineView>>, ApiError> {
    let limit = page.limit.unwrap_or(MOST).clamp(1, MOST) as usize;
    let mut rows = app.queries.machines(viewer.actor(), Seq(page.min_seq)).await?;
    rows.sort_by_key(|m| m.listed.machine);
    rows.retain(|m| page.cursor.is_none_or(|cursor| m.listed.machine > cursor));
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(|m| m.listed.machine.to_string());
    Ok(Json(Page { rows, next }))
}

pub(crate) async fn get(
    State(app): State<App>,
    viewer: Viewer,
    Path(machine): Path<MachineId>,
) -> Result<Json<MachineView>, ApiError> {
    Ok(Json(app.queries.machine(viewer.actor(), machine, Seq::ZERO).await?))
}

pub(crate) async fn events(
    State(app): State<App>,
    viewer: Viewer,
    Path(machine): Path<MachineId>,
    Query(part): Query<Part>,
) -> Result<Json<Page<TrailEvent>>, ApiError> {
    // Answers 404 if there is no such machine.
    app.queries.machine(viewer.actor(), machine, part.seq()).await?;
    Ok(Json(app.queries.trail(viewer.actor(), part.of(TrailOf::Machine(machine)), part.seq()).await?))
}

pub(crate) async fn templates() -> Json<&'static [Template]> {
    Json(gpubnb_events::template::ALL)
}

pub(crate) async fn figures(State(app): State<App>, viewer: Viewer) -> Result<Json<Figures>, ApiError> {
    Ok(Json(app.queries.figures(viewer.actor()).await?))
}

pub(crate) async fn wish(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(machine): Path<MachineId>,
    JsonBody(wish): JsonBody<MachineChange>,
) -> Result<Json<Done>, ApiError> {
    Ok(Json(app.command("market", "machine", signed_in.actor(), &ChangeMachine { machine, wish }).await?))
}

/// `POST /enrollments`: a code for one more machine.
pub(crate) async fn create_code(
    State(app): State<App>,
    signed_in: SignedIn,
) -> Result<(StatusCode, Json<EnrollmentCode>), ApiError> {
    let code = app.command("enrollment", "create", signed_in.actor(), &CreateEnrollment {}).await?;
    Ok((StatusCode::CREATED, Json(code)))
}

/// The credential of an enrolled machine, and the broker to use it with.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Enrolled {
    #[serde(flatten)]
    credential: MachineCredential,
    /// Address of the broker.
    broker: String,
    /// Certificate of the authority that signed the broker's (PEM), if that is not a public authority.
    broker_authority: Option<String>,
}

fn enrolled(app: &App, credential: MachineCredential) -> Json<Enrolled> {
    let (broker, broker_authority) = (app.broker.url.clone(), app.broker.authority.clone());
    Json(Enrolled { credential, broker, broker_authority })
}

/// `POST /speed`: reads a body and forgets it. A machine measures its upload speed with it.
pub(crate) async fn speed(sent: axum::body::Bytes) -> StatusCode {
    drop(sent);
    StatusCode::NO_CONTENT
}

/// `POST /enroll`: a machine exchanges a code for its credential. The code is the proof.
pub(crate) async fn redeem(
    State(app): State<App>,
    client: Client,
    JsonBody(redeem): JsonBody<RedeemEnrollment>,
) -> Result<Json<Enrolled>, ApiError> {
    app.rate_limits.sign_in(client.address)?;
    let credential = app.command("enrollment", "redeem", Actor::Machine(redeem.machine), &redeem).await?;
    Ok(enrolled(&app, credential))
}

/// `POST /machines/{id}/challenge`: something for the machine to sign.
pub(crate) async fn challenge(
    State(app): State<App>,
    Path(machine): Path<MachineId>,
) -> Result<Json<Challenge>, ApiError> {
    let ask = AskChallenge { machine };
    Ok(Json(app.command("enrollment", "challenge", Actor::Machine(machine), &ask).await?))
}

/// Body of `POST /machines/{id}/credential`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Signed {
    /// The challenge's text.
    nonce: String,
    /// The text, signed with the machine's `NKey`; base64url.
    signature: String,
}

/// `POST /machines/{id}/credential`: a machine renews its credential. The signature is the proof.
pub(crate) async fn renew(
    State(app): State<App>,
    Path(machine): Path<MachineId>,
    JsonBody(signed): JsonBody<Signed>,
) -> Result<Json<Enrolled>, ApiError> {
    let renew = RenewCredential { machine, nonce: signed.nonce, signature: signed.signature };
    let credential = app.command("enrollment", "renew", Actor::Machine(machine), &renew).await?;
    Ok(enrolled(&app, credential))
}

/// `DELETE /machines/{id}/credential`: the owner revokes the machine's credential. It takes effect at once.
pub(crate) async fn revoke(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(machine): Path<MachineId>,
) -> Result<StatusCode, ApiError> {
    app.command::<Revoked>("enrollment", "revoke", signed_in.actor(), &RevokeMachine { machine }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A period that ends now.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Period {
    /// Hours, up to 24; one if missing.
    hours: Option<u32>,
}

/// The measurements of a machine, minute by minute.
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
) -> Result<Json<Vec<Outcome>>, ApiError> {
    Ok(Json(app.queries.outcomes(viewer.actor(), machine).await?))
}

/// The earnings of the caller's own machine, day by day.
pub(crate) async fn days(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(machine): Path<MachineId>,
) -> Result<Json<Vec<Day>>, ApiError> {
    Ok(Json(app.queries.days(signed_in.actor(), DaysOf::Machine(machine), MONTH, Seq::ZERO).await?))
}
