//! The filters of the list of machines, for the market page and for the API.

use std::sync::Arc;

use gpubnb_events::{MicroUsd, spec::Mebibytes};
use gpubnb_query::view::{MachineState, MachineView};
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use crate::hardware;

/// The filters, the order and the page number, as query parameters. An empty or unreadable filter is not applied.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
pub(crate) struct MarketFilters {
    /// A part of the machine's name or region, or of the model of its CPU or a GPU.
    #[serde(default)]
    pub(crate) text: String,
    /// `gpu` for machines with a GPU, `cpu` for machines without one.
    #[serde(default)]
    pub(crate) kind: String,
    /// The region.
    #[serde(default)]
    pub(crate) region: String,
    /// Dollars per hour.
    #[serde(default)]
    pub(crate) max_price: String,
    /// Memory of the largest GPU, GiB.
    #[serde(default)]
    pub(crate) min_vram: String,
    /// `free` for machines that are online with a free slot, `verified` for machines that passed their
    /// self-test.
    #[serde(default)]
    pub(crate) only: String,
    /// A part of a GPU's model name.
    #[serde(default)]
    pub(crate) gpu: String,
    /// Attempts without a failure of the machine, percent.
    #[serde(default)]
    pub(crate) min_reliability: String,
    /// `finishes` for owners who share at all hours, `egress` for owners who allow jobs to use the internet.
    #[serde(default)]
    pub(crate) owner: String,
    /// A machine state in any case, such as `Online` or `paused`.
    #[serde(default)]
    pub(crate) state: String,
    /// Number of GPUs.
    #[serde(default)]
    pub(crate) min_gpus: String,
    /// A part of the version of the driver or of CUDA, such as `12.4`.
    #[serde(default)]
    pub(crate) driver: String,
    /// Cores of the CPU.
    #[serde(default)]
    pub(crate) min_cores: String,
    /// Memory, GiB.
    #[serde(default)]
    pub(crate) min_ram: String,
    /// Room on the disk, GiB.
    #[serde(default)]
    pub(crate) min_disk: String,
    /// Measured download speed from the market, Mbit/s.
    #[serde(default)]
    pub(crate) min_down: String,
    /// Measured upload speed to the market, Mbit/s.
    #[serde(default)]
    pub(crate) min_up: String,
    /// Measured speed per dollar (the page of a machine shows it).
    #[serde(default)]
    pub(crate) min_score: String,
    /// `real` for machines without simulated GPUs.
    #[serde(default)]
    pub(crate) simulated: String,
    /// `score`, `vram` and `reliability` sort from high to low, `name` from A to Z, anything else by rising price.
    #[serde(default)]
    #[param(ignore)]
    pub(crate) sort: String,
    /// `table` for a table of offers, anything else for cards.
    #[serde(default)]
    #[param(ignore)]
    pub(crate) view: String,
    /// The page of the list, counted from 1.
    #[serde(default)]
    #[param(ignore)]
    pub(crate) page: String,
}

/// Reads a number of a filter, at least zero. A comma counts as a decimal point.
fn number(filter: &str) -> Option<f64> {
    filter.trim().replace(',', ".").parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)
}

/// Reads a price of a filter.
fn price(filter: &str) -> Option<MicroUsd> {
    filter.trim().replace(',', ".").parse().ok().filter(|price| *price >= MicroUsd::ZERO)
}

impl MarketFilters {
    pub(crate) fn matches(&self, m: &MachineView) -> bool {
        let offer = &m.listed.offer;
        let text = self.text.to_lowercase();
        let text_matches =
            [&offer.name, &offer.region, &offer.hardware.cpu_model].iter().any(|s| s.to_lowercase().contains(&text))
                || offer.hardware.gpus.iter().any(|g| g.model.to_lowercase().contains(&text));
        let kind_matches = match self.kind.as_str() {
            "gpu" => !offer.hardware.gpus.is_empty(),
            "cpu" => offer.hardware.gpus.is_empty(),
            _ => true,
        };
        let model = self.gpu.to_lowercase();
        let owner_matches = match self.owner.as_str() {
            "finishes" => !offer.policy.may_evict,
            "egress" => !offer.policy.egress.is_none(),
            _ => true,
        };
        let reliability = number(&self.min_reliability);
        text_matches
            && kind_matches
            && owner_matches
            && (model.is_empty() || offer.hardware.gpus.iter().any(|g| g.model.to_lowercase().contains(&model)))
            && reliability
                .is_none_or(|min| m.listed.reliability().is_some_and(|(percent, _)| f64::from(percent) >= min))
            && (self.region.is_empty() || self.region == offer.region)
            && price(&self.max_price).is_none_or(|max| offer.price.0 <= max)
            && self.matches_hardware(m)
            && (self.state.is_empty() || m.listed.state().name().eq_ignore_ascii_case(&self.state))
            && match self.only.as_str() {
                "free" => m.listed.state() == MachineState::Online && m.listed.free_slots() > 0,
                "verified" => hardware::is_verified(&m.listed),
                _ => true,
            }
    }

