//! One machine: the offer, what it does now, its self-test, its record and its trail.

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
use gpubnb_events::{Aggregate, MachineId, Seq, Timestamp};
use gpubnb_projector::{
    client::{TrailOf, TrailQuery},
    view::{MachineView, TrailEvent},
};

use super::{Chrome, fragment, html};
use crate::{
    access::Viewer,
    app::App,
    error::{PageError, Problem},
    extract::Path,
    live::fragment as live_fragment,
};

#[derive(Template)]
#[template(path = "machine.html")]
struct MachinePage {
    chrome: Chrome,
    m: MachineView,
    now_card: String,
    trail: Vec<TrailEvent>,
    now: Timestamp,
}

#[derive(Template)]
#[template(path = "machine_now.html")]
struct Now<'a> {
    m: &'a MachineView,
}

pub(crate) async fn page(
    State(app): State<App>,
    viewer: Viewer,
    Path(machine): Path<MachineId>,
) -> Result<Html<String>, PageError> {
    let actor = viewer.actor();
    let m = app.queries.machine(actor, machine, Seq::ZERO).await?;
    let query = TrailQuery { of: TrailOf::Machine(machine), skip: 0, limit: 100 };
    let trail = app.queries.trail(actor, query, Seq::ZERO).await?.rows;
    let now_card = fragment(&Now { m: &m })?;
    let chrome = Chrome::new(m.row.offer.name.clone(), "market", viewer);
    Ok(html(&MachinePage { chrome, m, now_card, trail, now: app.now() })?)
}

pub(crate) async fn live(
    State(app): State<App>,
    viewer: Viewer,
    Path(machine): Path<MachineId>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    let matters = move |a| a == Aggregate::Machine(machine);
    live_fragment::stream(changes, "now", Duration::from_secs(1), matters, move |seq| {
        let app = app.clone();
        async move {
            let m = app.queries.machine(viewer.actor(), machine, seq).await.map_err(Problem::from)?;
            fragment(&Now { m: &m })
        }
    })
}
