//! Values as text for people, with units and few digits.

// Templates pass references.
#![allow(clippy::trivially_copy_pass_by_ref)]

use std::{borrow::Borrow, fmt::Display};

use gpubnb_events::{
    MicroUsd, Millis, Timestamp,
    command::Quote,
    spec::{JobSpec, Mebibytes},
    template,
};
use gpubnb_query::view::{JobState, JobView, MachineState, StatementLine};

/// A size: `1.4 MiB`.
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

/// A size: `512 MiB`, `24 GiB`.
pub(crate) fn mebibytes(size: &Mebibytes) -> String {
    bytes(size.bytes())
}

/// A duration: `1 h 02 min`, `3 min 07 s`, `4.2 s`, `180 ms`.
pub(crate) fn duration(time: impl Borrow<Millis>) -> String {
    let time = time.borrow();
    let seconds = time.0 / 1_000;
    match seconds {
        0 => format!("{} ms", time.0),
        1..60 => format!("{}.{} s", seconds, time.0 % 1_000 / 100),
        60..3_600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3_600..172_800 => format!("{} h {:02} min", seconds / 3_600, seconds % 3_600 / 60),
        _ if seconds % 86_400 < 3_600 => format!("{} days", seconds / 86_400),
        _ => format!("{} days {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// A time as the HTML element `<time>`. Its text is relative, such as `5 min ago`, and its title is the absolute time.
/// The HTML needs no escaping, because it contains no text of a user.
pub(crate) fn time(at: &Timestamp, now: &Timestamp) -> String {
    format!(r#"<time datetime="{at}" title="{at}">{}</time>"#, ago(*at, *now))
}

fn ago(at: Timestamp, now: Timestamp) -> String {
    if at > now.plus(Millis(5_000)) {
        // A time in the future is shown as its date.
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

/// The duration from one time to a later one.
pub(crate) fn duration_between(earlier: &Timestamp, later: &Timestamp) -> String {
    duration(later.since(*earlier))
}

/// An amount with its sign: `+$1.00`, `-$1.00`.
pub(crate) fn signed(amount: &MicroUsd) -> String {
    if amount.0 > 0 { format!("+{amount}") } else { amount.to_string() }
}

/// An amount with all six decimals, so that the amounts of a column stand below each other.
pub(crate) fn exact(amount: &MicroUsd) -> String {
    let micros = amount.0.unsigned_abs();
    format!("{}${}.{:06}", if amount.0 < 0 { "-" } else { "" }, micros / 1_000_000, micros % 1_000_000)
}

/// A change of an amount, with its sign and all six decimals.
pub(crate) fn signed_exact(amount: &MicroUsd) -> String {
    if amount.0 > 0 { format!("+{}", exact(amount)) } else { exact(amount) }
}

/// A number with a thin gap between each three digits.
pub(crate) fn grouped(number: impl Display) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join("\u{202f}")
}

/// The words for the event of a line of a statement.
pub(crate) fn statement_words(line: &StatementLine) -> String {
    match line.event.as_str() {
        "FundsDeposited" => "Funds added",
        "JobSubmitted" => "Set aside for a job",
        "BatchSubmitted" => "Set aside for a batch",
        "BatchClosed" => "Batch closed: the rest is freed",
        // The consumer's line frees what was set aside; the provider's line has only earnings.
        "HoldReleased" => "Set-aside money freed",
        "Settled" if line.held.0 != 0 && line.available.0 == -line.held.0 => "Job settled: nothing to pay",
        "Settled" if line.held.0 != 0 => "Job settled: paid, and the rest freed",
        "Settled" => "Earned from a job",
        "PayoutRequested" => "Payout asked for",
        "PayoutPaid" => "Payout paid",
        "PayoutFailed" => "Payout failed: the money is back",
        "AccountClosed" => "Account closed",
        other => return other.to_owned(),
    }
    .to_owned()
}

/// An amount as a headline, in cents. The exact amount belongs beside it, for example in a title.
pub(crate) fn headline(amount: &MicroUsd) -> String {
    let cents = amount.0.abs() / 10_000;
    match amount.0 {
        0 => "$0.00".to_owned(),
        1..10_000 => "< $0.01".to_owned(),
        micros => format!("{}${}.{:02}", if micros < 0 { "-" } else { "" }, cents / 100, cents % 100),
    }
}

/// An amount with two digits that count, rounded up: $0.003333 is `$0.0034`.
pub(crate) fn about(amount: &MicroUsd) -> String {
    let mut unit = 1;
    while amount.0 / unit >= 100 {
        unit *= 10;
    }
    MicroUsd((amount.0 + unit - 1) / unit * unit).to_string()
}

/// Basis points (hundredths of a percent) as percent: 250 is `2.5 %`.
pub(crate) fn percent(basis_points: &u32) -> String {
    let text = format!("{}.{:02}", basis_points / 100, basis_points % 100);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// The expected start of a quoted job, as the end of a sentence.
pub(crate) fn expected_start(quote: &Quote, now: &Timestamp) -> String {
    let first = match quote.waiting {
        0 => "",
        1 => "; 1 job is waiting already and goes first where it fits",
        _ => "; others are waiting already and go first where they fit",
    };
    match quote.start {
        Some(_) if quote.machine.is_some() => "now, after its image has been downloaded".to_owned(),
        Some(at) => {
            let least = if quote.waiting == 0 { " at the latest" } else { "" };
            format!("when the first machine that fits becomes free, in {}{least}{first}", duration(at.since(*now)))
        }
        None => format!("not known: no machine that fits is online, or it is preparing another job{first}"),
    }
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
    state_tone(&row.state)
}

/// The badge's tone of a state.
pub(crate) fn state_tone(state: &JobState) -> &'static str {
    use JobState::{Accepted, Assigned, Cancelled, Collecting, Completed, Failed, Queued, Running};
    match state {
        Completed => "good",
        Failed => "bad",
        Running | Collecting => "live",
        Queued | Cancelled => "calm",
        Assigned | Accepted => "warn",
    }
}

/// A job's state in a word or two: `Failed`.
pub(crate) fn job_state_name(row: &JobView) -> &'static str {
    match (row.state, row.reason) {
        (state, _) if row.cancel_requested && !state.is_over() => "Cancelling",
        (JobState::Queued, Some(_)) => "Interrupted",
        (JobState::Collecting, _) => "Saving its files",
        (state, _) => state.name(),
    }
}

/// The reason of a job's state, for a job that failed or waits to try again; otherwise empty.
pub(crate) fn job_reason(row: &JobView) -> String {
    let is_named = row.placement.requirements.machine.is_some();
    match (row.state, row.reason) {
        (JobState::Failed, Some(reason)) => reason.description(),
        (JobState::Queued, Some(reason)) if is_named => {
            format!("{}; waiting for the machine that you named", reason.description())
        }
        (JobState::Queued, Some(reason)) => format!("{}; waiting to try again", reason.description()),
        _ => String::new(),
    }
}

/// A job's state with its reason: `Failed: it ran out of memory`.
pub(crate) fn job_state(row: &JobView) -> String {
    match (job_state_name(row), job_reason(row)) {
        (name, reason) if reason.is_empty() => name.to_owned(),
        (name, reason) => format!("{name}: {reason}"),
    }
}

/// The program of a job in a few words: the title of its template, or the image with a short digest.
pub(crate) fn image(spec: &JobSpec) -> String {
    if let Some(template) = spec.template.as_deref().and_then(template::find) {
        return template.title.clone();
    }
    let name = spec.image.rsplit('/').next().unwrap_or_default();
    match name.split_once("@sha256:") {
        Some((name, digest)) => format!("{name}@{}…", digest.chars().take(6).collect::<String>()),
        None => name.to_owned(),
    }
}

/// A duration to the millisecond, for a receipt: `24.177 s`, `1 h 02 min 03 s`.
pub(crate) fn exact_duration(duration: &Millis) -> String {
    let (seconds, millis) = (duration.0 / 1_000, duration.0 % 1_000);
    let rest = if millis == 0 { format!("{} s", seconds % 60) } else { format!("{}.{millis:03} s", seconds % 60) };
    match (seconds / 3_600, seconds / 60 % 60) {
        (0, 0) => rest,
        (0, minutes) => format!("{minutes} min {rest}"),
        (hours, minutes) => format!("{hours} h {minutes} min {rest}"),
    }
}

/// The points of a sparkline of 120 × 24 units, for an SVG polyline: `x,y x,y …`. `load` is in percent.
// Numbers of this size are exact in floating point.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn sparkline(load: &[u8]) -> String {
    // A line needs two points.
    let load = if load.len() == 1 { &[load[0], load[0]] } else { load };
    let step = 120.0 / (load.len().max(2) - 1) as f64;
    let point = |(i, percent): (usize, &u8)| format!("{:.1},{:.1}", i as f64 * step, 23.0 - f64::from(*percent) * 0.22);
    load.iter().enumerate().map(point).collect::<Vec<_>>().join(" ")
}

/// The reliability of a machine: the percentage of attempts that ended without a fault of the machine, and the number
/// of attempts: `98 % (42 attempts)`.
pub(crate) fn reliability((percent, attempts): &(u32, u32)) -> String {
    let noun = if *attempts == 1 { "attempt" } else { "attempts" };
    format!("{percent} % ({attempts} {noun})")
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
        assert_eq!(duration(Millis(30 * 86_400_000)), "30 days");
        assert_eq!(duration(Millis(50 * 3_600_000)), "2 days 2 h");
        assert_eq!(signed(&MicroUsd(1_000_000)), "+$1.00");
        assert_eq!(
            [0, 29, 23_999_830, -500_000].map(|m| headline(&MicroUsd(m))),
            ["$0.00", "< $0.01", "$23.99", "-$0.50"]
        );
        assert_eq!(
            [3_333, 99, 123_456, 1_000_001].map(|m| about(&MicroUsd(m))),
            ["$0.0034", "$0.000099", "$0.13", "$1.10"]
        );
        assert_eq!(exact_duration(&Millis(24_177)), "24.177 s");
        assert_eq!(exact_duration(&Millis(119_700_000)), "33 h 15 min 0 s");
    }
}
