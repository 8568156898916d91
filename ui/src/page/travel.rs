//! The time travel page for operators: the market, a job, a machine or an account as it was right after any event. The
//! page can compare this state with the state after another event.

use std::collections::BTreeMap;

use askama::Template;
use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use gpubnb_events::{MicroUsd, Seq, Timestamp};
use gpubnb_query::{
    request::LogPoint,
    view::ops::{PastMarket, PastRow, Progress, TimeTravel, fields},
};
use serde::{Deserialize, Serialize};

use super::{Layout, render_page};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    event_search::trail_of,
    extract::Query,
    format,
};

/// The aggregate and the event to travel to, as query parameters.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Destination {
    /// `job`, `machine` or `account`; empty for the market.
    #[serde(default)]
    kind: String,
    /// The id of the job, machine or account; empty for the market.
    #[serde(default)]
    id: String,
    /// The sequence of the event; empty for the last event of the log.
    #[serde(default)]
    seq: String,
    /// A UTC time, used instead of `seq`: `2026-01-31T12:00:00Z`, or shorter: `2026-01-31 12:00`, `2026-01-31`.
    #[serde(default)]
    time: String,
    /// The sequence of the event to compare with; empty for no comparison.
    #[serde(default)]
    with: String,
}

impl Destination {
    /// The point in the log to travel to. `last` is the end of the log.
    fn point(&self, last: Seq) -> Result<LogPoint, Problem> {
        if let Some(time) = Some(self.time.trim()).filter(|t| !t.is_empty()) {
            // A time without a zone is UTC. The candidates add the missing end of the text.
            let time = time.replacen(' ', "T", 1);
            let candidates = [time.clone(), format!("{time}Z"), format!("{time}:00Z"), format!("{time}T00:00:00Z")];
            let time = candidates.iter().find_map(|text| text.parse::<Timestamp>().ok());
            let detail = "Enter a UTC time, for example 2026-01-31 12:00.";
            return time.map(LogPoint::Time).ok_or_else(|| Problem::invalid("time", detail));
        }
        match self.seq.trim() {
            "" => Ok(LogPoint::Seq(last)),
            seq => {
                let bad = |_| Problem::invalid("seq", "A sequence is a whole number.");
                Ok(LogPoint::Seq(Seq(seq.parse().map_err(bad)?).min(last)))
            }
        }
    }

    /// The address of this page for the same aggregate at another sequence.
    fn address(&self, seq: Seq) -> String {
        let destination = Self { seq: seq.0.to_string(), time: String::new(), ..self.clone() };
        serde_urlencoded::to_string(&destination).map(|q| format!("/console/travel?{q}")).unwrap_or_default()
    }
}

enum TravelContent {
    /// The market, and the market to compare with.
    Market(Box<PastMarket>, Option<Box<PastMarket>>),
    /// A job, machine or account, and the fields of its view.
    Row(PastRow, Vec<ComparedField>),
    /// The destination cannot be read, or does not exist.
    Refused(Problem),
    /// The projector is still folding the log up to the requested event.
    Folding(Progress),
}

struct ComparedField {
    name: String,
    value: String,
    /// The value after the event to compare with, if it differs; empty if the field did not exist then.
    other_value: Option<String>,
}

#[derive(Template)]
#[template(path = "travel.html")]
struct TravelPage {
    layout: Layout,
    destination: Destination,
    content: TravelContent,
    /// The sequence of the event to which the content belongs.
    seq: Seq,
    /// The last sequence of the log.
    last: Seq,
    now: Timestamp,
}

