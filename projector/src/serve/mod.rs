//! Serves the queries on the NATS subjects `query.*`. Each query waits until the models have folded the sequence that
//! the request names, checks what the actor (the account, machine or operator that asks) may see, and reads the rows.

mod access;
mod read;

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_events::{Actor, MachineId, ProjectorId, Refusal, RefusalKind, Seq, command::DayEarnings, subject};
use gpubnb_log::{Log, stream::CHECKPOINTS};
use gpubnb_model::merkle::{Merkle, StoredTree};
use gpubnb_proof::{MessageLine, Proof, merkle};
use gpubnb_query::{
    request::{DaysOf, DaysQuery, Lag, ModelState, QueryRequest, ReadingsQuery, TrailQuery},
    view::{Day, Page, TrailEvent},
};
use gpubnb_runtime::rpc::{Incoming, Requester, RpcError, Server};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

pub(crate) use self::{
    access::{may_see_all, not_found},
    read::{ReadModels, store_failure},
};
use crate::{
    fold::Models,
    tree_head::{self, LATEST},
};

/// The longest time that a query waits for the models to reach a sequence, or for a signed tree head.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// The pause before a query looks again for a new signed tree head.
const HEAD_PAUSE: Duration = Duration::from_millis(200);
/// The most events of a trail that are read from the log at the same time.
const CONCURRENT_READS: usize = 64;
/// The most days of earnings in the answer to a machine.
const DAYS_OF_MACHINE: u32 = 31;

/// The progress of the fold: `seq` is the last sequence that every running model has folded.
#[derive(Debug, Clone, Default)]
pub(crate) struct FoldProgress {
    pub(crate) seq: Seq,
    pub(crate) models: Vec<ModelState>,
}

impl FoldProgress {
    pub(crate) fn of(models: &Models) -> Self {
        let (seq, states) = (models.applied(), models.states());
        let models = states.map(|(name, checkpoint, stopped)| ModelState {
            name: name.to_owned(),
            checkpoint,
            stopped: stopped.map(ToOwned::to_owned),
        });
        Self { seq, models: models.collect() }
    }
}

/// The data that the endpoints read. Clones share the data.
#[derive(Clone)]
pub(crate) struct Queries {
    pub(crate) read: ReadModels,
    pub(crate) log: Log,
    pub(crate) applied: watch::Receiver<FoldProgress>,
    /// The last event of the log at the start. Queries wait until the models have folded this event, because a job that
    /// is not folded yet would seem not to exist.
    pub(crate) floor: Seq,
    /// The public keys of trusted signed heads: this projector's own key, and the keys of `--head-key`, such as its
    /// former key.
    pub(crate) head_keys: Arc<[String]>,
}

/// Registers the endpoints of all queries. Only `lag` and `head_keys` are answered before the models have folded the
/// event `floor`.
pub(crate) async fn serve(server: &Server, q: &Queries) -> Result<(), async_nats::Error> {
    let without_floor = Queries { floor: Seq::ZERO, ..q.clone() };
    endpoint(server, &without_floor, "lag", |q, _, ()| async move { q.lag().await }).await?;
    let keys = |q: Queries, _, ()| async move { Ok(q.head_keys.to_vec()) };
    endpoint(server, &without_floor, "head_keys", keys).await?;
    endpoint(server, q, "figures", |q, _, ()| async move { q.read.figures() }).await?;
    endpoint(server, q, "models", |q, _, from: u32| async move { q.read.models(from) }).await?;
    endpoint(server, q, "model_history", |q, _, query| async move { q.read.model_history(&query) }).await?;
    endpoint(server, q, "market_days", |q, _, from: u32| async move { q.read.market_days(from) }).await?;
    endpoint(server, q, "typical_runs", |q, _, ()| async move { q.read.typical_runs() }).await?;
    endpoint(server, q, "machines", |q, _, after| async move { q.read.machines(after) }).await?;
    endpoint(server, q, "machines_of", |q, actor, query| async move { q.read.machines_of(actor, query) }).await?;
    endpoint(server, q, "outcomes", |q, _, machine: MachineId| async move { q.read.outcomes(machine) }).await?;
    endpoint(server, q, "readings", |q, _, query: ReadingsQuery| async move { Ok(q.read.readings(query)) }).await?;
    endpoint(server, q, "days", |q, actor, query| async move { q.read.days(actor, query) }).await?;
    endpoint(server, q, "machine", |q, _, id| async move { q.read.machine(id) }).await?;
    endpoint(server, q, "jobs", |q, actor, query| async move { q.read.jobs(actor, query) }).await?;
    endpoint(server, q, "job", |q, actor, id| async move { q.read.job(actor, id) }).await?;
    endpoint(server, q, "batches", |q, actor, query| async move { q.read.batches(actor, &query) }).await?;
    endpoint(server, q, "batch", |q, actor, id| async move { q.read.batch(actor, id) }).await?;
    endpoint(server, q, "task_states", |q, actor, id| async move { q.read.task_states(actor, id) }).await?;
    endpoint(server, q, "tasks", |q, actor, query| async move { q.read.tasks(actor, &query) }).await?;
    endpoint(server, q, "receipt", |q, actor, id| async move { q.read.receipt(actor, id) }).await?;
    endpoint(server, q, "balance", |q, actor, id| async move { q.read.balance(actor, id) }).await?;
    endpoint(server, q, "statement", |q, actor, query| async move { q.read.statement(actor, &query) }).await?;
    endpoint(server, q, "trail", |q, actor, query| async move { q.trail(actor, query).await }).await?;
    endpoint(server, q, "event", |q, actor, seq| async move { q.event(actor, seq).await }).await?;
    endpoint(server, q, "proof", |q, actor, seq| async move { q.proof(actor, seq).await }).await?;
    serve_days_of_machines(server, q).await
}

