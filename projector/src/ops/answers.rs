//! The answers to operators. The parts that need more than a few lines have files of their own beside this one.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use gpubnb_events::{AccountId, Millis, Seq, Timestamp, event::Check};
use gpubnb_model::{ledger::Ledger, timeline::Timeline};
use gpubnb_query::{
    request::{EventsQuery, Point, TrailOf},
    view::{
        Page, TrailEvent,
        ops::{Accounts, Progress, RowThen, Stuck, Travel},
    },
};
use gpubnb_runtime::rpc::Failure;
use tokio::sync::{Mutex as AsyncMutex, OnceCell};

use super::{
    accounts,
    context::WorkContext,
    doctor, event_search,
    platform::FoldRate,
    stuck,
    travel::{TravelError, Traveller},
};
use crate::serve::{Queries, broken};

/// A look at the broker, or a journey, that takes longer than this is answered without: operators ask again.
pub(super) const SOON: Duration = Duration::from_millis(800);
/// However many operators ask, the deployment is looked at this often.
const DOCTOR_EVERY: Duration = Duration::from_secs(10);
/// However many operators ask, stuck jobs are looked for this often.
const STUCK_EVERY: Duration = Duration::from_secs(1);

/// The time and the result of the last look, once there was one.
type LastLook<T> = Option<(Instant, T)>;

/// Everything that operators are answered from. Clones share it.
#[derive(Clone)]
pub(crate) struct OperatorQueries {
    pub(crate) queries: Queries,
    pub(crate) work: WorkContext,
    traveller: Traveller,
    pub(super) fold_rate: FoldRate,
    /// The time of the log's first event.
    pub(super) began: Arc<OnceCell<Timestamp>>,
    /// A job counts as stuck after this time at the latest.
    patience: Option<Millis>,
    /// The last look for stuck jobs.
    stuck: Arc<Mutex<LastLook<Vec<Stuck>>>>,
    /// The directory of this process' credentials.
    creds: PathBuf,
    /// The last look at the deployment.
    checked: Arc<AsyncMutex<LastLook<Vec<Check>>>>,
}

impl OperatorQueries {
    /// `patience`: a job counts as stuck after this time at the latest. `creds`: the directory of the credentials.
    pub(crate) fn new(
        queries: Queries,
        work: WorkContext,
        traveller: Traveller,
        patience: Option<Millis>,
        creds: PathBuf,
    ) -> Self {
        let (fold_rate, began, stuck, checked) = (FoldRate::default(), Arc::default(), Arc::default(), Arc::default());
        Self { queries, work, traveller, fold_rate, began, patience, stuck, creds, checked }
    }

    /// The same queries, answered also while the models are still behind the log.
    pub(super) fn at_once(&self) -> Self {
        Self { queries: Queries { floor: Seq::ZERO, ..self.queries.clone() }, ..self.clone() }
    }

    pub(super) async fn events(&self, query: EventsQuery) -> Result<Page<TrailEvent>, Failure> {
        let timeline = self.queries.read.tables.of(&Timeline).map_err(broken)?;
        let applied = self.queries.applied.borrow().seq;
        event_search::search(&self.queries.log, &timeline, applied, &query).await
    }

    pub(super) async fn accounts(&self, after: Option<AccountId>) -> Result<Accounts, Failure> {
        let table = self.queries.read.tables.of(&Ledger).map_err(broken)?;
        let summed = tokio::task::spawn_blocking(move || accounts::accounts(&table, after)).await;
        let summed =
            summed.map_err(|e| Failure::Unavailable(format!("the sums were not finished: {e}")))?.map_err(broken)?;
        summed.ok_or_else(|| Failure::Unavailable("the ledger moves too fast to be summed: try again".to_owned()))
    }

    /// The checks of the deployment, at most ten seconds old.
    pub(super) async fn doctor(&self) -> Result<Vec<Check>, Failure> {
        let mut checked = self.checked.lock().await;
        if let Some((at, checks)) = checked.as_ref()
            && at.elapsed() < DOCTOR_EVERY
        {
            return Ok(checks.clone());
        }
        let (mut found, log) = (doctor::Findings::default(), &self.queries.log);
        let platform = self.platform().await.map_err(|e| e.to_string());
        let platform = platform.as_ref().map_err(Clone::clone);
        doctor::look(&log.client(), log, platform, &self.creds, &mut found)
            .await
            .map_err(|e| Failure::Unavailable(format!("{e:#}")))?;
        *checked = Some((Instant::now(), found.0.clone()));
        Ok(found.0)
    }

    pub(crate) fn stuck(&self) -> Result<Vec<Stuck>, Failure> {
        if self.queries.applied.borrow().seq < self.queries.floor {
            let behind = "the read models are still behind the log, and do not show which jobs are stuck now";
            return Err(Failure::Unavailable(behind.to_owned()));
        }
        let mut looked = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        match looked.as_ref() {
            Some((at, found)) if at.elapsed() < STUCK_EVERY => Ok(found.clone()),
            _ => {
                let read = &self.queries.read;
                let found = stuck::jobs(&read.tables, &read.telemetry, self.patience).map_err(broken)?;
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

    pub(super) async fn travel(&self, to: Point) -> Result<Travel, Failure> {
        let seq = self.seq_of(to).await?;
        let traveller = self.traveller.clone();
        // The journey continues when nobody waits for it any more: the next who asks finds the snapshots that it left.
        let journey = tokio::spawn(async move { traveller.market(seq).await });
        match tokio::time::timeout(SOON, journey).await {
            Ok(Ok(then)) => then.map(|then| Travel::There(Box::new(then))).map_err(failed),
            Ok(Err(e)) => Err(Failure::Unavailable(e.to_string())),
            Err(_) => {
                let began = Progress { at: Seq::ZERO, until: seq, per_second: 0 };
                Ok(Travel::Folding(self.traveller.progress().unwrap_or(began)))
            }
        }
    }

    pub(super) async fn then(&self, of: TrailOf, to: Point) -> Result<RowThen, Failure> {
        let seq = self.seq_of(to).await?;
        let timeline = self.queries.read.tables.of(&Timeline).map_err(broken)?;
        self.traveller.row(&timeline, of.into(), seq).await.map_err(failed)
    }
}

fn failed(e: TravelError) -> Failure {
    Failure::Unavailable(format!("{:#}", anyhow::Error::from(e)))
}
