//! The queries as the micro service `query.*`. Each waits until the models have folded the sequence that the request
//! names, checks what the actor may see, and reads the rows.

mod access;
mod read;

use std::{future::Future, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_events::{Actor, MachineId, ProjectorId, Refusal, RefusalKind, Seq, subject};
use gpubnb_log::{Log, stream::CHECKPOINTS};
use gpubnb_model::merkle::{Merkle, StoredTree};
use gpubnb_proof::{MessageLine, Proof, merkle};
use gpubnb_query::{
    request::{Ask, Lag, ModelState, ReadingsQuery, TrailQuery},
    view::{Page, TrailEvent},
};
use gpubnb_runtime::rpc::{Failure, Incoming, Requester, Server};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

pub(crate) use self::{
    access::{may_see_all, not_found},
    read::{ReadModels, broken},
};
use crate::{
    fold::Models,
    tree_head::{self, LATEST},
};

/// How long a query waits for the models to reach the sequence that the request names.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a query looks for a new signed tree head.
const NEXT_HEAD: Duration = Duration::from_millis(200);
/// Events of a trail that are read from the log at the same time.
const READ_AT_ONCE: usize = 64;

/// The progress of the fold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Applied {
    pub(crate) seq: Seq,
    pub(crate) models: Vec<ModelState>,
}

impl Applied {
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

/// Everything that the endpoints answer from. Clones share it.
#[derive(Clone)]
pub(crate) struct Queries {
    pub(crate) read: ReadModels,
    pub(crate) log: Log,
    pub(crate) applied: watch::Receiver<Applied>,
    /// No query is answered before the models have folded this sequence: a job that is not folded yet would look as if
    /// it did not exist.
    pub(crate) floor: Seq,
}

/// Serves all queries once the models have caught up with the log as it was at the start. Only `lag` is answered
/// before.
pub(crate) async fn serve(server: &Server, q: &Queries) -> Result<(), async_nats::Error> {
    let at_once = Queries { floor: Seq::ZERO, ..q.clone() };
    endpoint(server, &at_once, "lag", |q, _, ()| async move { q.lag().await }).await?;
    endpoint(server, q, "figures", |q, _, ()| async move { q.read.figures() }).await?;
    endpoint(server, q, "machines", |q, _, after| async move { q.read.machines(after) }).await?;
    endpoint(server, q, "machines_of", |q, actor, query| async move { q.read.machines_of(actor, query) }).await?;
    endpoint(server, q, "outcomes", |q, _, machine: MachineId| async move { q.read.outcomes(machine) }).await?;
    endpoint(server, q, "readings", |q, _, query: ReadingsQuery| async move { Ok(q.read.readings(query)) }).await?;
    endpoint(server, q, "days", |q, actor, query| async move { q.read.days(actor, query) }).await?;
    endpoint(server, q, "machine", |q, _, id| async move { q.read.machine(id) }).await?;
    endpoint(server, q, "jobs", |q, actor, query| async move { q.read.jobs(actor, query) }).await?;
    endpoint(server, q, "job", |q, actor, id| async move { q.read.job(actor, id) }).await?;
    endpoint(server, q, "receipt", |q, actor, id| async move { q.read.receipt(actor, id) }).await?;
    endpoint(server, q, "balance", |q, actor, id| async move { q.read.balance(actor, id) }).await?;
    endpoint(server, q, "statement", |q, actor, query| async move { q.read.statement(actor, &query) }).await?;
    endpoint(server, q, "trail", |q, actor, query| async move { q.trail(actor, query).await }).await?;
    endpoint(server, q, "event", |q, actor, seq| async move { q.event(actor, seq).await }).await?;
    endpoint(server, q, "proof", |q, actor, seq| async move { q.proof(actor, seq).await }).await
}

/// The address of an endpoint: the name under which its requests are counted, and its subject.
pub(crate) struct Address(String, String);

impl From<&str> for Address {
    fn from(name: &str) -> Self {
        Self(format!("query-{name}"), subject::query(name))
    }
}

impl Address {
    /// The address of a query that only this projector answers.
    pub(crate) fn of(name: &str, projector: ProjectorId) -> Self {
        Self(format!("query-{name}-own"), subject::query_of(name, projector))
    }
}

/// Serves one endpoint.
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
    Fut: Future<Output = Result<T, Failure>> + Send,
{
    let (queries, Address(name, subject)) = (queries.clone(), address.into());
    server
        .endpoint(&name, subject, Requester::Platform, move |incoming: Incoming| {
            let (queries, handler) = (queries.clone(), handler.clone());
            async move {
                let Ask { min_seq, body } = incoming.parse()?;
                queries.wait_for(min_seq.max(queries.floor)).await?;
                let answer = handler(queries, incoming.actor, body).await?;
                serde_json::to_value(answer).map_err(|e| Failure::unavailable("the answer could not be written", &e))
            }
        })
        .await
}

impl Queries {
    async fn wait_for(&self, seq: Seq) -> Result<(), Failure> {
        let mut applied = self.applied.clone();
        if applied.borrow().seq >= seq {
            return Ok(());
        }
        // Nothing is gained by waiting for a sequence that the log does not have.
        if self.log.last_seq().await? < seq {
            let message = format!("The log has not reached sequence {seq}.");
            return Err(Refusal::new("NoSuchSequence", RefusalKind::Invalid, message).at("min_seq").into());
        }
        let waited = tokio::time::timeout(PATIENCE, applied.wait_for(|a| a.seq >= seq)).await;
        if waited.is_err() {
            let at = self.applied.borrow().seq;
            let problem = format!("the read models are at sequence {at} and not yet at {seq}: try again in a moment");
            return Err(Failure::Unavailable(problem));
        }
        Ok(())
    }

