//! The queries as micro service `query.*`: wait for the sequence that was asked for, look whether the actor
//! may see it, read the rows.

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_events::{
    AccountId, Actor, Aggregate, Event, JobId, Log, MachineId, Recorded, Seq,
    rpc::{Failure, Incoming, Refusal, RefusalKind, Requester, Server},
    subject,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use crate::{
    client::{Ask, JobsQuery, Lag, StatementQuery, TrailOf, TrailQuery},
    fold::{Models, Trees},
    live::Live,
    model::{
        figures::{FIGURES, MarketFigures},
        jobs::{self, Jobs},
        ledger::{self, Ledger},
        machines::{self, Machines},
        timeline::{self, Timeline},
    },
    store::{self, StoreError},
    view::{Balance, Figures, JobRow, MachineRow, MachineState, MachineView, Page, Receipt, StatementLine, TrailEvent},
};

/// How long a query waits for the sequence it must have seen.
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_JOBS: u32 = 100;
/// Machines in one answer: each takes some 12 KB at most.
pub(crate) const MACHINES_AT_ONCE: usize = 64;
const MAX_TRAIL: u32 = 200;
const MAX_STATEMENT: u32 = 500;
/// Events of a trail that are read back at the same time.
const READ_AT_ONCE: usize = 16;
/// Jobs looked at for one page of a filtered list.
const MAX_SCAN: usize = 20_000;
/// Minutes of load shown beside a machine.
const SPARKLINE: usize = 60;

/// Progress of the fold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Applied {
    pub(crate) seq: Seq,
    pub(crate) stopped: Vec<(String, String)>,
}

impl Applied {
    pub(crate) fn of(models: &Models) -> Self {
        let stopped = models.stopped().map(|(model, why)| (model.to_owned(), why.to_owned())).collect();
        Self { seq: models.applied(), stopped }
    }
}

/// What queries need.
#[derive(Clone)]
pub(crate) struct Queries {
    pub(crate) trees: Trees,
    pub(crate) live: Arc<Live>,
    pub(crate) log: Log,
    pub(crate) applied: watch::Receiver<Applied>,
}

/// Serves them all.
pub(crate) async fn serve(server: &Server, q: &Queries) -> Result<(), async_nats::Error> {
    endpoint(server, q, "figures", |q, _, ()| async move { q.figures() }).await?;
    endpoint(server, q, "machines", |q, _, after| async move { q.machines(after) }).await?;
    endpoint(server, q, "machine", |q, _, id| async move { q.machine(id) }).await?;
    endpoint(server, q, "jobs", |q, actor, query| async move { q.jobs(actor, query) }).await?;
    endpoint(server, q, "job", |q, actor, id| async move { q.job(actor, id) }).await?;
    endpoint(server, q, "receipt", |q, actor, id| async move { q.receipt(actor, id) }).await?;
    endpoint(server, q, "balance", |q, actor, id| async move { q.balance(actor, id) }).await?;
    endpoint(server, q, "statement", |q, actor, query| async move { q.statement(actor, &query) }).await?;
    endpoint(server, q, "trail", |q, actor, query| async move { q.trail(actor, query).await }).await?;
    endpoint(server, q, "lag", |q, _, ()| async move { q.lag().await }).await
}

async fn endpoint<B, T, F, Fut>(
    server: &Server,
    queries: &Queries,
    name: &str,
    handler: F,
) -> Result<(), async_nats::Error>
where
    B: DeserializeOwned + Send,
    T: Serialize,
    F: Fn(Queries, Actor, B) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = Result<T, Failure>> + Send,
{
    let queries = queries.clone();
    server
        .endpoint(&format!("query-{name}"), subject::query(name), Requester::Platform, move |incoming: Incoming| {
            let (queries, handler) = (queries.clone(), handler.clone());
            async move {
                let Ask { min_seq, body } = incoming.parse()?;
                queries.wait_for(min_seq).await?;
                let answer = handler(queries, incoming.actor, body).await?;
                serde_json::to_value(answer).map_err(|e| Failure::Unavailable(e.to_string()))
            }
        })
        .await
}

fn not_found(what: &str) -> Failure {
    Failure::Refused(Refusal {
        name: "NotFound".to_owned(),
        kind: RefusalKind::NotFound,
        field: None,
        message: format!("There is no such {what}."),
    })
}

fn broken(e: &StoreError) -> Failure {
    tracing::error!(error = %e, "reading a row");
    Failure::Unavailable("the read model cannot be read; see the projector's log".to_owned())
}

/// Who may see an account's own affairs: itself, operators, and the platform. Foreign looks like absent.
fn may_see(actor: Actor, account: AccountId) -> bool {
    match actor {
        Actor::Account(id) => id == account,
        Actor::Operator(_) | Actor::Platform => true,
        Actor::Machine(_) => false,
    }
}

