//! The answers to the queries of operators. Long answers are computed in the other files of this folder.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use gpubnb_events::{AccountId, Millis, Seq, Timestamp, event::Check};
use gpubnb_model::{ledger::Ledger, timeline::Timeline};
use gpubnb_query::{
    request::{EventsQuery, LogPoint, TrailOf},
    view::{
        Page, TrailEvent,
        ops::{Accounts, PastRow, Progress, StuckJob, TimeTravel},
    },
};
use gpubnb_runtime::rpc::RpcError;
use tokio::sync::{Mutex as AsyncMutex, OnceCell};

use super::{
    accounts,
    context::WorkContext,
    doctor, event_search,
    platform::FoldRate,
    stuck,
    travel::{PastStates, TravelError},
};
use crate::serve::{Queries, store_failure};

/// The longest time that an answer waits for the broker or for time travel. After this time, the answer is sent without
/// the missing part, and the operator's page asks again.
pub(super) const MAX_WAIT: Duration = Duration::from_millis(800);
/// The longest time for which the result of the deployment checks is reused.
const MAX_CHECKS_AGE: Duration = Duration::from_secs(10);
/// The longest time for which the list of stuck jobs is reused.
const MAX_STUCK_AGE: Duration = Duration::from_secs(1);

/// A result that is reused for a short time, and the time at which it was computed. `None` before the first result.
type Cached<T> = Option<(Instant, T)>;

/// The data that the operators' queries read. Clones share the data.
#[derive(Clone)]
pub(crate) struct OperatorQueries {
    pub(crate) queries: Queries,
    pub(crate) work: WorkContext,
    past_states: PastStates,
    pub(super) fold_rate: FoldRate,
    /// The time of the log's first event.
    pub(super) began: Arc<OnceCell<Timestamp>>,
    /// The option `--stuck-after`: the longest time in one state before a job counts as stuck.
    stuck_after: Option<Millis>,
    stuck_jobs: Arc<Mutex<Cached<Vec<StuckJob>>>>,
    /// The directory of this process's credentials.
    creds: PathBuf,
    /// The results of the deployment checks.
    checks: Arc<AsyncMutex<Cached<Vec<Check>>>>,
}

impl OperatorQueries {
    /// Makes the queries. `stuck_after` is the option of that name, and `creds` is the directory of the credentials.
    pub(crate) fn new(
        queries: Queries,
        work: WorkContext,
        past_states: PastStates,
        stuck_after: Option<Millis>,
        creds: PathBuf,
    ) -> Self {
        let (fold_rate, began, stuck_jobs, checks) =
            (FoldRate::default(), Arc::default(), Arc::default(), Arc::default());
        Self { queries, work, past_states, fold_rate, began, stuck_after, stuck_jobs, creds, checks }
    }

    /// A clone whose queries are also answered while the models have not caught up with the log.
    pub(super) fn without_floor(&self) -> Self {
        Self { queries: Queries { floor: Seq::ZERO, ..self.queries.clone() }, ..self.clone() }
    }

    pub(super) async fn events(&self, query: EventsQuery) -> Result<Page<TrailEvent>, RpcError> {
        let timeline = self.queries.read.tables.of(&Timeline).map_err(store_failure)?;
        let applied = self.queries.applied.borrow().seq;
        event_search::search(&self.queries.log, &timeline, applied, &query).await
    }

    pub(super) async fn accounts(&self, after: Option<AccountId>) -> Result<Accounts, RpcError> {
        let table = self.queries.read.tables.of(&Ledger).map_err(store_failure)?;
        let summed = tokio::task::spawn_blocking(move || accounts::accounts(&table, after)).await;
        let summed = summed
            .map_err(|e| RpcError::Unavailable(format!("the sums were not finished: {e}")))?
            .map_err(store_failure)?;
        summed.ok_or_else(|| RpcError::Unavailable("the ledger moves too fast to be summed: try again".to_owned()))
    }

