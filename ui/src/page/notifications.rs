//! The page *Notifications*: what an account is told by e-mail and by webhooks, and what was sent.

use std::collections::BTreeSet;

use askama::Template;
use axum::{
    extract::State,
    http::StatusCode,
    response::{Html, IntoResponse, Redirect, Response},
};
use gpubnb_events::{
    CommandId, MicroUsd, Timestamp,
    notification::{DeliveryTry, NotificationKind, NotificationSettings, Webhook},
};
use serde::Deserialize;

use super::{Layout, render_page};
use crate::{
    access::{Client, LinkKind, SignedIn, Viewer},
    accounts,
    app::App,
    error::{PageError, Problem},
    extract::{Form, Path, Query},
    input,
    webhooks::{self, end, host},
};

/// A limit of the balance may not be higher.
const MAX_LOW_BALANCE: MicroUsd = MicroUsd(1_000_000_000_000);

#[derive(Template)]
#[template(path = "notifications.html")]
struct NotificationsPage {
    layout: Layout,
    email: String,
    /// True if this market sends e-mail.
    has_mail: bool,
    settings: NotificationSettings,
    kinds: Vec<NotificationKind>,
    tries: Vec<DeliveryTry>,
    /// The secret of a webhook that was just added. The page shows it only this once.
    new_secret: Option<String>,
    success: Option<&'static str>,
    problem: Option<Problem>,
    /// The submitted form fields that were refused, as (name, value).
    fields: Vec<(String, String)>,
    now: Timestamp,
}

impl NotificationsPage {
    fn field_or<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.fields.iter().find(|(n, _)| n == name).map_or(default, |(_, value)| value)
    }

    fn is_confirmed(&self) -> bool {
        self.settings.address.as_ref() == Some(&self.email)
    }

    fn low_balance(&self) -> String {
        self.settings.low_balance.to_string().trim_start_matches('$').to_owned()
    }

    /// The address of a webhook, for a try. Empty if the webhook was removed.
    fn place<'a>(&'a self, made: &DeliveryTry) -> &'a str {
        let Some(id) = made.webhook else { return "e-mail" };
        self.settings.webhooks.iter().find(|webhook| webhook.id == id).map_or("removed", |w| host(&w.url))
    }

    fn kinds_of(&self, webhook: &Webhook) -> String {
        if webhook.kinds.len() == self.kinds.len() {
            return "everything".to_owned();
        }
        webhook.kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
    }

    /// True if a box is checked, in the form that has the field `marker`: as it was sent; otherwise, for e-mail, as it
    /// is stored, and for a new webhook always.
    // askama passes references.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn is_checked(&self, marker: &str, kind: &NotificationKind) -> bool {
        if self.fields.iter().any(|(name, _)| name == marker) {
            return checked_kinds(&self.fields).contains(kind);
        }
        marker != "has_mail" || self.settings.mail.contains(kind)
    }

    fn is_wrong(&self, field: &str) -> bool {
        self.problem.as_ref().is_some_and(|problem| problem.field.as_deref() == Some(field))
    }
}

async fn render(
    app: &App,
    signed_in: SignedIn,
    new_secret: Option<String>,
    success: Option<&'static str>,
    refused: Option<(Problem, Vec<(String, String)>)>,
) -> Result<Response, Problem> {
    let (problem, fields) = refused.map_or_else(Default::default, |(problem, fields)| (Some(problem), fields));
    let status = problem.as_ref().map_or(StatusCode::OK, |p| StatusCode::from_u16(p.status).unwrap_or_default());
    let page = NotificationsPage {
        layout: Layout::new("Notifications", "account", signed_in.viewer),
        email: app.users.email(signed_in.account).await?,
        has_mail: app.notifications.mail_service(app.now()).await?.is_some(),
        settings: app.notifications.settings(signed_in.account).await?,
        kinds: NotificationKind::choices().collect(),
        tries: app.notifications.tries(signed_in.account).await?,
        new_secret,
        success,
        problem,
        fields,
        now: app.now(),
    };
    Ok((status, render_page(&page)?).into_response())
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct NotificationsQuery {
    /// The change that succeeded before a redirect to this page.
    #[serde(default)]
    done: Option<String>,
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(query): Query<NotificationsQuery>,
) -> Result<Response, PageError> {
    let success = query.done.and_then(|done| match done.as_str() {
        "saved" => Some("Saved."),
        "removed" => Some("The webhook is removed."),
        "sent" => Some("The test is on its way. Reload this page to see whether it arrived."),
        "link" => Some("We sent a link to your address. Open the link to confirm the address."),
        "confirmed" => Some("Your address is confirmed."),
        _ => None,
    });
    Ok(render(&app, signed_in, None, success, None).await?)
}

/// The kinds whose boxes are checked.
fn checked_kinds(fields: &[(String, String)]) -> BTreeSet<NotificationKind> {
    let checked = fields.iter().filter(|(name, _)| name == "kind").filter_map(|(_, value)| value.parse().ok());
    checked.filter(|kind| *kind != NotificationKind::Test).collect()
}

fn value<'a>(fields: &'a [(String, String)], name: &str) -> &'a str {
    fields.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value.trim())
}

