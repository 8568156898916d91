//! The tiles of the console: the state of the market at a glance. Each leads to the part of the console with more of
//! it.

use askama::Template;
use gpubnb_events::{MicroUsd, Timestamp, dead_letter::DeadLetter, event::Check};
use gpubnb_query::view::ops::{LedgerSums, Platform, StuckJob};
use gpubnb_runtime::rpc::RpcError;

use crate::format;

/// A read model that is so many events behind answers with old data.
const FAR_BEHIND: u64 = 1_000;

/// How a tile looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tone {
    Good,
    /// Somebody should look.
    Warn,
    Bad,
    /// There is no answer.
    Unknown,
}

/// One tile.
#[derive(Debug, PartialEq, Eq)]
struct Tile {
    link: &'static str,
    title: &'static str,
    figure: String,
    note: String,
    tone: Tone,
}

impl Tile {
    fn class(&self) -> &'static str {
        match self.tone {
            Tone::Good => "good",
            Tone::Warn | Tone::Unknown => "warn",
            Tone::Bad => "bad",
        }
    }

    fn icon(&self) -> String {
        crate::assets::icon(if self.tone == Tone::Good { "check" } else { "warning" })
    }

    fn unknown(link: &'static str, title: &'static str) -> Self {
        Self { link, title, figure: "unknown".to_owned(), note: "no answer".to_owned(), tone: Tone::Unknown }
    }
}

/// The state of the market that the tiles summarise.
pub(super) struct Overview<'a> {
    pub(super) platform: &'a Platform,
    pub(super) stuck: &'a [StuckJob],
    pub(super) letters: Result<&'a [DeadLetter], &'a RpcError>,
    pub(super) checks: Result<&'a [Check], &'a RpcError>,
    pub(super) sums: Result<&'a LedgerSums, &'a RpcError>,
    pub(super) now: Timestamp,
}

#[derive(Template)]
#[template(path = "console_tiles.html")]
pub(super) struct Tiles {
    tiles: [Tile; 6],
}

impl Tiles {
    pub(super) fn new(overview: &Overview<'_>) -> Self {
        Self {
            tiles: [
                stuck(overview.stuck),
                letters(overview.letters),
                log(overview.platform),
                verification(overview.platform, overview.now),
                money(overview.sums),
                deployment(overview.checks),
            ],
        }
    }
}

/// A tile that is good if it counts nothing.
fn none_or_bad(link: &'static str, title: &'static str, count: usize, notes: [&str; 2]) -> Tile {
    let [none, some] = notes;
    let (note, tone) = if count == 0 { (none, Tone::Good) } else { (some, Tone::Bad) };
    Tile { link, title, figure: count.to_string(), note: note.to_owned(), tone }
}

fn stuck(stuck: &[StuckJob]) -> Tile {
    let notes = ["every job moves on", "too long in one state"];
    none_or_bad("#stuck", "Stuck jobs", stuck.len(), notes)
}

fn letters(letters: Result<&[DeadLetter], &RpcError>) -> Tile {
    let (link, title) = ("#letters", "Undelivered messages");
    match letters {
        Ok(letters) => none_or_bad(link, title, letters.len(), ["every machine gets its jobs", "jobs do not arrive"]),
        Err(_) => Tile::unknown(link, title),
    }
}

fn log(platform: &Platform) -> Tile {
    let behind = platform.models.iter().map(|model| model.lag(platform.last)).max().unwrap_or(0);
    let stopped = platform.models.iter().filter(|model| model.stopped.is_some()).count();
    let (note, tone) = match (stopped, behind) {
        (0, 0) => ("events, all folded".to_owned(), Tone::Good),
        (0, _) => {
            let tone = if behind >= FAR_BEHIND { Tone::Warn } else { Tone::Good };
            (format!("events, {} to fold", format::grouped(behind)), tone)
        }
        (1, _) => ("events, 1 read model stopped".to_owned(), Tone::Bad),
        (more, _) => (format!("events, {more} read models stopped"), Tone::Bad),
    };
    Tile { link: "#models", title: "Log", figure: format::grouped(platform.last.0), note, tone }
}

