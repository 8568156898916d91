//! `/api/v1/ops`: the endpoints of operators.

use axum::{Json, extract::State, http::StatusCode};
use gpubnb_events::{
    AccountId, CommandId, MachineId,
    command::{ClosePayout, Done, FundAccount, RevokeMachine, Revoked, SetSuspension},
    dead_letter::{DeadLetter, Remedied, Remedy},
    event::Check,
};
use gpubnb_query::{
    request::LogPoint,
    view::{
        Page, TrailEvent,
        ops::{Accounts, Platform, StuckJob, TimeTravel},
    },
};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::{
    access::SignedIn,
    app::App,
    error::{ApiError, Problem},
    event_search::EventSearch,
    extract::{AfterAccount, JsonBody, Path, Query},
    input::dollars,
    transfer::{StoreUse, store_uses},
};

/// Body of `POST /ops/accounts/{id}/suspension`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Suspension {
    /// Reason for the suspension; `null` ends the suspension. The field is required, so that an empty body cannot end a
    /// suspension by mistake.
    #[serde(deserialize_with = "Option::deserialize")]
    reason: Option<String>,
}

/// Suspends an account, or ends its suspension.
pub(crate) async fn suspend(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(account): Path<AccountId>,
    JsonBody(suspension): JsonBody<Suspension>,
) -> Result<Json<Done>, ApiError> {
    let body = SetSuspension { account, reason: suspension.reason };
    Ok(Json(app.command("account", "set_suspension", signed_in.operator_actor(), &body).await?))
}

/// Body of `POST /ops/accounts/{id}/deposits`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReceivedDeposit {
    /// Id of the deposit, a UUID of version 7. Sending the same id again adds nothing.
    #[schema(value_type = String, format = Uuid)]
    deposit: CommandId,
    /// Amount in dollars, for example `12.50`.
    amount_usd: String,
}

/// Records that money has arrived for an account.
pub(crate) async fn fund(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(account): Path<AccountId>,
    JsonBody(received): JsonBody<ReceivedDeposit>,
) -> Result<Json<Done>, ApiError> {
    let body = FundAccount { account, deposit: received.deposit, amount: dollars("amount_usd", &received.amount_usd)? };
    Ok(Json(app.command("account", "fund", signed_in.operator_actor(), &body).await?))
}

/// Body of `POST /ops/accounts/{id}/payouts/{payout}`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PayoutResult {
    /// Reason why the payout failed; `null` if it was paid. The field is required.
    #[serde(deserialize_with = "Option::deserialize")]
    failed: Option<String>,
}

/// Records that a payout was paid, or that it failed.
pub(crate) async fn close_payout(
    State(app): State<App>,
    signed_in: SignedIn,
    Path((account, payout)): Path<(AccountId, CommandId)>,
    JsonBody(result): JsonBody<PayoutResult>,
) -> Result<Json<Done>, ApiError> {
    let body = ClosePayout { account, payout, failed: result.failed };
    Ok(Json(app.command("account", "close_payout", signed_in.operator_actor(), &body).await?))
}

/// Lists the dead letters: job messages in the stream DISPATCH that no machine works on, and machines that cannot
/// fetch job messages.
pub(crate) async fn dead_letters(
    State(app): State<App>,
    signed_in: SignedIn,
) -> Result<Json<Vec<DeadLetter>>, ApiError> {
    Ok(Json(app.command("market", "letters", signed_in.operator_actor(), &()).await?))
}

/// Applies the remedy for one dead letter: removes the message, or creates the machine's consumer. Refuses if the
/// market cannot apply the remedy.
pub(crate) async fn remedy(
    State(app): State<App>,
    signed_in: SignedIn,
    JsonBody(remedy): JsonBody<Remedy>,
) -> Result<Json<Remedied>, ApiError> {
    Ok(Json(app.command("market", "remedy", signed_in.operator_actor(), &remedy).await?))
}

/// `DELETE /ops/machines/{id}/credential`: bans a machine. Its jobs are requeued when its heartbeats have been missing
/// for long enough.
pub(crate) async fn ban(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(machine): Path<MachineId>,
) -> Result<StatusCode, ApiError> {
    app.command::<Revoked>("enrollment", "revoke", signed_in.operator_actor(), &RevokeMachine { machine }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Describes the streams and the read models.
pub(crate) async fn platform(State(app): State<App>, signed_in: SignedIn) -> Result<Json<Platform>, ApiError> {
    Ok(Json(app.queries.platform(signed_in.operator_actor()).await?))
}

/// Runs the checks of the deployment.
pub(crate) async fn doctor(State(app): State<App>, signed_in: SignedIn) -> Result<Json<Vec<Check>>, ApiError> {
    Ok(Json(app.queries.doctor(signed_in.operator_actor()).await?))
}

/// Shows how full the stores of files are, and which accounts take most.
pub(crate) async fn files(State(app): State<App>) -> Result<Json<Vec<StoreUse>>, ApiError> {
    Ok(Json(store_uses(&app).await?))
}

/// Lists the jobs that have been in one state for too long.
pub(crate) async fn stuck(State(app): State<App>, signed_in: SignedIn) -> Result<Json<Vec<StuckJob>>, ApiError> {
    Ok(Json(app.queries.stuck(signed_in.operator_actor()).await?))
}

/// Searches all events, newest first.
pub(crate) async fn events(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(search): Query<EventSearch>,
) -> Result<Json<Page<TrailEvent>>, ApiError> {
    Ok(Json(app.queries.events(signed_in.operator_actor(), search.query()?).await?))
}

/// The totals of the ledger, and a page of the accounts.
pub(crate) async fn ledger(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(AfterAccount { after }): Query<AfterAccount>,
) -> Result<Json<Accounts>, ApiError> {
    Ok(Json(app.queries.accounts(signed_in.operator_actor(), after).await?))
}

/// The query parameters of `GET /ops/travel`.
#[derive(Debug, Deserialize, IntoParams)]
pub(crate) struct PointInLog {
    /// A sequence such as `1234` (the state after this event), or a time such as `2026-01-31T12:00:00Z` (the state
    /// after the last event that was recorded by then).
    at: String,
}

/// The state of the market at a point in the log, or the progress of computing this state.
pub(crate) async fn travel(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(PointInLog { at }): Query<PointInLog>,
) -> Result<Json<TimeTravel>, ApiError> {
    let at: LogPoint = at.parse().map_err(|e: String| Problem::invalid("at", e))?;
    Ok(Json(app.queries.past_market(signed_in.operator_actor(), at).await?))
}

/// Begins to rebuild a read model. `GET /ops/platform` shows the progress.
pub(crate) async fn rebuild(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(model): Path<String>,
) -> Result<StatusCode, ApiError> {
    app.queries.rebuild(signed_in.operator_actor(), &model).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Begins a verification of the log and of all read models. `GET /ops/platform` shows the progress and the result.
pub(crate) async fn verify(State(app): State<App>, signed_in: SignedIn) -> Result<StatusCode, ApiError> {
    app.queries.verify(signed_in.operator_actor()).await?;
    Ok(StatusCode::ACCEPTED)
}
