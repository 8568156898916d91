//! Where a job may run, and why a job runs where it runs.
//!
//! To add a way to place jobs: a variant of [`Strategy`] with its line in `ALL`, a variant of [`Won`] with its words, and
//! the rank in `services/domain/src/placement.rs`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{ids::MachineId, money::HourlyRate};

/// Where a job may run: what a machine must satisfy, and which of those that do wins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Wire", into = "Wire")]
pub struct Placement {
    /// How the market chooses among the machines that fit.
    pub strategy: Strategy,
    /// The conditions that a machine must satisfy.
    pub requirements: Requirements,
}

/// How the market chooses among the machines that fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The lowest price.
    #[default]
    Cheapest,
    /// The fastest GPU (core, for a job without a GPU), by the machine's self-test.
    Fastest,
    /// The best record: an attempt is most likely to end without a fault of the machine.
    MostReliable,
}

impl Strategy {
    /// Every strategy with its name (in events, forms and options), and a description.
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

/// A name that is no strategy's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a strategy: choose cheapest, fastest or most_reliable")]
pub struct BadStrategy(String);

impl FromStr for Strategy {
    type Err = BadStrategy;

    fn from_str(name: &str) -> Result<Self, BadStrategy> {
        // A program's option is mostly written with a dash.
        let plain = name.replace('-', "_");
        let found = Self::ALL.iter().find(|(_, known, _)| *known == plain);
        found.map(|(strategy, ..)| *strategy).ok_or_else(|| BadStrategy(name.chars().take(40).collect()))
    }
}

/// The conditions that a machine must satisfy beyond the job's resources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Requirements {
    /// This machine and no other.
    #[serde(skip)]
    pub machine: Option<MachineId>,
    /// The highest price per hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_cap: Option<HourlyRate>,
    /// Part of the GPU's model name, in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_model: Option<String>,
    /// Region, exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Machines with simulated GPUs are taken, too (for trying things out).
    #[serde(default)]
    pub allow_simulated: bool,
    /// Least share of its attempts that ended without a fault of the machine, percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reliability: Option<u32>,
    /// Only machines that passed every check of their self-test are taken.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verified: bool,
}

/// The form in which a placement stands in events and answers. It is as old as the log: a strategy was a variant, and a
/// named machine was one, too.
#[derive(Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "by", rename_all = "snake_case")]
#[schema(as = Placement)]
enum Wire {
    /// On this machine and no other.
    Machine {
        /// The machine.
        machine: MachineId,
        /// Most it may cost per hour: its owner may change the price before the job is assigned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        price_cap: Option<HourlyRate>,
    },
    /// On the cheapest machine that satisfies the requirements.
    Cheapest {
        /// The conditions that a machine must satisfy.
        #[serde(default)]
        requirements: Requirements,
    },
    /// On the fastest.
    Fastest {
        /// The conditions that a machine must satisfy.
        #[serde(default)]
        requirements: Requirements,
    },
    /// On the most reliable.
    MostReliable {
        /// The conditions that a machine must satisfy.
        #[serde(default)]
        requirements: Requirements,
    },
}

impl Placement {
    /// On one machine. What the machine is, one sees before one names it: only its price may change until then.
    pub fn on(machine: MachineId, price_cap: Option<HourlyRate>) -> Self {
        let requirements =
            Requirements { machine: Some(machine), price_cap, allow_simulated: true, ..Requirements::default() };
        Self { strategy: Strategy::default(), requirements }
    }
}

impl From<Wire> for Placement {
    fn from(wire: Wire) -> Self {
        let (strategy, requirements) = match wire {
            Wire::Machine { machine, price_cap } => return Self::on(machine, price_cap),
            Wire::Cheapest { requirements } => (Strategy::Cheapest, requirements),
            Wire::Fastest { requirements } => (Strategy::Fastest, requirements),
            Wire::MostReliable { requirements } => (Strategy::MostReliable, requirements),
        };
        Self { strategy, requirements }
    }
}

impl From<Placement> for Wire {
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
        <Wire as utoipa::PartialSchema>::schema()
    }
}

impl utoipa::ToSchema for Placement {
    fn name() -> std::borrow::Cow<'static, str> {
        <Wire as utoipa::ToSchema>::name()
    }

    fn schemas(schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::schema::Schema>)>) {
        <Wire as utoipa::ToSchema>::schemas(schemas);
    }
}

/// Why a job runs where it runs, or why it waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlacementExplanation {
    /// Machines that satisfied everything.
    pub candidates: u32,
    /// Machines that did not, counted by the first reason.
    pub rejected: Vec<RejectCount>,
    /// The machine that won, and why it did; `None`: no machine fits now.
    pub chosen: Option<Chosen>,
}

/// The choice of a machine: as data, or in the words that `JobAssigned.v1` kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Chosen {
    /// The words that an event of version 1 kept.
    Words(String),
    /// The winner.
    Winner(Winner),
}

/// A machine that was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Winner {
    /// The machine's name when it was chosen.
    pub name: String,
    /// Its price then.
    pub price: HourlyRate,
    /// Why it won.
    #[serde(flatten)]
    pub won: Won,
}

