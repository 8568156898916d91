//! The queries about the history of the market.

use gpubnb_model::{
    market_history::{self, DAYS_PREFIX, MODELS_PREFIX, MarketHistory, hours_prefix},
    rows::{MarketDayRow, ModelHourRow},
};
use gpubnb_query::{
    request::ModelHistoryQuery,
    view::{MarketDay, ModelHistory},
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
    /// The names of all models that machines ever had.
    pub(crate) fn models(&self) -> Result<Vec<String>, RpcError> {
        let table = self.tables.of(&MarketHistory).map_err(store_failure)?;
        let names = table.scan_prefix(MODELS_PREFIX).keys().take(MAX_MODELS).map(|key| {
            let key = key?;
            Ok(String::from_utf8_lossy(key.get(MODELS_PREFIX.len()..).unwrap_or_default()).into_owned())
        });
        names.collect::<Result<_, StoreError>>().map_err(store_failure)
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

    /// The last days with an event, newest first.
    pub(crate) fn market_days(&self, limit: u32) -> Result<Vec<MarketDay>, RpcError> {
        let table = self.tables.of(&MarketHistory).map_err(store_failure)?;
        let days = table.scan_prefix(DAYS_PREFIX).rev().take((limit as usize).min(MAX_DAYS)).map(|entry| {
            let (key, bytes) = entry?;
            gpubnb_store::decode::<MarketDayRow>(&key, &bytes).map(Into::into)
        });
        days.collect::<Result<_, _>>().map_err(store_failure)
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
        let model = read.models().unwrap();
        assert_eq!(model, ["CPU only"]);
        let first = gpubnb_query::view::ModelHour::number(history.messages()[0].at);
        let lowest = |from_hour| {
            let query = ModelHistoryQuery { model: model[0].clone(), from_hour };
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
    fn the_newest_days_come_first() {
        let mut history = History::default();
        history.submitted(account(1), job(1));
        history.advance_time(DAY);
        history.submitted(account(1), job(2));
        history.submitted(account(1), job(3));
        let read = ReadModels::from_history(&history);
        let days =
            |limit| -> Vec<_> { read.market_days(limit).unwrap().iter().map(|day| (day.day, day.submitted)).collect() };
        assert_eq!(days(9), [(FIRST_DAY + 1, 2), (FIRST_DAY, 1)]);
        assert_eq!(days(1), [(FIRST_DAY + 1, 2)]);
        assert_eq!(days(0), []);
    }
}
