//! The placement of a job: which machines may run the job, how the market chooses among them, and the explanation of
//! the choice.
//!
//! A new strategy needs a variant of [`Strategy`] with a line in `ALL`, a variant of [`WinReason`] with its text, and a
//! rank in `services/domain/src/placement.rs`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::CudaVersion;
use crate::{ids::MachineId, money::HourlyRate};

/// The rule by which the market places a job: the conditions for a machine, and the choice among the machines that fit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PlacementWire", into = "PlacementWire")]
pub struct Placement {
    /// The choice among the machines that fit.
    pub strategy: Strategy,
    /// The conditions that a machine must satisfy.
    pub requirements: Requirements,
}

/// The quality by which the market chooses among the machines that fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The lowest price.
    #[default]
    Cheapest,
    /// The fastest GPU (core, for a job without a GPU), by the machine's self-test.
    Fastest,
    /// The best record: the highest probability that an attempt ends without a fault of the machine.
    MostReliable,
}

impl Strategy {
    /// Every strategy with its name (in events, forms and options) and its description.
    pub const ALL: [(Self, &'static str, &'static str); 3] = [
        (Self::Cheapest, "cheapest", "the cheapest that fits"),
        (Self::Fastest, "fastest", "the fastest that fits"),
        (Self::MostReliable, "most_reliable", "the most reliable that fits"),
    ];

    /// The strategy's name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(strategy, ..)| *strategy == self).map_or("", |(_, name, _)| name)
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The error for a text that is not the name of a strategy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a strategy: choose cheapest, fastest or most_reliable")]
pub struct BadStrategy(String);

impl FromStr for Strategy {
    type Err = BadStrategy;

    fn from_str(name: &str) -> Result<Self, BadStrategy> {
        // On the command line, a name may have a dash: `most-reliable`.
        let plain = name.replace('-', "_");
        let found = Self::ALL.iter().find(|(_, known, _)| *known == plain);
        found.map(|(strategy, ..)| *strategy).ok_or_else(|| BadStrategy(name.chars().take(40).collect()))
    }
}

/// The conditions that a machine must satisfy beyond the job's resources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Requirements {
    /// The machine that the consumer named; `None`: any machine.
    #[serde(skip)]
    pub machine: Option<MachineId>,
    /// The highest price per hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_cap: Option<HourlyRate>,
    /// Part of the GPU's model name. Upper and lower case are the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_model: Option<String>,
    /// The region. The whole text must be the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The oldest CUDA version that the machine's driver must support, such as `12.4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "12.4")]
    pub min_cuda: Option<CudaVersion>,
    /// True if machines with simulated GPUs fit (to try things out).
    #[serde(default)]
    pub allow_simulated: bool,
    /// The lowest percentage of attempts that ended without a fault of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reliability: Option<u32>,
    /// True if only machines that passed their self-test fit. Recommendations do not count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verified: bool,
}

/// The JSON form of a placement, in events and answers. Old events have this form, so it does not follow the fields of
/// [`Placement`]: each strategy is a variant, and a named machine is a variant, too.
#[derive(Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "by", rename_all = "snake_case")]
#[schema(as = Placement)]
enum PlacementWire {
    /// Only this machine.
    Machine {
        /// The machine.
        machine: MachineId,
        /// The highest price per hour. The owner may change the price before the job is assigned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        price_cap: Option<HourlyRate>,
    },
    /// The cheapest machine that satisfies the requirements.
    Cheapest {
        /// The conditions that a machine must satisfy.
        #[serde(default)]
        requirements: Requirements,
    },
    /// The fastest machine that satisfies the requirements.
    Fastest {
        /// The conditions that a machine must satisfy.
        #[serde(default)]
        requirements: Requirements,
    },
    /// The most reliable machine that satisfies the requirements.
    MostReliable {
        /// The conditions that a machine must satisfy.
        #[serde(default)]
        requirements: Requirements,
    },
}

impl Placement {
    /// A placement on one machine. The price cap protects the consumer from a change of the price before the
    /// assignment.
    pub fn on_machine(machine: MachineId, price_cap: Option<HourlyRate>) -> Self {
        let requirements =
            Requirements { machine: Some(machine), price_cap, allow_simulated: true, ..Requirements::default() };
        Self { strategy: Strategy::default(), requirements }
    }
}

impl From<PlacementWire> for Placement {
    fn from(wire: PlacementWire) -> Self {
        let (strategy, requirements) = match wire {
            PlacementWire::Machine { machine, price_cap } => return Self::on_machine(machine, price_cap),
            PlacementWire::Cheapest { requirements } => (Strategy::Cheapest, requirements),
            PlacementWire::Fastest { requirements } => (Strategy::Fastest, requirements),
            PlacementWire::MostReliable { requirements } => (Strategy::MostReliable, requirements),
        };
        Self { strategy, requirements }
    }
}

