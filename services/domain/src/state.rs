//! The state of the whole market that decisions need, folded from MARKET. Jobs leave the state when they are settled.
//!
//! Belongs here: the state and the ways to look something up. Must not come here: how an event changes the state
//! (`apply.rs`), or a decision (`decide.rs`).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use gpubnb_events::{AccountId, Aggregate, JobId, MachineId, Seq};
use serde::{Deserialize, Serialize};

use crate::{Settings, account::Account, job::Job, machine::Machine, submissions::Submissions};

/// The version of the form of [`World`] and of the rules that fold it. Raise it with every change of either: snapshots
/// of another version are discarded.
pub(crate) const VERSION: u32 = 3;

/// State of the whole market at one sequence.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct World {
    pub(crate) applied: Seq,
    pub(crate) accounts: HashMap<AccountId, Account>,
    pub(crate) machines: BTreeMap<MachineId, Machine>,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    pub(crate) queued: BTreeSet<(Seq, JobId)>,
    pub(crate) ended: BTreeSet<JobId>,
    /// The last quarantined message of each aggregate. No fold reads such messages, but the broker's guard counts them.
    #[serde(with = "pairs")]
    pub(crate) strays: HashMap<Aggregate, Seq>,
    pub(crate) submissions: Submissions,
}

impl World {
    /// Version of a stored snapshot. A snapshot is discarded when the version differs: when the form of the state, the
    /// fold or `decline_pause` changed, which is the only setting that the fold depends on.
    pub fn version(settings: &Settings) -> String {
        format!("{VERSION}-{}", settings.decline_pause.0)
    }

    /// The last sequence that is folded.
    pub fn applied(&self) -> Seq {
        self.applied
    }

    /// An account that was opened.
    pub fn account(&self, id: AccountId) -> Option<&Account> {
        self.accounts.get(&id).filter(|a| a.last > Seq::ZERO)
    }

    /// A machine that was ever listed.
    pub fn machine(&self, id: MachineId) -> Option<&Machine> {
        self.machines.get(&id)
    }

    /// All machines.
    pub fn machines(&self) -> impl Iterator<Item = (&MachineId, &Machine)> {
        self.machines.iter()
    }

    /// A job that is not settled yet.
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// All jobs that are not settled yet.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// Jobs that wait for a machine, oldest submission first.
    pub fn queued(&self) -> impl Iterator<Item = JobId> + '_ {
        self.queued_after(Seq::ZERO).map(|job| job.id)
    }

    /// Jobs that wait for a machine and were submitted after `seq`, oldest first.
    pub fn queued_after(&self, seq: Seq) -> impl Iterator<Item = &Job> {
        self.queued.range((seq.next(), JobId::LEAST)..).filter_map(|(_, job)| self.jobs.get(job))
    }

    /// Jobs that ended and are not settled.
    pub fn ended(&self) -> impl Iterator<Item = JobId> + '_ {
        self.ended.iter().copied()
    }

    /// The last quarantined message of an aggregate; zero without one.
    pub(crate) fn stray(&self, aggregate: Aggregate) -> Seq {
        self.strays.get(&aggregate).copied().unwrap_or_default()
    }
}

/// Serialises a map as a list of pairs, because its keys are not texts.
mod pairs {
    use std::{collections::HashMap, hash::Hash};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S, K, V>(map: &HashMap<K, V>, to: S) -> Result<S::Ok, S::Error>
    where
        S: Serializer,
        K: Serialize,
        V: Serialize,
    {
        to.collect_seq(map)
    }

    pub(crate) fn deserialize<'de, D, K, V>(from: D) -> Result<HashMap<K, V>, D::Error>
    where
        D: Deserializer<'de>,
        K: Deserialize<'de> + Eq + Hash,
        V: Deserialize<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(from)?.into_iter().collect())
    }
}
