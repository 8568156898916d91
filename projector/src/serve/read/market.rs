//! The queries about the history of the market.

use gpubnb_model::{
    market_history::{self, DAYS_PREFIX, MODELS_PREFIX, MarketHistory, hours_prefix},
    rows::{MarketDayRow, ModelHourRow},
    template_runs::{self, TemplateRuns},
};
use gpubnb_query::{
    request::ModelHistoryQuery,
    view::{MarketDay, ModelHistory, ModelSummary, TypicalRun},
};
use gpubnb_runtime::rpc::RpcError;
use gpubnb_store::StoreError;

use super::{ReadModels, store_failure};
use crate::serve::access::not_found;

/// The most models in one answer.
const MAX_MODELS: usize = 500;
/// The most hours in one answer: more than a month.
const MAX_HOURS: usize = 1_000;
/// The most days in one answer.
const MAX_DAYS: usize = 366;

impl ReadModels {
    /// The models of which machines took jobs since an hour. Others are left out: an owner can call a model anything,
    /// and a name that nobody has any more should not stay on pages.
    pub(crate) fn models(&self, from: u32) -> Result<Vec<ModelSummary>, RpcError> {
        let table = self.tables.of(&MarketHistory).map_err(store_failure)?;
        let models = table.scan_prefix(MODELS_PREFIX).map(|entry| {
            let (key, bytes) = entry?;
            let now: market_history::ModelNow = gpubnb_store::decode(&key, &bytes)?;
            let model = String::from_utf8_lossy(key.get(MODELS_PREFIX.len()..).unwrap_or_default()).into_owned();
            Ok(ModelSummary { model, now: now.row().into() })
        });
        let is_shown = |model: &Result<ModelSummary, StoreError>| {
            model.as_ref().map_or(true, |model| model.now.machines > 0 || model.now.hour >= from)
        };
        models.filter(is_shown).take(MAX_MODELS).collect::<Result<_, StoreError>>().map_err(store_failure)
    }

    /// The hours of a model since an hour. The hour of the last change is the last one.
    pub(crate) fn model_history(&self, query: &ModelHistoryQuery) -> Result<ModelHistory, RpcError> {
        let table = self.tables.of(&MarketHistory).map_err(store_failure)?;
        let now = market_history::model_now(&table, &query.model).map_err(store_failure)?;
        let Some(now) = now.map(|now| now.row()) else { return Err(not_found("model")) };
        let mut hours = vec![now];
        if now.hour > query.from_hour {
            for entry in table.scan_prefix(hours_prefix(&query.model)).rev().take(MAX_HOURS - 1) {
                let (key, bytes) = entry.map_err(store_failure)?;
                let row: ModelHourRow = gpubnb_store::decode(&key, &bytes).map_err(store_failure)?;
                hours.push(row);
                // This hour was still true when the period began.
                if row.hour <= query.from_hour {
                    break;
                }
            }
        }
        let hours = hours.into_iter().rev().map(Into::into).collect();
        Ok(ModelHistory { model: query.model.clone(), hours })
    }

    /// The days with an event since a day, newest first.
    pub(crate) fn market_days(&self, from: u32) -> Result<Vec<MarketDay>, RpcError> {
        let table = self.tables.of(&MarketHistory).map_err(store_failure)?;
        let days = table.scan_prefix(DAYS_PREFIX).rev().take(MAX_DAYS).map(|entry| {
            let (key, bytes) = entry?;
            gpubnb_store::decode::<MarketDayRow>(&key, &bytes).map(MarketDay::from)
        });
        let is_late = |day: &Result<MarketDay, StoreError>| day.as_ref().map_or(true, |day| day.day >= from);
        days.take_while(is_late).collect::<Result<_, _>>().map_err(store_failure)
    }

    /// The typical runs of the templates that had a completed run.
    pub(crate) fn typical_runs(&self) -> Result<Vec<TypicalRun>, RpcError> {
        let table = self.tables.of(&TemplateRuns).map_err(store_failure)?;
        template_runs::typical_runs(&table).map_err(store_failure)
    }
}

#[cfg(test)]
mod tests {
    use gpubnb_events::{HourlyRate, MicroUsd, Millis};
    use gpubnb_model::testing::{DAY, FIRST_DAY, History, account, job, machine};

    use super::*;
    use crate::serve::read::expect_refusal;

    const HOUR: Millis = Millis(3_600_000);

    /// A history in which machine 1 gets another price in each hour of `prices`.
    fn priced(prices: &[i64]) -> History {
        let mut history = History::default();
        for price in prices {
            history.listed_with(account(2), machine(1), |e| {
                e.offer.price = HourlyRate(MicroUsd(*price));
                e.offer.hardware.gpus.clear();
            });
            history.advance_time(HOUR);
        }
        history
    }

    #[test]
    fn a_models_history_begins_with_the_hour_that_was_still_true() {
        let history = priced(&[1_000, 2_000, 3_000, 4_000]);
        let read = ReadModels::from_history(&history);
        let models = read.models(u32::MAX).unwrap();
        let [model] = &models[..] else { panic!("{models:?}") };
        assert_eq!((model.model.as_str(), model.now.machines), ("CPU only", 1));
        let first = gpubnb_query::view::ModelHour::number(history.messages()[0].at);
        let lowest = |from_hour| {
            let query = ModelHistoryQuery { model: model.model.clone(), from_hour };
            let hours = read.model_history(&query).unwrap().hours;
            hours.iter().map(|hour| (hour.hour - first, hour.lowest.unwrap().0.0)).collect::<Vec<_>>()
        };
        assert_eq!(lowest(0), [(0, 1_000), (1, 2_000), (2, 3_000), (3, 4_000)]);
        assert_eq!(lowest(first + 2), [(2, 3_000), (3, 4_000)]);
        assert_eq!(lowest(first + 3), [(3, 4_000)]);
        assert_eq!(lowest(first + 99), [(3, 4_000)]);
        let unknown = ModelHistoryQuery { model: "RTX 9999".to_owned(), from_hour: 0 };
        assert_eq!(expect_refusal(read.model_history(&unknown)), "NotFound: There is no such model.");
    }

    #[test]
    fn a_model_without_machines_is_left_out_after_some_time() {
        let mut history = priced(&[1_000]);
        history.record(gpubnb_events::event::MachineDelisted { machine: machine(1) });
        let read = ReadModels::from_history(&history);
        let last = gpubnb_query::view::ModelHour::number(history.last().at);
        assert_eq!(read.models(last).unwrap().len(), 1);
        assert_eq!(read.models(last + 1).unwrap(), []);
    }

    #[test]
    fn the_newest_days_come_first() {
        let mut history = History::default();
        history.submitted(account(1), job(1));
        history.advance_time(DAY);
        history.submitted(account(1), job(2));
        history.submitted(account(1), job(3));
        let read = ReadModels::from_history(&history);
        let days =
            |limit| -> Vec<_> { read.market_days(limit).unwrap().iter().map(|day| (day.day, day.submitted)).collect() };
        assert_eq!(days(0), [(FIRST_DAY + 1, 2), (FIRST_DAY, 1)]);
        assert_eq!(days(FIRST_DAY + 1), [(FIRST_DAY + 1, 2)]);
        assert_eq!(days(FIRST_DAY + 2), []);
    }
}
