//! Events of a machine: its offer, its owner's wishes, its presence.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{AccountId, MachineId},
    money::HourlyRate,
    spec::Offer,
};

/// A machine was offered, or offered anew with changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineListed {
    /// The machine.
    pub machine: MachineId,
    /// Who owns it and earns.
    pub owner: AccountId,
    /// The machine's public key, where it has enrolled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// What is offered.
    pub offer: Offer,
}

/// Its price changed, for jobs assigned from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRepriced {
    /// The machine.
    pub machine: MachineId,
    /// The new price.
    pub price: HourlyRate,
}

/// It takes no new jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinePaused {
    /// The machine.
    pub machine: MachineId,
    /// Whether the machine did so itself, because it is its owner's turn; else it is the owner's own word.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub away: bool,
}

/// It works again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineResumed {
    /// The machine.
    pub machine: MachineId,
    /// Whether it is spare again; else the owner's own pause ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub away: bool,
}

/// It finishes what it runs and takes nothing new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineDrainStarted {
    /// The machine.
    pub machine: MachineId,
    /// Whether its owner works on it then: its silence is announced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub maintenance: bool,
}

macro_rules! bare {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $name {
            /// The machine.
            pub machine: MachineId,
        }
    )+};
}

bare! {
    /// It left the market.
    MachineDelisted,
    /// It missed heartbeats: new work is withheld.
    MachineSuspected,
    /// It was silent past the grace: what it ran is requeued.
    MachineLost,
    /// It was heard again.
    MachineRecovered,
}

/// A self-test was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineTested {
    /// The machine.
    pub machine: MachineId,
    /// A record per check.
    pub checks: Vec<Check>,
    /// How fast it was found to be: what placement goes by.
    pub speed: Speed,
}

/// One check of a self-test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Check {
    /// Its id, such as `disk.write`.
    pub id: String,
    /// What was measured.
    pub actual: String,
    /// What is required; empty where the check only informs.
    pub required: String,
    /// Unit of both.
    pub unit: String,
    /// Whether it passed.
    pub passed: bool,
    /// What to do where it did not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

/// The speed at which a machine multiplied matrices in its own self-test, in MFLOP/s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speed {
    /// All its GPUs together.
    pub gpus: Option<u64>,
    /// How many GPUs that are.
    pub measured: u32,
    /// One core.
    pub core: Option<u64>,
}

impl Speed {
    /// Reads the speed from the checks of a self-test: `gpu.<n>.matmul` in GFLOP/s, `cpu.matmul` in MFLOP/s.
    pub fn of(checks: &[Check]) -> Self {
        let rate = |c: &Check| c.actual.parse::<u64>().ok().filter(|rate| *rate > 0);
        let gpus = checks.iter().filter(|c| c.id.starts_with("gpu.") && c.id.ends_with(".matmul")).filter_map(rate);
        let (measured, sum) = gpus.fold((0, 0_u64), |(n, sum), rate| (n + 1, sum.saturating_add(rate)));
        Self {
            gpus: (measured > 0).then(|| sum.saturating_mul(1_000)),
            measured,
            core: checks.iter().find(|c| c.id == "cpu.matmul").and_then(rate),
        }
    }

    /// One GPU, on average.
    pub fn gpu(self) -> Option<u64> {
        self.gpus?.checked_div(u64::from(self.measured))
    }
}

/// Whether a self-test was made and every check passed.
pub fn verified(checks: &[Check]) -> bool {
    !checks.is_empty() && checks.iter().all(|check| check.passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_read_from_the_checks_that_measure_it() {
        let check = |id: &str, actual: &str| Check {
            id: id.to_owned(),
            actual: actual.to_owned(),
            required: String::new(),
            unit: String::new(),
            passed: true,
            remedy: String::new(),
        };
        let checks = [check("gpu.0.matmul", "30"), check("gpu.1.matmul", "50"), check("cpu.matmul", "7")];
        let speed = Speed::of(&checks);
        assert_eq!((speed.gpus, speed.gpu(), speed.core), (Some(80_000), Some(40_000), Some(7)));
        assert_eq!(Speed::of(&[check("gpu.0.matmul", "not measured")]), Speed::default());
    }
}
