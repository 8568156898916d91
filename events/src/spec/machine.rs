//! The offer of a machine: its hardware, its price and its owner's rules.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Egress, JobSpec, Mebibytes, Resources, is_in_registries};
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
    /// Disk space given to jobs.
    pub disk: Mebibytes,
    /// The GPUs; empty for a CPU-only machine.
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    /// NVIDIA driver version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// CUDA version of the driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda: Option<String>,
    /// True if the GPUs are simulated. A simulated GPU computes nothing.
    #[serde(default)]
    pub simulated: bool,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Gpu {
    /// The id that the driver reports, `GPU-…`.
    pub uuid: String,
    /// Model name.
    pub model: String,
    /// Memory.
    pub memory: Mebibytes,
    /// CUDA compute capability, such as `9.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<String>,
    /// PCI address, such as `00000000:01:00.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci: Option<String>,
}

/// The rules of a machine's owner.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OwnerPolicy {
    /// True if the owner may take the machine back while a job runs.
    #[serde(default)]
    pub may_evict: bool,
    /// The hosts of the internet that jobs may reach if they ask for them.
    #[serde(default)]
    pub egress: Egress,
    /// Jobs may run after the GPUs were idle for this many minutes; `None`: jobs need not wait for idle GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_minutes: Option<u32>,
    /// The hours of the day in which jobs may run, in the machine's time zone, such as `22:00-08:00`; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<String>,
    /// The most processes and threads that a job may ask for; `None`: [`MAX_PIDS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pids: Option<u32>,
    /// The most open files of a process that a job may ask for; `None`: [`MAX_OPEN_FILES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_open_files: Option<u32>,
    /// The registries whose images jobs may use, such as `ghcr.io`, besides the images of templates; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registries: Option<Vec<String>>,
    /// The settings that can be changed on the machine only, and not on the market's pages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pinned: Vec<Setting>,
}

/// The part of an offer that the owner can also change on the market's pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineSettings {
    /// The price of a job for one hour.
    pub price: HourlyRate,
    /// The number of jobs that the machine runs at once.
    pub slots: u32,
    /// The hours of the day in which jobs may run, such as `22:00-08:00`; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<String>,
    /// Jobs may run after the GPUs were idle for this many minutes; `None`: jobs need not wait for idle GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_minutes: Option<u32>,
}

/// The name of one of the [`MachineSettings`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// The price.
    Price,
    /// The number of jobs at once.
    Slots,
    /// The hours of the day.
    Hours,
    /// The idle time of the GPUs.
    IdleMinutes,
}

impl Setting {
    /// Every setting with its name, as options and events have it.
    pub const ALL: [(Self, &'static str); 4] =
        [(Self::Price, "price"), (Self::Slots, "slots"), (Self::Hours, "hours"), (Self::IdleMinutes, "idle_minutes")];

    /// The name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(setting, _)| *setting == self).map_or("", |(_, name)| name)
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.replace('-', "_");
        let found = Self::ALL.iter().find(|(_, known)| *known == name);
        found
            .map(|(setting, _)| *setting)
            .ok_or_else(|| format!("`{text}` is none of price, slots, hours, idle-minutes"))
    }
}

impl MachineSettings {
    /// The settings that differ between the two.
    pub fn differing(&self, other: &Self) -> Vec<Setting> {
        let differs = |setting| match setting {
            Setting::Price => self.price != other.price,
            Setting::Slots => self.slots != other.slots,
            Setting::Hours => self.hours != other.hours,
            Setting::IdleMinutes => self.idle_minutes != other.idle_minutes,
        };
        Setting::ALL.into_iter().map(|(setting, _)| setting).filter(|setting| differs(*setting)).collect()
    }

    /// Takes one of the settings from `other`.
    pub fn take(&mut self, setting: Setting, other: &Self) {
        match setting {
            Setting::Price => self.price = other.price,
            Setting::Slots => self.slots = other.slots,
            Setting::Hours => self.hours.clone_from(&other.hours),
            Setting::IdleMinutes => self.idle_minutes = other.idle_minutes,
        }
    }

