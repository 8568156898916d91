//! `/api/v1/accounts`, `/api/v1/login`, `/api/v1/account`, `/api/v1/tokens`: accounts and tokens.

use axum::{Json, extract::State, http::StatusCode};
use gpubnb_events::{CommandId, Millis};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    access::{Client, NewToken, Scope, SignUp, SignedIn, TokenInfo},
    accounts::{self, Role, roles},
    app::App,
    error::{ApiError, Problem},
    extract::{JsonBody, Path},
};

/// A day, in milliseconds.
const DAY: u64 = 24 * 3_600_000;

/// A message for people.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Message {
    /// The message.
    message: &'static str,
}

/// `POST /accounts`: signs up. The answer is the same whether the e-mail address was free or taken.
pub(crate) async fn sign_up(
    State(app): State<App>,
    client: Client,
    JsonBody(new): JsonBody<SignUp>,
) -> Result<(StatusCode, Json<Message>), ApiError> {
    app.rate_limits.check_sign_up(client.address)?;
    accounts::sign_up(&app, &new).await?;
    let message = "If the address was new, the account is ready: log in with the password that you chose.";
    Ok((StatusCode::ACCEPTED, Json(Message { message })))
}

/// Body of `POST /login`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Login {
    /// E-mail address.
    email: String,
    /// Password.
    password: String,
    /// Purpose of the token, in the owner's words.
    label: String,
    /// Rights of the token.
    #[schema(value_type = Vec<String>)]
    scopes: Vec<Scope>,
    /// Days until the token expires; 90 if missing.
    #[serde(default)]
    days: Option<u64>,
}

/// Answer of `POST /login` and `POST /tokens`.
#[derive(Serialize, ToSchema)]
pub(crate) struct CreatedToken {
    /// The token, for the header `Authorization: Bearer …`. It is shown only once.
    token: String,
    #[serde(flatten)]
    info: TokenInfo,
}

async fn create_token(
    app: &App,
    account: gpubnb_events::AccountId,
    label: String,
    scopes: Vec<Scope>,
    days: Option<u64>,
) -> Result<(StatusCode, Json<CreatedToken>), ApiError> {
    let days = days.unwrap_or(90);
    if !(1..=365).contains(&days) {
        return Err(Problem::invalid("days", "A token lives from 1 to 365 days.").into());
    }
    let new = NewToken { label, scopes, expires_at: app.now().plus(Millis(days * DAY)) };
    let (info, token) = app.users.create_token(account, &new, app.now()).await?;
    Ok((StatusCode::CREATED, Json(CreatedToken { token, info })))
}

/// `POST /login`: exchanges an e-mail address and a password for a token.
pub(crate) async fn login(
    State(app): State<App>,
    client: Client,
    JsonBody(login): JsonBody<Login>,
) -> Result<(StatusCode, Json<CreatedToken>), ApiError> {
    let account = accounts::check_password(&app, &client, &login.email, &login.password).await?;
    create_token(&app, account, login.label, login.scopes, login.days).await
}

/// Body of `POST /tokens`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenRequest {
    /// Purpose of the token, in the owner's words.
    label: String,
    /// Rights of the token.
    #[schema(value_type = Vec<String>)]
    scopes: Vec<Scope>,
    /// Days until the token expires; 90 if missing.
    #[serde(default)]
    days: Option<u64>,
}

/// `POST /tokens`: creates a token.
pub(crate) async fn create(
    State(app): State<App>,
    signed_in: SignedIn,
    JsonBody(request): JsonBody<TokenRequest>,
) -> Result<(StatusCode, Json<CreatedToken>), ApiError> {
    create_token(&app, signed_in.account, request.label, request.scopes, request.days).await
}

/// `GET /tokens`: the caller's tokens.
pub(crate) async fn list(State(app): State<App>, signed_in: SignedIn) -> Result<Json<Vec<TokenInfo>>, ApiError> {
    Ok(Json(app.users.tokens(signed_in.account, app.now()).await?))
}

/// `DELETE /tokens/{id}`: revokes a token.
pub(crate) async fn revoke(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(token): Path<CommandId>,
) -> Result<StatusCode, ApiError> {
    app.users.revoke_token(signed_in.account, token).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Answer of `GET /account`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CurrentAccount {
    /// Id of the caller's account.
    #[schema(value_type = String, format = Uuid)]
    account: gpubnb_events::AccountId,
    /// E-mail address of the caller.
    email: String,
    /// The caller's roles on the market.
    roles: Vec<Role>,
    /// True if the caller may use the operators' endpoints with this token.
    operator: bool,
}

/// `GET /account`: the caller's account.
pub(crate) async fn current(State(app): State<App>, signed_in: SignedIn) -> Result<Json<CurrentAccount>, ApiError> {
    let email = app.users.email(signed_in.account).await?;
    let roles = roles(&app, signed_in).await?;
    Ok(Json(CurrentAccount { account: signed_in.account, email, roles, operator: signed_in.viewer.is_operator }))
}
