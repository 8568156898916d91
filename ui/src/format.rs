//! How values look: units always, digits no more than needed.

// Templates pass references.
#![allow(clippy::trivially_copy_pass_by_ref)]

use std::borrow::Borrow;

use gpubnb_events::{
    MicroUsd, Millis, Timestamp,
    command::Quote,
    event::{self, Speed},
    spec::Mebibytes,
};
use gpubnb_query::view::{JobView, ListedMachine, MachineState};

/// `1.4 MB`.
pub(crate) fn bytes(bytes: impl Borrow<u64>) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut whole = *bytes.borrow();
    let mut rest = 0;
    while whole >= 1024 && unit + 1 < UNITS.len() {
        rest = whole % 1024;
        whole /= 1024;
        unit += 1;
    }
    let tenths = rest * 10 / 1024;
    if unit == 0 || tenths == 0 {
        format!("{whole} {}", UNITS[unit])
    } else {
        format!("{whole}.{tenths} {}", UNITS[unit])
    }
}

/// `512 MiB`, `24 GiB`.
pub(crate) fn mebibytes(size: &Mebibytes) -> String {
    bytes(size.bytes())
}

/// `1 h 02 min`, `3 min 07 s`, `4.2 s`, `180 ms`.
pub(crate) fn duration(time: impl Borrow<Millis>) -> String {
    let time = time.borrow();
    let seconds = time.0 / 1_000;
    match seconds {
        0 => format!("{} ms", time.0),
        1..60 => format!("{}.{} s", seconds, time.0 % 1_000 / 100),
        60..3_600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3_600, seconds % 3_600 / 60),
    }
}

/// A moment as `<time>`: relative, with the absolute on hover. Made of numbers only: safe as HTML.
pub(crate) fn time(at: &Timestamp, now: &Timestamp) -> String {
    format!(r#"<time datetime="{at}" title="{at}">{}</time>"#, ago(*at, *now))
}

fn ago(at: Timestamp, now: Timestamp) -> String {
    if at > now.plus(Millis(5_000)) {
        // What lies ahead says its date.
        return at.date();
    }
    let seconds = now.since(at).0 / 1_000;
    match seconds {
        0..5 => "just now".to_owned(),
        5..60 => format!("{seconds} s ago"),
        60..3_600 => format!("{} min ago", seconds / 60),
        3_600..86_400 => format!("{} h ago", seconds / 3_600),
        _ => at.date(),
    }
}

/// How far two clocks are apart.
pub(crate) fn apart(earlier: &Timestamp, later: &Timestamp) -> String {
    duration(later.since(*earlier))
}

/// An amount with its sign: `+$1.00`, `-$1.00`.
pub(crate) fn signed(amount: &MicroUsd) -> String {
    if amount.0 > 0 { format!("+{amount}") } else { amount.to_string() }
}

/// Ten-thousandths as percent, with as many digits as they need: `2.5 %`.
pub(crate) fn percent(basis_points: &u32) -> String {
    let text = format!("{}.{:02}", basis_points / 100, basis_points % 100);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// What people call the hardware: `2 × RTX 4090`, `CPU only`.
pub(crate) fn gpus(row: &ListedMachine) -> String {
    let gpus = &row.offer.hardware.gpus;
    match gpus.first() {
        None => "CPU only".to_owned(),
        Some(first) if gpus.len() == 1 => first.model.clone(),
        Some(first) => format!("{} × {}", gpus.len(), first.model),
    }
}

/// What a machine was measured to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Score {
    /// In words: `67.2 TFLOPS`.
    pub(crate) words: String,
    /// For each dollar an hour.
    pub(crate) per_dollar: f64,
    /// The same in words.
    pub(crate) per_dollar_words: String,
}

/// The rate at which a machine multiplies matrices, by its own self-test: of its GPUs, or of its cores without one.
// Shown, not reckoned with.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn score(row: &ListedMachine) -> Option<Score> {
    let speed = Speed::of(&row.checks);
    let cores = || Some(speed.core?.saturating_mul(u64::from(row.offer.hardware.cpu_cores)));
    let megaflops = speed.gpus.or_else(|| cores().filter(|_| row.offer.hardware.gpus.is_empty()))?;
    let teraflops = megaflops as f64 / 1e6;
    let words = |teraflops: f64| match teraflops {
        t if t >= 100.0 => format!("{t:.0} TFLOPS"),
        t if t >= 1.0 => format!("{t:.1} TFLOPS"),
        t => format!("{:.1} GFLOPS", t * 1e3),
    };
    let price = row.offer.price.0.0 as f64 / 1e6;
    let per_dollar = if price > 0.0 { teraflops / price } else { f64::INFINITY };
    let per_dollar_words = if price > 0.0 { format!("{} per $/h", words(per_dollar)) } else { "free".to_owned() };
    Some(Score { words: words(teraflops), per_dollar, per_dollar_words })
}

