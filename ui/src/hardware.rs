//! The hardware of a machine as pages show it: the GPUs, and the results of the machine's self-test.

// Templates pass all arguments by reference.
#![allow(clippy::trivially_copy_pass_by_ref)]

use gpubnb_events::event::{self, Check, Speed};
use gpubnb_query::view::ListedMachine;

use crate::format;

/// The speeds from the self-test, and the version of CUDA: `67.2 TFLOPS (168 TFLOPS per $/h) · 240 / 38 Mbit/s`.
pub(crate) fn measured(row: &ListedMachine) -> String {
    let speed = score(row).map(|score| format!("{} ({})", score.text, score.per_dollar_text));
    let network = check_value(row, DOWN).and_then(|_| network_text(row));
    let cuda = row.offer.hardware.cuda.as_ref().map(|cuda| format!("CUDA {cuda}"));
    [speed, network, cuda].into_iter().flatten().collect::<Vec<_>>().join(" · ")
}

/// The number and model of the GPUs: `2 × RTX 4090`, or `CPU only`.
pub(crate) fn gpus(row: &ListedMachine) -> String {
    let gpus = &row.offer.hardware.gpus;
    match gpus.first() {
        None => "CPU only".to_owned(),
        Some(first) if gpus.len() == 1 => first.model.clone(),
        Some(first) => format!("{} × {}", gpus.len(), first.model),
    }
}

/// The memory of the GPUs: `24 GiB`, or `2 × 24 GiB`. `None` without a GPU.
pub(crate) fn vram(row: &ListedMachine) -> Option<String> {
    let gpus = &row.offer.hardware.gpus;
    let each = format::mebibytes(&gpus.first()?.memory);
    Some(if gpus.len() == 1 { each } else { format!("{} × {each}", gpus.len()) })
}

/// The measured speed of a machine.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Score {
    /// The speed as text: `67.2 TFLOPS`.
    pub(crate) text: String,
    /// The speed in TFLOPS, divided by the price in dollars per hour. Infinite if the machine is free.
    pub(crate) per_dollar: f64,
    /// `per_dollar` as text: `168 TFLOPS per $/h`, or `free`.
    pub(crate) per_dollar_text: String,
}

/// The speed at which a machine multiplied matrices in its self-test: the speed of its GPUs, or the speed of its cores
/// if it has no GPU. `None` without a measurement.
// The value is only shown and compared. No price depends on it, so the lost precision does no harm.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn score(row: &ListedMachine) -> Option<Score> {
    let speed = Speed::from_checks(&row.checks);
    let cores = || Some(speed.core?.saturating_mul(u64::from(row.offer.hardware.cpu_cores)));
    let megaflops = speed.gpus.or_else(|| cores().filter(|_| row.offer.hardware.gpus.is_empty()))?;
    let teraflops = megaflops as f64 / 1e6;
    let text = |teraflops: f64| match teraflops {
        t if t >= 100.0 => format!("{t:.0} TFLOPS"),
        t if t >= 1.0 => format!("{t:.1} TFLOPS"),
        t => format!("{:.1} GFLOPS", t * 1e3),
    };
    let price = row.offer.price.0.0 as f64 / 1e6;
    let per_dollar = if price > 0.0 { teraflops / price } else { f64::INFINITY };
    let per_dollar_text = if price > 0.0 { format!("{} per $/h", text(per_dollar)) } else { "free".to_owned() };
    Some(Score { text: text(teraflops), per_dollar, per_dollar_text })
}

/// True if the machine says that it passed its self-test. Recommendations do not count.
pub(crate) fn is_verified(row: &ListedMachine) -> bool {
    event::all_passed(&row.checks)
}

/// The result of the self-test in a few words: `20 of 22 checks passed, 2 recommendations`.
pub(crate) fn test_result(row: &ListedMachine) -> String {
    let passed = row.checks.iter().filter(|check| check.passed).count();
    let advice = match recommendations(row).len() {
        0 => String::new(),
        1 => ", 1 recommendation".to_owned(),
        count => format!(", {count} recommendations"),
    };
    format!("{passed} of {} checks passed{advice}", row.checks.len())
}

