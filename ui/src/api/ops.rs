//! `/api/v1/ops`: the endpoints of operators.

use axum::{Json, extract::State, http::StatusCode};
use gpubnb_events::{
    AccountId, CommandId, MachineId,
    command::{ClosePayout, Done, FundAccount, RevokeMachine, Revoked, SetSuspension},
    dead_letter::{DeadLetter, Remedied, Remedy},
    event::Check,
};
use gpubnb_query::{
    request::Point,
    view::{
        Page, TrailEvent,
        ops::{Accounts, Platform, Stuck, Travel},
    },
};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::{
    access::SignedIn,
    app::App,
    error::{ApiError, Problem},
    event_search::EventSearch,
    extract::{AfterAccount, JsonBody, Path, Query},
    input::dollars,
};

/// Body of `POST /ops/accounts/{id}/suspension`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Suspension {
    /// Reason for the suspension; `null` reinstates the account. The field is required, so that an empty body cannot
    /// reinstate by mistake.
    #[serde(deserialize_with = "Option::deserialize")]
    reason: Option<String>,
}

pub(crate) async fn suspend(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(account): Path<AccountId>,
    JsonBody(suspension): JsonBody<Suspension>,
) -> Result<Json<Done>, ApiError> {
    let body = SetSuspension { account, reason: suspension.reason };
    Ok(Json(app.command("account", "set_suspension", signed_in.operator(), &body).await?))
}

/// Body of `POST /ops/accounts/{id}/deposits`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Funds {
    /// Id of the deposit, a UUID of version 7. Sending the same id again adds nothing.
    #[schema(value_type = String, format = Uuid)]
    deposit: CommandId,
    /// Dollars.
    amount_usd: String,
}

/// Records that money has arrived for an account.
pub(crate) async fn fund(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(account): Path<AccountId>,
    JsonBody(funds): JsonBody<Funds>,
) -> Result<Json<Done>, ApiError> {
    let body = FundAccount { account, deposit: funds.deposit, amount: dollars("amount_usd", &funds.amount_usd)? };
    Ok(Json(app.command("account", "fund", signed_in.operator(), &body).await?))
}

/// Body of `POST /ops/accounts/{id}/payouts/{payout}`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Closing {
    /// Reason why the payout failed; `null` if it was paid. The field is required.
    #[serde(deserialize_with = "Option::deserialize")]
    failed: Option<String>,
}

pub(crate) async fn close_payout(
    State(app): State<App>,
    signed_in: SignedIn,
    Path((account, payout)): Path<(AccountId, CommandId)>,
    JsonBody(closing): JsonBody<Closing>,
) -> Result<Json<Done>, ApiError> {
    let body = ClosePayout { account, payout, failed: closing.failed };
    Ok(Json(app.command("account", "close_payout", signed_in.operator(), &body).await?))
}

/// The messages of DISPATCH that no machine will work on.
pub(crate) async fn letters(State(app): State<App>, signed_in: SignedIn) -> Result<Json<Vec<DeadLetter>>, ApiError> {
    Ok(Json(app.command("market", "letters", signed_in.operator(), &()).await?))
}

/// Repairs what can be repaired about one of them.
pub(crate) async fn remedy(
    State(app): State<App>,
    signed_in: SignedIn,
    JsonBody(remedy): JsonBody<Remedy>,
) -> Result<Json<Remedied>, ApiError> {
    Ok(Json(app.command("market", "remedy", signed_in.operator(), &remedy).await?))
}

/// `DELETE /ops/machines/{id}/credential`: bans a machine. Its jobs are requeued when it has been silent for long
/// enough.
pub(crate) async fn ban(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(machine): Path<MachineId>,
) -> Result<StatusCode, ApiError> {
    app.command::<Revoked>("enrollment", "revoke", signed_in.operator(), &RevokeMachine { machine }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The platform's streams and models.
pub(crate) async fn platform(State(app): State<App>, signed_in: SignedIn) -> Result<Json<Platform>, ApiError> {
    Ok(Json(app.queries.platform(signed_in.operator()).await?))
}

/// Checks of the deployment.
pub(crate) async fn doctor(State(app): State<App>, signed_in: SignedIn) -> Result<Json<Vec<Check>>, ApiError> {
    Ok(Json(app.queries.doctor(signed_in.operator()).await?))
}

/// Jobs that have been in one state for too long.
pub(crate) async fn stuck(State(app): State<App>, signed_in: SignedIn) -> Result<Json<Vec<Stuck>>, ApiError> {
    Ok(Json(app.queries.stuck(signed_in.operator()).await?))
}

/// Every event, newest first.
pub(crate) async fn events(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(search): Query<EventSearch>,
) -> Result<Json<Page<TrailEvent>>, ApiError> {
    Ok(Json(app.queries.events(signed_in.operator(), search.query()?).await?))
}

/// The totals of the ledger, and each account.
pub(crate) async fn ledger(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(AfterAccount { after }): Query<AfterAccount>,
) -> Result<Json<Accounts>, ApiError> {
    Ok(Json(app.queries.accounts(signed_in.operator(), after).await?))
}

/// A point in the log: a sequence or a time.
#[derive(Debug, Deserialize)]
pub(crate) struct At {
    at: String,
}

/// The market as it was, or the progress of rebuilding it.
pub(crate) async fn travel(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(At { at }): Query<At>,
) -> Result<Json<Travel>, ApiError> {
    let at: Point = at.parse().map_err(|e: String| Problem::invalid("at", e))?;
    Ok(Json(app.queries.travel(signed_in.operator(), at).await?))
}

/// Begins to rebuild a read model. `GET /ops/platform` shows the progress.
pub(crate) async fn rebuild(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(model): Path<String>,
) -> Result<StatusCode, ApiError> {
    app.queries.rebuild(signed_in.operator(), &model).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Begins a verification. `GET /ops/platform` shows the progress and the findings.
pub(crate) async fn verify(State(app): State<App>, signed_in: SignedIn) -> Result<StatusCode, ApiError> {
    app.queries.verify(signed_in.operator()).await?;
    Ok(StatusCode::ACCEPTED)
}
