//! The commands `sign-up`, `login`, `logout` and `enroll-code`.

use std::io::IsTerminal as _;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::{
    api::Api,
    args::{CredentialArgs, LoginArgs},
    saved::{self, SavedLogin},
};

fn password(credentials: &CredentialArgs) -> anyhow::Result<String> {
    if let Some(path) = &credentials.password_file {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        return Ok(text.lines().next().unwrap_or_default().to_owned());
    }
    if credentials.password_stdin {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).context("reading the password from the standard input")?;
        return Ok(line.trim_end_matches(['\r', '\n']).to_owned());
    }
    if !std::io::stdin().is_terminal() {
        bail!("the password cannot be asked for without a terminal: use --password-file or --password-stdin");
    }
    Ok(rpassword::prompt_password(format!("Password of {}: ", credentials.email))?)
}

pub(crate) async fn sign_up(api: &Api, credentials: &CredentialArgs) -> anyhow::Result<u8> {
    let answer = api
        .without_token()
        .post("/accounts", &json!({ "email": credentials.email, "password": password(credentials)? }))
        .await?;
    outln!("{}", answer["message"].as_str().unwrap_or_default());
    Ok(0)
}

pub(crate) async fn login(api: &Api, login: &LoginArgs) -> anyhow::Result<u8> {
    let scopes = ["jobs:read", "jobs:write", "machines:write", "wallet:read", "webhooks:write", "secrets:write"];
    let body = json!({
        "email": login.credentials.email, "password": password(&login.credentials)?, "label": login.label,
        "scopes": scopes, "days": login.days,
    });
    // A saved token may have expired, and must not stand in the way of a new one.
    let token_info: Value = api.without_token().post("/login", &body).await?;
    let token = token_info["token"].as_str().context("the market's answer has no token")?.to_owned();
    let head_keys = pinned_keys(api).await;
    let path = saved::write(&SavedLogin { url: api.url.clone(), token, head_keys })?;
    outln!(
        "Logged in to {} until {}. The token is saved in {}.",
        api.url,
        token_info["expires_at"].as_str().unwrap_or_default(),
        path.display()
    );
    Ok(0)
}

/// The keys that check the market's proofs: those in the saved login, if it is a login to this market; otherwise those
/// that the market publishes now. Warns if the market publishes a key that the saved login does not have.
async fn pinned_keys(api: &Api) -> Vec<String> {
    // A damaged file must not stand in the way of a new login.
    let saved = saved::read().unwrap_or_default().filter(|login| login.url == api.url);
    let earlier = saved.map(|login| login.head_keys).unwrap_or_default();
    let published_keys =
        async { Ok::<Vec<String>, anyhow::Error>(serde_json::from_value(api.published().await?["head_keys"].take())?) };
    let published = published_keys.await.unwrap_or_else(|e| {
        errln!(
            "The keys with which the market signs its log could not be read: {e:#}. `gpubnb check-proof` then \
             needs the option --key."
        );
        Vec::new()
    });
    if earlier.is_empty() {
        return published;
    }
    if let Some(new) = published.iter().find(|key| !earlier.contains(key)) {
        errln!(
            "Warning: the market now signs its log with another key ({new}) than in your saved login. Proofs are still \
             checked with the earlier keys. If the market's operator confirms the new key, run `gpubnb logout`, and \
             log in again."
        );
    }
    earlier
}

pub(crate) fn logout() -> anyhow::Result<u8> {
    saved::delete()?;
    outln!("The saved token was deleted. If others may know the token, revoke it on your account page.");
    Ok(0)
}

pub(crate) async fn enroll_code(api: &Api, json: bool) -> anyhow::Result<u8> {
    let code = api.post("/enrollments", &json!({})).await?;
    if json {
        outln!("{code}");
    } else {
        outln!("{}", code["code"].as_str().unwrap_or_default());
        errln!(
            "The code works once, until {}. On the machine: gpubnb-provider enroll CODE --market {}",
            code["expires"].as_str().unwrap_or_default(),
            api.url
        );
    }
    Ok(0)
}
