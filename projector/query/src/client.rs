//! The client of a projector: one method for each query.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gpubnb_events::{AccountId, Actor, BatchId, JobId, MachineId, ProjectorId, Seq, event::Check, subject};
use gpubnb_proof::Proof;
use gpubnb_runtime::rpc::{Caller, RpcError};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    request::{
        BatchesQuery, DaysOf, DaysQuery, EventsQuery, JobsQuery, Lag, LogPoint, MACHINES_PER_ANSWER, MachinesOfQuery,
        ModelHistoryQuery, QueryRequest, ReadingsQuery, StatementQuery, TasksQuery, TrailOf, TrailQuery,
    },
    view::{
        AttemptOutcome, Balance, BatchView, Day, Figures, JobState, JobView, MachineView, MarketDay, ModelHistory,
        ModelSummary, Page, Reading, Receipt, StatementLine, TaskView, TrailEvent, TypicalRun,
        ops::{Accounts, PastRow, Platform, StuckJob, TimeTravel},
    },
};

/// The client stops asking for more machines when its list has this length.
const MAX_MACHINES: usize = 10_000;

/// Sends queries to projectors, in the name of an actor. Any projector can answer a query from its read models. But
/// rebuilds, verifications and time travel run in one projector, and only this projector knows their state. The client
/// therefore *pins* a projector: it sends all queries about this work to one projector, as long as this projector
/// answers.
///
/// A method with the parameter `min_seq` gets an answer that includes the event with this sequence.
#[derive(Clone)]
pub struct QueryClient {
    caller: Caller,
    /// The pinned projector; `None` before the first answer. All clones of the client share it.
    pinned: Arc<Mutex<Option<ProjectorId>>>,
    /// The pinned projector that the caller chose. The client never replaces this projector by another.
    chosen: Option<ProjectorId>,
}

impl QueryClient {
    /// A client that has no pinned projector yet.
    pub fn new(caller: Caller) -> Self {
        Self { caller, pinned: Arc::default(), chosen: None }
    }

    /// Pins this projector and never another; `None` lets the client choose.
    #[must_use]
    pub fn pinned_to(self, projector: Option<ProjectorId>) -> Self {
        Self { chosen: projector, ..self }
    }

    fn pinned(&self) -> MutexGuard<'_, Option<ProjectorId>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a query to the pinned projector.
    async fn ask_pinned<T: DeserializeOwned>(
        &self,
        name: &str,
        actor: Actor,
        body: impl Serialize + Sync,
    ) -> Result<T, RpcError> {
        let request = QueryRequest { min_seq: Seq::ZERO, body };
        // If the pinned projector does not answer, the second round pins another projector.
        for _ in 0..2 {
            let Some(projector) = self.pinned_or_any(actor).await? else {
                return self.caller.call(subject::query(name), actor, &request).await;
            };
            let answer = self.caller.call_if_served(subject::query_of(name, projector), actor, &request).await?;
            if let Some(answer) = answer {
                return Ok(answer);
            }
            if self.chosen.is_some() {
                let gone =
                    format!("projector {projector} does not answer: the command `lag` names a projector that answers");
                return Err(RpcError::Unavailable(gone));
            }
            self.pinned().take_if(|pinned| *pinned == projector);
        }
        Err(RpcError::Unavailable("two projectors stopped before they answered: try again".to_owned()))
    }

    /// The pinned projector. If there is none, pins the projector that answers first. `None` if this projector has an
    /// old version without an id.
    async fn pinned_or_any(&self, actor: Actor) -> Result<Option<ProjectorId>, RpcError> {
        match self.chosen.or_else(|| *self.pinned()) {
            None => Ok(self.pin(&Box::pin(self.any_platform(actor)).await?)),
            pinned => Ok(pinned),
        }
    }

    /// The platform as any projector sees it.
    async fn any_platform(&self, actor: Actor) -> Result<Platform, RpcError> {
        self.ask("platform", actor, Seq::ZERO, ()).await
    }

    /// Pins the projector that answered, unless another task has pinned one meanwhile. Returns the pinned projector.
    fn pin(&self, platform: &Platform) -> Option<ProjectorId> {
        let mut pinned = self.pinned();
        *pinned = pinned.or(platform.projector);
        *pinned
    }

    /// Sends a query to any projector.
    async fn ask<T: DeserializeOwned>(
        &self,
        name: &str,
        actor: Actor,
        min_seq: Seq,
        body: impl Serialize + Sync,
    ) -> Result<T, RpcError> {
        self.caller.call(subject::query(name), actor, &QueryRequest { min_seq, body }).await
    }

    /// The market's figures.
    pub async fn figures(&self, actor: Actor) -> Result<Figures, RpcError> {
        self.ask("figures", actor, Seq::ZERO, ()).await
    }

