//! The ledger, for operators: the totals, and each account.

use std::{convert::Infallible, time::Duration};

use askama::Template;
use axum::{
    extract::State,
    response::{
        Html,
        sse::{Event, Sse},
    },
};
use futures_util::Stream;
use gpubnb_events::{AccountId, Aggregate, MicroUsd, Seq};
use gpubnb_query::view::ops::Accounts;

use super::{Chrome, fragment, html};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    extract::{AfterAccount, Query},
    live::parts::{self, PagePart},
    state::Change,
};

#[derive(Template)]
#[template(path = "console_ledger.html")]
struct Ledger {
    chrome: Chrome,
    contents: String,
    /// True for the first page, which is updated as accounts change.
    live: bool,
}

#[derive(Template)]
#[template(path = "console_ledger_sums.html")]
struct Contents {
    ledger: Accounts,
    /// The last sequence and the number of findings of the last verification, if one has ended.
    verified: Option<(Seq, usize)>,
}

impl Contents {
    fn balances(&self) -> bool {
        self.ledger.sums.total() == MicroUsd::ZERO
    }
}

async fn contents(app: &App, signed_in: SignedIn, after: Option<AccountId>) -> Result<String, Problem> {
    let actor = signed_in.operator();
    let (ledger, platform) = tokio::join!(app.queries.accounts(actor, after), app.queries.platform(actor));
    let ended = platform?.verification.filter(|v| v.ended_at.is_some() && v.failed.is_none());
    let verified = ended.map(|v| (v.progress.at, v.violations.len()));
    fragment(&Contents { ledger: ledger?, verified })
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(AfterAccount { after }): Query<AfterAccount>,
) -> Result<Html<String>, PageError> {
    let contents = contents(&app, signed_in, after).await?;
    let chrome = Chrome::new("Ledger", "console", signed_in.viewer);
    Ok(html(&Ledger { chrome, contents, live: after.is_none() })?)
}

pub(crate) async fn live(
    State(app): State<App>,
    signed_in: SignedIn,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let matters = |change: &Change| matches!(change.aggregate, Aggregate::Account(_));
    parts::stream(app.changes.clone(), Duration::from_secs(1), matters, move |_| {
        let app = app.clone();
        async move { Ok(vec![PagePart::new("ledger", contents(&app, signed_in, None).await?)]) }
    })
}
