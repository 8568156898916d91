//! The public status page: whether the market works now, and what became of the jobs of the last days, from the log.

use askama::Template;
use axum::{extract::State, response::Html};
use gpubnb_events::{Actor, MicroUsd, Millis, Timestamp};
use gpubnb_query::{
    request::Lag,
    view::{Day, Figures, MarketDay, ops::Platform},
};

use super::{Layout, render_page};
use crate::{access::Viewer, app::App, error::PageError, format};

/// The number of days in the table.
const DAYS: u32 = 30;
/// The pages are delayed if the read models are more events than this behind the log.
const MAX_BEHIND: u64 = 1_000;
/// Bills are slow if one of today's took longer than this.
const SLOW_BILL: Millis = Millis(60_000);
/// So many jobs of a day may have no bill: some have only just ended, or ended before midnight.
const MAX_UNBILLED: u32 = 10;

/// A part of the market, as a stranger sees it.
struct Part {
    name: &'static str,
    is_good: bool,
    /// The state of the part, as a sentence.
    words: String,
}

#[derive(Template)]
#[template(path = "status.html")]
struct StatusPage {
    layout: Layout,
    parts: Vec<Part>,
    /// Those of the last days that have an event, newest first.
    days: Vec<MarketDay>,
}

impl StatusPage {
    fn is_good(&self) -> bool {
        self.parts.iter().all(|part| part.is_good)
    }

    fn date(&self, day: &MarketDay) -> String {
        Timestamp::from_millis(i64::from(day.day) * 86_400_000).date()
    }

    /// The mean time that the jobs of a day waited for their first machine.
    fn mean_wait(&self, day: &MarketDay) -> Option<Millis> {
        day.waited.0.checked_div(u64::from(day.assigned)).map(Millis)
    }
}

/// `GET /status`. The page has only sums, so that everybody may see it. A part that does not answer is named, and is no
/// error of the page.
pub(crate) async fn page(State(app): State<App>, viewer: Viewer) -> Result<Html<String>, PageError> {
    let actor = Actor::Platform;
    let (lag, figures, days, platform) = tokio::join!(
        app.queries.lag(actor),
        app.queries.figures(actor),
        app.queries.market_days(actor, Day::number(app.now()).saturating_sub(DAYS - 1)),
        app.queries.platform(actor),
    );
    let days = days.unwrap_or_default();
    let parts =
        vec![pages(lag.ok()), machines(figures.ok()), bills(&days, app.now()), ledger(platform.ok(), app.now())];
    Ok(render_page(&StatusPage { layout: Layout::new("Status", "", viewer), parts, days })?)
}

fn pages(lag: Option<Lag>) -> Part {
    let (is_good, words) = match lag {
        None => (false, "They do not answer now. Running jobs go on.".to_owned()),
        Some(lag) if !lag.stopped.is_empty() => {
            (false, "Some show an earlier state. An operator must repair a read model.".to_owned())
        }
        Some(lag) => match lag.last.0.saturating_sub(lag.applied.0) {
            behind if behind > MAX_BEHIND => (false, format!("They are {behind} events behind the log.")),
            0 => (true, format!("They show all {} events of the log.", lag.last)),
            behind => (true, format!("They are {behind} events behind the log, which has {}.", lag.last)),
        },
    };
    Part { name: "Pages and API", is_good, words }
}

fn machines(figures: Option<Figures>) -> Part {
    let (is_good, words) = match figures {
        None => (false, "Not known now.".to_owned()),
        Some(figures) if figures.cheapest.is_none() => {
            (false, format!("No machine takes jobs now; {} jobs wait.", figures.queued))
        }
        Some(Figures { machines, active, queued, .. }) => {
            (true, format!("{machines} machines are listed; {active} jobs run, {queued} wait."))
        }
    };
    Part { name: "Machines", is_good, words }
}

fn bills(days: &[MarketDay], now: Timestamp) -> Part {
    let today = days.first().filter(|day| day.day == Day::number(now));
    let ended = |day: &MarketDay| day.completed + day.failed + day.given_up + day.cancelled;
    let (is_good, words) = match today {
        Some(day) if ended(day) > day.settled + MAX_UNBILLED => {
            (false, format!("{} jobs that ended today have no bill yet.", ended(day) - day.settled))
        }
        Some(day) if day.settled > 0 => (
            day.slowest_bill <= SLOW_BILL,
            format!("{} today; the slowest came {} after its job.", day.settled, format::duration(day.slowest_bill)),
        ),
        _ => (true, "No job has ended today.".to_owned()),
    };
    Part { name: "Bills", is_good, words }
}

fn ledger(platform: Option<Platform>, now: Timestamp) -> Part {
    let (is_good, words) = match platform.map(|platform| platform.verification) {
        None => (false, "Not known now.".to_owned()),
        Some(None) => (true, "Not verified since the last start.".to_owned()),
        Some(Some(verification)) if verification.failed.is_some() => {
            (false, "The last verification could not be finished.".to_owned())
        }
        Some(Some(verification)) => match verification.ended_at {
            None => (true, "The log is being verified.".to_owned()),
            Some(at) if verification.is_clean() => {
                let ago = format::duration_between(&at, &now);
                (true, format!("The whole log was verified {ago} ago. All accounts sum to {}.", MicroUsd::ZERO))
            }
            Some(_) => (false, "The last verification found a difference. Operators look into it.".to_owned()),
        },
    };
    Part { name: "Log and ledger", is_good, words }
}

#[cfg(test)]
mod tests {
    use gpubnb_events::Seq;

    use super::*;

    #[test]
    fn each_part_says_what_is_wrong() {
        let lag = |last, applied| Some(Lag { last: Seq(last), applied: Seq(applied), stopped: Vec::new() });
        assert!(pages(lag(5_000, 4_500)).is_good);
        assert_eq!(pages(lag(5_000, 100)).words, "They are 4900 events behind the log.");
        assert!(!pages(None).is_good);
        let stopped = Lag { last: Seq(1), applied: Seq(1), stopped: vec![("jobs".to_owned(), "x".to_owned())] };
        assert!(!pages(Some(stopped)).is_good);
        assert!(!machines(Some(Figures::default())).is_good);
        let now = Timestamp::from_millis(86_400_000 * 20_000);
        let day = |day, took| MarketDay { day, settled: 1, slowest_bill: Millis(took), ..MarketDay::default() };
        assert!(bills(&[day(20_000, 500)], now).is_good && bills(&[day(19_999, 99_000)], now).is_good);
        assert!(!bills(&[day(20_000, 61_000)], now).is_good);
        let unbilled = MarketDay { day: 20_000, completed: 500, ..MarketDay::default() };
        assert_eq!(bills(&[unbilled], now).words, "500 jobs that ended today have no bill yet.");
        assert!(!ledger(None, now).is_good);
    }
}
