//! The offer of a machine: its hardware, its price and its owner's rules.

use serde::{Deserialize, Serialize};

use super::Mebibytes;
use crate::money::HourlyRate;

/// The hardware of a machine, as its worker measured it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Hardware {
    /// CPU model name.
    pub cpu_model: String,
    /// Cores given to jobs.
    pub cpu_cores: u32,
    /// Memory given to jobs.
    pub memory: Mebibytes,
    /// Disk room given to jobs.
    pub disk: Mebibytes,
    /// Its GPUs; empty for a CPU-only machine.
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    /// NVIDIA driver version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// CUDA version of the driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda: Option<String>,
    /// The GPUs are simulated: they compute nothing.
    #[serde(default)]
    pub simulated: bool,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Gpu {
    /// Vendor's id, `GPU-…`.
    pub uuid: String,
    /// Model name.
    pub model: String,
    /// Memory.
    pub memory: Mebibytes,
    /// CUDA compute capability, such as `9.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<String>,
    /// Where it sits, `00000000:01:00.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci: Option<String>,
}

/// The rules of a machine's owner.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OwnerPolicy {
    /// The owner may take the machine back while a job runs.
    #[serde(default)]
    pub may_evict: bool,
    /// Jobs may use the network.
    #[serde(default)]
    pub egress: bool,
    /// It is spare once its GPUs were idle for so many minutes; `None`: it does not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_minutes: Option<u32>,
    /// The hours of the day at which it is spare, by its own clock, such as `22:00-08:00`; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<String>,
}

impl OwnerPolicy {
    /// When the machine is spare, for people, and what happens to a job when it is not any more.
    pub fn description(&self) -> String {
        let hours = self.hours.as_ref().map(|hours| format!("spare at {hours}"));
        let idle = self.idle_minutes.map(|minutes| format!("spare when its GPUs were idle for {minutes} min"));
        let when: Vec<_> = hours.into_iter().chain(idle).collect();
        let ends =
            if self.may_evict { "may take it back while a job runs; that costs nothing" } else { "lets jobs finish" };
        if when.is_empty() { ends.to_owned() } else { format!("{}; {ends}", when.join(", ")) }
    }
}

/// A machine as it is offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Offer {
    /// Name for people.
    pub name: String,
    /// Where it stands, for people and filters.
    pub region: String,
    /// Its hardware.
    pub hardware: Hardware,
    /// Price per hour and slot.
    pub price: HourlyRate,
    /// Jobs it runs at once.
    pub slots: u32,
    /// The owner's rules.
    #[serde(default)]
    pub policy: OwnerPolicy,
}