    /// The models of which machines took jobs since the hour `from`, in alphabetical order.
    pub async fn models(&self, actor: Actor, from: u32) -> Result<Vec<ModelSummary>, RpcError> {
        self.ask("models", actor, Seq::ZERO, from).await
    }

    /// The prices and the free machines of a model in the last hours.
    pub async fn model_history(&self, actor: Actor, query: ModelHistoryQuery) -> Result<ModelHistory, RpcError> {
        self.ask("model_history", actor, Seq::ZERO, query).await
    }

    /// The usual time and cost of the jobs of each template that had a completed run.
    pub async fn typical_runs(&self, actor: Actor) -> Result<Vec<TypicalRun>, RpcError> {
        self.ask("typical_runs", actor, Seq::ZERO, ()).await
    }

    /// What became of jobs and machines on the days with an event since the day `from`, newest first. At most 366 days.
    pub async fn market_days(&self, actor: Actor, from: u32) -> Result<Vec<MarketDay>, RpcError> {
        self.ask("market_days", actor, Seq::ZERO, from).await
    }

    /// All machines that are not delisted.
    pub async fn machines(&self, actor: Actor, min_seq: Seq) -> Result<Vec<MachineView>, RpcError> {
        self.all_machines("machines", actor, min_seq, |after| after).await
    }

    /// All machines of an owner, including the delisted machines.
    pub async fn machines_of(
        &self,
        actor: Actor,
        owner: AccountId,
        min_seq: Seq,
    ) -> Result<Vec<MachineView>, RpcError> {
        self.all_machines("machines_of", actor, min_seq, |after| MachinesOfQuery { owner, after }).await
    }

    /// All machines of a list. Each answer has at most [`MACHINES_PER_ANSWER`] of them, so the method asks again until
    /// the list ends. `query` makes the request for the machines after a given machine.
    async fn all_machines<Q: Serialize + Sync>(
        &self,
        name: &str,
        actor: Actor,
        min_seq: Seq,
        query: impl Fn(Option<MachineId>) -> Q,
    ) -> Result<Vec<MachineView>, RpcError> {
        let mut machines: Vec<MachineView> = Vec::new();
        while machines.len() < MAX_MACHINES {
            let after = machines.last().map(|m| m.listed.machine);
            let more: Vec<MachineView> = self.ask(name, actor, min_seq, query(after)).await?;
            let is_last = more.len() < MACHINES_PER_ANSWER;
            machines.extend(more);
            if is_last {
                break;
            }
        }
        Ok(machines)
    }

    /// One machine.
    pub async fn machine(&self, actor: Actor, machine: MachineId, min_seq: Seq) -> Result<MachineView, RpcError> {
        self.ask("machine", actor, min_seq, machine).await
    }

    /// The last readings of a machine, oldest first: one for each of the last `minutes` minutes with a heartbeat, and
    /// one for the minute of the last heartbeat. The projector keeps at most 1,440 past minutes.
    pub async fn readings(&self, actor: Actor, machine: MachineId, minutes: u32) -> Result<Vec<Reading>, RpcError> {
        self.ask("readings", actor, Seq::ZERO, ReadingsQuery { machine, minutes }).await
    }

    /// The last attempts on a machine, newest first.
    pub async fn outcomes(&self, actor: Actor, machine: MachineId) -> Result<Vec<AttemptOutcome>, RpcError> {
        self.ask("outcomes", actor, Seq::ZERO, machine).await
    }

    /// A page of accounts in the order of their ids, each with its balance, and the sums of all accounts. The page
    /// begins after the account `after`. For operators.
    pub async fn accounts(&self, actor: Actor, after: Option<AccountId>) -> Result<Accounts, RpcError> {
        self.ask("accounts", actor, Seq::ZERO, after).await
    }

    /// The last `limit` days with a settlement, newest first.
    pub async fn days(&self, actor: Actor, of: DaysOf, limit: u32, min_seq: Seq) -> Result<Vec<Day>, RpcError> {
        self.ask("days", actor, min_seq, DaysQuery { of, most: limit }).await
    }

    /// Jobs, newest first.
    pub async fn jobs(&self, actor: Actor, query: JobsQuery, min_seq: Seq) -> Result<Page<JobView>, RpcError> {
        self.ask("jobs", actor, min_seq, query).await
    }

    /// One job.
    pub async fn job(&self, actor: Actor, job: JobId, min_seq: Seq) -> Result<JobView, RpcError> {
        self.ask("job", actor, min_seq, job).await
    }

    /// Batches of an account, newest first.
    pub async fn batches(&self, actor: Actor, query: BatchesQuery, min_seq: Seq) -> Result<Page<BatchView>, RpcError> {
        self.ask("batches", actor, min_seq, query).await
    }

