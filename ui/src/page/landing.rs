//! The landing page: a description of the market and its live figures.

use std::{convert::Infallible, sync::Arc, time::Duration};

use askama::Template;
use axum::{
    extract::State,
    response::{
        Html,
        sse::{Event, Sse},
    },
};
use futures_util::Stream;
use gpubnb_events::{HourlyRate, MicroUsd};
use gpubnb_query::view::{Figures, ListedMachine, MachineView};

use super::{Layout, render_fragment, render_page};
use crate::{
    access::Viewer,
    app::App,
    error::{PageError, Problem},
    live::parts::{self, PagePart},
    prices::{PriceRange, by_model, monthly_earnings},
};

#[derive(Template)]
#[template(path = "landing.html")]
struct LandingPage {
    layout: Layout,
    figures: String,
    models: String,
}

/// The machines with one model of GPU, or without a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Model {
    name: String,
    has_gpu: bool,
    machines: usize,
    free: usize,
    lowest: HourlyRate,
    /// The earnings of an owner in a month at the median price, if the machine is used half of the time. `None` for
    /// simulated GPUs, for which nobody pays.
    monthly: Option<MicroUsd>,
}

impl Model {
    /// The page of the market with these machines.
    fn address(&self) -> String {
        let filter = if self.has_gpu { ("gpu", self.name.as_str()) } else { ("kind", "cpu") };
        serde_urlencoded::to_string([filter]).map(|query| format!("/market?{query}")).unwrap_or_default()
    }
}

/// Most models on the page.
const MAX_MODELS: usize = 6;
/// The models on the market, those with the most free machines first.
fn models(machines: &[Arc<MachineView>]) -> Vec<Model> {
    let model = |(name, machines): (&str, Vec<&ListedMachine>)| {
        let prices = PriceRange::of(machines.iter().copied())?;
        Some(Model {
            name: name.to_owned(),
            has_gpu: machines.first().is_some_and(|machine| !machine.offer.hardware.gpus.is_empty()),
            machines: machines.len(),
            free: machines.iter().filter(|machine| machine.is_free()).count(),
            lowest: machines.iter().map(|machine| machine.offer.price).min()?,
            monthly: machines
                .iter()
                .any(|machine| !machine.offer.hardware.simulated)
                .then(|| monthly_earnings(prices.median, 24, 50)),
        })
    };
    let mut models: Vec<_> = by_model(machines.iter().map(|m| &m.listed)).into_iter().filter_map(model).collect();
    models.sort_by_key(|model| std::cmp::Reverse((model.has_gpu, model.free)));
    models.truncate(MAX_MODELS);
    models
}

#[derive(Template)]
#[template(path = "landing_models.html")]
struct ModelsCard {
    models: Vec<Model>,
}

async fn render_models(app: &App) -> Result<String, Problem> {
    render_fragment(&ModelsCard { models: models(&app.machines.machines().await) })
}

#[derive(Template)]
#[template(path = "figures.html")]
struct FiguresCard {
    figures: Figures,
}

pub(crate) async fn page(State(app): State<App>, viewer: Viewer) -> Result<Html<String>, PageError> {
    let figures = render_fragment(&FiguresCard { figures: app.queries.figures(viewer.actor()).await? })?;
    let layout = Layout::new("Spare GPUs, as easily as booking a stay", "", viewer);
    let models = render_models(&app).await?;
    Ok(render_page(&LandingPage { layout, figures, models })?)
}

pub(crate) async fn live(State(app): State<App>, viewer: Viewer) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    parts::stream(
        changes,
        Duration::from_secs(1),
        |_| true,
        move |_| {
            let app = app.clone();
            async move {
                let figures = app.queries.figures(viewer.actor()).await?;
                let models = PagePart::new("models", render_models(&app).await?);
                Ok(vec![PagePart::new("figures", render_fragment(&FiguresCard { figures })?), models])
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;

    #[test]
    fn models_are_counted_with_their_lowest_price_and_the_earnings_at_the_median() {
        let machines = [("a", "RTX 4090", 400_000), ("b", "RTX 4090", 200_000), ("c", "A100", 1_000_000)]
            .map(|(name, gpu, price)| Arc::new(machine(name, gpu, price)));
        let models = models(&machines);
        let rows: Vec<_> =
            models.iter().map(|m| (m.name.as_str(), m.free, m.lowest.0.0, m.monthly.unwrap().0)).collect();
        assert_eq!(rows, [("RTX 4090", 2, 200_000, 64_800_000), ("A100", 1, 1_000_000, 324_000_000)]);
        assert_eq!(models[0].address(), "/market?gpu=RTX+4090");
    }
}
