//! In a demonstration, a visitor may look at the market as its consumer or as its provider.

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;

use crate::{
    app::App,
    error::{PageError, Problem},
    extract::Form,
    viewer::PERSONA,
};

/// The choice.
#[derive(Debug, Deserialize)]
pub(crate) struct Choice {
    persona: String,
}

pub(crate) async fn choose(State(app): State<App>, Form(choice): Form<Choice>) -> Result<Response, PageError> {
    if app.accounts.0.is_none() {
        return Err(Problem::not_found("page").into());
    }
    let (persona, page) =
        if choice.persona == "provider" { ("provider", "/provider") } else { ("consumer", "/market") };
    let cookie = format!("{PERSONA}={persona}; Path=/; HttpOnly; SameSite=Lax; Max-Age=86400");
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to(page)).into_response())
}
