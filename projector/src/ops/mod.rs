//! What only operators ask: the state of the platform, its events, how it was, and work on its models. Changes nothing
//! in the log.

mod accounts;
pub mod background;
pub mod doctor;
pub(crate) mod event_search;
pub mod invariants;
mod stuck;
pub mod travel;
mod verify;
pub(crate) mod work;

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use gpubnb_events::{AccountId, Clock as _, Millis, Refusal, RefusalKind, Seq, SystemClock, Timestamp, event::Check};
use gpubnb_log::stream::{DISPATCH, MARKET, OUTPUT, TELEMETRY};
use gpubnb_model::{ledger::Ledger, timeline::Timeline};
use gpubnb_query::{
    request::{EventsQuery, Point, TrailOf},
    view::{
        Page, TrailEvent,
        ops::{Accounts, Growth, ModelLine, Platform, RowThen, StreamState, Stuck, Travel},
    },
};
use gpubnb_runtime::rpc::{Failure, Server};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{Mutex as AsyncMutex, OnceCell};

use self::{
    travel::{TravelError, Traveller},
    work::{NotNow, Work},
};
use crate::serve::{Address, Queries, broken, endpoint, may_see_all, not_found};

/// An answer that takes longer says how far it is.
const SOON: Duration = Duration::from_millis(800);
/// How often the deployment is looked at, while somebody asks.
const CHECKED_EVERY: Duration = Duration::from_secs(10);
/// Seconds over which the rate of folding is taken.
const RATE_OVER: usize = 10;

/// What is needed to answer operators.
#[derive(Clone)]
pub(crate) struct Ops {
    pub(crate) queries: Queries,
    pub(crate) work: Work,
    traveller: Traveller,
    rate: Arc<Mutex<VecDeque<(Instant, Seq)>>>,
    /// When the log began.
    began: Arc<OnceCell<Timestamp>>,
    /// What counts as stuck at the latest.
    patience: Option<Millis>,
    /// What was stuck when that was last looked for.
    stuck: Arc<Mutex<Option<Looked>>>,
    /// Where this process has its credentials.
    creds: PathBuf,
    /// How the deployment was when that was last looked at.
    checked: Arc<AsyncMutex<Option<Checked>>>,
}

/// What was stuck, and when that was looked for.
type Looked = (Instant, Vec<Stuck>);
/// How the deployment was, and when that was looked at.
type Checked = (Instant, Vec<Check>);

/// Serves them.
pub(crate) async fn serve(server: &Server, ops: &Ops) -> Result<(), async_nats::Error> {
    // How far it is can be asked before it is there.
    let at_once = &Ops { queries: Queries { floor: Seq::ZERO, ..ops.queries.clone() }, ..ops.clone() };
    // What each has of its own: at whichever answers, and at this very one.
    let own = |name| [Address::from(name), Address::of(name, ops.work.projector)];
    for at in own("platform") {
        on(server, at_once, at, |ops, ()| async move { ops.platform().await }).await?;
    }
    for at in own("rebuild") {
        on(server, at_once, at, |ops, model: String| async move { begun(ops.work.rebuild(&model), "model") }).await?;
    }
    for at in own("verify") {
        on(server, at_once, at, |ops, ()| async move { begun(ops.work.verify(), "model") }).await?;
    }
    for at in own("travel") {
        on(server, ops, at, |ops, to| async move { ops.travel(to).await }).await?;
    }
    on(server, ops, "events", |ops, query: EventsQuery| async move { ops.events(query).await }).await?;
    on(server, at_once, "doctor", |ops, ()| async move { ops.doctor().await }).await?;
    on(server, ops, "accounts", |ops, after| async move { ops.accounts(after).await }).await?;
    on(server, ops, "stuck", |ops, ()| async move { ops.stuck() }).await?;
    on(server, ops, "then", |ops, (of, to)| async move { ops.then(of, to).await }).await
}

