//! The commands about named secrets. A value is never an argument: others on the computer could read it.

use std::{
    io::{IsTerminal as _, Read as _},
    path::Path,
};

use anyhow::Context as _;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::{Api, REQUEST_TIMEOUT},
    args::SecretCommand,
    show::{done, list, text, time},
};

/// Most bytes that are read of a value. The market refuses a longer one.
const MAX_VALUE: u64 = 64 * 1024;

pub(crate) async fn run(api: &Api, command: SecretCommand, json: bool) -> anyhow::Result<u8> {
    match command {
        SecretCommand::List => print_list(api, json).await,
        SecretCommand::Set { name, file } => {
            let body = json!({ "value": read_value(&name, file.as_deref())? });
            let request = api.request(Method::PUT, &path(&name)?).timeout(REQUEST_TIMEOUT).json(&body);
            let stored: Value = api.send(request).await?.json().await?;
            let sentence = format!("Stored. A job gets it with `gpubnb run --secrets {}`.", text(&stored["name"]));
            Ok(done(json, &stored, &sentence))
        }
        SecretCommand::Delete { name } => {
            api.send(api.request(Method::DELETE, &path(&name)?).timeout(REQUEST_TIMEOUT)).await?;
            Ok(done(json, &json!({ "deleted": name }), "The secret was deleted."))
        }
    }
}

/// The path of a secret. A name with other characters would name another path.
fn path(name: &str) -> anyhow::Result<String> {
    let is_plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    anyhow::ensure!(is_plain, "`{name}` is no name of a secret: a name has letters, digits and _, such as HF_TOKEN");
    Ok(format!("/secrets/{name}"))
}

fn read_value(name: &str, file: Option<&Path>) -> anyhow::Result<String> {
    let read = |from: &mut dyn std::io::Read| {
        let mut value = String::new();
        from.take(MAX_VALUE).read_to_string(&mut value).map(|_| value)
    };
    if let Some(path) = file {
        let opened = std::fs::File::open(path).and_then(|mut opened| read(&mut opened));
        return opened.with_context(|| format!("reading {}", path.display()));
    }
    if std::io::stdin().is_terminal() {
        return Ok(rpassword::prompt_password(format!("Value of {name}: "))?);
    }
    let value = read(&mut std::io::stdin()).context("reading the value from the standard input")?;
    let value = value.strip_suffix('\n').unwrap_or(&value);
    Ok(value.strip_suffix('\r').unwrap_or(value).to_owned())
}

async fn print_list(api: &Api, json: bool) -> anyhow::Result<u8> {
    let used =
        |secret: &Value| secret["used_at"].as_str().map_or_else(|| "never".to_owned(), |_| time(&secret["used_at"]));
    let row = |secret: &Value| vec![text(&secret["name"]), time(&secret["changed_at"]), used(secret)];
    list(api, "/secrets", json, &["NAME", "STORED", "LAST USED"], row).await
}