/// Registers the one query that machines may ask: what the machine itself has earned.
async fn serve_days_of_machines(server: &Server, queries: &Queries) -> Result<(), async_nats::Error> {
    let (queries, subject) = (queries.clone(), subject::machine_query_filter("days"));
    let days = move |incoming: Incoming| {
        let queries = queries.clone();
        async move {
            queries.wait_for(queries.floor).await?;
            let Actor::Machine(machine) = incoming.actor else { return Err(not_found("machine")) };
            let query = DaysQuery { of: DaysOf::Machine(machine), most: DAYS_OF_MACHINE };
            let earnings = |day: Day| DayEarnings { day: day.day, earned: day.earned, jobs: day.jobs };
            to_json(queries.read.days(incoming.actor, query)?.into_iter().map(earnings).collect::<Vec<_>>())
        }
    };
    server.endpoint("query-machine-days", subject, Requester::Machine, days).await
}

/// The address of an endpoint: its name in the metrics, and its NATS subject.
pub(crate) struct Address(String, String);

impl From<&str> for Address {
    fn from(name: &str) -> Self {
        Self(format!("query-{name}"), subject::query(name))
    }
}

impl Address {
    /// The address of a query that only the given projector answers.
    pub(crate) fn of_projector(name: &str, projector: ProjectorId) -> Self {
        Self(format!("query-{name}-own"), subject::query_of(name, projector))
    }
}

/// Registers one endpoint. `B` is the body of the request, `T` is the answer.
pub(crate) async fn endpoint<B, T, F, Fut>(
    server: &Server,
    queries: &Queries,
    address: impl Into<Address>,
    handler: F,
) -> Result<(), async_nats::Error>
where
    B: DeserializeOwned + Send,
    T: Serialize,
    F: Fn(Queries, Actor, B) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = Result<T, RpcError>> + Send,
{
    let (queries, Address(name, subject)) = (queries.clone(), address.into());
    server
        .endpoint(&name, subject, Requester::Platform, move |incoming: Incoming| {
            let (queries, handler) = (queries.clone(), handler.clone());
            async move {
                let QueryRequest { min_seq, body } = incoming.parse()?;
                queries.wait_for(min_seq.max(queries.floor)).await?;
                let not_found = match handler(queries.clone(), incoming.actor, body).await {
                    Err(e) if is_not_found(&e) => e,
                    answer => return to_json(answer?),
                };
                if !queries.catch_up().await? {
                    return Err(not_found);
                }
                let QueryRequest { body, .. } = incoming.parse()?;
                to_json(handler(queries, incoming.actor, body).await?)
            }
        })
        .await
}

fn is_not_found(e: &RpcError) -> bool {
    matches!(e, RpcError::Refused(refusal) if refusal.kind == RefusalKind::NotFound)
}

fn to_json(answer: impl Serialize) -> Result<serde_json::Value, RpcError> {
    serde_json::to_value(answer).map_err(|e| RpcError::unavailable("the answer could not be written", &e))
}

