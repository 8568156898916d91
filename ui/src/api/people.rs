//! `/api/v1/accounts`, `/api/v1/login`, `/api/v1/account`, `/api/v1/tokens`: who somebody is, for programs.

use axum::{Json, extract::State, http::StatusCode};
use gpubnb_events::{CommandId, Millis, Seq};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    access::{Client, NewToken, Scope, SignUp, SignedIn, TokenInfo},
    app::App,
    error::{ApiError, Problem},
    extract::{JsonBody, Path},
    page::entry,
};

const DAY: u64 = 24 * 3_600_000;

/// What is so now.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Said {
    /// In words.
    message: &'static str,
}

/// `POST /accounts`: the answer is the same whether the address was free or not.
pub(crate) async fn sign_up(
    State(app): State<App>,
    client: Client,
    JsonBody(new): JsonBody<SignUp>,
) -> Result<(StatusCode, Json<Said>), ApiError> {
    app.paces.sign_up(client.address)?;
    entry::join(&app, &new).await?;
    let message = "If the address was new, the account is ready: log in with the password you chose.";
    Ok((StatusCode::ACCEPTED, Json(Said { message })))
}

/// Body of `POST /login`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Login {
    /// E-mail address.
    email: String,
    /// Password.
    password: String,
    /// What the token is for, in the owner's words.
    label: String,
    /// What it may be used for.
    #[schema(value_type = Vec<String>)]
    scopes: Vec<Scope>,
    /// How long it lives, days; 90 if missing.
    #[serde(default)]
    days: Option<u64>,
}

/// A token that was just made.
#[derive(Serialize, ToSchema)]
pub(crate) struct Made {
    /// Send it as `Authorization: Bearer …`. It is shown this once.
    token: String,
    #[serde(flatten)]
    info: TokenInfo,
}

async fn make(
    app: &App,
    account: gpubnb_events::AccountId,
    label: String,
    scopes: Vec<Scope>,
    days: Option<u64>,
) -> Result<(StatusCode, Json<Made>), ApiError> {
    let days = days.unwrap_or(90);
    if !(1..=365).contains(&days) {
        return Err(Problem::invalid("days", "A token lives from 1 to 365 days.").into());
    }
    let new = NewToken { label, scopes, expires_at: app.now().plus(Millis(days * DAY)) };
    let (info, token) = app.people.create_token(account, &new, app.now()).await?;
    Ok((StatusCode::CREATED, Json(Made { token, info })))
}

pub(crate) async fn login(
    State(app): State<App>,
    client: Client,
    JsonBody(login): JsonBody<Login>,
) -> Result<(StatusCode, Json<Made>), ApiError> {
    let account = entry::prove(&app, &client, &login.email, &login.password).await?;
    make(&app, account, login.label, login.scopes, login.days).await
}

/// Body of `POST /tokens`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AskToken {
    /// What it is for, in the owner's words.
    label: String,
    /// What it may be used for.
    #[schema(value_type = Vec<String>)]
    scopes: Vec<Scope>,
    /// How long it lives, days; 90 if missing.
    #[serde(default)]
    days: Option<u64>,
}

pub(crate) async fn create(
    State(app): State<App>,
    signed_in: SignedIn,
    JsonBody(ask): JsonBody<AskToken>,
) -> Result<(StatusCode, Json<Made>), ApiError> {
    make(&app, signed_in.account, ask.label, ask.scopes, ask.days).await
}

pub(crate) async fn list(State(app): State<App>, signed_in: SignedIn) -> Result<Json<Vec<TokenInfo>>, ApiError> {
    Ok(Json(app.people.tokens(signed_in.account, app.now()).await?))
}

pub(crate) async fn revoke(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(token): Path<CommandId>,
) -> Result<StatusCode, ApiError> {
    app.people.revoke_token(signed_in.account, token).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who asks.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Me {
    /// The account.
    #[schema(value_type = String, format = Uuid)]
    account: gpubnb_events::AccountId,
    /// Its e-mail address.
    email: String,
    /// What they are on the market.
    roles: Vec<Role>,
    /// Whether this way of asking may run the platform.
    operator: bool,
}

/// What somebody is on the market. It follows from what they do: nobody applies for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// Submits jobs: everybody may.
    Consumer,
    /// Has a machine on the market.
    Provider,
    /// Runs the platform.
    Operator,
}

impl Role {
    /// In a word.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Consumer => "consumer",
            Self::Provider => "provider",
            Self::Operator => "operator",
        }
    }
}

/// The roles of whoever asks.
pub(crate) async fn roles(app: &App, signed_in: SignedIn) -> Result<Vec<Role>, Problem> {
    let machines = app.queries.machines(signed_in.actor(), Seq::ZERO).await?;
    let provider = machines.iter().any(|m| m.listed.owner == signed_in.account);
    let also = [(provider, Role::Provider), (signed_in.viewer.operator, Role::Operator)];
    let roles = also.into_iter().filter(|(so, _)| *so).map(|(_, role)| role);
    Ok(std::iter::once(Role::Consumer).chain(roles).collect())
}

pub(crate) async fn me(State(app): State<App>, signed_in: SignedIn) -> Result<Json<Me>, ApiError> {
    let email = app.people.email(signed_in.account).await?;
    let roles = roles(&app, signed_in).await?;
    Ok(Json(Me { account: signed_in.account, email, roles, operator: signed_in.viewer.operator }))
}