impl From<Placement> for PlacementWire {
    fn from(Placement { strategy, requirements }: Placement) -> Self {
        match (requirements.machine, strategy) {
            (Some(machine), _) => Self::Machine { machine, price_cap: requirements.price_cap },
            (None, Strategy::Cheapest) => Self::Cheapest { requirements },
            (None, Strategy::Fastest) => Self::Fastest { requirements },
            (None, Strategy::MostReliable) => Self::MostReliable { requirements },
        }
    }
}

impl utoipa::PartialSchema for Placement {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        <PlacementWire as utoipa::PartialSchema>::schema()
    }
}

impl utoipa::ToSchema for Placement {
    fn name() -> std::borrow::Cow<'static, str> {
        <PlacementWire as utoipa::ToSchema>::name()
    }

    fn schemas(schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::schema::Schema>)>) {
        <PlacementWire as utoipa::ToSchema>::schemas(schemas);
    }
}

/// The explanation of a choice: why a job runs on a machine, or why the job waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlacementExplanation {
    /// Number of machines that satisfied every condition.
    pub candidates: u32,
    /// Number of the other machines, by the first reason against each machine.
    pub rejected: Vec<RejectCount>,
    /// The chosen machine and the reason for the choice; `None`: no machine fits now.
    pub chosen: Option<Chosen>,
}

/// The choice of a machine: as data, or as the sentence in a `JobAssigned.v1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Chosen {
    /// The sentence of an event of version 1.
    Words(String),
    /// The machine and the reason.
    Winner(Winner),
}

/// A machine that was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Winner {
    /// The machine's name when it was chosen.
    pub name: String,
    /// The machine's price when it was chosen.
    pub price: HourlyRate,
    /// The reason why the machine was chosen.
    #[serde(flatten)]
    pub won: WinReason,
}

/// The reason why a machine was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "won", rename_all = "snake_case")]
#[schema(as = Won)]
pub enum WinReason {
    /// The consumer named the machine.
    Named,
    /// The lowest price.
    Cheapest,
    /// The highest speed of a GPU; of a core, for a job without a GPU.
    Fastest {
        /// Speed of one GPU or one core, MFLOP/s; `None`: no machine that fits has measured its speed, and the cheapest
        /// machine was chosen.
        mflops: Option<u64>,
        /// True for the speed of a GPU; false for the speed of a core.
        gpu: bool,
    },
    /// The best record.
    MostReliable {
        /// Percentage of attempts that ended without a fault of the machine; `None`: the machine has no attempts yet,
        /// and no machine that fits has a better record.
        percent: Option<u32>,
        /// Number of attempts in the machine's record.
        attempts: u32,
    },
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Winner { name, price, won } = match self {
            Self::Words(words) => return f.write_str(words),
            Self::Winner(winner) => winner,
        };
        match won {
            WinReason::Named => write!(f, "you named {name}"),
            WinReason::Cheapest => write!(f, "{name} is the cheapest that fits, at {price}"),
            WinReason::Fastest { mflops: Some(mflops), gpu } => {
                let part = if *gpu { "GPU" } else { "core" };
                write!(
                    f,
                    "{name} is the fastest that fits by its own self-test, with {} GFLOP/s a {part}, at {price}",
                    mflops / 1_000
                )
            }
            WinReason::Fastest { mflops: None, .. } => {
                write!(f, "no machine that fits has measured its speed; {name} is the cheapest of them, at {price}")
            }
            WinReason::MostReliable { percent: Some(percent), attempts } => write!(
                f,
                "{name} is the most reliable that fits: {percent} % of {attempts} attempts without its fault, \
                 at {price}"
            ),
            WinReason::MostReliable { percent: None, .. } => {
                write!(f, "no machine that fits has a better record; {name} has none yet, at {price}")
            }
        }
    }
}

impl PlacementExplanation {
    /// The explanation for people.
    pub fn description(&self) -> String {
        self.chosen.as_ref().map_or_else(|| "no machine fits now".to_owned(), Chosen::to_string)
    }
}

/// The number of machines that one reason excluded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RejectCount {
    /// The reason.
    pub reason: Reject,
    /// The number of machines.
    pub machines: u32,
}

impl RejectCount {
    /// The number and the reason, for people: `3 machines: no free slot`.
    pub fn description(&self) -> String {
        let noun = if self.machines == 1 { "machine" } else { "machines" };
        format!("{} {noun}: {}", self.machines, self.reason.description())
    }
}