impl Queries {
    /// Waits until the models have folded the present end of the log. Returns false if they had already. A job that
    /// somebody has just submitted may be in the log and not folded yet: it must not seem not to exist.
    async fn catch_up(&self) -> Result<bool, RpcError> {
        let last = self.log.last_seq().await?;
        if self.applied.borrow().seq >= last {
            return Ok(false);
        }
        self.wait_for(last).await?;
        Ok(true)
    }

    /// Waits until the models have folded the event `seq`.
    pub(crate) async fn wait_for(&self, seq: Seq) -> Result<(), RpcError> {
        let mut applied = self.applied.clone();
        if applied.borrow().seq >= seq {
            return Ok(());
        }
        // Do not wait for a sequence that the log does not have.
        if self.log.last_seq().await? < seq {
            let message = format!("The log has not reached sequence {seq}.");
            return Err(Refusal::new("NoSuchSequence", RefusalKind::Invalid, message).with_field("min_seq").into());
        }
        let waited = tokio::time::timeout(MAX_WAIT, applied.wait_for(|a| a.seq >= seq)).await;
        if waited.is_err() {
            let at = self.applied.borrow().seq;
            let problem = format!("the read models are at sequence {at} and not yet at {seq}: try again in a moment");
            return Err(RpcError::Unavailable(problem));
        }
        Ok(())
    }

    async fn trail(&self, actor: Actor, query: TrailQuery) -> Result<Page<TrailEvent>, RpcError> {
        let page = self.read.trail_page(actor, &query)?;
        let reading = futures_util::stream::iter(page.sequences.clone()).map(|seq| self.log.get(seq));
        let read: Result<Vec<_>, _> = reading.buffered(CONCURRENT_READS).try_collect().await;
        let recorded = read?.into_iter().flatten().collect();
        let rows = page.visible_events(&self.read, actor, recorded);
        Ok(Page { rows, next: page.next.map(|next| next.to_string()) })
    }

    /// The proof that an event is in the log. Only an actor who may see the whole event gets the proof.
    async fn proof(&self, actor: Actor, seq: Seq) -> Result<Proof, RpcError> {
        let raw = self.log.get_raw(seq).await?;
        let raw = raw.ok_or_else(|| not_found("event"))?;
        let recorded = raw.decode();
        if !self.read.may_see_whole_event(actor, &recorded) {
            return Err(not_found("event"));
        }
        let heads_unreadable =
            |e: anyhow::Error| RpcError::unavailable("the signed heads cannot be read now; try again", e.as_ref());
        let bucket = self.log.jetstream().get_key_value(CHECKPOINTS).await.map_err(|e| heads_unreadable(e.into()))?;
        // A head is signed every two seconds. For a new event, wait for the next head.
        let covering_head = async {
            loop {
                match tree_head::get(&bucket, LATEST).await {
                    // Another projector may have signed a head that this one has not reached yet.
                    Ok(Some(head)) if head.size >= seq.0 && head.size <= self.applied.borrow().seq.0 => {
                        return Ok(head);
                    }
                    Ok(_) => tokio::time::sleep(HEAD_PAUSE).await,
                    Err(e) => return Err(heads_unreadable(e)),
                }
            }
        };
        let no_head_yet =
            |_| RpcError::Unavailable("no signed head covers this event yet: try again in a moment".to_owned());
        let head = tokio::time::timeout(MAX_WAIT, covering_head).await.map_err(no_head_yet)??;
        let table = self.read.tables.of(&Merkle).map_err(store_failure)?;
        let path = merkle::path(&StoredTree(&table), seq.0 - 1, head.size).map_err(store_failure)?;
        Ok(Proof { message: MessageLine::from(&raw), path: path.iter().map(gpubnb_events::hex).collect(), head })
    }

    async fn event(&self, actor: Actor, seq: Seq) -> Result<TrailEvent, RpcError> {
        let read = self.log.get(seq).await?;
        read.and_then(|recorded| self.read.visible_event(actor, &recorded)).ok_or_else(|| not_found("event"))
    }

    async fn lag(&self) -> Result<Lag, RpcError> {
        let last = self.log.last_seq().await?;
        let applied = self.applied.borrow().clone();
        let stopped = applied.models.into_iter().filter_map(|m| Some((m.name, m.stopped?))).collect();
        Ok(Lag { last, applied: applied.seq, stopped })
    }
}
