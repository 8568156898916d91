//! Events of a machine: its offer, the instructions of its owner, and its presence on the market.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{AccountId, MachineId},
    money::HourlyRate,
    spec::{MachineSettings, Offer},
};

/// A machine was offered, or its offer changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineListed {
    /// The machine.
    pub machine: MachineId,
    /// The account that owns the machine and earns.
    pub owner: AccountId,
    /// The machine's public key, if it has enrolled one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// The offer.
    pub offer: Offer,
}

/// The price of a machine changed. The new price holds for later assignments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRepriced {
    /// The machine.
    pub machine: MachineId,
    /// The new price.
    pub price: HourlyRate,
}

/// The owner asked for other settings of a machine. The price holds at once, for later assignments; the machine takes
/// the other settings, and lists itself anew with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSettingsRequested {
    /// The machine.
    pub machine: MachineId,
    /// The settings.
    pub settings: MachineSettings,
}

/// A machine was paused: it takes no new jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinePaused {
    /// The machine.
    pub machine: MachineId,
    /// True if the machine paused itself, because its owner uses it: the machine is away from the market. Otherwise the
    /// owner asked for the pause.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub away: bool,
}

/// A pause of a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineResumed {
    /// The machine.
    pub machine: MachineId,
    /// True if the pause ended because the owner no longer uses the machine. Otherwise the owner's own pause ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub away: bool,
}

/// A drain of a machine began: the machine finishes its jobs and takes no new ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineDrainStarted {
    /// The machine.
    pub machine: MachineId,
    /// True if the owner announced maintenance. Once the machine has no jobs, its silence raises no alarm.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub maintenance: bool,
}

macro_rules! machine_events {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $name {
            /// The machine.
            pub machine: MachineId,
        }
    )+};
}

machine_events! {
    /// A machine left the market.
    MachineDelisted,
    /// A machine missed heartbeats, and gets no new jobs.
    MachineSuspected,
    /// A machine was silent for so long that its jobs are requeued.
    MachineLost,
    /// A suspected or lost machine sends heartbeats again.
    MachineRecovered,
}

/// A machine made a self-test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineTested {
    /// The machine.
    pub machine: MachineId,
    /// The checks.
    pub checks: Vec<Check>,
    /// The speed that was measured, for the placement of jobs.
    pub speed: Speed,
}

/// One check of a self-test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Check {
    /// The id, such as `disk.write`.
    pub id: String,
    /// The measured value.
    pub actual: String,
    /// The required value; empty for a check that requires nothing.
    pub required: String,
    /// The unit of both values.
    pub unit: String,
    /// True if the check passed.
    pub passed: bool,
    /// Advice for a check that did not pass.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// True for a recommendation: the machine may run jobs even if this check did not pass. Old workers did not say so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recommended: bool,
}

/// The ids of the checks that are recommendations: jobs run as well on a machine that does not follow them.
pub const RECOMMENDED_CHECKS: [&str; 2] = ["docker.runc", "docker.restore"];

impl Check {
    /// All texts of the check, for code that limits their length or hashes them. (`passed` and `recommended` are
    /// not texts.)
    pub fn texts(&self) -> [&str; 5] {
        [&self.id, &self.actual, &self.required, &self.unit, &self.remedy]
    }
}

/// The speed at which a machine multiplied matrices in its self-test, in MFLOP/s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speed {
    /// The sum over all GPUs, MFLOP/s.
    pub gpus: Option<u64>,
    /// The number of GPUs in the sum.
    pub measured: u32,
    /// The speed of one CPU core, MFLOP/s.
    pub core: Option<u64>,
}

impl Speed {
    /// Reads the speed from the checks of a self-test: `gpu.<n>.matmul` in GFLOP/s, `cpu.matmul` in MFLOP/s.
    pub fn from_checks(checks: &[Check]) -> Self {
        let rate = |c: &Check| c.actual.parse::<u64>().ok().filter(|rate| *rate > 0);
        let gpus = checks.iter().filter(|c| c.id.starts_with("gpu.") && c.id.ends_with(".matmul")).filter_map(rate);
        let (measured, sum) = gpus.fold((0, 0_u64), |(n, sum), rate| (n + 1, sum.saturating_add(rate)));
        Self {
            gpus: (measured > 0).then(|| sum.saturating_mul(1_000)),
            measured,
            core: checks.iter().find(|c| c.id == "cpu.matmul").and_then(rate),
        }
    }

    /// The average speed of one GPU.
    pub fn gpu(self) -> Option<u64> {
        self.gpus?.checked_div(u64::from(self.measured))
    }
}

/// True if a self-test has checks, and all of them passed but recommendations.
pub fn all_passed(checks: &[Check]) -> bool {
    !checks.is_empty() && checks.iter().all(|check| check.passed || check.recommended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_comes_from_the_matmul_checks() {
        let check = |id: &str, actual: &str| Check {
            id: id.to_owned(),
            actual: actual.to_owned(),
            required: String::new(),
            unit: String::new(),
            passed: true,
            remedy: String::new(),
            recommended: false,
        };
        let checks = [check("gpu.0.matmul", "30"), check("gpu.1.matmul", "50"), check("cpu.matmul", "7")];
        let speed = Speed::from_checks(&checks);
        assert_eq!((speed.gpus, speed.gpu(), speed.core), (Some(80_000), Some(40_000), Some(7)));
        assert_eq!(Speed::from_checks(&[check("gpu.0.matmul", "not measured")]), Speed::default());
    }
}