/// An endpoint for operators.
async fn on<B, T, F, Fut>(
    server: &Server,
    ops: &Ops,
    at: impl Into<Address>,
    handler: F,
) -> Result<(), async_nats::Error>
where
    B: DeserializeOwned + Send + 'static,
    T: Serialize,
    F: Fn(Ops, B) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = Result<T, Failure>> + Send,
{
    let own = ops.clone();
    endpoint(server, &ops.queries, at, move |_, actor, body| {
        let (ops, handler) = (own.clone(), handler.clone());
        async move {
            if may_see_all(actor) {
                return handler(ops, body).await;
            }
            // That there is such a thing is not for others to know.
            Err(not_found("page"))
        }
    })
    .await
}

fn begun(result: Result<(), NotNow>, what: &str) -> Result<(), Failure> {
    result.map_err(|why| match why {
        NotNow::Unknown => not_found(what),
        NotNow::Runs => Failure::Refused(Refusal {
            name: "Busy".to_owned(),
            kind: RefusalKind::Conflict,
            field: None,
            message: "One runs already: wait until it is done.".to_owned(),
        }),
    })
}

impl Ops {
    /// What counts as stuck does so after `patience` at the latest.
    pub(crate) fn new(
        queries: Queries,
        work: Work,
        traveller: Traveller,
        patience: Option<Millis>,
        creds: PathBuf,
    ) -> Self {
        let (rate, began, stuck, checked) = (Arc::default(), Arc::default(), Arc::default(), Arc::default());
        Self { queries, work, traveller, rate, began, patience, stuck, creds, checked }
    }

    pub(crate) async fn platform(&self) -> Result<Platform, Failure> {
        let all = [MARKET, DISPATCH, TELEMETRY, OUTPUT].map(|name| self.stream(name));
        let streams: Vec<_> = futures_util::future::join_all(all).await.into_iter().flatten().collect();
        let last = self.queries.log.last_seq().await.map_err(|e| Failure::Unavailable(e.to_string()))?;
        let growth = self.growth(streams.iter().find(|s| s.name == MARKET)).await;
        let applied = self.queries.applied.borrow().clone();
        let state = self.work.state();
        let models = applied.models.into_iter().map(|m| ModelLine {
            rebuild: state.rebuilds.get(m.name.as_str()).cloned(),
            name: m.name,
            checkpoint: m.checkpoint,
            stopped: m.stopped,
        });
        let models = models.collect();
        let verification = state.verification.clone();
        let (projector, per_second) = (Some(self.work.projector), self.rate(applied.seq));
        Ok(Platform { projector, streams, last, models, per_second, verification, growth })
    }

    /// What the log grows by; `None` where nobody can say now.
    async fn growth(&self, market: Option<&StreamState>) -> Option<Growth> {
        let first = async { self.queries.log.get(Seq(1)).await.ok().flatten().map(|first| first.at).ok_or(()) };
        // It is read once: the first event stays the first.
        let began = *self.began.get_or_try_init(|| first).await.ok()?;
        let jobs = self.queries.read.figures().ok()?.settled;
        Growth::of(market?.bytes, jobs, SystemClock.now().since(began))
    }

    /// A stream, if it may be looked at: credentials that were made before it was looked at do not allow it.
    async fn stream(&self, name: &str) -> Option<StreamState> {
        let js = self.queries.log.jetstream();
        let looked = tokio::time::timeout(SOON, async {
            let stream = js.get_stream_no_info(name).await.ok()?;
            stream.get_info().await.ok()
        });
        let info = looked.await.ok().flatten()?;
        Some(StreamState {
            name: name.to_owned(),
            messages: info.state.messages,
            bytes: info.state.bytes,
            first: Seq(info.state.first_sequence),
            last: Seq(info.state.last_sequence),
            behind: info.sources.iter().map(|source| source.lag).max(),
            consumers: u64::try_from(info.state.consumer_count).unwrap_or(0),
            most_bytes: u64::try_from(info.config.max_bytes).ok(),
            most_age: Some(Millis::of(info.config.max_age)).filter(|age| age.0 > 0),
        })
    }

    /// Events folded in a second, from looks at least a second apart.
    fn rate(&self, at: Seq) -> u64 {
        let mut looks = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if looks.back().is_none_or(|(then, _)| now.duration_since(*then) >= Duration::from_secs(1)) {
            looks.push_back((now, at));
        }
        if looks.len() > RATE_OVER {
            looks.pop_front();
        }
        let Some((then, from)) = looks.front() else { return 0 };
        let millis = u64::try_from(now.duration_since(*then).as_millis()).unwrap_or(u64::MAX).max(1_000);
        at.0.saturating_sub(from.0).saturating_mul(1_000) / millis
    }

