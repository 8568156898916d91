//! `/api/v1/webhooks` and `/api/v1/deliveries`: the programs that an account has told, and what was sent.

use std::collections::BTreeSet;

use axum::{Json, extract::State, http::StatusCode};
use gpubnb_events::{
    CommandId, Timestamp,
    notification::{DeliveryTry, NotificationKind, Webhook},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    access::SignedIn,
    app::App,
    error::{ApiError, Problem},
    extract::{JsonBody, Path},
    webhooks::{self, end, host},
};

/// A webhook, without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WebhookInfo {
    /// The id.
    #[schema(value_type = String, format = Uuid)]
    webhook: CommandId,
    /// The host of the address.
    host: String,
    /// The last four characters of the address. The whole address may be a secret.
    ends_with: String,
    /// The kinds of notifications that are sent.
    kinds: Vec<NotificationKind>,
    /// When the webhook was added.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When a test was sent last.
    #[schema(value_type = Option<String>, format = DateTime)]
    tested_at: Option<Timestamp>,
}

impl From<&Webhook> for WebhookInfo {
    fn from(webhook: &Webhook) -> Self {
        Self {
            webhook: webhook.id,
            host: host(&webhook.url).to_owned(),
            ends_with: end(&webhook.url).to_owned(),
            kinds: webhook.kinds.iter().copied().collect(),
            created_at: webhook.created_at,
            tested_at: webhook.tested_at,
        }
    }
}

/// `GET /webhooks`: the caller's webhooks.
pub(crate) async fn list(State(app): State<App>, signed_in: SignedIn) -> Result<Json<Vec<WebhookInfo>>, ApiError> {
    let settings = app.notifications.settings(signed_in.account).await?;
    Ok(Json(settings.webhooks.iter().map(WebhookInfo::from).collect()))
}

/// Body of `POST /webhooks`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewWebhook {
    /// The address, `https://…`, at most 500 bytes.
    url: String,
    /// The kinds of notifications that are sent; all kinds if missing.
    #[serde(default)]
    kinds: Option<Vec<NotificationKind>>,
}

/// Answer of `POST /webhooks`.
#[derive(Serialize, ToSchema)]
pub(crate) struct CreatedWebhook {
    /// The secret with which requests are signed. It is shown only once.
    secret: String,
    #[serde(flatten)]
    info: WebhookInfo,
}

/// `POST /webhooks`: adds a webhook.
pub(crate) async fn add(
    State(app): State<App>,
    signed_in: SignedIn,
    JsonBody(new): JsonBody<NewWebhook>,
) -> Result<(StatusCode, Json<CreatedWebhook>), ApiError> {
    let kinds = new.kinds.unwrap_or_else(|| NotificationKind::choices().collect());
    let kinds: BTreeSet<_> = kinds.into_iter().filter(|kind| *kind != NotificationKind::Test).collect();
    if kinds.is_empty() {
        return Err(Problem::invalid("kinds", "Name at least one kind of notification, other than `test`.").into());
    }
    let webhook = webhooks::add(&app, signed_in.account, new.url.trim(), kinds).await?;
    let info = WebhookInfo::from(&webhook);
    Ok((StatusCode::CREATED, Json(CreatedWebhook { secret: webhook.secret, info })))
}

/// `DELETE /webhooks/{webhook}`: removes a webhook.
pub(crate) async fn remove(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(webhook): Path<CommandId>,
) -> Result<StatusCode, ApiError> {
    webhooks::remove(&app, signed_in.account, webhook).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /webhooks/{webhook}/test`: sends a test.
pub(crate) async fn test(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(webhook): Path<CommandId>,
) -> Result<StatusCode, ApiError> {
    webhooks::test(&app, signed_in.account, webhook).await?;
    Ok(StatusCode::ACCEPTED)
}

/// `GET /deliveries`: the newest tries of deliveries to the caller, newest first.
pub(crate) async fn deliveries(
    State(app): State<App>,
    signed_in: SignedIn,
) -> Result<Json<Vec<DeliveryTry>>, ApiError> {
    Ok(Json(app.notifications.tries(signed_in.account).await?))
}