    /// The part of a request for these settings that is still open after the machine was listed: `None` if the machine
    /// has taken the settings, or if it was listed with others that its owner chose on the machine. A listing with the
    /// settings that it had before was made before the machine knew of the request. Only the price may differ, which
    /// holds at once.
    pub fn after_listing(mut self, before: &Offer, listed: &Offer) -> Option<Self> {
        let now = listed.settings();
        let was_unknown = Self { price: now.price, ..before.settings() } == now;
        self.price = now.price;
        for setting in &listed.policy.pinned {
            self.take(*setting, &now);
        }
        (was_unknown && self != now).then_some(self)
    }
}

impl Offer {
    /// The settings of the offer.
    pub fn settings(&self) -> MachineSettings {
        MachineSettings {
            price: self.price,
            slots: self.slots,
            hours: self.policy.hours.clone(),
            idle_minutes: self.policy.idle_minutes,
        }
    }

    /// Applies a request for other settings: the price holds at once. Returns the request while the machine has not
    /// taken its other settings; `None` if there are no others.
    pub fn apply_request(&mut self, requested: &MachineSettings) -> Option<MachineSettings> {
        self.price = requested.price;
        (*requested != self.settings()).then(|| requested.clone())
    }

    /// Changes the settings of the offer.
    pub fn set(&mut self, settings: MachineSettings) {
        let MachineSettings { price, slots, hours, idle_minutes } = settings;
        self.price = price;
        self.slots = slots;
        self.policy.may_evict = hours.is_some() || idle_minutes.is_some();
        self.policy.hours = hours;
        self.policy.idle_minutes = idle_minutes;
    }
}

/// The most processes and threads that a job may ask for on a machine whose owner sets no other bound.
pub const MAX_PIDS: u32 = 8_192;
/// The most open files of a process that a job may ask for on a machine whose owner sets no other bound.
pub const MAX_OPEN_FILES: u32 = 65_536;

impl OwnerPolicy {
    /// True if the owner's bounds on processes, threads and open files allow a job with these resources.
    pub fn allows(&self, resources: &Resources) -> bool {
        resources.max_pids() <= self.max_pids.unwrap_or(MAX_PIDS)
            && resources.max_open_files() <= self.max_open_files.unwrap_or(MAX_OPEN_FILES)
    }

    /// True if the owner allows the image of a job: the image of a template, or an image of an allowed registry.
    pub fn allows_image(&self, spec: &JobSpec) -> bool {
        let is_listed = |registries: &Vec<String>| is_in_registries(&spec.image, registries);
        spec.template.is_some() || self.registries.as_ref().is_none_or(is_listed)
    }

    /// A text for people: the images that jobs may use.
    pub fn images(&self) -> String {
        match self.registries.as_deref() {
            None => "any image of a public registry".to_owned(),
            Some([]) => "the images of the market's templates".to_owned(),
            Some(registries) => format!("those of templates, and of {}", registries.join(", ")),
        }
    }

    /// A text for people: when jobs may run on the machine, and what happens to a job when that time ends.
    pub fn description(&self) -> String {
        let hours = self.hours.as_ref().map(|hours| format!("spare at {hours}"));
        let idle = self.idle_minutes.map(|minutes| format!("spare when its GPUs were idle for {minutes} min"));
        let when: Vec<_> = hours.into_iter().chain(idle).collect();
        let ends =
            if self.may_evict { "may take it back while a job runs; that costs nothing" } else { "no fixed hours" };
        if when.is_empty() { ends.to_owned() } else { format!("{}; {ends}", when.join(", ")) }
    }
}

/// The offer of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Offer {
    /// Name for people.
    pub name: String,
    /// The place of the machine, such as `eu-west`. Requests can name a region.
    pub region: String,
    /// The hardware that jobs may use.
    pub hardware: Hardware,
    /// Price of one slot per hour.
    pub price: HourlyRate,
    /// Number of jobs that the machine runs at once.
    pub slots: u32,
    /// The owner's rules.
    #[serde(default)]
    pub policy: OwnerPolicy,
}
