//! The client of a projector: one method for each query.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gpubnb_events::{AccountId, Actor, JobId, MachineId, ProjectorId, Seq, event::Check, subject};
use gpubnb_proof::Proof;
use gpubnb_runtime::rpc::{Caller, Failure};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    request::{
        Ask, DaysOf, DaysQuery, EventsQuery, JobsQuery, Lag, MACHINES_AT_ONCE, MachinesOfQuery, Point, ReadingsQuery,
        StatementQuery, TrailOf, TrailQuery,
    },
    view::{
        Balance, Day, Figures, JobView, MachineView, Outcome, Page, Reading, Receipt, StatementLine, TrailEvent,
        ops::{Accounts, Platform, RowThen, Stuck, Travel},
    },
};

/// Most machines in a list that is asked for part by part.
const MOST_MACHINES: usize = 10_000;

/// Asks projectors, in an actor's name. Any projector answers from its read models. Rebuilds, verifications and
/// journeys through time belong to one projector: about these the client asks the projector that answered first, as
/// long as that one is there.
#[derive(Clone)]
pub struct QueryClient {
    caller: Caller,
    /// The projector that is asked about its own work, once one has answered.
    asked: Arc<Mutex<Option<ProjectorId>>>,
    /// The only projector that may be asked about its own work.
    only: Option<ProjectorId>,
}

impl QueryClient {
    /// A client that asks over this connection.
    pub fn new(caller: Caller) -> Self {
        Self { caller, asked: Arc::default(), only: None }
    }

    /// The same client, which asks this projector and no other about its own work.
    #[must_use]
    pub fn only(self, projector: Option<ProjectorId>) -> Self {
        Self { only: projector, ..self }
    }

    fn asked(&self) -> MutexGuard<'_, Option<ProjectorId>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks one projector about its own work.
    async fn ask_one<T: DeserializeOwned>(
        &self,
        name: &str,
        actor: Actor,
        body: impl Serialize + Sync,
    ) -> Result<T, Failure> {
        let ask = Ask { min_seq: Seq::ZERO, body };
        // Where the projector that was asked so far is gone, another one is asked.
        for _ in 0..2 {
            let Some(projector) = self.settled(actor).await? else {
                return self.caller.call(subject::query(name), actor, &ask).await;
            };
            let answer = self.caller.call_there(subject::query_of(name, projector), actor, &ask).await?;
            if let Some(answer) = answer {
                return Ok(answer);
            }
            if self.only.is_some() {
                let gone = format!("projector {projector} does not answer: `lag` names one that does");
                return Err(Failure::Unavailable(gone));
            }
            self.asked().take_if(|asked| *asked == projector);
        }
        Err(Failure::Unavailable("each projector that answered was gone at once: ask again".to_owned()))
    }

    /// The projector to ask about its own work: the one that answered first, or else the one that answers now. `None`
    /// where that one is too old to have an id.
    async fn settled(&self, actor: Actor) -> Result<Option<ProjectorId>, Failure> {
        match self.only.or_else(|| *self.asked()) {
            None => Ok(self.settle(&Box::pin(self.any_platform(actor)).await?)),
            settled => Ok(settled),
        }
    }

    async fn any_platform(&self, actor: Actor) -> Result<Platform, Failure> {
        self.ask("platform", actor, Seq::ZERO, ()).await
    }

