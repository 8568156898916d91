//! `/api/v1/secrets`: the named secrets of an account. A value can be stored and replaced, and never read.

use axum::{Json, extract::State, http::StatusCode};
use gpubnb_events::command::{DeleteSecret, ListSecrets, Secret, SetSecret, StoredSecret};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::{
    access::SignedIn,
    app::App,
    error::ApiError,
    extract::{JsonBody, Path},
};

/// `GET /secrets`: the names of the caller's secrets.
pub(crate) async fn list(State(app): State<App>, signed_in: SignedIn) -> Result<Json<Vec<StoredSecret>>, ApiError> {
    Ok(Json(app.command("account", "secrets", signed_in.actor(), &ListSecrets {}).await?))
}

/// Body of `PUT /secrets/{name}`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SecretValue {
    /// The value, from 1 byte to 16 KiB.
    #[schema(value_type = String)]
    value: Secret,
}

/// `PUT /secrets/{name}`: stores a secret.
pub(crate) async fn set(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(name): Path<String>,
    JsonBody(SecretValue { value }): JsonBody<SecretValue>,
) -> Result<Json<StoredSecret>, ApiError> {
    Ok(Json(app.command("account", "set_secret", signed_in.actor(), &SetSecret { name, value }).await?))
}

/// `DELETE /secrets/{name}`: deletes a secret.
pub(crate) async fn delete(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    app.command::<()>("account", "delete_secret", signed_in.actor(), &DeleteSecret { name }).await?;
    Ok(StatusCode::NO_CONTENT)
}