    async fn trail(&self, actor: Actor, query: TrailQuery) -> Result<Page<TrailEvent>, Failure> {
        let part = self.read.trail_part(actor, &query)?;
        let reading = futures_util::stream::iter(part.sequences.clone()).map(|seq| self.log.get(seq));
        let read: Result<Vec<_>, _> = reading.buffered(READ_AT_ONCE).try_collect().await;
        let recorded = read?.into_iter().flatten().collect();
        let rows = part.seen(&self.read, actor, recorded);
        Ok(Page { rows, next: part.next.map(|next| next.to_string()) })
    }

    /// The proof that an event is in the log, for an actor who may see all of the event.
    async fn proof(&self, actor: Actor, seq: Seq) -> Result<Proof, Failure> {
        let raw = self.log.get_raw(seq).await?;
        let raw = raw.ok_or_else(|| not_found("event"))?;
        let recorded = raw.read();
        if !self.read.sees_whole(actor, &recorded) {
            return Err(not_found("event"));
        }
        let unsigned =
            |e: anyhow::Error| Failure::unavailable("the signed heads cannot be read now; try again", e.as_ref());
        let bucket = self.log.jetstream().get_key_value(CHECKPOINTS).await.map_err(|e| unsigned(e.into()))?;
        // A head is signed every two seconds: for a new event, the next one is awaited.
        let signed = async {
            loop {
                match tree_head::get(&bucket, LATEST).await {
                    Ok(Some(head)) if head.size >= seq.0 => return Ok(head),
                    Ok(_) => tokio::time::sleep(NEXT_HEAD).await,
                    Err(e) => return Err(unsigned(e)),
                }
            }
        };
        let late = |_| Failure::Unavailable("no signed head covers this event yet: try again in a moment".to_owned());
        let head = tokio::time::timeout(PATIENCE, signed).await.map_err(late)??;
        let table = self.read.tables.of(&Merkle).map_err(broken)?;
        let path = merkle::path(&StoredTree(&table), seq.0 - 1, head.size).map_err(broken)?;
        Ok(Proof { message: MessageLine::from(&raw), path: path.iter().map(gpubnb_events::hex).collect(), head })
    }

    async fn event(&self, actor: Actor, seq: Seq) -> Result<TrailEvent, Failure> {
        let read = self.log.get(seq).await?;
        read.and_then(|recorded| self.read.seen(actor, &recorded)).ok_or_else(|| not_found("event"))
    }

    async fn lag(&self) -> Result<Lag, Failure> {
        let last = self.log.last_seq().await?;
        let applied = self.applied.borrow().clone();
        let stopped = applied.models.into_iter().filter_map(|m| Some((m.name, m.stopped?))).collect();
        Ok(Lag { last, applied: applied.seq, stopped })
    }
}
