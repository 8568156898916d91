//! Time travel: the market, a job, a machine or an account as it was after any event; and what changed since another.

use askama::Template;
use axum::{extract::State, response::Html};
use gpubnb_events::{Seq, Timestamp};
use gpubnb_query::{
    request::Point,
    view::ops::{MarketThen, Progress, RowThen, Travel, fields},
};
use serde::{Deserialize, Serialize};

use super::{Chrome, console::trail_of, html};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    extract::Query,
    format,
};

/// Where to, as in the address.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct To {
    /// `job`, `machine`, `account`; the market if empty.
    #[serde(default)]
    kind: String,
    #[serde(default)]
    id: String,
    /// A sequence; the end of the log if empty.
    #[serde(default)]
    seq: String,
    /// A time, instead of a sequence: `2026-01-31T12:00:00Z`, or without its end.
    #[serde(default)]
    time: String,
    /// What to compare with.
    #[serde(default)]
    with: String,
}

impl To {
    fn point(&self, last: Seq) -> Result<Point, Problem> {
        if let Some(time) = Some(self.time.trim()).filter(|t| !t.is_empty()) {
            // A browser's field for a time has no zone: it is UTC here.
            let whole = [time.to_owned(), format!("{time}Z"), format!("{time}:00Z"), format!("{time}T00:00:00Z")];
            let time = whole.iter().find_map(|text| text.parse::<Timestamp>().ok());
            let what = "Say a time (UTC) like 2026-01-31T12:00:00Z.";
            return time.map(Point::Time).ok_or_else(|| Problem::invalid("time", what));
        }
        match self.seq.trim() {
            "" => Ok(Point::Seq(last)),
            seq => {
                let bad = |_| Problem::invalid("seq", "A sequence is a whole number.");
                Ok(Point::Seq(Seq(seq.parse().map_err(bad)?).min(last)))
            }
        }
    }

    fn address(&self, seq: Seq) -> String {
        let to = Self { seq: seq.0.to_string(), time: String::new(), ..self.clone() };
        serde_urlencoded::to_string(&to).map(|q| format!("/console/travel?{q}")).unwrap_or_default()
    }
}

/// What is shown.
enum Then {
    Market(Box<MarketThen>, Option<Box<MarketThen>>),
    Row(RowThen, Vec<Field>),
    Folding(Progress),
}

/// A field of a row, and what it was at the point that is compared with.
struct Field {
    name: String,
    value: String,
    before: Option<String>,
}

#[derive(Template)]
#[template(path = "travel.html")]
struct TravelPage {
    chrome: Chrome,
    to: To,
    then: Then,
    seq: Seq,
    last: Seq,
    now: Timestamp,
}

impl TravelPage {
    /// Where the slider's buttons lead: so many events further.
    fn step(&self, events: i64) -> Option<String> {
        let seq = self.seq.0.checked_add_signed(events).filter(|seq| (1..=self.last.0).contains(seq))?;
        Some(self.to.address(Seq(seq)))
    }

    /// Name, value, and the value at the point that is compared with.
    #[allow(clippy::unused_self)]
    fn figures(&self, then: &MarketThen, other: Option<&MarketThen>) -> Vec<(&'static str, String, String)> {
        compared(then, other, |m| {
            let f = &m.figures;
            vec![
                ("Machines listed", f.machines.to_string()),
                ("Real GPUs", f.gpus.to_string()),
                ("Lowest price", f.cheapest.map_or_else(|| "–".to_owned(), |price| price.to_string())),
                ("Jobs waiting", f.queued.to_string()),
                ("Jobs on a machine", f.active.to_string()),
                ("Jobs settled", f.settled.to_string()),
                ("They cost", f.cost.to_string()),
                ("Metered time", format::duration(f.metered)),
            ]
        })
    }

    #[allow(clippy::unused_self)]
    fn ledger(&self, then: &MarketThen, other: Option<&MarketThen>) -> Vec<(&'static str, String, String)> {
        compared(then, other, |m| {
            let l = &m.ledger;
            vec![
                ("Accounts with money", l.accounts.to_string()),
                ("Available", l.available.to_string()),
                ("Held for jobs", l.held.to_string()),
                ("On its way out", l.payable.to_string()),
                ("Fees", l.fees.to_string()),
                ("The world outside", l.external.to_string()),
            ]
        })
    }
}

/// Lines of two markets beside each other.
fn compared(
    then: &MarketThen,
    other: Option<&MarketThen>,
    lines: impl Fn(&MarketThen) -> Vec<(&'static str, String)>,
) -> Vec<(&'static str, String, String)> {
    let others = other.map(&lines).unwrap_or_default();
    let before = |name| others.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone()).unwrap_or_default();
    lines(then).into_iter().map(|(name, value)| (name, value, before(name))).collect()
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(to): Query<To>,
) -> Result<Html<String>, PageError> {
    let last = app.queries.lag(signed_in.operator()).await?.last;
    let point = to.point(last)?;
    let with = Some(to.with.trim()).filter(|with| !with.is_empty()).map(str::parse).transpose();
    let with = with.map_err(|_| Problem::invalid("with", "Write the sequence to compare with."))?.map(Seq);
    let then = if to.id.trim().is_empty() {
        market(&app, signed_in, point, with).await?
    } else {
        row(&app, signed_in, &to, point, with).await?
    };
    let seq = match (&then, point) {
        (Then::Market(then, _), _) => then.seq,
        (Then::Row(then, _), _) => then.seq,
        (Then::Folding(_), Point::Seq(seq)) => seq,
        (Then::Folding(_), Point::Time(_)) => last,
    };
    let chrome = Chrome::new("Time travel", "console", signed_in.viewer);
    Ok(html(&TravelPage { chrome, to, then, seq, last, now: app.now() })?)
}

async fn market(app: &App, signed_in: SignedIn, to: Point, with: Option<Seq>) -> Result<Then, Problem> {
    let then = match app.queries.travel(signed_in.operator(), to).await? {
        Travel::Folding(progress) => return Ok(Then::Folding(progress)),
        Travel::There(then) => then,
    };
    let other = match with {
        None => None,
        Some(seq) => match app.queries.travel(signed_in.operator(), Point::Seq(seq)).await? {
            Travel::Folding(progress) => return Ok(Then::Folding(progress)),
            Travel::There(other) => Some(other),
        },
    };
    Ok(Then::Market(then, other))
}

async fn row(app: &App, signed_in: SignedIn, to: &To, point: Point, with: Option<Seq>) -> Result<Then, Problem> {
    let of = trail_of(&to.kind, to.id.trim())?;
    let then = app.queries.then(signed_in.operator(), of, point).await?;
    let before = match with {
        Some(seq) => fields(app.queries.then(signed_in.operator(), of, Point::Seq(seq)).await?.row.as_ref()),
        None => Vec::new(),
    };
    let was = |name: &str| before.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone());
    let fields = fields(then.row.as_ref()).into_iter().map(|(name, value)| {
        let before = with.map(|_| was(&name).unwrap_or_default()).filter(|before| *before != value);
        Field { name, value, before }
    });
    let fields = fields.collect();
    Ok(Then::Row(then, fields))
}
