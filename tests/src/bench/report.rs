//! The report of the benchmarks: a table for people and a JSON file for programs.

use std::path::Path;

use serde::Serialize;

/// One measured figure with its baseline and its target.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) value: f64,
    pub(super) unit: &'static str,
    pub(super) baseline_name: &'static str,
    pub(super) baseline: f64,
    /// The value divided by the baseline.
    pub(super) ratio: f64,
    /// Number of samples of the value.
    pub(super) runs: usize,
    /// The target in words, such as `>= 0.6`.
    pub(super) target: &'static str,
    /// True if the target is met.
    pub(super) met: bool,
}

impl Figure {
    pub(super) fn new(
        name: &'static str,
        (value, unit): (f64, &'static str),
        (baseline_name, baseline): (&'static str, f64),
        runs: usize,
        (target, met): (&'static str, fn(&Figure) -> bool),
    ) -> Self {
        let ratio = value / baseline;
        let figure = Self { name, value, unit, baseline_name, baseline, ratio, runs, target, met: false };
        Self { met: met(&figure), ..figure }
    }
}

/// All figures that were measured.
#[derive(Default)]
pub(super) struct Report(Vec<Figure>);

impl Report {
    pub(super) fn add(&mut self, figures: Vec<Figure>) {
        for f in &figures {
            let verdict = if f.met { "met" } else { "MISSED" };
            println!(
                "{:<26} {:>12.3} {:<9} {:<38} {:>12.3}  ratio {:>7.3}  {} ({verdict})",
                f.name, f.value, f.unit, f.baseline_name, f.baseline, f.ratio, f.target
            );
        }
        self.0.extend(figures);
    }

    pub(super) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join("report.json");
        std::fs::write(&path, serde_json::to_string_pretty(&self.0)?)?;
        println!("written to {}", path.display());
        Ok(())
    }
}