/// Why a machine won.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "won", rename_all = "snake_case")]
pub enum Won {
    /// The consumer named the machine.
    Named,
    /// The lowest price.
    Cheapest,
    /// The highest speed of what the job gets.
    Fastest {
        /// Speed of one GPU, or of one core where the job has no GPU, MFLOP/s; `None`: no machine that fits has
        /// measured its speed, and the cheapest won.
        mflops: Option<u64>,
        /// The speed is that of a GPU, and not of a core.
        gpu: bool,
    },
    /// The best record.
    MostReliable {
        /// Share of its attempts that ended without its fault, percent; `None`: the machine has no record, and none
        /// that fits has a better one.
        percent: Option<u32>,
        /// How many attempts those were.
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
            Won::Named => write!(f, "you named {name}"),
            Won::Cheapest => write!(f, "{name} is the cheapest that fits, at {price}"),
            Won::Fastest { mflops: Some(mflops), gpu } => {
                let part = if *gpu { "GPU" } else { "core" };
                write!(f, "{name} is the fastest that fits, with {} GFLOP/s a {part}, at {price}", mflops / 1_000)
            }
            Won::Fastest { mflops: None, .. } => {
                write!(f, "no machine that fits has measured its speed; {name} is the cheapest of them, at {price}")
            }
            Won::MostReliable { percent: Some(percent), attempts } => write!(
                f,
                "{name} is the most reliable that fits: {percent} % of {attempts} attempts without its fault, at {price}"
            ),
            Won::MostReliable { percent: None, .. } => {
                write!(f, "no machine that fits has a better record; {name} has none yet, at {price}")
            }
        }
    }
}

impl PlacementExplanation {
    /// The choice for people.
    pub fn description(&self) -> String {
        self.chosen.as_ref().map_or_else(|| "no machine fits now".to_owned(), Chosen::to_string)
    }
}

/// How many machines were not taken for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RejectCount {
    /// The reason.
    pub reason: Reject,
    /// How many machines.
    pub machines: u32,
}

/// Why a machine was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Reject {
    /// Another machine was named.
    NotNamed,
    /// It is no longer listed.
    Delisted,
    /// The owner paused it, or it drains.
    Paused,
    /// Its owner uses it.
    Away,
    /// The account of its owner is suspended.
    OwnerSuspended,
    /// It missed heartbeats.
    Offline,
    /// This job failed there before, or was declined.
    Excluded,
    /// All its slots are taken.
    NoFreeSlot,
    /// Other jobs hold the GPUs, the memory or the disk that this one needs.
    Busy,
    /// Too few GPUs, or too little GPU memory.
    GpuTooSmall,
    /// Its GPUs are simulated and the job did not allow that.
    Simulated,
    /// Not the GPU model asked for.
    GpuModel,
    /// Too little memory, CPU or disk.
    TooSmall,
    /// Not in the region asked for.
    Region,
    /// Dearer than the cap.
    Price,
    /// Its record is below the floor, or it has none.
    Reliability,
    /// Not every check of its self-test passed.
    NotVerified,
    /// The job asks for network access and the owner does not allow it.
    NoEgress,
}

impl Reject {
    /// The reason for people: "3 machines: no free slot".
    pub const fn description(self) -> &'static str {
        match self {
            Self::NotNamed => "not the machine you named",
            Self::Delisted => "no longer listed",
            Self::Paused => "paused by the owner",
            Self::Away => "in use by its owner",
            Self::OwnerSuspended => "its owner's account is suspended",
            Self::Offline => "offline",
            Self::Excluded => "already tried for this job",
            Self::NoFreeSlot => "no free slot",
            Self::Busy => "other jobs hold the GPUs, memory or disk it would need",
            Self::GpuTooSmall => "too few GPUs or too little GPU memory",
            Self::Simulated => "simulated GPUs only",
            Self::GpuModel => "another GPU model",
            Self::TooSmall => "too little CPU, memory or disk",
            Self::Region => "another region",
            Self::Price => "over the price cap",
            Self::Reliability => "not reliable enough, or without a record",
            Self::NotVerified => "not every check of its self-test passed",
            Self::NoEgress => "no network access for jobs",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::money::MicroUsd;

    #[test]
    fn a_placement_is_written_as_it_always_was_and_read_back() {
        let machine = MachineId::generate();
        let cap = Some(HourlyRate(MicroUsd(7)));
        let requirements = Requirements { price_cap: cap, verified: true, ..Requirements::default() };
        for (placement, text) in [
            (Placement::on(machine, cap), format!(r#"{{"by":"machine","machine":"{machine}","price_cap":7}}"#)),
            (Placement::on(machine, None), format!(r#"{{"by":"machine","machine":"{machine}"}}"#)),
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
    fn words_of_an_old_event_stay_as_they_are() {
        let words = "attic is the cheapest that fits, at $0.36/h";
        let new = Winner { name: "attic".to_owned(), price: HourlyRate(MicroUsd(360_000)), won: Won::Cheapest };
        assert_eq!(serde_json::from_value::<Chosen>(words.into()).unwrap(), Chosen::Words(words.to_owned()));
        assert_eq!(Chosen::Winner(new.clone()).to_string(), words);
        let written = serde_json::to_value(Chosen::Winner(new.clone())).unwrap();
        assert_eq!(written, serde_json::json!({ "name": "attic", "price": 360_000, "won": "cheapest" }));
        assert_eq!(serde_json::from_value::<Chosen>(written).unwrap(), Chosen::Winner(new));
    }
}