/// Whether it has passed every check of its self-test.
pub(crate) fn verified(row: &ListedMachine) -> bool {
    event::verified(&row.checks)
}

/// When a quoted job can start, in words.
pub(crate) fn expected_start(quote: &Quote, now: &Timestamp) -> String {
    let first = match quote.waiting {
        0 => "",
        1 => "; 1 job waits already, and goes first where it fits",
        _ => "; others wait already, and go first where they fit",
    };
    match quote.start {
        Some(_) if quote.machine.is_some() => "at once, when its image is there".to_owned(),
        Some(at) => {
            let least = if quote.waiting == 0 { " at the latest" } else { "" };
            format!("when the first that fits comes free, in {}{least}{first}", duration(at.since(*now)))
        }
        None => format!("not known: no machine that fits is there, or it prepares another job{first}"),
    }
}

/// What a check of its self-test found.
fn found<'a>(row: &'a ListedMachine, id: &str) -> Option<&'a str> {
    row.checks.iter().find(|check| check.id == id).map(|check| check.actual.as_str())
}

const DOWN: &str = "network.down";
const UP: &str = "network.up";

/// What its self-test measured of the way from the market and to it, Mbit/s; nothing where it did not.
pub(crate) fn speed(row: &ListedMachine) -> (f64, f64) {
    let of = |id| found(row, id).and_then(|mbit| mbit.parse().ok()).unwrap_or(0.0);
    (of(DOWN), of(UP))
}

/// The same in words, such as `240 / 38 Mbit/s`.
pub(crate) fn down_up(row: &ListedMachine) -> Option<String> {
    Some(format!("{} / {} Mbit/s", found(row, DOWN)?, found(row, UP).unwrap_or("–")))
}

/// The colour class of a machine's state.
pub(crate) fn machine_tone(state: &MachineState) -> &'static str {
    match state {
        MachineState::Online => "good",
        MachineState::Suspect
        | MachineState::Paused
        | MachineState::Away
        | MachineState::Draining
        | MachineState::Maintenance => "warn",
        MachineState::Lost | MachineState::Delisted => "bad",
    }
}

/// The colour class of a job's state.
pub(crate) fn job_tone(row: &JobView) -> &'static str {
    use gpubnb_query::view::JobState::{Accepted, Assigned, Cancelled, Completed, Failed, Queued, Running};
    match row.state {
        Completed => "good",
        Failed => "bad",
        Running => "live",
        Queued | Cancelled => "calm",
        Assigned | Accepted => "warn",
    }
}

/// A job's state in words, with its reason: "Failed: it ran out of memory".
pub(crate) fn job_state(row: &JobView) -> String {
    use gpubnb_query::view::JobState;
    let name = if row.cancel_requested && !row.state.is_over() { "Cancelling" } else { row.state.name() };
    match (row.state, row.reason) {
        (JobState::Failed, Some(reason)) => format!("{name}: {}", reason.description()),
        (JobState::Queued, Some(reason)) => {
            format!("Interrupted: {}; waiting for another machine", reason.description())
        }
        _ => name.to_owned(),
    }
}

/// The points of a sparkline, 120 × 24: `x,y x,y …`.
// A few hundred points: no precision is lost.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn sparkline(load: &[u8]) -> String {
    // A line needs two points.
    let load = if load.len() == 1 { &[load[0], load[0]] } else { load };
    let step = 120.0 / (load.len().max(2) - 1) as f64;
    let point = |(i, percent): (usize, &u8)| format!("{:.1},{:.1}", i as f64 * step, 23.0 - f64::from(*percent) * 0.22);
    load.iter().enumerate().map(point).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_units_and_no_needless_digits() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1_536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3 GiB");
        assert_eq!(duration(Millis(180)), "180 ms");
        assert_eq!(duration(Millis(4_249)), "4.2 s");
        assert_eq!(duration(Millis(187_000)), "3 min 07 s");
        assert_eq!(duration(Millis(3_720_000)), "1 h 02 min");
        assert_eq!(signed(&MicroUsd(1_000_000)), "+$1.00");
    }
}
