//! Asks a projector. The requests here are the whole interface: `query.<name>`.

use gpubnb_events::{
    AccountId, Actor, JobId, MachineId, Seq,
    rpc::{Caller, Failure},
    subject,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    query::MACHINES_AT_ONCE,
    view::{Balance, Figures, JobRow, JobState, MachineView, Page, Receipt, StatementLine, TrailEvent},
};

/// Most machines that are asked for.
const MOST_MACHINES: usize = 10_000;

/// A query and the sequence it must have seen.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ask<T> {
    pub(crate) min_seq: Seq,
    pub(crate) body: T,
}

/// Which jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobsQuery {
    /// Of this account.
    pub account: Option<AccountId>,
    /// On this machine (its owner's view: without what others run).
    pub machine: Option<MachineId>,
    /// In this state.
    pub state: Option<JobState>,
    /// With this in the name, image or id.
    pub text: Option<String>,
    /// From a former page.
    pub cursor: Option<String>,
    /// At most this many; 100 at the most.
    pub limit: Option<u32>,
}

/// Whose trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrailOf {
    /// A job's.
    Job(JobId),
    /// A machine's.
    Machine(MachineId),
    /// An account's.
    Account(AccountId),
}

/// Part of a trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrailQuery {
    /// Whose.
    pub of: TrailOf,
    /// How many events to skip, from the first.
    pub skip: u32,
    /// At most this many; 200 at the most.
    pub limit: u32,
}

/// Part of a statement, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementQuery {
    /// Whose.
    pub account: AccountId,
    /// Lines before this one.
    pub before: Option<Seq>,
    /// At most this many; 500 at the most.
    pub limit: u32,
}

/// How far each model is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// The last sequence in MARKET.
    pub last: Seq,
    /// What every running model has taken in.
    pub applied: Seq,
    /// Models that stopped, and why.
    pub stopped: Vec<(String, String)>,
}

/// Asks a projector, in an actor's name.
#[derive(Clone)]
pub struct QueryClient {
    caller: Caller,
}

impl QueryClient {
    /// Over a connection.
    pub fn new(caller: Caller) -> Self {
        Self { caller }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        name: &str,
        actor: Actor,
        min_seq: Seq,
        body: impl Serialize + Sync,
    ) -> Result<T, Failure> {
        self.caller.call(subject::query(name), actor, &Ask { min_seq, body }).await
    }

    /// Figures of the market.
    pub async fn figures(&self, actor: Actor) -> Result<Figures, Failure> {
        self.ask("figures", actor, Seq::ZERO, ()).await
    }

    /// All machines that are not delisted.
    pub async fn machines(&self, actor: Actor, min_seq: Seq) -> Result<Vec<MachineView>, Failure> {
        let mut machines: Vec<MachineView> = Vec::new();
        while machines.len() < MOST_MACHINES {
            let after = machines.last().map(|m| m.row.machine);
            let more: Vec<MachineView> = self.ask("machines", actor, min_seq, after).await?;
            let last = more.len() < MACHINES_AT_ONCE;
            machines.extend(more);
            if last {
                break;
            }
        }
        Ok(machines)
    }

    /// One machine.
    pub async fn machine(&self, actor: Actor, machine: MachineId, min_seq: Seq) -> Result<MachineView, Failure> {
        self.ask("machine", actor, min_seq, machine).await
    }

    /// Jobs, newest first.
    pub async fn jobs(&self, actor: Actor, query: JobsQuery, min_seq: Seq) -> Result<Page<JobRow>, Failure> {
        self.ask("jobs", actor, min_seq, query).await
    }

    /// One job.
    pub async fn job(&self, actor: Actor, job: JobId, min_seq: Seq) -> Result<JobRow, Failure> {
        self.ask("job", actor, min_seq, job).await
    }

    /// Part of a trail, oldest first.
    pub async fn trail(&self, actor: Actor, query: TrailQuery, min_seq: Seq) -> Result<Page<TrailEvent>, Failure> {
        self.ask("trail", actor, min_seq, query).await
    }

    /// A job's bill; `None` until it is settled.
    pub async fn receipt(&self, actor: Actor, job: JobId, min_seq: Seq) -> Result<Option<Receipt>, Failure> {
        self.ask("receipt", actor, min_seq, job).await
    }

    /// What an account has.
    pub async fn balance(&self, actor: Actor, account: AccountId, min_seq: Seq) -> Result<Balance, Failure> {
        self.ask("balance", actor, min_seq, account).await
    }

    /// Part of a statement.
    pub async fn statement(
        &self,
        actor: Actor,
        query: StatementQuery,
        min_seq: Seq,
    ) -> Result<Page<StatementLine>, Failure> {
        self.ask("statement", actor, min_seq, query).await
    }

    /// How far the projector is.
    pub async fn lag(&self, actor: Actor) -> Result<Lag, Failure> {
        self.ask("lag", actor, Seq::ZERO, ()).await
    }
}