    /// The results of the deployment checks, at most ten seconds old.
    pub(super) async fn doctor(&self) -> Result<Vec<Check>, RpcError> {
        let mut cached = self.checks.lock().await;
        if let Some((at, checks)) = cached.as_ref()
            && at.elapsed() < MAX_CHECKS_AGE
        {
            return Ok(checks.clone());
        }
        let (mut findings, log) = (doctor::Findings::default(), &self.queries.log);
        let platform = self.platform().await.map_err(|e| e.to_string());
        let platform = platform.as_ref().map_err(Clone::clone);
        doctor::run_checks(&log.client(), log, platform, &self.creds, &mut findings)
            .await
            .map_err(|e| RpcError::Unavailable(format!("{e:#}")))?;
        *cached = Some((Instant::now(), findings.0.clone()));
        Ok(findings.0)
    }

    /// The stuck jobs, at most one second old.
    pub(crate) fn stuck(&self) -> Result<Vec<StuckJob>, RpcError> {
        if self.queries.applied.borrow().seq < self.queries.floor {
            let behind = "the read models are still behind the log, and do not show which jobs are stuck now";
            return Err(RpcError::Unavailable(behind.to_owned()));
        }
        let mut cached = self.stuck_jobs.lock().unwrap_or_else(PoisonError::into_inner);
        match cached.as_ref() {
            Some((at, found)) if at.elapsed() < MAX_STUCK_AGE => Ok(found.clone()),
            _ => {
                let read = &self.queries.read;
                let found = stuck::jobs(&read.tables, &read.telemetry, self.stuck_after).map_err(store_failure)?;
                *cached = Some((Instant::now(), found.clone()));
                Ok(found)
            }
        }
    }

    /// The sequence of a point in the log: at most the last folded sequence.
    async fn seq_of(&self, to: LogPoint) -> Result<Seq, RpcError> {
        let last = self.queries.applied.borrow().seq;
        match to {
            LogPoint::Seq(seq) => Ok(seq.min(last)),
            LogPoint::Time(time) => {
                self.queries.log.seq_at(time, last).await.map_err(|e| RpcError::Unavailable(e.to_string()))
            }
        }
    }

    /// The market as it was at a past point, or the progress of the fold if the answer takes too long.
    pub(super) async fn travel(&self, to: LogPoint) -> Result<TimeTravel, RpcError> {
        let seq = self.seq_of(to).await?;
        let past_states = self.past_states.clone();
        // If the fold is not done in time, it continues in the background. The next query uses the snapshots or the
        // answer of that fold.
        let folding = tokio::spawn(async move { past_states.market(seq).await });
        match tokio::time::timeout(MAX_WAIT, folding).await {
            Ok(Ok(market)) => market.map(|market| TimeTravel::There(Box::new(market))).map_err(travel_failure),
            Ok(Err(e)) => Err(RpcError::Unavailable(e.to_string())),
            Err(_) => {
                let began = Progress { at: Seq::ZERO, until: seq, per_second: 0 };
                Ok(TimeTravel::Folding(self.past_states.progress().unwrap_or(began)))
            }
        }
    }

    /// The row of a job, a machine or an account as it was at a past point.
    pub(super) async fn past_row(&self, of: TrailOf, to: LogPoint) -> Result<PastRow, RpcError> {
        if let LogPoint::Seq(seq) = to {
            // The trail is read from a model, which may be a few events behind the log. If the model does not reach
            // `seq` in time, the answer is as of the last folded event, and names that event in `PastRow::seq`.
            drop(self.queries.wait_for(seq).await);
        }
        let seq = self.seq_of(to).await?;
        let timeline = self.queries.read.tables.of(&Timeline).map_err(store_failure)?;
        self.past_states.row(&timeline, of.into(), seq).await.map_err(travel_failure)
    }
}

fn travel_failure(e: TravelError) -> RpcError {
    RpcError::Unavailable(format!("{:#}", anyhow::Error::from(e)))
}