/// The recommendations of the self-test that the machine does not follow.
pub(crate) fn recommendations(row: &ListedMachine) -> Vec<&Check> {
    row.checks.iter().filter(|check| !check.passed && check.recommended).collect()
}

/// A check that did not pass, as sentences: `disk.room is 5 GiB. Needed: 20 GiB. Free some disk space.`
pub(crate) fn failed_check(check: &Check) -> String {
    let with_unit = |value: &str| format!("{value} {}", check.unit).trim().to_owned();
    let required = with_unit(&check.required);
    let needed = if check.required.is_empty() { String::new() } else { format!(" Needed: {required}.") };
    format!("{} is {}.{needed} {}", check.id, with_unit(&check.actual), check.remedy).trim().to_owned()
}

/// The value that a check of the self-test measured.
fn check_value<'a>(row: &'a ListedMachine, id: &str) -> Option<&'a str> {
    row.checks.iter().find(|check| check.id == id).map(|check| check.actual.as_str())
}

/// The ids of the checks of the network.
const DOWN: &str = "network.down";
const UP: &str = "network.up";

/// The download and upload speeds from the self-test, in Mbit/s. A speed is 0 if it was not measured.
pub(crate) fn network_speed(row: &ListedMachine) -> (f64, f64) {
    let speed = |id| check_value(row, id).and_then(|mbit| mbit.parse().ok()).unwrap_or(0.0);
    (speed(DOWN), speed(UP))
}

/// The download and upload speeds as text: `240 / 38 Mbit/s`.
pub(crate) fn network_text(row: &ListedMachine) -> Option<String> {
    Some(format!("{} / {} Mbit/s", check_value(row, DOWN)?, check_value(row, UP).unwrap_or("–")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;
    use serde_json::json;

    fn with_checks(checks: &[(&str, &str)]) -> ListedMachine {
        let mut m = machine("a", "RTX 4090", 2_000_000).listed;
        let check = |(id, actual): &(&str, &str)| {
            let check = json!({ "id": id, "actual": actual, "required": "", "unit": "", "passed": true });
            serde_json::from_value(check).unwrap()
        };
        m.checks = checks.iter().map(check).collect();
        m
    }

    #[test]
    fn the_score_is_the_speed_of_the_gpus_or_without_gpus_of_all_cores() {
        let text = |m: &ListedMachine| score(m).map(|score| (score.text, score.per_dollar_text));
        let both = |text: &str, per_dollar: &str| Some((text.to_owned(), per_dollar.to_owned()));
        let mut m = with_checks(&[("gpu.0.matmul", "67200"), ("cpu.matmul", "5000")]);
        assert_eq!(text(&m), both("67.2 TFLOPS", "33.6 TFLOPS per $/h"));
        m.offer.price.0.0 = 0;
        assert_eq!(text(&m), both("67.2 TFLOPS", "free"));
        let mut m = with_checks(&[("cpu.matmul", "5000")]);
        assert_eq!(text(&m), None, "the cores do not count on a machine with a GPU");
        m.offer.hardware.gpus.clear();
        assert_eq!(text(&m), both("40.0 GFLOPS", "20.0 GFLOPS per $/h"));
        assert_eq!(gpus(&m), "CPU only");
    }

    #[test]
    fn network_speeds_are_shown_as_measured() {
        let m = with_checks(&[("network.down", "240"), ("network.up", "38")]);
        assert_eq!((network_text(&m).as_deref(), network_speed(&m)), (Some("240 / 38 Mbit/s"), (240.0, 38.0)));
        let m = with_checks(&[("network.down", "240")]);
        assert_eq!((network_text(&m).as_deref(), network_speed(&m)), (Some("240 / – Mbit/s"), (240.0, 0.0)));
        assert_eq!((network_text(&with_checks(&[])), network_speed(&with_checks(&[]))), (None, (0.0, 0.0)));
    }
}