    async fn events(&self, query: EventsQuery) -> Result<Page<TrailEvent>, Failure> {
        let timeline = self.queries.read.tables.of(&Timeline).map_err(broken)?;
        let applied = self.queries.applied.borrow().seq;
        event_search::search(&self.queries.log, &timeline, applied, &query).await
    }

    async fn accounts(&self, after: Option<AccountId>) -> Result<Accounts, Failure> {
        let table = self.queries.read.tables.of(&Ledger).map_err(broken)?;
        let summed = tokio::task::spawn_blocking(move || accounts::accounts(&table, after)).await;
        let summed = summed.map_err(|e| Failure::Unavailable(e.to_string()))?.map_err(broken)?;
        summed.ok_or_else(|| Failure::Unavailable("the ledger moves too fast to be summed: try again".to_owned()))
    }

    /// Whether the deployment is as it should be. However many ask, it is looked at every ten seconds.
    async fn doctor(&self) -> Result<Vec<Check>, Failure> {
        let mut looked = self.checked.lock().await;
        if let Some((at, checks)) = looked.as_ref()
            && at.elapsed() < CHECKED_EVERY
        {
            return Ok(checks.clone());
        }
        let (mut found, log) = (doctor::Findings::default(), &self.queries.log);
        let platform = self.platform().await.map_err(|e| format!("{e:?}"));
        let platform = platform.as_ref().map_err(Clone::clone);
        doctor::look(&log.client(), log, platform, &self.creds, &mut found)
            .await
            .map_err(|e| Failure::Unavailable(format!("{e:#}")))?;
        *looked = Some((Instant::now(), found.0.clone()));
        Ok(found.0)
    }

    pub(crate) fn stuck(&self) -> Result<Vec<Stuck>, Failure> {
        if self.queries.applied.borrow().seq < self.queries.floor {
            return Err(Failure::Unavailable("what is folded so far says nothing of what is stuck now".to_owned()));
        }
        // However many look at the console, it is looked for once a second.
        let mut looked = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        match looked.as_ref() {
            Some((at, found)) if at.elapsed() < Duration::from_secs(1) => Ok(found.clone()),
            _ => {
                let found = stuck::jobs(&self.queries.read.tables, &self.queries.read.telemetry, self.patience)
                    .map_err(broken)?;
                *looked = Some((Instant::now(), found.clone()));
                Ok(found)
            }
        }
    }

    async fn seq_of(&self, to: Point) -> Result<Seq, Failure> {
        let last = self.queries.applied.borrow().seq;
        match to {
            Point::Seq(seq) => Ok(seq.min(last)),
            Point::Time(time) => {
                self.queries.log.seq_at(time, last).await.map_err(|e| Failure::Unavailable(e.to_string()))
            }
        }
    }

    async fn travel(&self, to: Point) -> Result<Travel, Failure> {
        let seq = self.seq_of(to).await?;
        let traveller = self.traveller.clone();
        // It goes on when nobody waits any more: who asks again finds the snapshots that it left.
        let journey = tokio::spawn(async move { traveller.market(seq).await });
        match tokio::time::timeout(SOON, journey).await {
            Ok(Ok(then)) => then.map(|then| Travel::There(Box::new(then))).map_err(|e| failed(&e)),
            Ok(Err(e)) => Err(Failure::Unavailable(e.to_string())),
            Err(_) => {
                let began = gpubnb_query::view::ops::Progress { at: Seq::ZERO, until: seq, per_second: 0 };
                Ok(Travel::Folding(self.traveller.progress().unwrap_or(began)))
            }
        }
    }

    async fn then(&self, of: TrailOf, to: Point) -> Result<RowThen, Failure> {
        let seq = self.seq_of(to).await?;
        let timeline = self.queries.read.tables.of(&Timeline).map_err(broken)?;
        self.traveller.row(&timeline, of.into(), seq).await.map_err(|e| failed(&e))
    }
}

fn failed(e: &TravelError) -> Failure {
    Failure::Unavailable(e.to_string())
}