fn verification(platform: &Platform, now: Timestamp) -> Tile {
    let tile = |figure: &str, note: String, tone| Tile {
        link: "#verification",
        title: "Verification",
        figure: figure.to_owned(),
        note,
        tone,
    };
    let Some(verification) = &platform.verification else {
        return tile("none yet", "start one below".to_owned(), Tone::Warn);
    };
    let Some(ended) = verification.ended_at else {
        return tile("running", format!("{} %", verification.progress.percent()), Tone::Good);
    };
    let age = format!("{} ago", format::duration(now.since(ended)));
    if verification.is_clean() { tile("clean", age, Tone::Good) } else { tile("not clean", age, Tone::Bad) }
}

fn money(sums: Result<&LedgerSums, &RpcError>) -> Tile {
    let (link, title) = ("/console/ledger", "Money");
    let Ok(sums) = sums else { return Tile::unknown(link, title) };
    let (figure, note, tone) = match (sums.total() == MicroUsd::ZERO, sums.payable) {
        (false, _) => ("does not balance", format!("the sum is {}", sums.total()), Tone::Bad),
        (true, MicroUsd::ZERO) => ("balances", format!("{} of fees", sums.fees), Tone::Good),
        (true, waiting) => ("balances", format!("{waiting} of payouts wait"), Tone::Warn),
    };
    Tile { link, title, figure: figure.to_owned(), note, tone }
}

fn deployment(checks: Result<&[Check], &RpcError>) -> Tile {
    let (link, title) = ("#doctor", "Deployment");
    let Ok(checks) = checks else { return Tile::unknown(link, title) };
    let failed = checks.iter().filter(|check| !check.passed).count();
    let figure = format!("{} of {}", checks.len() - failed, checks.len());
    let tone = if failed == 0 { Tone::Good } else { Tone::Bad };
    Tile { link, title, figure, note: "checks passed".to_owned(), tone }
}

#[cfg(test)]
mod tests {
    use gpubnb_events::Seq;
    use gpubnb_query::view::ops::ModelStatus;

    use super::*;

    fn platform(lag: u64, stopped: Option<&str>) -> Platform {
        let model = ModelStatus {
            name: "jobs".to_owned(),
            checkpoint: Seq(5_000 - lag),
            stopped: stopped.map(str::to_owned),
            rebuild: None,
        };
        Platform {
            projector: None,
            streams: Vec::new(),
            last: Seq(5_000),
            models: vec![model],
            per_second: 0,
            verification: None,
            growth: None,
        }
    }

    #[test]
    fn the_tile_of_the_log_says_how_far_the_read_models_are() {
        let seen = |lag, stopped| (log(&platform(lag, stopped)).note, log(&platform(lag, stopped)).tone);
        assert_eq!(seen(0, None), ("events, all folded".to_owned(), Tone::Good));
        assert_eq!(seen(3, None), ("events, 3 to fold".to_owned(), Tone::Good));
        assert_eq!(seen(2_000, None), ("events, 2\u{202f}000 to fold".to_owned(), Tone::Warn));
        assert_eq!(seen(0, Some("why")), ("events, 1 read model stopped".to_owned(), Tone::Bad));
    }

    #[test]
    fn the_tile_of_money_says_that_payouts_wait_and_that_the_ledger_does_not_balance() {
        let sums = |available, payable| LedgerSums {
            available: MicroUsd(available),
            payable: MicroUsd(payable),
            external: MicroUsd(-1_000_000),
            ..LedgerSums::default()
        };
        assert_eq!(money(Ok(&sums(1_000_000, 0))).tone, Tone::Good);
        let waiting = money(Ok(&sums(0, 1_000_000)));
        assert_eq!((waiting.note.as_str(), waiting.tone), ("$1.00 of payouts wait", Tone::Warn));
        assert_eq!(money(Ok(&sums(999_999, 0))).tone, Tone::Bad);
    }

    #[test]
    fn a_count_that_is_not_zero_is_bad_and_a_late_answer_is_unknown() {
        assert_eq!(stuck(&[]).tone, Tone::Good);
        let late = RpcError::Unavailable("late".to_owned());
        assert_eq!(letters(Err(&late)).tone, Tone::Unknown);
        assert_eq!(deployment(Err(&late)).figure, "unknown");
    }
}
