//! Time travel: the market, a job, a machine or an account as it was after any event, compared with another moment.

use askama::Template;
use axum::{extract::State, response::Html};
use gpubnb_events::{Seq, Timestamp};
use gpubnb_query::{
    request::Point,
    view::ops::{MarketThen, Progress, RowThen, Travel, fields},
};
use serde::{Deserialize, Serialize};

use super::{Chrome, html};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    event_search::trail_of,
    extract::Query,
    format,
};

/// The destination, as it stands in the address.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Destination {
    /// `job`, `machine`, `account`; the market if empty.
    #[serde(default)]
    kind: String,
    #[serde(default)]
    id: String,
    /// A sequence; the end of the log if empty.
    #[serde(default)]
    seq: String,
    /// A time, instead of a sequence: `2026-01-31T12:00:00Z`, or a beginning of it such as `2026-01-31`.
    #[serde(default)]
    time: String,
    /// The sequence to compare with.
    #[serde(default)]
    with: String,
}

impl Destination {
    fn point(&self, last: Seq) -> Result<Point, Problem> {
        if let Some(time) = Some(self.time.trim()).filter(|t| !t.is_empty()) {
            // A browser's field for a time sends no zone. It is taken as UTC.
            let time = time.replacen(' ', "T", 1);
            let whole = [time.clone(), format!("{time}Z"), format!("{time}:00Z"), format!("{time}T00:00:00Z")];
            let time = whole.iter().find_map(|text| text.parse::<Timestamp>().ok());
            let what = "Enter a UTC time, for example 2026-01-31 12:00.";
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

/// The content of the page.
enum Then {
    Market(Box<MarketThen>, Option<Box<MarketThen>>),
    Row(RowThen, Vec<Field>),
    /// The read models of that moment are being built.
    Folding(Progress),
}

/// A field of a row, with its other value if it differs at the point of comparison.
struct Field {
    name: String,
    value: String,
    before: Option<String>,
}

#[derive(Template)]
#[template(path = "travel.html")]
struct TravelPage {
    chrome: Chrome,
    to: Destination,
    then: Then,
    seq: Seq,
    last: Seq,
    now: Timestamp,
}

impl TravelPage {
    /// The address that is `events` further, for the buttons beside the slider.
    fn step(&self, events: i64) -> Option<String> {
        let seq = self.seq.0.checked_add_signed(events).filter(|seq| (1..=self.last.0).contains(seq))?;
        Some(self.to.address(Seq(seq)))
    }

    /// Name, value, and value at the point of comparison.
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
                ("Total cost", f.cost.to_string()),
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
                ("Payouts pending", l.payable.to_string()),
                ("Fees", l.fees.to_string()),
                ("External (in − out)", l.external.to_string()),
            ]
        })
    }
}

/// The lines of two markets beside each other.
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
    Query(to): Query<Destination>,
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

async fn row(
    app: &App,
    signed_in: SignedIn,
    to: &Destination,
    point: Point,
    with: Option<Seq>,
) -> Result<Then, Problem> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn point(seq: &str, time: &str) -> Result<Point, Problem> {
        Destination { seq: seq.to_owned(), time: time.to_owned(), ..Default::default() }.point(Seq(9))
    }

    #[test]
    fn a_point_is_a_sequence_or_a_time_and_the_end_of_the_log_without_either() {
        assert!(matches!(point("", ""), Ok(Point::Seq(Seq(9)))));
        assert!(matches!(point("4", ""), Ok(Point::Seq(Seq(4)))));
        assert!(matches!(point("400", ""), Ok(Point::Seq(Seq(9)))), "never after the end");
        assert_eq!(point("four", "").unwrap_err().field.as_deref(), Some("seq"));
        let noon: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        for time in ["2026-01-31T12:00:00Z", "2026-01-31T12:00:00", "2026-01-31T12:00", "2026-01-31 12:00"] {
            assert!(matches!(point("4", time), Ok(Point::Time(at)) if at == noon), "{time}");
        }
        assert!(matches!(point("", "2026-01-31"), Ok(Point::Time(_))));
        assert_eq!(point("", "noon").unwrap_err().field.as_deref(), Some("time"));
    }
}