    /// One batch.
    pub async fn batch(&self, actor: Actor, batch: BatchId, min_seq: Seq) -> Result<BatchView, RpcError> {
        self.ask("batch", actor, min_seq, batch).await
    }

    /// The states of all tasks of a batch, in the order of their numbers.
    pub async fn task_states(&self, actor: Actor, batch: BatchId, min_seq: Seq) -> Result<Vec<JobState>, RpcError> {
        self.ask("task_states", actor, min_seq, batch).await
    }

    /// Tasks of a batch.
    pub async fn tasks(&self, actor: Actor, query: TasksQuery, min_seq: Seq) -> Result<Page<TaskView>, RpcError> {
        self.ask("tasks", actor, min_seq, query).await
    }

    /// A part of the trail (all events) of a job, machine or account, oldest first.
    pub async fn trail(&self, actor: Actor, query: TrailQuery, min_seq: Seq) -> Result<Page<TrailEvent>, RpcError> {
        self.ask("trail", actor, min_seq, query).await
    }

    /// A job's receipt; `None` until the job is settled.
    pub async fn receipt(&self, actor: Actor, job: JobId, min_seq: Seq) -> Result<Option<Receipt>, RpcError> {
        self.ask("receipt", actor, min_seq, job).await
    }

    /// An account's balance.
    pub async fn balance(&self, actor: Actor, account: AccountId, min_seq: Seq) -> Result<Balance, RpcError> {
        self.ask("balance", actor, min_seq, account).await
    }

    /// A part of a statement, newest first.
    pub async fn statement(
        &self,
        actor: Actor,
        query: StatementQuery,
        min_seq: Seq,
    ) -> Result<Page<StatementLine>, RpcError> {
        self.ask("statement", actor, min_seq, query).await
    }

    /// One event, without the fields that the actor may not see.
    pub async fn event(&self, actor: Actor, seq: Seq) -> Result<TrailEvent, RpcError> {
        self.ask("event", actor, seq, seq).await
    }

    /// The lag of the projector's read models.
    pub async fn lag(&self, actor: Actor) -> Result<Lag, RpcError> {
        self.ask("lag", actor, Seq::ZERO, ()).await
    }

    /// The platform's streams and models. This query and all queries below are for operators, except `proof`
    /// and `head_keys`.
    pub async fn platform(&self, actor: Actor) -> Result<Platform, RpcError> {
        if self.chosen.is_none() && self.pinned().is_none() {
            let platform = self.any_platform(actor).await?;
            if self.pin(&platform) == platform.projector {
                return Ok(platform);
            }
        }
        self.ask_pinned("platform", actor, ()).await
    }

    /// Events of the whole log, newest first.
    pub async fn events(&self, actor: Actor, query: EventsQuery) -> Result<Page<TrailEvent>, RpcError> {
        self.ask("events", actor, Seq::ZERO, query).await
    }

    /// Jobs that have been in one state for too long.
    pub async fn stuck(&self, actor: Actor) -> Result<Vec<StuckJob>, RpcError> {
        self.ask("stuck", actor, Seq::ZERO, ()).await
    }

    /// The checks of the deployment that the projector can make.
    pub async fn doctor(&self, actor: Actor) -> Result<Vec<Check>, RpcError> {
        self.ask("doctor", actor, Seq::ZERO, ()).await
    }

    /// The proof that an event is in the log. The actor must be allowed to see all fields of the event.
    pub async fn proof(&self, actor: Actor, seq: Seq) -> Result<Proof, RpcError> {
        self.ask("proof", actor, Seq::ZERO, seq).await
    }

    /// The public keys with which the market's projectors sign heads (roots of the log's Merkle tree). Anybody may
    /// know these keys.
    pub async fn head_keys(&self, actor: Actor) -> Result<Vec<String>, RpcError> {
        self.ask("head_keys", actor, Seq::ZERO, ()).await
    }

    /// The market at a point in the log.
    pub async fn past_market(&self, actor: Actor, to: LogPoint) -> Result<TimeTravel, RpcError> {
        self.ask_pinned("travel", actor, to).await
    }

    /// One job, machine or account at a point in the log.
    pub async fn past_row(&self, actor: Actor, of: TrailOf, to: LogPoint) -> Result<PastRow, RpcError> {
        self.ask("then", actor, Seq::ZERO, (of, to)).await
    }

    /// Starts to rebuild a model from the log. The old rows answer until the rebuild is done.
    pub async fn rebuild(&self, actor: Actor, model: &str) -> Result<(), RpcError> {
        self.ask_pinned("rebuild", actor, model).await
    }

    /// Starts to compare all models with a new fold of the log.
    pub async fn verify(&self, actor: Actor) -> Result<(), RpcError> {
        self.ask_pinned("verify", actor, ()).await
    }
}
