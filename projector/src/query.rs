//! The queries as micro service `query.*`: wait for the sequence that was asked for, look whether the actor
//! may see it, read the rows.

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_events::{
    AccountId, Actor, Aggregate, Event, JobId, Log, MachineId, ProjectorId, Recorded, Seq,
    archive::Line,
    merkle,
    proof::Proof,
    rpc::{Failure, Incoming, Refusal, RefusalKind, Requester, Server},
    stream::CHECKPOINTS,
    subject,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use crate::{
    client::{
        Ask, DaysOf, DaysQuery, JobsQuery, Lag, MachinesOfQuery, ModelState, ReadingsQuery, StatementQuery, TrailOf,
        TrailQuery,
    },
    fold::{Models, Trees},
    heads::{self, LATEST},
    live::Live,
    model::{
        figures::{FIGURES, MarketFigures},
        jobs::{self, Jobs},
        ledger::{self, Ledger},
        machines::{self, Machines},
        merkle::{Kept, Merkle},
        timeline::{self, Timeline},
        touched,
    },
    store::{self, StoreError},
    view::{
        Balance, Day, Figures, JobRow, MachineRow, MachineState, MachineView, Outcome, Page, Reading, Receipt,
        StatementLine, TrailEvent,
    },
};

/// Most attempts at a machine that are told of.
const OUTCOMES: usize = 20;
/// How long a query waits for the sequence it must have seen.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often is looked whether a tree head has been signed.
const NEXT_HEAD: Duration = Duration::from_millis(200);
const MAX_JOBS: u32 = 100;
/// Machines in one answer: each takes some 12 KB at most.
pub(crate) const MACHINES_AT_ONCE: usize = 64;
const MAX_TRAIL: u32 = 200;
const MAX_STATEMENT: u32 = 500;
const MAX_DAYS: u32 = 366;
/// So many events are looked at for one that strangers may see.
const HIDDEN: u32 = 8;
/// Events of a trail that are read back at the same time.
const READ_AT_ONCE: usize = 64;
/// Jobs looked at for one page of a filtered list.
const MAX_SCAN: usize = 20_000;
/// Minutes of load shown beside a machine.
const SPARKLINE: usize = 60;

/// Progress of the fold.
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

/// What queries need.
#[derive(Clone)]
pub(crate) struct Queries {
    pub(crate) trees: Trees,
    pub(crate) live: Arc<Live>,
    pub(crate) log: Log,
    pub(crate) applied: watch::Receiver<Applied>,
    /// Before this nothing is answered: what is missing would look as if it were not there.
    pub(crate) floor: Seq,
}

/// Serves them all, from when everything is folded that the log had at the start; how far that is can be asked before.
pub(crate) async fn serve(server: &Server, q: &Queries) -> Result<(), async_nats::Error> {
    let at_once = Queries { floor: Seq::ZERO, ..q.clone() };
    endpoint(server, &at_once, "lag", |q, _, ()| async move { q.lag().await }).await?;
    endpoint(server, q, "figures", |q, _, ()| async move { q.figures() }).await?;
    endpoint(server, q, "machines", |q, _, after| async move { q.machines(after) }).await?;
    endpoint(server, q, "machines_of", |q, actor, query| async move { q.machines_of(actor, query) }).await?;
    endpoint(server, q, "outcomes", |q, _, machine: MachineId| async move { q.outcomes(machine) }).await?;
    endpoint(server, q, "readings", |q, _, query: ReadingsQuery| async move { Ok(q.readings(query)) }).await?;
    endpoint(server, q, "days", |q, actor, query| async move { q.days(actor, query) }).await?;
    endpoint(server, q, "machine", |q, _, id| async move { q.machine(id) }).await?;
    endpoint(server, q, "jobs", |q, actor, query| async move { q.jobs(actor, query) }).await?;
    endpoint(server, q, "job", |q, actor, id| async move { q.job(actor, id) }).await?;
    endpoint(server, q, "receipt", |q, actor, id| async move { q.receipt(actor, id) }).await?;
    endpoint(server, q, "balance", |q, actor, id| async move { q.balance(actor, id) }).await?;
    endpoint(server, q, "statement", |q, actor, query| async move { q.statement(actor, &query) }).await?;
    endpoint(server, q, "trail", |q, actor, query| async move { q.trail(actor, query).await }).await?;
    endpoint(server, q, "event", |q, actor, seq| async move { q.event(actor, seq).await }).await?;
    endpoint(server, q, "proof", |q, actor, seq| async move { q.proof(actor, seq).await }).await
}

/// Where an endpoint is asked: the name that it is counted under, and its subject.
pub(crate) struct At(String, String);

impl From<&str> for At {
    fn from(name: &str) -> Self {
        Self(format!("query-{name}"), subject::query(name))
    }
}

impl At {
    /// At one projector.
    pub(crate) fn of(name: &str, projector: ProjectorId) -> Self {
        Self(format!("query-{name}-own"), subject::query_of(name, projector))
    }
}

/// One endpoint.
pub(crate) async fn endpoint<B, T, F, Fut>(
    server: &Server,
    queries: &Queries,
    at: impl Into<At>,
    handler: F,
) -> Result<(), async_nats::Error>
where
    B: DeserializeOwned + Send,
    T: Serialize,
    F: Fn(Queries, Actor, B) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = Result<T, Failure>> + Send,
{
    let (queries, At(name, subject)) = (queries.clone(), at.into());
    server
        .endpoint(&name, subject, Requester::Platform, move |incoming: Incoming| {
            let (queries, handler) = (queries.clone(), handler.clone());
            async move {
                let Ask { min_seq, body } = incoming.parse()?;
                queries.wait_for(min_seq.max(queries.floor)).await?;
                let answer = handler(queries, incoming.actor, body).await?;
                serde_json::to_value(answer).map_err(|e| Failure::Unavailable(e.to_string()))
            }
        })
        .await
}

pub(crate) fn not_found(what: &str) -> Failure {
    Failure::Refused(Refusal {
        name: "NotFound".to_owned(),
        kind: RefusalKind::NotFound,
        field: None,
        message: format!("There is no such {what}."),
    })
}

pub(crate) fn broken(e: &StoreError) -> Failure {
    tracing::error!(error = %e, "reading a row");
    Failure::Unavailable("the read model cannot be read; see the projector's log".to_owned())
}

/// Who may see an account's own affairs: itself, operators, and the platform. Foreign looks like absent.
fn may_see(actor: Actor, account: AccountId) -> bool {
    match actor {
        Actor::Account(id) => id == account,
        Actor::Operator(_) | Actor::Platform | Actor::Machine(_) => may_see_all(actor),
    }
}

/// A bill as the one sees it who earned by it: without the consumer's name, budget and balance.
fn for_the_provider(actor: Actor, mut event: TrailEvent) -> TrailEvent {
    let Actor::Account(own) = actor else { return event };
    let own = own.to_string();
    if let Some(body) = event.body.as_object_mut() {
        body.remove("consumer");
        if let Some(metering) = body.get_mut("metering").and_then(serde_json::Value::as_object_mut) {
            metering.remove("limit");
            metering.remove("budget");
        }
        if let Some(postings) = body.get_mut("postings").and_then(serde_json::Value::as_array_mut) {
            postings.retain(|p| p["account"].as_str().is_some_and(|a| a.contains(&own) || a == "fees"));
        }
    }
    event
}

/// Operators, and the platform.
pub(crate) fn may_see_all(actor: Actor) -> bool {
    matches!(actor, Actor::Operator(_) | Actor::Platform)
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
            let at = self.applied.borrow().seq;
            let problem = format!("the read models are at sequence {at} and not yet at {seq}: try again in a moment");
            return Err(Failure::Unavailable(problem));
        }
        Ok(())
    }

    pub(crate) fn figures(&self) -> Result<Figures, Failure> {
        let tree = self.trees.of(&MarketFigures).map_err(|e| broken(&e))?;
        let mut figures: Figures = store::get(&tree, FIGURES).map_err(|e| broken(&e))?.unwrap_or_default();
        let machines = self.trees.of(&Machines).map_err(|e| broken(&e))?;
        figures.cheapest = machines::cheapest(&machines).map_err(|e| broken(&e))?;
        Ok(figures)
    }

    fn with_heartbeat(&self, row: MachineRow) -> MachineView {
        let (heartbeat, load) = self.live.of(row.machine, SPARKLINE);
        MachineView { row, heartbeat, load }
    }

    /// The machines after one, by id: as many as fit into one message, whatever they say of themselves.
    fn machines(&self, after: Option<MachineId>) -> Result<Vec<MachineView>, Failure> {
        let tree = self.trees.of(&Machines).map_err(|e| broken(&e))?;
        let rows =
            machines::after(&tree, after).filter(|row| !matches!(row, Ok(m) if m.wanted == MachineState::Delisted));
        let rows: Result<Vec<_>, _> = rows.take(MACHINES_AT_ONCE).collect();
        Ok(rows.map_err(|e| broken(&e))?.into_iter().map(|row| self.with_heartbeat(row)).collect())
    }

    /// The machines of an owner after one, by id, delisted ones too.
    fn machines_of(&self, actor: Actor, query: MachinesOfQuery) -> Result<Vec<MachineView>, Failure> {
        if !may_see(actor, query.owner) {
            return Err(not_found("account"));
        }
        let tree = self.trees.of(&Machines).map_err(|e| broken(&e))?;
        let ids = machines::of_owner(&tree, query.owner, query.after).take(MACHINES_AT_ONCE);
        ids.map(|id| self.machine(id.map_err(|e| broken(&e))?)).collect()
    }

    /// The attempts that a machine's record counts: everybody may see how it went, and nobody whose they were.
    fn outcomes(&self, machine: MachineId) -> Result<Vec<Outcome>, Failure> {
        let tree = self.trees.of(&Jobs).map_err(|e| broken(&e))?;
        jobs::outcomes(&tree, machine, OUTCOMES).map_err(|e| broken(&e))
    }

    fn readings(&self, query: ReadingsQuery) -> Vec<Reading> {
        self.live.readings(query.machine, query.minutes as usize)
    }

    /// What was earned and spent day by day, the newest first.
    fn days(&self, actor: Actor, query: DaysQuery) -> Result<Vec<Day>, Failure> {
        let (tree, prefix) = match query.of {
            DaysOf::Account(id) if may_see(actor, id) => (self.trees.of(&Ledger), ledger::days(id)),
            DaysOf::Machine(id) if self.machine_row(id)?.is_some_and(|m| may_see(actor, m.owner)) => {
                (self.trees.of(&Machines), machines::days(id))
            }
            DaysOf::Account(_) => return Err(not_found("account")),
            DaysOf::Machine(_) => return Err(not_found("machine")),
        };
        let tree = tree.map_err(|e| broken(&e))?;
        let rows = tree.scan_prefix(prefix).rev().take(query.most.min(MAX_DAYS) as usize).map(|entry| {
            let (key, bytes) = entry?;
            store::decode(&key, &bytes)
        });
        rows.collect::<Result<_, _>>().map_err(|e| broken(&e))
    }

    /// How many events a trail has.
    pub(crate) fn trail_length(&self, aggregate: Aggregate) -> Result<u32, StoreError> {
        timeline::length(&self.trees.of(&Timeline)?, aggregate)
    }

    fn machine_row(&self, id: MachineId) -> Result<Option<MachineRow>, Failure> {
        let tree = self.trees.of(&Machines).map_err(|e| broken(&e))?;
        store::get(&tree, &machines::row_key(id)).map_err(|e| broken(&e))
    }

    pub(crate) fn machine(&self, id: MachineId) -> Result<MachineView, Failure> {
        self.machine_row(id)?.map(|row| self.with_heartbeat(row)).ok_or_else(|| not_found("machine"))
    }

    pub(crate) fn job(&self, actor: Actor, id: JobId) -> Result<JobRow, Failure> {
        let tree = self.trees.of(&Jobs).map_err(|e| broken(&e))?;
        let row: Option<JobRow> = store::get(&tree, &jobs::row_key(id)).map_err(|e| broken(&e))?;
        row.filter(|row| may_see(actor, row.account)).ok_or_else(|| not_found("job"))
    }

    fn jobs(&self, actor: Actor, query: JobsQuery) -> Result<Page<JobRow>, Failure> {
        let tree = self.trees.of(&Jobs).map_err(|e| broken(&e))?;
        let prefix = match (query.account, query.machine) {
            (Some(account), Some(machine)) if may_see(actor, account) => jobs::of_machine(machine),
            (Some(account), None) if may_see(actor, account) => jobs::of_account(account),
            (Some(_), _) => return Err(not_found("account")),
            (None, Some(machine)) => jobs::of_machine(machine),
            (None, None) if may_see_all(actor) => vec![b'j'],
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
        // Of a machine's jobs, those of an account are known by their keys.
        let own = query.account.filter(|_| query.machine.is_some()).map(jobs::of_account);
        for key in range.keys().rev().take(MAX_SCAN) {
            let key = key.map_err(|e| broken(&e))?;
            let Some(id) = key.get(prefix.len()..).and_then(job_of) else { continue };
            if let Some(own) = &own
                && tree.get([own.as_slice(), id.as_bytes()].concat()).map_err(|e| broken(&e))?.is_none()
            {
                continue;
            }
            let Some(row) = store::get::<JobRow>(&tree, &jobs::row_key(id)).map_err(|e| broken(&e))? else { continue };
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
        store::get(&tree, &ledger::receipt_key(id)).map_err(|e| broken(&e))
    }

    fn balance(&self, actor: Actor, account: AccountId) -> Result<Balance, Failure> {
        if !may_see(actor, account) {
            return Err(not_found("account"));
        }
        let tree = self.trees.of(&Ledger).map_err(|e| broken(&e))?;
        Ok(store::get(&tree, &ledger::balance_key(account)).map_err(|e| broken(&e))?.unwrap_or_default())
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
            let (key, bytes) = entry.map_err(|e| broken(&e))?;
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
        let length = timeline::length(&tree, aggregate).map_err(|e| broken(&e))?;
        // What strangers do not see is left out after it was read: from the end, more is looked at for as many.
        let looked_at = if query.from_end && !all { limit.saturating_mul(HIDDEN) } else { limit };
        let from_end = length.saturating_sub(query.skip.saturating_add(looked_at));
        let skip = if query.from_end { from_end } else { query.skip };
        let found = timeline::sequences(&tree, aggregate, skip, looked_at).map_err(|e| broken(&e))?;
        let read = futures_util::stream::iter(found).map(|seq| self.log.get(seq)).buffered(READ_AT_ONCE);
        let read: Vec<Option<Recorded>> = read.try_collect().await.map_err(|e| Failure::Unavailable(e.to_string()))?;
        let visible = |e: &Event| all || e.aggregate() == aggregate;
        let seen = read.into_iter().flatten().filter(|r| r.event().is_some_and(visible));
        let mut rows: Vec<_> = seen.filter_map(|r| trail_event(&r)).collect();
        rows.drain(..rows.len().saturating_sub(limit as usize));
        let after = skip.saturating_add(limit);
        Ok(Page { rows, next: (after < length && !query.from_end).then(|| after.to_string()) })
    }

    /// One event, for whom it is about.
    /// That an event is in the log, for whoever may see all of it.
    async fn proof(&self, actor: Actor, seq: Seq) -> Result<Proof, Failure> {
        let raw = self.log.get_raw(seq).await.map_err(|e| Failure::Unavailable(e.to_string()))?;
        let raw = raw.ok_or_else(|| not_found("event"))?;
        let recorded = raw.read();
        // What a provider may not see of an event cannot be proven to them either.
        let all = match (self.seen(actor, &recorded), trail_event(&recorded)) {
            (Some(seen), Some(whole)) => seen == whole,
            _ => may_see_all(actor),
        };
        if !all {
            return Err(not_found("event"));
        }
        let unsigned = |e: anyhow::Error| Failure::Unavailable(format!("the signed heads cannot be read: {e:#}"));
        let bucket = self.log.jetstream().get_key_value(CHECKPOINTS).await.map_err(|e| unsigned(e.into()))?;
        // One is signed every two seconds: of what has just happened, it is about to be.
        let signed = async {
            loop {
                match heads::get(&bucket, LATEST).await {
                    Ok(Some(head)) if head.size >= seq.0 => return Ok(head),
                    Ok(_) => tokio::time::sleep(NEXT_HEAD).await,
                    Err(e) => return Err(unsigned(e)),
                }
            }
        };
        let late = |_| Failure::Unavailable("no signed head holds it yet: try again in a moment".to_owned());
        let head = tokio::time::timeout(PATIENCE, signed).await.map_err(late)??;
        let tree = self.trees.of(&Merkle).map_err(|e| broken(&e))?;
        let path = merkle::path(&Kept(&tree), seq.0 - 1, head.size).map_err(|e| broken(&e))?;
        Ok(Proof { message: Line::from(&raw), path: path.iter().map(gpubnb_events::hex).collect(), head })
    }

    async fn event(&self, actor: Actor, seq: Seq) -> Result<TrailEvent, Failure> {
        let read = self.log.get(seq).await.map_err(|e| Failure::Unavailable(e.to_string()))?;
        read.and_then(|recorded| self.seen(actor, &recorded)).ok_or_else(|| not_found("event"))
    }

    /// What an actor may see of an event.
    fn seen(&self, actor: Actor, recorded: &Recorded) -> Option<TrailEvent> {
        let about = |of: &Aggregate| match of {
            Aggregate::Account(id) => may_see(actor, *id),
            Aggregate::Job(id) => self.job(actor, *id).is_ok(),
            Aggregate::Machine(_) => false,
        };
        // What a machine is and does on the market, everybody may see.
        let public = |e: &Event| matches!(e.aggregate(), Aggregate::Machine(_));
        let may = recorded.event().is_some_and(|e| public(e) || touched(e).iter().any(about)) || may_see_all(actor);
        let event = trail_event(recorded).filter(|_| may)?;
        let own = event.job.is_none_or(|job| self.job(actor, job).is_ok());
        Some(if own { event } else { for_the_provider(actor, event) })
    }

    async fn lag(&self) -> Result<Lag, Failure> {
        let last = self.log.last_seq().await.map_err(|e| Failure::Unavailable(e.to_string()))?;
        let applied = self.applied.borrow().clone();
        let stopped = applied.models.into_iter().filter_map(|m| Some((m.name, m.stopped?))).collect();
        Ok(Lag { last, applied: applied.seq, stopped })
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