    /// Applies the filters of hardware and speed.
    // `f64` is exact for the sizes that real machines have.
    #[allow(clippy::cast_precision_loss)]
    fn matches_hardware(&self, m: &MachineView) -> bool {
        let hardware = &m.listed.offer.hardware;
        let at_least = |filter: &str, value: f64| number(filter).is_none_or(|min| value >= min);
        let gib = |size: Mebibytes| size.0 as f64 / 1_024.0;
        let (down, up) = hardware::network_speed(&m.listed);
        let version = self.driver.trim();
        let versions = [hardware.driver.as_deref(), hardware.cuda.as_deref()];
        let vram = hardware.gpus.iter().map(|g| g.memory).max().unwrap_or(Mebibytes(0));
        at_least(&self.min_gpus, hardware.gpus.len() as f64)
            && at_least(&self.min_vram, gib(vram))
            && (version.is_empty() || versions.iter().flatten().any(|v| v.contains(version)))
            && at_least(&self.min_cores, f64::from(hardware.cpu_cores))
            && at_least(&self.min_ram, gib(hardware.memory))
            && at_least(&self.min_disk, gib(hardware.disk))
            && at_least(&self.min_down, down)
            && at_least(&self.min_up, up)
            && at_least(&self.min_score, hardware::score(&m.listed).map_or(0.0, |score| score.per_dollar))
            && (self.simulated != "real" || !hardware.simulated)
    }

    pub(crate) fn sort(&self, machines: &mut [Arc<MachineView>]) {
        let vram = |m: &Arc<MachineView>| m.listed.offer.hardware.gpus.iter().map(|g| g.memory.0).max().unwrap_or(0);
        match self.sort.as_str() {
            "vram" => machines.sort_by_key(|m| std::cmp::Reverse(vram(m))),
            "reliability" => machines.sort_by_key(|m| std::cmp::Reverse(m.listed.reliability())),
            "score" => machines.sort_by(|a, b| {
                let per_dollar = |m: &MachineView| hardware::score(&m.listed).map_or(0.0, |s| s.per_dollar);
                per_dollar(b).total_cmp(&per_dollar(a))
            }),
            "name" => machines.sort_by(|a, b| a.listed.offer.name.cmp(&b.listed.offer.name)),
            "region" => machines.sort_by(|a, b| a.listed.offer.region.cmp(&b.listed.offer.region)),
            "cores" => machines.sort_by_key(|m| std::cmp::Reverse(m.listed.offer.hardware.cpu_cores)),
            "ram" => machines.sort_by_key(|m| std::cmp::Reverse(m.listed.offer.hardware.memory)),
            "disk" => machines.sort_by_key(|m| std::cmp::Reverse(m.listed.offer.hardware.disk)),
            "down" => machines.sort_by(|a, b| {
                let down = |m: &MachineView| hardware::network_speed(&m.listed).0;
                down(b).total_cmp(&down(a))
            }),
            _ => machines.sort_by_key(|m| m.listed.offer.price),
        }
    }

    /// The address of page number `page` of the list with these filters.
    pub(crate) fn address(&self, path: &str, page: usize) -> String {
        let page = if page > 1 { page.to_string() } else { String::new() };
        Self { page, ..self.clone() }.address_of_set_filters(path)
    }

    /// The address of the first page with another value of a filter.
    pub(crate) fn address_with(&self, filter: &str, value: &str) -> String {
        let mut filters = Self { page: String::new(), ..self.clone() };
        match filter {
            "view" => value.clone_into(&mut filters.view),
            _ => value.clone_into(&mut filters.sort),
        }
        filters.address_of_set_filters("/market")
    }

    /// The address with the filters that are set.
    fn address_of_set_filters(&self, path: &str) -> String {
        let Ok(serde_json::Value::Object(filters)) = serde_json::to_value(self) else { return path.to_owned() };
        let set: Vec<_> = filters.iter().filter_map(|(name, value)| Some((name, value.as_str()?))).collect();
        let set: Vec<_> = set.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let query = serde_urlencoded::to_string(set).unwrap_or_default();
        if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
    }