    /// Settles on the projector that answered, unless another task has settled on one meanwhile.
    fn settle(&self, platform: &Platform) -> Option<ProjectorId> {
        let mut asked = self.asked();
        *asked = asked.or(platform.projector);
        *asked
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

    /// The market's figures.
    pub async fn figures(&self, actor: Actor) -> Result<Figures, Failure> {
        self.ask("figures", actor, Seq::ZERO, ()).await
    }

    /// All machines that are not delisted.
    pub async fn machines(&self, actor: Actor, min_seq: Seq) -> Result<Vec<MachineView>, Failure> {
        self.all_machines("machines", actor, min_seq, |after| after).await
    }

    /// All machines of an owner, also those that are delisted.
    pub async fn machines_of(&self, actor: Actor, owner: AccountId, min_seq: Seq) -> Result<Vec<MachineView>, Failure> {
        self.all_machines("machines_of", actor, min_seq, |after| MachinesOfQuery { owner, after }).await
    }

    /// All machines, part by part. `query` makes the request for the machines after one.
    async fn all_machines<Q: Serialize + Sync>(
        &self,
        name: &str,
        actor: Actor,
        min_seq: Seq,
        query: impl Fn(Option<MachineId>) -> Q,
    ) -> Result<Vec<MachineView>, Failure> {
        let mut machines: Vec<MachineView> = Vec::new();
        while machines.len() < MOST_MACHINES {
            let after = machines.last().map(|m| m.listed.machine);
            let more: Vec<MachineView> = self.ask(name, actor, min_seq, query(after)).await?;
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

    /// The readings of a machine in its last `minutes`, oldest first; they are kept for a day.
    pub async fn readings(&self, actor: Actor, machine: MachineId, minutes: u32) -> Result<Vec<Reading>, Failure> {
        self.ask("readings", actor, Seq::ZERO, ReadingsQuery { machine, minutes }).await
    }

    /// The newest attempts at a machine.
    pub async fn outcomes(&self, actor: Actor, machine: MachineId) -> Result<Vec<Outcome>, Failure> {
        self.ask("outcomes", actor, Seq::ZERO, machine).await
    }

    /// A page of accounts by id, each with its money, and the sums of all accounts. For operators.
    pub async fn accounts(&self, actor: Actor, after: Option<AccountId>) -> Result<Accounts, Failure> {
        self.ask("accounts", actor, Seq::ZERO, after).await
    }

    /// The last days on which something was settled, newest first.
    pub async fn days(&self, actor: Actor, of: DaysOf, most: u32, min_seq: Seq) -> Result<Vec<Day>, Failure> {
        self.ask("days", actor, min_seq, DaysQuery { of, most }).await
    }

    /// Jobs, newest first.
    pub async fn jobs(&self, actor: Actor, query: JobsQuery, min_seq: Seq) -> Result<Page<JobView>, Failure> {
        self.ask("jobs", actor, min_seq, query).await
    }

    /// One job.
    pub async fn job(&self, actor: Actor, job: JobId, min_seq: Seq) -> Result<JobView, Failure> {
        self.ask("job", actor, min_seq, job).await
    }

    /// A part of a trail, oldest first.
    pub async fn trail(&self, actor: Actor, query: TrailQuery, min_seq: Seq) -> Result<Page<TrailEvent>, Failure> {
        self.ask("trail", actor, min_seq, query).await
    }

    /// A job's bill; `None` until it is settled.
    pub async fn receipt(&self, actor: Actor, job: JobId, min_seq: Seq) -> Result<Option<Receipt>, Failure> {
        self.ask("receipt", actor, min_seq, job).await
    }

    /// An account's money.
    pub async fn balance(&self, actor: Actor, account: AccountId, min_seq: Seq) -> Result<Balance, Failure> {
        self.ask("balance", actor, min_seq, account).await
    }

    /// A part of a statement, newest first.
    pub async fn statement(
        &self,
        actor: Actor,
        query: StatementQuery,
        min_seq: Seq,
    ) -> Result<Page<StatementLine>, Failure> {
        self.ask("statement", actor, min_seq, query).await
    }

    /// One event, as far as the actor may see it.
    pub async fn event(&self, actor: Actor, seq: Seq) -> Result<TrailEvent, Failure> {
        self.ask("event", actor, seq, seq).await
    }

    /// How far the projector is behind the log.
    pub async fn lag(&self, actor: Actor) -> Result<Lag, Failure> {
        self.ask("lag", actor, Seq::ZERO, ()).await
    }

    /// The platform's streams and models. This query and all that follow are for operators, except `proof`.
    pub async fn platform(&self, actor: Actor) -> Result<Platform, Failure> {
        if self.only.is_none() && self.asked().is_none() {
            let platform = self.any_platform(actor).await?;
            if self.settle(&platform) == platform.projector {
                return Ok(platform);
            }
        }
        self.ask_one("platform", actor, ()).await
    }

    /// Events of the whole log, newest first.
    pub async fn events(&self, actor: Actor, query: EventsQuery) -> Result<Page<TrailEvent>, Failure> {
        self.ask("events", actor, Seq::ZERO, query).await
    }

    /// Jobs that have been in one state for too long.
    pub async fn stuck(&self, actor: Actor) -> Result<Vec<Stuck>, Failure> {
        self.ask("stuck", actor, Seq::ZERO, ()).await
    }

    /// The checks of the deployment that the projector can make.
    pub async fn doctor(&self, actor: Actor) -> Result<Vec<Check>, Failure> {
        self.ask("doctor", actor, Seq::ZERO, ()).await
    }

    /// The proof that an event is in the log, for an actor who may see the whole event.
    pub async fn proof(&self, actor: Actor, seq: Seq) -> Result<Proof, Failure> {
        self.ask("proof", actor, Seq::ZERO, seq).await
    }

    /// The market at a point in the log.
    pub async fn travel(&self, actor: Actor, to: Point) -> Result<Travel, Failure> {
        self.ask_one("travel", actor, to).await
    }

    /// One job, machine or account at a point in the log.
    pub async fn then(&self, actor: Actor, of: TrailOf, to: Point) -> Result<RowThen, Failure> {
        self.ask("then", actor, Seq::ZERO, (of, to)).await
    }

    /// Starts to rebuild a model beside the one that answers.
    pub async fn rebuild(&self, actor: Actor, model: &str) -> Result<(), Failure> {
        self.ask_one("rebuild", actor, model).await
    }

    /// Starts to verify all models against the log.
    pub async fn verify(&self, actor: Actor) -> Result<(), Failure> {
        self.ask_one("verify", actor, ()).await
    }
}
