//! The ledger page for operators: the totals and the balance of each account.

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

use super::{Layout, render_fragment, render_page};
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
struct LedgerPage {
    layout: Layout,
    card: String,
    /// True for the first page of accounts: only that page is updated live.
    is_live: bool,
}

#[derive(Template)]
#[template(path = "console_ledger_sums.html")]
struct LedgerCard {
    ledger: Accounts,
    /// The last completed verification: the sequence that it reached and the number of violations that it found.
    verified: Option<(Seq, usize)>,
}

impl LedgerCard {
    fn is_balanced(&self) -> bool {
        self.ledger.sums.total() == MicroUsd::ZERO
    }
}

async fn render_card(app: &App, signed_in: SignedIn, after: Option<AccountId>) -> Result<String, Problem> {
    let actor = signed_in.operator_actor();
    let (ledger, platform) = tokio::join!(app.queries.accounts(actor, after), app.queries.platform(actor));
    let completed = platform?.verification.filter(|v| v.ended_at.is_some() && v.failed.is_none());
    let verified = completed.map(|v| (v.progress.at, v.violations.len()));
    render_fragment(&LedgerCard { ledger: ledger?, verified })
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(AfterAccount { after }): Query<AfterAccount>,
) -> Result<Html<String>, PageError> {
    let card = render_card(&app, signed_in, after).await?;
    let layout = Layout::new("Ledger", "console", signed_in.viewer);
    Ok(render_page(&LedgerPage { layout, card, is_live: after.is_none() })?)
}

pub(crate) async fn live(
    State(app): State<App>,
    signed_in: SignedIn,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let is_relevant = |change: &Change| matches!(change.aggregate, Aggregate::Account(_));
    parts::stream(app.changes.clone(), Duration::from_secs(1), is_relevant, move |_| {
        let app = app.clone();
        async move { Ok(vec![PagePart::new("ledger", render_card(&app, signed_in, None).await?)]) }
    })
}