impl Queries {
    async fn wait_for(&self, seq: Seq) -> Result<(), Failure> {
        let mut applied = self.applied.clone();
        if applied.borrow().seq >= seq {
            return Ok(());
        }
        // Nobody holds a place here by waiting for what was never written.
        if self.log.last_seq().await.map_err(|e| Failure::Unavailable(e.to_string()))? < seq {
            return Err(Failure::Refused(Refusal {
                name: "NoSuchSequence".to_owned(),
                kind: RefusalKind::Invalid,
                field: Some("min_seq".to_owned()),
                message: format!("The log has not reached sequence {seq}."),
            }));
        }
        let waited = tokio::time::timeout(PATIENCE, applied.wait_for(|a| a.seq >= seq)).await;
        if waited.is_err() {
            return Err(Failure::Unavailable(format!("the read model has not reached sequence {seq} yet")));
        }
        Ok(())
    }

    fn figures(&self) -> Result<Figures, Failure> {
        let tree = self.trees.of(&MarketFigures).map_err(|e| broken(&e))?;
        let mut figures: Figures = store::get(tree, FIGURES).map_err(|e| broken(&e))?.unwrap_or_default();
        let open = |m: &MachineRow| m.state() == MachineState::Online;
        figures.cheapest = self.rows()?.into_iter().filter(open).map(|m| m.offer.price).min();
        Ok(figures)
    }

    fn rows(&self) -> Result<Vec<MachineRow>, Failure> {
        let tree = self.trees.of(&Machines).map_err(|e| broken(&e))?;
        let rows = tree.scan_prefix([machines::ROW]).map(|entry| {
            let (key, bytes) = entry?;
            store::decode::<MachineRow>(&key, &bytes)
        });
        rows.collect::<Result<_, _>>().map_err(|e| broken(&e))
    }

    fn with_heartbeat(&self, row: MachineRow) -> MachineView {
        let (heartbeat, load) = self.live.of(row.machine, SPARKLINE);
        MachineView { row, heartbeat, load }
    }

    /// The machines after one, by id: as many as fit into one message, whatever they say of themselves.
    fn machines(&self, after: Option<MachineId>) -> Result<Vec<MachineView>, Failure> {
        let listed = self.rows()?.into_iter().filter(|m| m.wanted != MachineState::Delisted);
        let later = listed.filter(|m| after.is_none_or(|after| m.machine > after));
        Ok(later.take(MACHINES_AT_ONCE).map(|row| self.with_heartbeat(row)).collect())
    }

    fn machine_row(&self, id: MachineId) -> Result<Option<MachineRow>, Failure> {
        let tree = self.trees.of(&Machines).map_err(|e| broken(&e))?;
        store::get(tree, &machines::row_key(id)).map_err(|e| broken(&e))
    }

    fn machine(&self, id: MachineId) -> Result<MachineView, Failure> {
        self.machine_row(id)?.map(|row| self.with_heartbeat(row)).ok_or_else(|| not_found("machine"))
    }

    fn job(&self, actor: Actor, id: JobId) -> Result<JobRow, Failure> {
        let tree = self.trees.of(&Jobs).map_err(|e| broken(&e))?;
        let row: Option<JobRow> = store::get(tree, &jobs::row_key(id)).map_err(|e| broken(&e))?;
        row.filter(|row| may_see(actor, row.account)).ok_or_else(|| not_found("job"))
    }

    fn jobs(&self, actor: Actor, query: JobsQuery) -> Result<Page<JobRow>, Failure> {
        let tree = self.trees.of(&Jobs).map_err(|e| broken(&e))?;
        let prefix = match (query.account, query.machine) {
            (Some(account), _) if may_see(actor, account) => jobs::of_account(account),
            (Some(_), _) => return Err(not_found("account")),
            (None, Some(machine)) => jobs::of_machine(machine),
            (None, None) if matches!(actor, Actor::Operator(_) | Actor::Platform) => vec![b'j'],
            (None, None) => return Err(not_found("account")),
        };
        let limit = query.limit.unwrap_or(MAX_JOBS).clamp(1, MAX_JOBS) as usize;
        let before = query.cursor.as_deref().and_then(|c| c.parse::<JobId>().ok());
        let text = query.text.as_deref().map(str::to_lowercase);
        let mut page: Page<JobRow> = Page { rows: Vec::new(), next: None };
        let upper = before.map(|job| [prefix.as_slice(), job.as_bytes()].concat());
        let range = match upper {
            Some(upper) => tree.range(prefix.clone()..upper),
            None => tree.scan_prefix(&prefix),
        };
        for key in range.keys().rev().take(MAX_SCAN) {
            let key = key.map_err(|e| broken(&e.into()))?;
            let Some(id) = key.get(prefix.len()..).and_then(job_of) else { continue };
            let Some(row) = store::get::<JobRow>(tree, &jobs::row_key(id)).map_err(|e| broken(&e))? else { continue };
            let wanted = may_see(actor, row.account)
                && query.state.is_none_or(|state| row.state == state)
                && text.as_ref().is_none_or(|text| matches_text(&row, text));
            if !wanted {
                continue;
            }
            if page.rows.len() == limit {
                page.next = page.rows.last().map(|row| row.job.to_string());
                break;
            }
            // What each left is told where one job is asked for: a thousand files a row would burst the answer.
            page.rows.push(JobRow { outputs: Vec::new(), ..row });
        }
        Ok(page)
    }