    pub(crate) fn is_table(&self) -> bool {
        self.view == "table"
    }

    /// True if the list is sorted by this column. The default is the price.
    pub(crate) fn sorts_by(&self, sort: &str) -> bool {
        !sort.is_empty() && (self.sort == sort || (sort == "price" && self.sort.is_empty()))
    }

    /// The labels of the filters that cannot be read, and so filter nothing.
    pub(crate) fn unreadable(&self) -> Vec<&'static str> {
        let numbers = [
            ("Min reliability", &self.min_reliability),
            ("Min VRAM", &self.min_vram),
            ("Min GPUs", &self.min_gpus),
            ("Min CPU cores", &self.min_cores),
            ("Min RAM", &self.min_ram),
            ("Min disk", &self.min_disk),
            ("Min download", &self.min_down),
            ("Min upload", &self.min_up),
            ("Min speed per $", &self.min_score),
        ];
        let is_set = |filter: &str| !filter.trim().is_empty();
        let is_bad_price = is_set(&self.max_price) && price(&self.max_price).is_none();
        let numbers = numbers.into_iter().filter(|(_, value)| is_set(value) && number(value).is_none());
        is_bad_price.then_some("Max price").into_iter().chain(numbers.map(|(label, _)| label)).collect()
    }

    pub(crate) fn page(&self) -> usize {
        self.page.parse().unwrap_or(1).max(1)
    }

    /// The choices of the state filter.
    pub(crate) fn states(&self) -> [&'static str; 7] {
        STATES.map(MachineState::name)
    }

    /// True if a filter in the section "More filters" is set.
    pub(crate) fn has_more_filters(&self) -> bool {
        let offer = [&self.gpu, &self.region, &self.min_vram, &self.min_reliability, &self.owner, &self.state];
        let hardware = [&self.min_gpus, &self.driver, &self.min_cores, &self.min_ram, &self.min_disk];
        let measured = [&self.min_down, &self.min_up, &self.min_score, &self.simulated];
        offer.iter().chain(&hardware).chain(&measured).any(|f| !f.is_empty())
    }
}

/// The states in which a machine is on the market.
pub(crate) const STATES: [MachineState; 7] = [
    MachineState::Online,
    MachineState::Suspect,
    MachineState::Lost,
    MachineState::Paused,
    MachineState::Away,
    MachineState::Draining,
    MachineState::Maintenance,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;
    use gpubnb_events::spec::Gpu;

    fn filters(query: &str) -> MarketFilters {
        serde_urlencoded::from_str(query).unwrap()
    }

    #[test]
    fn each_filter_accepts_and_rejects_machines_by_their_offer() {
        let mut m = machine("lab", "RTX 4090", 500_000);
        for accepting in [
            "",
            "text=rtx",
            "text=LAB",
            "kind=gpu",
            "max_price=0.5",
            "min_vram=24",
            "gpu=4090",
            "region=EU",
            "only=free",
            "state=online",
            "min_cores=8",
            "min_ram=16",
            "min_disk=100",
            "owner=finishes",
            "simulated=real",
            "min_gpus=nonsense",
            "max_price=nonsense",
        ] {
            assert!(filters(accepting).matches(&m), "{accepting}");
        }
        for rejecting in [
            "text=a100",
            "kind=cpu",
            "max_price=0.49",
            "min_vram=25",
            "gpu=A100",
            "region=US",
            "only=verified",
            "state=lost",
            "min_cores=9",
            "min_ram=17",
            "min_disk=101",
            "owner=egress",
            "min_reliability=1",
            "min_down=1",
            "driver=535",
        ] {
            assert!(!filters(rejecting).matches(&m), "{rejecting}");
        }
        m.listed.running.push(gpubnb_events::JobId::generate());
        assert!(!filters("only=free").matches(&m), "the only slot is in use");
    }

    #[test]
    fn machines_are_sorted_by_price_by_default() {
        let mut big = machine("a", "H200", 3);
        big.listed
            .offer
            .hardware
            .gpus
            .push(Gpu { memory: Mebibytes(141 * 1_024), ..big.listed.offer.hardware.gpus[0].clone() });
        let mut machines = [machine("c", "RTX", 2), big, machine("b", "RTX", 1)].map(Arc::new);
        let mut sorted = |query: &str| {
            filters(query).sort(&mut machines);
            machines.iter().map(|m| m.listed.offer.name.clone()).collect::<String>()
        };
        assert_eq!(sorted(""), "bca");
        assert_eq!(sorted("sort=name"), "abc");
        assert!(sorted("sort=vram").starts_with('a'));
    }
}
