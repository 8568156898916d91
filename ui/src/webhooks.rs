//! The webhooks of an account: programs that are told by requests to their addresses. The page *Notifications* and the
//! API change them here; the program `gpubnb-notifier` sends the requests.

use std::collections::BTreeSet;

use gpubnb_events::{
    AccountId, CommandId, Millis,
    notification::{Delivery, MAX_WEBHOOK_URL, MAX_WEBHOOKS, Notification, NotificationKind, Webhook},
};
use url::Url;

use crate::{access::new_webhook_secret, app::App, error::Problem};

/// The time between two tests of a webhook.
const TEST_PAUSE: Millis = Millis(10_000);

/// Adds a webhook that is told of these kinds. Its secret is made here.
pub(crate) async fn add(
    app: &App,
    account: AccountId,
    url: &str,
    kinds: BTreeSet<NotificationKind>,
) -> Result<Webhook, Problem> {
    let url = check_url(url, app.webhook_host.as_deref())?;
    if kinds.is_empty() {
        return Err(Problem::invalid("kind", "Choose at least one kind of notification."));
    }
    let (id, created_at) = (CommandId::generate(), app.now());
    let webhook = Webhook { id, url, secret: new_webhook_secret(), kinds, created_at, tested_at: None };
    app.notifications
        .change(account, |settings| {
            if settings.webhooks.len() >= MAX_WEBHOOKS {
                let detail = format!("You have {MAX_WEBHOOKS} webhooks: remove one that you do not use.");
                return Err(Problem::invalid("url", detail));
            }
            settings.webhooks.push(webhook.clone());
            Ok(())
        })
        .await?;
    Ok(webhook)
}

/// Removes a webhook. What waits to be sent to it is dropped.
pub(crate) async fn remove(app: &App, account: AccountId, id: CommandId) -> Result<(), Problem> {
    app.notifications
        .change(account, |settings| {
            let before = settings.webhooks.len();
            settings.webhooks.retain(|webhook| webhook.id != id);
            if settings.webhooks.len() < before { Ok(()) } else { Err(Problem::not_found("webhook")) }
        })
        .await
}

/// Sends a notification that is about nothing to a webhook.
pub(crate) async fn test(app: &App, account: AccountId, webhook: CommandId) -> Result<(), Problem> {
    let now = app.now();
    app.notifications
        .change(account, |settings| {
            let known = settings.webhooks.iter_mut().find(|known| known.id == webhook);
            let known = known.ok_or_else(|| Problem::not_found("webhook"))?;
            if known.tested_at.is_some_and(|at| now.since(at) < TEST_PAUSE) {
                return Err(Problem::too_many("A test was sent just now.", TEST_PAUSE.0 / 1_000));
            }
            known.tested_at = Some(now);
            Ok(())
        })
        .await?;
    let notification = Notification {
        kind: NotificationKind::Test,
        seq: None,
        at: now,
        title: "This is a test.".to_owned(),
        path: "/account/notifications".to_owned(),
        data: serde_json::json!({}),
    };
    let id = format!("test-{}", CommandId::generate());
    app.notifications.send(&Delivery::Webhook { account, webhook, id, notification }).await
}

/// The address of a webhook, if requests may be sent there. The notifier checks the addresses behind the name again, at
/// each request.
fn check_url(text: &str, allowed: Option<&str>) -> Result<String, Problem> {
    let bad = |detail: &str| Problem::invalid("url", detail);
    if text.len() > MAX_WEBHOOK_URL {
        return Err(bad("The address is too long: 500 characters at most."));
    }
    let url = Url::parse(text).map_err(|_| bad("This is not an address, such as https://example.com/hook."))?;
    let Some(host) = url.host_str() else { return Err(bad("The address names no host.")) };
    let place = format!("{host}:{}", url.port_or_known_default().unwrap_or_default());
    if url.scheme() != "https" && !(url.scheme() == "http" && allowed == Some(&place)) {
        return Err(bad("The address begins with https://."));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("Leave the user and the password out of the address: each request has a signature."));
    }
    Ok(url.into())
}

/// The host in the address of a webhook. The rest of an address may be a secret.
pub(crate) fn host(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default())
}

/// The end of an address: it tells two webhooks at one host from each other.
pub(crate) fn end(url: &str) -> &str {
    let start = url.char_indices().rev().nth(3).map_or(0, |(at, _)| at);
    &url[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_no_webhook_are_refused() {
        let allowed = Some("127.0.0.1:9000");
        for good in ["https://example.com/hook?x=1", "https://example.com:8443", "http://127.0.0.1:9000/"] {
            assert!(check_url(good, allowed).is_ok(), "{good}");
        }
        assert!(
            check_url("http://127.0.0.1:9000/", None).is_err() && check_url("http://127.0.0.1:1", allowed).is_err()
        );
        let long = format!("https://example.com/{}", "x".repeat(MAX_WEBHOOK_URL));
        for bad in
            ["", "example.com", "http://example.com", "ftp://example.com", "https://", "https://u:p@example.com", &long]
        {
            assert!(check_url(bad, allowed).is_err(), "{bad}");
        }
        assert_eq!(host("https://hooks.slack.com/services/secret"), "hooks.slack.com");
    }
}
