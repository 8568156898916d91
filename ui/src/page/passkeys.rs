//! Passkeys: adding and removing them on the account page, and signing in with one. Scripts of the pages talk to the
//! browser's authenticator, and send its answers as JSON.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{AppendHeaders, IntoResponse, Redirect, Response},
};
use gpubnb_events::CommandId;
use serde::Deserialize;
use serde_json::{Value, json};
use webauthn_rs::prelude::{PublicKeyCredential, RegisterPublicKeyCredential};

use super::sign_in::safe_redirect;
use crate::{
    access::{Client, SignInProof, SignedIn},
    accounts::count_own_password,
    app::App,
    error::{ApiError, PageError, Problem},
    extract::{JsonBody, Path},
};

/// Body of [`begin_adding`].
#[derive(Deserialize)]
pub(crate) struct Begin {
    /// The current password: whoever finds a signed-in browser must not be able to add a key of theirs.
    password: String,
}

/// `POST /account/passkeys/begin`: the challenge with which the browser makes a new passkey.
pub(crate) async fn begin_adding(
    State(app): State<App>,
    signed_in: SignedIn,
    JsonBody(begin): JsonBody<Begin>,
) -> Result<Json<Value>, ApiError> {
    let account = signed_in.account;
    count_own_password(&app, account, app.users.verify_password(account, &begin.password)).await?;
    let name = app.users.email(account).await?;
    Ok(Json(app.passkeys.begin_adding(account, &name, app.now()).await?))
}

/// Body of [`add`].
#[derive(Deserialize)]
pub(crate) struct NewPasskey {
    ceremony: String,
    /// The browser's answer.
    answer: RegisterPublicKeyCredential,
    label: String,
}

/// `POST /account/passkeys`.
pub(crate) async fn add(
    State(app): State<App>,
    signed_in: SignedIn,
    JsonBody(new): JsonBody<NewPasskey>,
) -> Result<StatusCode, ApiError> {
    // The body may have arrived long after the session was checked.
    if !app.users.exists(signed_in.account).await? {
        return Err(Problem::not_found("account").into());
    }
    app.passkeys.add(signed_in.account, &new.ceremony, &new.answer, &new.label, app.now()).await?;
    Ok(StatusCode::CREATED)
}

/// `POST /account/passkeys/{passkey}/remove`.
pub(crate) async fn remove(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(passkey): Path<CommandId>,
) -> Result<Redirect, PageError> {
    app.passkeys.remove(signed_in.account, passkey).await?;
    Ok(Redirect::to("/account?done=passkey-removed"))
}

/// `GET /sign-in/passkey`: the challenge with which a browser proves a passkey.
pub(crate) async fn begin_sign_in(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    Ok(Json(app.passkeys.begin_sign_in(app.now())?))
}

/// Body of [`sign_in`].
#[derive(Deserialize)]
pub(crate) struct PasskeySignIn {
    ceremony: String,
    /// The browser's answer.
    answer: PublicKeyCredential,
    /// The path to open afterwards.
    #[serde(default)]
    next: String,
}

/// `POST /sign-in/passkey`: signs the browser in. The answer has the path to open.
pub(crate) async fn sign_in(
    State(app): State<App>,
    client: Client,
    JsonBody(proof): JsonBody<PasskeySignIn>,
) -> Result<Response, ApiError> {
    let now = app.now();
    // Nobody can guess the answer of a passkey, so a wrong one counts as no guess.
    let account = app.passkeys.sign_in(&proof.ceremony, &proof.answer, now).await?;
    if !app.users.exists(account).await? {
        return Err(Problem::not_found("account").into());
    }
    app.sign_ins.record(account, &client, SignInProof::Passkey, now).await;
    let cookie = app.sessions.begin(account, &client.name, now).await?;
    let body = Json(json!({ "next": safe_redirect(&proof.next) }));
    Ok((AppendHeaders([(header::SET_COOKIE, cookie)]), body).into_response())
}