    fn receipt(&self, actor: Actor, id: JobId) -> Result<Option<Receipt>, Failure> {
        self.job(actor, id)?;
        let tree = self.trees.of(&Ledger).map_err(|e| broken(&e))?;
        store::get(tree, &ledger::receipt_key(id)).map_err(|e| broken(&e))
    }

    fn balance(&self, actor: Actor, account: AccountId) -> Result<Balance, Failure> {
        if !may_see(actor, account) {
            return Err(not_found("account"));
        }
        let tree = self.trees.of(&Ledger).map_err(|e| broken(&e))?;
        Ok(store::get(tree, &ledger::balance_key(account)).map_err(|e| broken(&e))?.unwrap_or_default())
    }

    fn statement(&self, actor: Actor, query: &StatementQuery) -> Result<Page<StatementLine>, Failure> {
        if !may_see(actor, query.account) {
            return Err(not_found("account"));
        }
        let tree = self.trees.of(&Ledger).map_err(|e| broken(&e))?;
        let prefix = ledger::statement_prefix(query.account);
        let until = ledger::statement_key(query.account, query.before.unwrap_or(Seq(u64::MAX)));
        let limit = query.limit.clamp(1, MAX_STATEMENT) as usize;
        let mut rows: Vec<StatementLine> = Vec::new();
        for entry in tree.range(prefix..until).rev().take(limit + 1) {
            let (key, bytes) = entry.map_err(|e| broken(&e.into()))?;
            rows.push(store::decode(&key, &bytes).map_err(|e| broken(&e))?);
        }
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(|line| line.seq.to_string());
        Ok(Page { rows, next })
    }

    async fn trail(&self, actor: Actor, query: TrailQuery) -> Result<Page<TrailEvent>, Failure> {
        let aggregate = match query.of {
            TrailOf::Job(id) => Aggregate::Job(self.job(actor, id)?.job),
            TrailOf::Account(id) if may_see(actor, id) => Aggregate::Account(id),
            TrailOf::Account(_) => return Err(not_found("account")),
            TrailOf::Machine(id) => Aggregate::Machine(id),
        };
        // What runs on a machine is its owner's and the consumer's affair: strangers see the machine's own events.
        let all = match aggregate {
            Aggregate::Machine(id) => self.machine_row(id)?.is_some_and(|m| may_see(actor, m.owner)),
            _ => true,
        };
        let limit = query.limit.clamp(1, MAX_TRAIL);
        let tree = self.trees.of(&Timeline).map_err(|e| broken(&e))?;
        let length = timeline::length(tree, aggregate).map_err(|e| broken(&e))?;
        let found = timeline::sequences(tree, aggregate, query.skip, limit).map_err(|e| broken(&e))?;
        let read = futures_util::stream::iter(found).map(|seq| self.log.get(seq)).buffered(READ_AT_ONCE);
        let read: Vec<Option<Recorded>> = read.try_collect().await.map_err(|e| Failure::Unavailable(e.to_string()))?;
        let visible = |e: &Event| all || e.aggregate() == aggregate;
        let seen = read.into_iter().flatten().filter(|r| r.event().is_some_and(visible));
        let rows = seen.filter_map(|r| trail_event(&r)).collect();
        let after = query.skip.saturating_add(limit);
        Ok(Page { rows, next: (after < length).then(|| after.to_string()) })
    }

    async fn lag(&self) -> Result<Lag, Failure> {
        let last = self.log.last_seq().await.map_err(|e| Failure::Unavailable(e.to_string()))?;
        let applied = self.applied.borrow().clone();
        Ok(Lag { last, applied: applied.seq, stopped: applied.stopped })
    }
}

fn job_of(bytes: &[u8]) -> Option<JobId> {
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    JobId::from_bytes(bytes).ok()
}

fn matches_text(row: &JobRow, text: &str) -> bool {
    [row.spec.name.to_lowercase(), row.spec.image.to_lowercase(), row.job.to_string()].iter().any(|s| s.contains(text))
}

/// An event of a trail.
pub(crate) fn trail_event(recorded: &Recorded) -> Option<TrailEvent> {
    let (envelope, event) = recorded.entry.as_ref().ok()?;
    Some(TrailEvent {
        seq: recorded.seq,
        recorded_at: recorded.at,
        event: event.name().to_owned(),
        wire_name: event.wire_name().to_owned(),
        actor: envelope.actor.to_string(),
        cause: envelope.cause,
        job: event.job(),
        body: serde_json::to_value(event).ok()?,
    })
}
