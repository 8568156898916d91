//! The self-test, which finds out whether this machine is fit to run jobs. Each check is a record, with a remedy where
//! it failed.
//!
//! Belongs here: measuring, and comparing with what is needed. Must not come here: changing anything on the machine.

mod host;
mod matmul;
mod network;
mod runtime;

use std::{fmt::Write as _, path::Path};

use bollard::Docker;
use gpubnb_events::event::Check;

pub(crate) use self::matmul::Measure;
use crate::{gpu::Gpus, identity::Identity};

/// The checks that a machine has to pass before it is listed. The others only inform its owner and consumers.
const NEEDED: [&str; 6] =
    ["docker.answers", "docker.version", "docker.runtime", "gpu.runtime", "disk.room", "clock.skew"];

/// The subject of a self-test: the machine's directory, its Docker, its GPUs, and the market.
pub(crate) struct TestSubject<'a> {
    pub(crate) state: &'a Path,
    pub(crate) docker: Result<&'a Docker, &'a bollard::errors::Error>,
    pub(crate) gpus: &'a Gpus,
    pub(crate) market: Option<(&'a reqwest::Client, &'a str)>,
    /// The container runtime for jobs, where it is not Docker's default.
    pub(crate) runtime: Option<&'a str>,
    pub(crate) cdi: bool,
    pub(crate) measure: Measure,
}

/// Makes all checks. That takes about two seconds, and longer where the GPUs are measured.
pub(crate) async fn test(subject: &TestSubject<'_>) -> Vec<Check> {
    let (runtime, network, host) =
        tokio::join!(runtime::checks(subject), network::checks(subject), host::checks(subject.state, subject.gpus));
    // This measurement comes last, because nothing else should run beside it.
    let matmul = matmul::checks(subject).await;
    [runtime, host, matmul, network].concat()
}

/// The checks that keep a machine from being listed.
pub(crate) fn unfit(checks: &[Check]) -> Vec<&Check> {
    checks.iter().filter(|check| !check.passed && NEEDED.contains(&check.id.as_str())).collect()
}

/// The checks as lines for people.
pub(crate) fn describe(checks: &[Check]) -> String {
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

/// The command `self-test`: prints the checks, and fails where the machine is not fit.
pub async fn command(state: &Path, args: &crate::config::SelfTestArgs) -> anyhow::Result<()> {
    if args.measure_gpus && crate::commands::running_jobs(state).await > 0 {
        anyhow::bail!("jobs run on this machine: measuring would slow them down. gpubnb-provider drain, then again");
    }
    let gpus = Gpus::probe(0, args.nvml.as_deref());
    let docker = crate::docker::connect().await;
    let enrollment = Identity::enrolled_at(state);
    let http = match &enrollment {
        Some(at) => Some((crate::market::http(&at.market, at.market_ca.as_deref())?, at.market.clone())),
        None => None,
    };
    let checks = test(&TestSubject {
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
        print!("{}", describe(&checks));
    }
    let unfit = unfit(&checks).len();
    anyhow::ensure!(unfit == 0, "{unfit} needed checks failed: the machine would not be listed");
    Ok(())
}

/// A check that only informs.
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

/// Adds a requirement to a check, with the remedy where the check does not meet it.
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
        let text = describe(&checks);
        assert!(text.contains("FAIL disk.room") && text.contains("warn disk.write") && text.contains("make room"));
    }
}