/// The reason why a machine was not chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Reject {
    /// The consumer named another machine.
    NotNamed,
    /// The machine has left the market.
    Delisted,
    /// The owner paused the machine, or the machine drains.
    Paused,
    /// The owner uses the machine.
    Away,
    /// The account of its owner is suspended.
    OwnerSuspended,
    /// The machine missed heartbeats.
    Offline,
    /// The pause after an earlier attempt of this job is not over: the machine failed or declined the job. After an
    /// attempt that ended by nobody's fault, every machine has to wait.
    Excluded,
    /// All slots of the machine are taken.
    NoFreeSlot,
    /// Other jobs use the GPUs, the memory or the disk space that this job needs.
    Busy,
    /// Too few GPUs, or too little GPU memory.
    GpuTooSmall,
    /// The GPUs are simulated, and the job does not allow simulated GPUs.
    Simulated,
    /// The GPU is not of the requested model.
    GpuModel,
    /// Too little memory, CPU or disk, or too few processes or open files.
    TooSmall,
    /// The driver supports no CUDA version as new as the job needs.
    Cuda,
    /// The machine is not in the requested region.
    Region,
    /// The price is above the price cap.
    Price,
    /// The machine's reliability is below the requested one, or the machine has no record.
    Reliability,
    /// The machine did not pass its self-test.
    NotVerified,
    /// The job needs the network, and the owner does not allow it.
    NoEgress,
    /// The owner does not allow images of this registry.
    ImageNotAllowed,
}

impl Reject {
    /// The reason for people. Pages write it after a number of machines: "3 machines: no free slot".
    pub const fn description(self) -> &'static str {
        match self {
            Self::NotNamed => "not the machine you named",
            Self::Delisted => "no longer listed",
            Self::Paused => "paused by the owner",
            Self::Away => "in use by its owner",
            Self::OwnerSuspended => "its owner's account is suspended",
            Self::Offline => "offline",
            Self::Excluded => "pauses after an earlier attempt",
            Self::NoFreeSlot => "no free slot",
            Self::Busy => "other jobs hold the GPUs, memory or disk it would need",
            Self::GpuTooSmall => "too few GPUs or too little GPU memory",
            Self::Simulated => "simulated GPUs only",
            Self::GpuModel => "another GPU model",
            Self::TooSmall => "too little CPU, memory or disk, or too few processes or open files",
            Self::Cuda => "the driver does not support the CUDA version",
            Self::Region => "another region",
            Self::Price => "above the price limit of the job",
            Self::Reliability => "not reliable enough, or without a record",
            Self::NotVerified => "its self-test did not pass",
            Self::NoEgress => "hosts of the internet that the owner does not allow",
            Self::ImageNotAllowed => "its owner does not allow images of this registry",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::money::MicroUsd;

    #[test]
    fn the_json_form_of_a_placement_is_stable() {
        let machine = MachineId::generate();
        let cap = Some(HourlyRate(MicroUsd(7)));
        let requirements = Requirements { price_cap: cap, verified: true, ..Requirements::default() };
        for (placement, text) in [
            (Placement::on_machine(machine, cap), format!(r#"{{"by":"machine","machine":"{machine}","price_cap":7}}"#)),
            (Placement::on_machine(machine, None), format!(r#"{{"by":"machine","machine":"{machine}"}}"#)),
            (
                Placement { strategy: Strategy::MostReliable, requirements },
                r#"{"by":"most_reliable","requirements":{"price_cap":7,"allow_simulated":false,"verified":true}}"#
                    .to_owned(),
            ),
        ] {
            assert_eq!(serde_json::to_string(&placement).unwrap(), text);
            assert_eq!(serde_json::from_str::<Placement>(&text).unwrap(), placement);
        }
    }

    #[test]
    fn every_strategy_has_one_name_everywhere() {
        for (strategy, name, _) in Strategy::ALL {
            assert_eq!(serde_json::to_value(strategy).unwrap(), name);
            assert_eq!((name.parse(), strategy.to_string().as_str()), (Ok(strategy), name));
        }
        assert!("dearest".parse::<Strategy>().is_err());
    }

    #[test]
    fn the_sentence_of_an_old_event_is_kept() {
        let words = "attic is the cheapest that fits, at $0.36/h";
        let new = Winner { name: "attic".to_owned(), price: HourlyRate(MicroUsd(360_000)), won: WinReason::Cheapest };
        assert_eq!(serde_json::from_value::<Chosen>(words.into()).unwrap(), Chosen::Words(words.to_owned()));
        assert_eq!(Chosen::Winner(new.clone()).to_string(), words);
        let written = serde_json::to_value(Chosen::Winner(new.clone())).unwrap();
        assert_eq!(written, serde_json::json!({ "name": "attic", "price": 360_000, "won": "cheapest" }));
        assert_eq!(serde_json::from_value::<Chosen>(written).unwrap(), Chosen::Winner(new));
    }
}
