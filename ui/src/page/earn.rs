//! The page that estimates what the owner of a machine would earn, from the prices on the market now.

use askama::Template;
use axum::{extract::State, response::Html};
use gpubnb_events::{HourlyRate, MicroUsd};
use serde::Deserialize;

use super::{Layout, render_page};
use crate::{
    access::Viewer,
    app::App,
    error::PageError,
    extract::Query,
    prices::{PriceRange, by_model, monthly_earnings},
};

/// The machine, as its owner describes it. A number that cannot be read, or is out of range, becomes the default.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct EarnQuery {
    /// The model of the GPU, or `CPU only`.
    #[serde(default)]
    model: String,
    /// Hours a day for which the machine is spare.
    #[serde(default)]
    hours: String,
    /// The share of these hours for which jobs run, percent.
    #[serde(default)]
    used: String,
}

/// A price with the earnings that it would bring.
struct Estimate {
    label: &'static str,
    price: HourlyRate,
    monthly: MicroUsd,
}

#[derive(Template)]
#[template(path = "earn.html")]
struct EarnPage {
    layout: Layout,
    /// The models on the market with the number of their machines.
    models: Vec<(String, usize)>,
    model: String,
    hours: u32,
    used: u32,
    /// Empty if the market has no machine with the model.
    estimates: Vec<Estimate>,
}

impl EarnPage {
    // askama passes references.
    #[allow(clippy::ptr_arg)]
    fn is_chosen(&self, model: &String) -> bool {
        *model == self.model
    }
}

/// `GET /earn`. Simulated GPUs are left out, because nobody pays for them.
pub(crate) async fn page(
    State(app): State<App>,
    viewer: Viewer,
    Query(query): Query<EarnQuery>,
) -> Result<Html<String>, PageError> {
    let machines = app.machines.machines().await;
    let by_model = by_model(machines.iter().map(|m| &m.listed).filter(|listed| !listed.offer.hardware.simulated));
    let models: Vec<_> = by_model.iter().map(|(name, machines)| ((*name).to_owned(), machines.len())).collect();
    let common = models.iter().max_by_key(|(_, machines)| *machines).map(|(name, _)| name.clone());
    let model = if query.model.is_empty() { common.unwrap_or_default() } else { query.model };
    let within = |text: &str, most: u32, default: u32| text.parse().ok().filter(|n| *n <= most).unwrap_or(default);
    let (hours, used) = (within(&query.hours, 24, 12), within(&query.used, 100, 50));
    let range = by_model.get(model.as_str()).and_then(|machines| PriceRange::of(machines.iter().copied()));
    let estimates = range.map(|range| {
        [("Low", range.low), ("Typical", range.median), ("High", range.high)].map(|(label, price)| Estimate {
            label,
            price,
            monthly: monthly_earnings(price, hours, used),
        })
    });
    let estimates = estimates.into_iter().flatten().collect();
    let layout = Layout::new("What would my machine earn?", "provider", viewer);
    Ok(render_page(&EarnPage { layout, models, model, hours, used, estimates })?)
}
