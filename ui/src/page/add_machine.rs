//! The page that adds a machine: the commands to run on the machine, and a list of steps that shows live how far the
//! machine has come.
//!
//! The enrollment code is a secret, and the page shows it until it expires. It is kept in a cookie of the owner's
//! browser and nowhere else, so that the page can be loaded again.

use std::{convert::Infallible, time::Duration};

use askama::Template;
use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::{
        AppendHeaders, Html, IntoResponse, Redirect, Response,
        sse::{Event, Sse},
    },
};
use futures_util::Stream;
use gpubnb_events::{
    AccountId, Aggregate, Seq, Timestamp,
    command::{CreateEnrollment, EnrollmentCode},
    event::Check,
};
use gpubnb_query::view::{ListedMachine, MachineView};
use serde::{Deserialize, Serialize};

use super::{Layout, render_fragment, render_page};
use crate::{
    access::{SignedIn, cookie},
    app::App,
    error::{PageError, Problem},
    extract::Origin,
    live::parts::{self, PagePart},
    state::Change,
};

/// The cookie with the code. Because of the prefix `__Host-`, browsers send the cookie only to this host.
const CODE_COOKIE: &str = "__Host-enrollment";
/// The time for which the browser keeps the cookie, seconds. A code can be used for an hour.
const COOKIE_LIFE: u32 = 3_600;

/// The content of the cookie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Enrollment {
    /// The account for which the code was made. Another person may use the same browser.
    account: AccountId,
    code: String,
    made_at: Timestamp,
    expires: Timestamp,
    /// The address of the market, as the owner's browser reaches it.
    market: String,
}

impl Enrollment {
    /// The code that the browser keeps, if it can still be used.
    fn from_cookie(headers: &HeaderMap, account: AccountId, now: Timestamp) -> Option<Self> {
        let enrollment: Self = serde_urlencoded::from_str(cookie(headers, CODE_COOKIE)?).ok()?;
        (enrollment.account == account && now < enrollment.expires).then_some(enrollment)
    }

    fn to_cookie(&self) -> String {
        // The encoding leaves no character that has a meaning in a cookie.
        let value = serde_urlencoded::to_string(self).unwrap_or_default();
        format!("{CODE_COOKIE}={value}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={COOKIE_LIFE}")
    }
}

#[derive(Template)]
#[template(path = "add_machine.html")]
struct AddMachinePage {
    layout: Layout,
    enrollment: Option<Enrollment>,
    /// True if this server has the worker's program for owners.
    has_worker: bool,
    arrival: String,
    now: Timestamp,
}

/// The steps of the machine that the owner adds.
#[derive(Template)]
#[template(path = "add_machine_arrival.html")]
struct ArrivalCard {
    /// The newest machine of the account that was listed after the code was made.
    machine: Option<MachineView>,
}

impl ArrivalCard {
    fn failed_checks<'a>(&self, machine: &'a ListedMachine) -> Vec<&'a Check> {
        machine.checks.iter().filter(|check| !check.passed && !check.recommended).collect()
    }
}

/// `POST /provider/enrollments`: makes a code, and shows the page with the code.
pub(crate) async fn enroll(
    State(app): State<App>,
    signed_in: SignedIn,
    Origin(market): Origin,
) -> Result<Response, PageError> {
    let made: EnrollmentCode = app.command("enrollment", "create", signed_in.actor(), &CreateEnrollment {}).await?;
    let cookie =
        Enrollment { account: signed_in.account, code: made.code, made_at: app.now(), expires: made.expires, market }
            .to_cookie();
    Ok((AppendHeaders([(header::SET_COOKIE, cookie)]), Redirect::to("/provider/add")).into_response())
}

/// `GET /provider/add`: the page.
pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    headers: HeaderMap,
) -> Result<Html<String>, PageError> {
    let now = app.now();
    let enrollment = Enrollment::from_cookie(&headers, signed_in.account, now);
    let arrival = match &enrollment {
        Some(enrollment) => render_arrival(&app, signed_in, enrollment, Seq::ZERO).await?,
        None => String::new(),
    };
    let layout = Layout::new("Add a machine", "provider", signed_in.viewer);
    let has_worker = app.worker.path().is_some();
    Ok(render_page(&AddMachinePage { layout, enrollment, has_worker, arrival, now })?)
}

/// `GET /provider/add/live`: the steps, whenever a machine of the account changes.
pub(crate) async fn live(
    State(app): State<App>,
    signed_in: SignedIn,
    headers: HeaderMap,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let enrollment = Enrollment::from_cookie(&headers, signed_in.account, app.now());
    let changes = app.changes.clone();
    let is_relevant = |change: &Change| matches!(change.aggregate, Aggregate::Machine(_));
    parts::stream(changes, Duration::from_millis(500), is_relevant, move |seq| {
        let (app, enrollment) = (app.clone(), enrollment.clone());
        async move {
            let Some(enrollment) = enrollment else { return Ok(Vec::new()) };
            Ok(vec![PagePart::new("arrival", render_arrival(&app, signed_in, &enrollment, seq).await?)])
        }
    })
}

async fn render_arrival(app: &App, signed_in: SignedIn, enrollment: &Enrollment, seq: Seq) -> Result<String, Problem> {
    let own = app.queries.machines_of(signed_in.actor(), signed_in.account, seq).await?;
    let has_arrived = |machine: &MachineView| {
        let listed = &machine.listed;
        listed.listed_at >= enrollment.made_at && !listed.is_delisted()
    };
    let machine = own.into_iter().filter(has_arrived).max_by_key(|machine| machine.listed.listed_at);
    render_fragment(&ArrivalCard { machine })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::Millis;

    #[test]
    fn the_browser_keeps_the_code_until_it_expires() {
        let at = |millis| Timestamp::EPOCH.plus(Millis(millis));
        let (code, market) = ("ABCD; x=1".to_owned(), "https://m.example:1".to_owned());
        let account = AccountId::generate();
        let enrollment = Enrollment { account, code, made_at: at(1_400_000), expires: at(5_000_000), market };
        let set = enrollment.to_cookie();
        let pair = set.split("; ").next().unwrap();
        assert!(!pair.contains([' ', ';', ',', '"']), "{pair}");
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, pair.parse().unwrap());
        assert_eq!(Enrollment::from_cookie(&headers, account, at(4_999_999)), Some(enrollment));
        assert_eq!(Enrollment::from_cookie(&headers, account, at(5_000_000)), None);
        assert_eq!(Enrollment::from_cookie(&headers, AccountId::generate(), at(4_999_999)), None);
    }
}
