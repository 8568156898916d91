//! The hardware of a machine as people compare it: GPUs, and what the machine's self-test measured.

// Templates pass references.
#![allow(clippy::trivially_copy_pass_by_ref)]

use gpubnb_events::event::{self, Speed};
use gpubnb_query::view::ListedMachine;

/// Number and model of the GPUs: `2 × RTX 4090`, `CPU only`.
pub(crate) fn gpus(row: &ListedMachine) -> String {
    let gpus = &row.offer.hardware.gpus;
    match gpus.first() {
        None => "CPU only".to_owned(),
        Some(first) if gpus.len() == 1 => first.model.clone(),
        Some(first) => format!("{} × {}", gpus.len(), first.model),
    }
}

/// The speed of a machine.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Score {
    /// For people: `67.2 TFLOPS`.
    pub(crate) text: String,
    /// TFLOPS for each dollar per hour.
    pub(crate) per_dollar: f64,
    /// For people: `168 TFLOPS per $/h`.
    pub(crate) per_dollar_text: String,
}

/// The rate at which a machine multiplies matrices in its self-test, with its GPUs, or with its cores if it has no GPU.
// The value is shown and compared, and nothing is charged by it.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn score(row: &ListedMachine) -> Option<Score> {
    let speed = Speed::of(&row.checks);
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

/// True if the machine passed every check of its self-test.
pub(crate) fn verified(row: &ListedMachine) -> bool {
    event::verified(&row.checks)
}

/// The value that a check of the self-test found.
fn found<'a>(row: &'a ListedMachine, id: &str) -> Option<&'a str> {
    row.checks.iter().find(|check| check.id == id).map(|check| check.actual.as_str())
}

const DOWN: &str = "network.down";
const UP: &str = "network.up";

/// Download and upload speed by the self-test, Mbit/s; 0 if it was not measured.
pub(crate) fn network_speed(row: &ListedMachine) -> (f64, f64) {
    let of = |id| found(row, id).and_then(|mbit| mbit.parse().ok()).unwrap_or(0.0);
    (of(DOWN), of(UP))
}

/// Download and upload speed for people: `240 / 38 Mbit/s`.
pub(crate) fn down_up(row: &ListedMachine) -> Option<String> {
    Some(format!("{} / {} Mbit/s", found(row, DOWN)?, found(row, UP).unwrap_or("–")))
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
    fn the_score_is_that_of_the_gpus_or_else_of_all_cores() {
        let text = |m: &ListedMachine| score(m).map(|score| (score.text, score.per_dollar_text));
        let both = |text: &str, per_dollar: &str| Some((text.to_owned(), per_dollar.to_owned()));
        let mut m = with_checks(&[("gpu.0.matmul", "67200"), ("cpu.matmul", "5000")]);
        assert_eq!(text(&m), both("67.2 TFLOPS", "33.6 TFLOPS per $/h"));
        m.offer.price.0.0 = 0;
        assert_eq!(text(&m), both("67.2 TFLOPS", "free"));
        let mut m = with_checks(&[("cpu.matmul", "5000")]);
        assert_eq!(text(&m), None, "the cores say nothing of a machine with a GPU");
        m.offer.hardware.gpus.clear();
        assert_eq!(text(&m), both("40.0 GFLOPS", "20.0 GFLOPS per $/h"));
        assert_eq!(gpus(&m), "CPU only");
    }

    #[test]
    fn the_network_is_shown_as_it_was_measured() {
        let m = with_checks(&[("network.down", "240"), ("network.up", "38")]);
        assert_eq!((down_up(&m).as_deref(), network_speed(&m)), (Some("240 / 38 Mbit/s"), (240.0, 38.0)));
        let m = with_checks(&[("network.down", "240")]);
        assert_eq!((down_up(&m).as_deref(), network_speed(&m)), (Some("240 / – Mbit/s"), (240.0, 0.0)));
        assert_eq!((down_up(&with_checks(&[])), network_speed(&with_checks(&[]))), (None, (0.0, 0.0)));
    }
}
