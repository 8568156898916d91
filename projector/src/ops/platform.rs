//! The state of the platform: the streams of the broker, the read models, the rate of the fold, and the growth of the
//! log.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use gpubnb_events::{Clock as _, Millis, Seq, SystemClock};
use gpubnb_log::stream::{DISPATCH, MARKET, OUTPUT, TELEMETRY};
use gpubnb_query::view::ops::{Growth, ModelStatus, Platform, StreamState};
use gpubnb_runtime::rpc::RpcError;

use super::answers::{MAX_WAIT, OperatorQueries};

/// The number of samples from which the rate of the fold is computed. Two samples are at least one second apart.
const SAMPLES: usize = 10;

/// Measures the rate of the fold, events per second. Each sample has a time and the last folded sequence.
#[derive(Clone, Default)]
pub(super) struct FoldRate(Arc<Mutex<VecDeque<(Instant, Seq)>>>);

impl FoldRate {
    fn per_second(&self, at: Seq) -> u64 {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if samples.back().is_none_or(|(time, _)| now.duration_since(*time) >= Duration::from_secs(1)) {
            samples.push_back((now, at));
        }
        if samples.len() > SAMPLES {
            samples.pop_front();
        }
        let Some((time, from)) = samples.front() else { return 0 };
        let millis = u64::try_from(now.duration_since(*time).as_millis()).unwrap_or(u64::MAX).max(1_000);
        at.0.saturating_sub(from.0).saturating_mul(1_000) / millis
    }
}

impl OperatorQueries {
    pub(crate) async fn platform(&self) -> Result<Platform, RpcError> {
        let all = [MARKET, DISPATCH, TELEMETRY, OUTPUT].map(|name| self.stream(name));
        let streams: Vec<_> = futures_util::future::join_all(all).await.into_iter().flatten().collect();
        let last = self.queries.log.last_seq().await?;
        let growth = self.growth(streams.iter().find(|s| s.name == MARKET)).await;
        let applied = self.queries.applied.borrow().clone();
        let state = self.work.state();
        let models = applied.models.into_iter().map(|m| ModelStatus {
            rebuild: state.rebuilds.get(m.name.as_str()).cloned(),
            name: m.name,
            checkpoint: m.checkpoint,
            stopped: m.stopped,
        });
        let models = models.collect();
        let verification = state.verification.clone();
        let (projector, per_second) = (Some(self.work.projector), self.fold_rate.per_second(applied.seq));
        Ok(Platform { projector, streams, last, models, per_second, verification, growth })
    }

    /// The growth of the log. `None` if the first event or the state of the stream cannot be read.
    async fn growth(&self, market: Option<&StreamState>) -> Option<Growth> {
        let first = async { self.queries.log.get(Seq(1)).await.ok().flatten().map(|first| first.at).ok_or(()) };
        // The first event never changes, so its time is read only once.
        let began = *self.began.get_or_try_init(|| first).await.ok()?;
        let jobs = self.queries.read.figures().ok()?.settled;
        Growth::estimate(market?.bytes, jobs, SystemClock.now().since(began))
    }

    /// The state of a stream. `None` if the broker does not answer in time, or does not allow this projector to ask.
    async fn stream(&self, name: &str) -> Option<StreamState> {
        let js = self.queries.log.jetstream();
        let answer = tokio::time::timeout(MAX_WAIT, async {
            let stream = js.get_stream_no_info(name).await.ok()?;
            stream.get_info().await.ok()
        });
        let info = answer.await.ok().flatten()?;
        Some(StreamState {
            name: name.to_owned(),
            messages: info.state.messages,
            bytes: info.state.bytes,
            first: Seq(info.state.first_sequence),
            last: Seq(info.state.last_sequence),
            behind: info.sources.iter().map(|source| source.lag).max(),
            consumers: u64::try_from(info.state.consumer_count).unwrap_or(0),
            max_bytes: u64::try_from(info.config.max_bytes).ok(),
            max_age: Some(Millis::from_duration(info.config.max_age)).filter(|age| age.0 > 0),
        })
    }
}
