//! The prices of the machines with one model of GPU, and what an owner earns at a price.

use std::collections::BTreeMap;

use gpubnb_events::{Actor, HourlyRate, MicroUsd, Millis};
use gpubnb_query::view::{ListedMachine, ModelHour, ModelSummary, NO_GPU};
use gpubnb_runtime::rpc::RpcError;

use crate::app::App;

/// The share of the price that an owner gets, in hundredths of a percent: all but the usual fee of 10 %.
const OWNER_SHARE: u32 = 9_000;
const HOUR: u64 = 3_600_000;
/// A month of 31 days, hours.
const MONTH_HOURS: u32 = 31 * 24;

/// The model by which machines are compared: that of the first GPU, or `CPU only`.
pub(crate) fn model(machine: &ListedMachine) -> &str {
    machine.offer.hardware.gpus.first().map_or(NO_GPU, |gpu| gpu.model.as_str())
}

/// The machines by their model.
pub(crate) fn by_model<'a>(
    machines: impl IntoIterator<Item = &'a ListedMachine>,
) -> BTreeMap<&'a str, Vec<&'a ListedMachine>> {
    let mut by_model: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for machine in machines {
        by_model.entry(model(machine)).or_default().push(machine);
    }
    by_model
}

/// The models of which machines took jobs within a month.
pub(crate) async fn recent_models(app: &App, actor: Actor) -> Result<Vec<ModelSummary>, RpcError> {
    app.queries.models(actor, ModelHour::number(app.now()).saturating_sub(MONTH_HOURS)).await
}

/// The model that a page shows if none is chosen: the GPU with the most machines; without GPUs, `CPU only`.
pub(crate) fn default_model(models: &[ModelSummary]) -> String {
    let common = models.iter().max_by_key(|summary| (summary.model != NO_GPU, summary.now.machines));
    common.map(|summary| summary.model.clone()).unwrap_or_default()
}

/// Low, typical and high price of some machines: P10, median and P90.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PriceRange {
    pub(crate) low: HourlyRate,
    pub(crate) median: HourlyRate,
    pub(crate) high: HourlyRate,
}

impl PriceRange {
    /// The range of the prices of these machines, by the nearest-rank method: P90 of five prices is the fifth. `None`
    /// without machines.
    pub(crate) fn of<'a>(machines: impl IntoIterator<Item = &'a ListedMachine>) -> Option<Self> {
        let mut prices: Vec<_> = machines.into_iter().map(|machine| machine.offer.price).collect();
        prices.sort_unstable();
        let at = |percent: usize| prices.get((prices.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        Some(Self { low: at(10)?, median: at(50)?, high: at(90)? })
    }
}

/// The earnings of an owner in a month of 30 days, after the usual fee, if jobs run for `percent` of `hours_a_day`.
pub(crate) fn monthly_earnings(price: HourlyRate, hours_a_day: u32, percent: u32) -> MicroUsd {
    let time = 30 * u64::from(hours_a_day) * HOUR * u64::from(percent) / 100;
    price.cost_of(Millis(time)).share(OWNER_SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;

    #[test]
    fn a_price_range_is_of_machines_with_the_same_model() {
        let mut market: Vec<_> = (1..=10).map(|price| machine("x", "RTX 4090", price).listed).collect();
        market.push(machine("other", "A100", 5).listed);
        let mut without = machine("cpu", "", 7).listed;
        without.offer.hardware.gpus.clear();
        market.push(without);
        let rate = |micros| HourlyRate(MicroUsd(micros));
        let by_model = by_model(&market);
        assert_eq!(by_model.keys().copied().collect::<Vec<_>>(), ["A100", NO_GPU, "RTX 4090"]);
        let range = |name: &str| PriceRange::of(by_model[name].iter().copied()).unwrap();
        let expected = PriceRange { low: rate(1), median: rate(5), high: rate(9) };
        assert_eq!(range("RTX 4090"), expected);
        assert_eq!(range(NO_GPU), PriceRange { low: rate(7), median: rate(7), high: rate(7) });
        assert_eq!(PriceRange::of([]), None);
    }

    #[test]
    fn a_gpu_is_the_default_model() {
        let model = |name: &str, machines| ModelSummary {
            model: name.to_owned(),
            now: ModelHour { hour: 1, machines, free: 0, lowest: None, median: None },
        };
        let models = [model("! look at me", 1), model("A100", 3), model(NO_GPU, 9)];
        assert_eq!(default_model(&models), "A100");
        assert_eq!(default_model(&models[2..]), NO_GPU);
        assert_eq!(default_model(&[]), "");
    }

    #[test]
    fn earnings_are_the_price_of_the_used_time_after_the_fee() {
        let price = HourlyRate(MicroUsd(400_000));
        // 30 days of 12 hours, all used, at $0.40, less a tenth.
        assert_eq!(monthly_earnings(price, 12, 100), MicroUsd(129_600_000));
        assert_eq!(monthly_earnings(price, 24, 50), MicroUsd(129_600_000));
        assert_eq!(monthly_earnings(price, 24, 0), MicroUsd::ZERO);
    }
}