impl TravelPage {
    /// The buttons: their words, and the address so many events later; `None` outside the log.
    fn steps(&self) -> [(&'static str, Option<String>); 4] {
        [("−100", -100), ("−1", -1), ("+1", 1), ("+100", 100)].map(|(words, events)| {
            let seq = self.seq.0.checked_add_signed(events).filter(|seq| (1..=self.last.0).contains(seq));
            (words, seq.map(|seq| self.destination.address(Seq(seq))))
        })
    }

    /// The rows of the table "The market": name, value, and value in the market to compare with.
    // A template calls only methods of its own struct.
    #[allow(clippy::unused_self)]
    fn figures(&self, market: &PastMarket, other: Option<&PastMarket>) -> Vec<(&'static str, String, String)> {
        compare(market, other, |m| {
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

    /// The rows of the table "The ledger", in the same form.
    #[allow(clippy::unused_self)]
    fn ledger(&self, market: &PastMarket, other: Option<&PastMarket>) -> Vec<(&'static str, String, String)> {
        compare(market, other, |m| {
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

/// The rows of a table of two markets: name, value in `market`, value in `other`.
fn compare(
    market: &PastMarket,
    other: Option<&PastMarket>,
    values: impl Fn(&PastMarket) -> Vec<(&'static str, String)>,
) -> Vec<(&'static str, String, String)> {
    let other_values = other.map(&values).unwrap_or_default();
    let other_value =
        |name| other_values.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone()).unwrap_or_default();
    values(market).into_iter().map(|(name, value)| (name, value, other_value(name))).collect()
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(destination): Query<Destination>,
) -> Result<Response, PageError> {
    let last = app.queries.lag(signed_in.operator_actor()).await?.last;
    let content = match load(&app, signed_in, &destination, last).await {
        Err(problem) if problem.status < 500 => TravelContent::Refused(problem),
        content => content?,
    };
    let seq = match &content {
        TravelContent::Market(market, _) => market.seq,
        TravelContent::Row(row, _) => row.seq,
        TravelContent::Refused(_) => last,
        TravelContent::Folding(_) => match destination.point(last) {
            Ok(LogPoint::Seq(seq)) => seq,
            _ => last,
        },
    };
    let status = match &content {
        TravelContent::Refused(problem) => StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_REQUEST),
        _ => StatusCode::OK,
    };
    let layout = Layout::new("Time travel", "console", signed_in.viewer);
    let page = render_page(&TravelPage { layout, destination, content, seq, last, now: app.now() })?;
    Ok((status, page).into_response())
}

/// The content of the page for a destination.
async fn load(app: &App, signed_in: SignedIn, destination: &Destination, last: Seq) -> Result<TravelContent, Problem> {
    let point = destination.point(last)?;
    let with = Some(destination.with.trim()).filter(|with| !with.is_empty()).map(str::parse).transpose();
    let with = with.map_err(|_| Problem::invalid("with", "A sequence is a whole number."))?.map(Seq);
    if destination.id.trim().is_empty() {
        load_market(app, signed_in, point, with).await
    } else {
        load_row(app, signed_in, destination, point, with).await
    }
}

async fn load_market(
    app: &App,
    signed_in: SignedIn,
    point: LogPoint,
    with: Option<Seq>,
) -> Result<TravelContent, Problem> {
    let market = match app.queries.past_market(signed_in.operator_actor(), point).await? {
        TimeTravel::Folding(progress) => return Ok(TravelContent::Folding(progress)),
        TimeTravel::There(market) => market,
    };
    let other = match with {
        None => None,
        Some(seq) => match app.queries.past_market(signed_in.operator_actor(), LogPoint::Seq(seq)).await? {
            TimeTravel::Folding(progress) => return Ok(TravelContent::Folding(progress)),
            TimeTravel::There(other) => Some(other),
        },
    };
    Ok(TravelContent::Market(market, other))
}

async fn load_row(
    app: &App,
    signed_in: SignedIn,
    destination: &Destination,
    point: LogPoint,
    with: Option<Seq>,
) -> Result<TravelContent, Problem> {
    let of = trail_of(&destination.kind, destination.id.trim())?;
    let row = app.queries.past_row(signed_in.operator_actor(), of, point).await?;
    let other_fields = match with {
        Some(seq) => {
            fields(app.queries.past_row(signed_in.operator_actor(), of, LogPoint::Seq(seq)).await?.row.as_ref())
        }
        None => Vec::new(),
    };
    let then = fields(row.row.as_ref());
    let mut fields = if with.is_some() { compare_fields(then, other_fields) } else { only(then) };
    for field in &mut fields {
        field.value = with_unit(&field.name, std::mem::take(&mut field.value));
        field.other_value = field.other_value.take().map(|value| with_unit(&field.name, value));
    }
    Ok(TravelContent::Row(row, fields))
}

/// A value with its unit, if the end of the field's name says which.
fn with_unit(name: &str, value: String) -> String {
    let Ok(number) = value.parse::<i64>() else { return value };
    match name.rsplit('.').next().unwrap_or(name) {
        "amount" | "available" | "balance" | "budget" | "cost" | "earned" | "fee" | "held" | "hold" | "max_price"
        | "price" | "price_cap" | "spent" => MicroUsd(number).to_string(),
        "time" | "queue" => format!("{number} s"),
        "billed" | "broker" | "limit" | "metered" | "run_time" | "worker" => format!("{number} ms"),
        "disk" | "memory" | "output" | "shm" | "vram" => format!("{number} MiB"),
        "cpu_millis" => format!("{number} thousandths of a core"),
        _ => value,
    }
}

/// The fields of one state, without a comparison.
fn only(fields: Vec<(String, String)>) -> Vec<ComparedField> {
    fields.into_iter().map(|(name, value)| ComparedField { name, value, other_value: None }).collect()
}

/// The fields of two states, in the order of their names. A field that one state does not have is empty there.
fn compare_fields(then: Vec<(String, String)>, other: Vec<(String, String)>) -> Vec<ComparedField> {
    let mut all: BTreeMap<String, (String, String)> = BTreeMap::new();
    for (name, value) in then {
        all.entry(name).or_default().0 = value;
    }
    for (name, value) in other {
        all.entry(name).or_default().1 = value;
    }
    let compared = all.into_iter().map(|(name, (value, other))| {
        let other_value = (other != value).then_some(other);
        ComparedField { name, value, other_value }
    });
    compared.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_has_the_fields_of_both_states() {
        let fields = |fields: &[(&str, &str)]| fields.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let compared = compare_fields(
            fields(&[("state", "Running"), ("seq", "25")]),
            fields(&[("seq", "28"), ("state", "Running"), ("cost", "134")]),
        );
        let rows: Vec<_> =
            compared.iter().map(|f| (f.name.as_str(), f.value.as_str(), f.other_value.as_deref())).collect();
        assert_eq!(rows, [("cost", "", Some("134")), ("seq", "25", Some("28")), ("state", "Running", None)]);
    }

    #[test]
    fn known_numbers_get_their_unit() {
        let shown = |name, value: &str| with_unit(name, value.to_owned());
        assert_eq!(shown("terms.price", "20000"), "$0.02");
        assert_eq!(shown("limits.time", "600"), "600 s");
        assert_eq!(shown("spec.resources.memory", "1024"), "1024 MiB");
        assert_eq!(shown("seq", "28"), "28");
        assert_eq!(shown("time", "2026-01-31"), "2026-01-31");
    }

    fn point(seq: &str, time: &str) -> Result<LogPoint, Problem> {
        Destination { seq: seq.to_owned(), time: time.to_owned(), ..Default::default() }.point(Seq(9))
    }

    #[test]
    fn a_point_is_a_time_or_a_sequence_and_defaults_to_the_end_of_the_log() {
        assert!(matches!(point("", ""), Ok(LogPoint::Seq(Seq(9)))));
        assert!(matches!(point("4", ""), Ok(LogPoint::Seq(Seq(4)))));
        assert!(matches!(point("400", ""), Ok(LogPoint::Seq(Seq(9)))), "a later sequence becomes the end of the log");
        assert_eq!(point("four", "").unwrap_err().field.as_deref(), Some("seq"));
        let noon: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        for time in ["2026-01-31T12:00:00Z", "2026-01-31T12:00:00", "2026-01-31T12:00", "2026-01-31 12:00"] {
            assert!(matches!(point("4", time), Ok(LogPoint::Time(at)) if at == noon), "{time}");
        }
        assert!(matches!(point("", "2026-01-31"), Ok(LogPoint::Time(_))));
        assert_eq!(point("", "noon").unwrap_err().field.as_deref(), Some("time"));
    }
}
