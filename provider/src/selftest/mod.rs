//! The self-test: whether this machine is fit to run jobs. A record for each check, with what to do where it failed.
//!
//! Belongs here: measuring, and saying what is needed. Must not come here: changing anything on the machine.

mod host;
mod matmul;
mod network;
mod runtime;

use std::{fmt::Write as _, path::Path};

use bollard::Docker;
use gpubnb_events::event::Check;

pub(crate) use self::matmul::Measure;
use crate::{gpu::Gpus, identity::Identity};

/// Checks that a machine has to pass before it is listed; the others inform its owner and consumers.
const NEEDED: [&str; 6] =
    ["docker.answers", "docker.version", "docker.runtime", "gpu.runtime", "disk.room", "clock.skew"];

/// What the test looks at.
pub(crate) struct Subject<'a> {
    pub(crate) state: &'a Path,
    pub(crate) docker: Option<&'a Docker>,
    pub(crate) gpus: &'a Gpus,
    pub(crate) market: Option<(&'a reqwest::Client, &'a str)>,
    /// Runtime for jobs, if not Docker's default.
    pub(crate) runtime: Option<&'a str>,
    pub(crate) cdi: bool,
    /// Whether the GPUs are measured.
    pub(crate) measure: Measure,
}

/// Tests everything; takes some two seconds, and as long as the GPUs are measured.
pub(crate) async fn test(subject: &Subject<'_>) -> Vec<Check> {
    let (runtime, network, host) =
        tokio::join!(runtime::checks(subject), network::checks(subject), host::checks(subject.state, subject.gpus));
    // By itself, for it wants the machine for itself.
    let matmul = matmul::checks(subject).await;
    [runtime, host, matmul, network].concat()
}

/// The checks that keep a machine from being listed.
pub(crate) fn unfit(checks: &[Check]) -> Vec<&Check> {
    checks.iter().filter(|check| !check.passed && NEEDED.contains(&check.id.as_str())).collect()
}

/// Prints the checks for people.
pub(crate) fn show(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let mark = match (check.passed, NEEDED.contains(&check.id.as_str())) {
            (true, _) => "ok  ",
            (false, true) => "FAIL",
            (false, false) => "warn",
        };
        let needed = if check.required.is_empty() { String::new() } else { format!(" (needed: {})", check.required) };
        let remedy = if check.passed { String::new() } else { format!("\n       {}", check.remedy) };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{mark} {:<16} {} {}{needed}{remedy}", check.id, check.actual, check.unit);
    }
    text
}

/// The command: tests, prints, and fails where the machine is not fit.
pub async fn command(state: &Path, args: &crate::config::SelfTestArgs) -> anyhow::Result<()> {
    if args.measure_gpus && crate::commands::in_hand(state).await > 0 {
        anyhow::bail!("jobs run on this machine: measuring would slow them down. gpubnb-provider drain, then again");
    }
    let gpus = Gpus::probe(0, args.nvml.as_deref());
    let docker = crate::docker::connect().await.ok();
    let enrollment = Identity::enrolled_at(state);
    let http = match &enrollment {
        Some(at) => Some((crate::market::http(&at.market, at.market_ca.as_deref())?, at.market.clone())),
        None => None,
    };
    let checks = test(&Subject {
        state,
        docker: docker.as_ref(),
        gpus: &gpus,
        market: http.as_ref().map(|(client, url)| (client, url.as_str())),
        runtime: args.runtime.as_deref(),
        cdi: args.cdi,
        measure: if args.measure_gpus { Measure::Now } else { Measure::Kept },
    })
    .await;
    if args.output.json {
        println!("{}", serde_json::to_string_pretty(&checks)?);
    } else {
        print!("{}", show(&checks));
    }
    let unfit = unfit(&checks).len();
    anyhow::ensure!(unfit == 0, "{unfit} needed checks failed: the machine would not be listed");
    Ok(())
}

fn check(id: &str, actual: impl Into<String>, unit: &str) -> Check {
    Check {
        id: id.to_owned(),
        actual: actual.into(),
        required: String::new(),
        unit: unit.to_owned(),
        passed: true,
        remedy: String::new(),
    }
}

/// A check with a condition, and what to do where it does not hold.
fn needs(check: Check, required: &str, passed: bool, remedy: &str) -> Check {
    let remedy = if passed { String::new() } else { remedy.to_owned() };
    Check { required: required.to_owned(), passed, remedy, ..check }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_keeps_a_machine_from_being_listed() {
        let failed = |id| needs(check(id, "0", "GiB"), "1", false, "make room");
        let checks = [failed("disk.room"), failed("disk.write"), check("clock.skew", "0", "s")];
        assert_eq!(unfit(&checks).iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["disk.room"]);
        let text = show(&checks);
        assert!(text.contains("FAIL disk.room") && text.contains("warn disk.write") && text.contains("make room"));
    }
}
