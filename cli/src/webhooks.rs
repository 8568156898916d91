//! The commands about webhooks: the addresses of programs that are told what happens to the account.

use gpubnb_events::notification::NotificationKind;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::{Api, REQUEST_TIMEOUT},
    args::WebhookCommand,
    show::{done, list, text},
};

pub(crate) async fn run(api: &Api, command: WebhookCommand, json: bool) -> anyhow::Result<u8> {
    match command {
        WebhookCommand::List => print_list(api, json).await,
        WebhookCommand::Add { address, kinds } => add(api, &address, &kinds, json).await,
        WebhookCommand::Remove { webhook } => {
            api.send(api.request(Method::DELETE, &format!("/webhooks/{webhook}")).timeout(REQUEST_TIMEOUT)).await?;
            Ok(done(json, &json!({ "removed": webhook }), "The webhook was removed."))
        }
        WebhookCommand::Test { webhook } => {
            let request = api.request(Method::POST, &format!("/webhooks/{webhook}/test")).timeout(REQUEST_TIMEOUT);
            api.send(request).await?;
            let sentence = "The test is on its way. `gpubnb webhooks deliveries` shows whether it arrived.";
            Ok(done(json, &json!({ "sent": webhook }), sentence))
        }
        WebhookCommand::Deliveries => deliveries(api, json).await,
    }
}

fn kinds(webhook: &Value) -> String {
    let kinds: Vec<_> = webhook["kinds"].as_array().into_iter().flatten().map(text).collect();
    if kinds.len() == NotificationKind::choices().count() { "everything".to_owned() } else { kinds.join(", ") }
}

async fn print_list(api: &Api, json: bool) -> anyhow::Result<u8> {
    let address = |webhook: &Value| format!("{}…{}", text(&webhook["host"]), text(&webhook["ends_with"]));
    let row = |webhook: &Value| vec![text(&webhook["webhook"]), address(webhook), kinds(webhook)];
    list(api, "/webhooks", json, &["WEBHOOK", "ADDRESS", "TOLD OF"], row).await
}

async fn add(api: &Api, address: &str, kinds: &[NotificationKind], json: bool) -> anyhow::Result<u8> {
    let mut body = json!({ "url": address });
    if !kinds.is_empty() {
        body["kinds"] = json!(kinds);
    }
    let created = api.post("/webhooks", &body).await?;
    if json {
        outln!("{created}");
        return Ok(0);
    }
    outln!("{}", text(&created["webhook"]));
    outln!("{}", text(&created["secret"]));
    errln!("The second line is the secret with which each request is signed. It is not shown again.");
    Ok(0)
}

async fn deliveries(api: &Api, json: bool) -> anyhow::Result<u8> {
    let row = |made: &Value| {
        let place = if made["webhook"].is_null() { "e-mail".to_owned() } else { text(&made["webhook"]) };
        let outcome = match (made["failure"].as_str(), made["next"].as_str()) {
            (None, _) => "delivered".to_owned(),
            (Some(_), Some(next)) => format!("{}; again at {next}", text(&made["failure"])),
            (Some(_), None) => format!("{}; given up", text(&made["failure"])),
        };
        vec![text(&made["at"]), text(&made["kind"]), place, outcome]
    };
    list(api, "/deliveries", json, &["AT", "ABOUT", "TO", "OUTCOME"], row).await
}