/// `POST /account/notifications`: what is sent by e-mail.
pub(crate) async fn save(
    State(app): State<App>,
    signed_in: SignedIn,
    Form(fields): Form<Vec<(String, String)>>,
) -> Result<Response, PageError> {
    let limit = match read_limit(value(&fields, "low_balance")) {
        Ok(limit) => limit,
        Err(problem) => return Ok(render(&app, signed_in, None, None, Some((problem, fields))).await?),
    };
    // Without e-mail, the page shows no boxes.
    let (has_boxes, kinds) = (!value(&fields, "has_mail").is_empty(), checked_kinds(&fields));
    app.notifications
        .change(signed_in.account, |settings| {
            if has_boxes {
                settings.mail.clone_from(&kinds);
            }
            settings.low_balance = limit;
            Ok(())
        })
        .await?;
    Ok(Redirect::to("/account/notifications?done=saved").into_response())
}

fn read_limit(text: &str) -> Result<MicroUsd, Problem> {
    let limit = input::dollars("low_balance", text)?;
    if (MicroUsd(0)..=MAX_LOW_BALANCE).contains(&limit) {
        return Ok(limit);
    }
    Err(Problem::invalid("low_balance", "A limit is from $0 to $1,000,000."))
}

/// `POST /account/webhooks`: adds a webhook.
pub(crate) async fn add_webhook(
    State(app): State<App>,
    signed_in: SignedIn,
    Form(fields): Form<Vec<(String, String)>>,
) -> Result<Response, PageError> {
    let added = webhooks::add(&app, signed_in.account, value(&fields, "url"), checked_kinds(&fields)).await;
    match added {
        Ok(webhook) => Ok(render(&app, signed_in, Some(webhook.secret), None, None).await?),
        Err(problem) if problem.field.is_some() => {
            Ok(render(&app, signed_in, None, None, Some((problem, fields))).await?)
        }
        Err(problem) => Err(problem.into()),
    }
}

/// `POST /account/webhooks/{webhook}/remove`
pub(crate) async fn remove_webhook(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(id): Path<CommandId>,
) -> Result<Redirect, PageError> {
    webhooks::remove(&app, signed_in.account, id).await?;
    Ok(Redirect::to("/account/notifications?done=removed"))
}

/// `POST /account/webhooks/{webhook}/test`: sends a notification that is about nothing.
pub(crate) async fn test_webhook(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(webhook): Path<CommandId>,
) -> Result<Redirect, PageError> {
    webhooks::test(&app, signed_in.account, webhook).await?;
    Ok(Redirect::to("/account/notifications?done=sent"))
}

/// `POST /account/confirm`: sends a link that confirms the e-mail address.
pub(crate) async fn send_link(State(app): State<App>, signed_in: SignedIn) -> Result<Response, PageError> {
    if accounts::send_confirmation(&app, signed_in.account).await? {
        return Ok(Redirect::to("/account/notifications?done=link").into_response());
    }
    let detail = "No link was sent: this address got several already. Look for them, or try again in an hour.";
    let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "TooMany", detail);
    Ok(render(&app, signed_in, None, None, Some((problem, Vec::new()))).await?)
}

#[derive(Template)]
#[template(path = "confirm.html")]
struct ConfirmPage {
    layout: Layout,
    link: String,
}

/// `GET /confirm/{link}`, the link in an e-mail. Only the button on the page confirms the address, because programs
/// that check e-mail open links.
pub(crate) async fn confirm_page(
    State(app): State<App>,
    viewer: Viewer,
    Path(link): Path<String>,
) -> Result<Html<String>, PageError> {
    app.links.check(LinkKind::Confirm, &link, app.now()).await?;
    Ok(render_page(&ConfirmPage { layout: Layout::new("Confirm your address", "", viewer), link })?)
}

/// `POST /confirm/{link}`
pub(crate) async fn confirm(
    State(app): State<App>,
    client: Client,
    Path(link): Path<String>,
) -> Result<Redirect, PageError> {
    app.rate_limits.count_guess(client.address)?;
    let account = app.links.take(LinkKind::Confirm, &link, app.now()).await?;
    app.rate_limits.take_back_guess(client.address);
    if !app.users.exists(account).await? {
        return Err(Problem::not_found("account").into());
    }
    let email = app.users.email(account).await?;
    app.notifications
        .change(account, |settings| {
            settings.address = Some(email.clone());
            Ok(())
        })
        .await?;
    Ok(Redirect::to("/account/notifications?done=confirmed"))
}
