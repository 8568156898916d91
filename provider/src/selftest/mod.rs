//! The self-test: finds out whether this machine is fit to run jobs. Its result is a list of checks. A failed check has
//! a remedy: a text that says how to fix the problem.
//!
//! Belongs here: code that measures, and compares with a requirement. Must not come here: code that changes the
//! machine.

mod host;
mod matmul;
mod network;
mod runtime;

use std::{fmt::Write as _, path::Path};

use bollard::Docker;
use gpubnb_events::event::{Check, RECOMMENDED_CHECKS};

pub(crate) use self::matmul::Measure;
use crate::{
    gpu::Gpus,
    identity::{Enrollment, Identity},
    market::http_client,
};

/// The ids of the checks that a machine must pass before it is listed. A machine that fails another check is listed.
/// Only for a recommendation ([`Check::recommended`]) does the market then say that the machine passed its self-test.
const REQUIRED_CHECKS: [&str; 6] =
    ["docker.answers", "docker.version", "docker.runtime", "gpu.runtime", "disk.room", "clock.skew"];

/// The things that a self-test examines.
pub(crate) struct TestSubject<'a> {
    /// The worker's directory.
    pub(crate) state: &'a Path,
    /// Docker, or the error of the connection to Docker.
    pub(crate) docker: Result<&'a Docker, &'a bollard::errors::Error>,
    pub(crate) gpus: &'a Gpus,
    /// The HTTP client for the market and the market's address; `None` if the machine is not enrolled.
    pub(crate) market: Option<(&'a reqwest::Client, &'a str)>,
    /// The container runtime for jobs; `None` for Docker's default.
    pub(crate) runtime: Option<&'a str>,
    /// True if jobs get GPUs by the Container Device Interface, and not by NVIDIA's runtime.
    pub(crate) cdi: bool,
    pub(crate) measure: Measure,
}

/// Makes all checks. That takes about two seconds, and minutes if the GPUs are measured.
pub(crate) async fn test(subject: &TestSubject<'_>) -> Vec<Check> {
    let (runtime, network, host) =
        tokio::join!(runtime::checks(subject), network::checks(subject), host::checks(subject.state, subject.gpus));
    // The measurement of the GPUs comes last, because nothing else should run at the same time.
    let matmul = matmul::checks(subject).await;
    [runtime, host, matmul, network].concat()
}

/// The required checks that failed. The machine is listed only if there are none.
pub(crate) fn failed_required(checks: &[Check]) -> Vec<&Check> {
    checks.iter().filter(|check| !check.passed && REQUIRED_CHECKS.contains(&check.id.as_str())).collect()
}

/// The checks as text for people, one line per check.
pub(crate) fn describe(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let mark = match (check.passed, REQUIRED_CHECKS.contains(&check.id.as_str())) {
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

/// The command `self-test`: prints the checks, and fails if a required check failed.
pub async fn command(state: &Path, args: &crate::config::SelfTestArgs) -> anyhow::Result<()> {
    if args.measure_gpus && crate::commands::running_jobs(state).await > 0 {
        anyhow::bail!("jobs run on this machine, and measuring would slow them down. First: gpubnb-provider drain");
    }
    let gpus = Gpus::probe(0, args.nvml.as_deref());
    let docker = crate::docker::connect().await;
    let enrollment = Identity::read_enrollment(state);
    let http = match &enrollment {
        Some(Enrollment { market, market_ca }) => Some((http_client(market, market_ca.as_deref())?, market.clone())),
        None => None,
    };
    let checks = test(&TestSubject {
        state,
        docker: docker.as_ref(),
        gpus: &gpus,
        market: http.as_ref().map(|(client, url)| (client, url.as_str())),
        runtime: args.runtime.as_deref(),
        cdi: args.cdi,
        measure: if args.measure_gpus { Measure::Now } else { Measure::LastResult },
    })
    .await;
    if args.output.json {
        println!("{}", serde_json::to_string_pretty(&checks)?);
    } else {
        print!("{}", describe(&checks));
    }
    let failed = failed_required(&checks).len();
    anyhow::ensure!(failed == 0, "{failed} required checks failed: the machine would not be listed");
    Ok(())
}

/// A check without a requirement: it always passes.
fn check(id: &str, actual: impl Into<String>, unit: &str) -> Check {
    Check {
        recommended: RECOMMENDED_CHECKS.contains(&id),
        id: id.to_owned(),
        actual: actual.into(),
        required: String::new(),
        unit: unit.to_owned(),
        passed: true,
        remedy: String::new(),
    }
}

/// Adds a requirement to a check. `remedy` is used only if the check did not pass.
fn with_requirement(check: Check, required: &str, passed: bool, remedy: &str) -> Check {
    let remedy = if passed { String::new() } else { remedy.to_owned() };
    Check { required: required.to_owned(), passed, remedy, ..check }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failed_required_check_makes_a_machine_unfit() {
        let failed = |id| with_requirement(check(id, "0", "GiB"), "1", false, "make room");
        let checks = [failed("disk.room"), failed("disk.write"), check("clock.skew", "0", "s")];
        assert_eq!(failed_required(&checks).iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["disk.room"]);
        let text = describe(&checks);
        assert!(text.contains("FAIL disk.room") && text.contains("warn disk.write") && text.contains("make room"));
    }
}
