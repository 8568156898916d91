//! The page with the history of prices and of free machines, for one model of GPU.

use askama::Template;
use axum::{extract::State, response::Html};
use gpubnb_events::{HourlyRate, MicroUsd};
use gpubnb_query::{
    request::ModelHistoryQuery,
    view::{ModelHour, ModelSummary},
};
use serde::Deserialize;

use super::{Layout, render_page};
use crate::{
    access::Viewer,
    app::App,
    chart::Line,
    error::PageError,
    extract::Query,
    prices::{default_model, recent_models},
};

const HOUR_MS: i64 = 3_600_000;

#[derive(Debug, Default, Deserialize)]
pub(crate) struct HistoryQuery {
    /// The model of the GPU, or `CPU only`.
    #[serde(default)]
    model: String,
    /// `30` for thirty days, anything else for seven.
    #[serde(default)]
    days: String,
}

#[derive(Template)]
#[template(path = "prices.html")]
struct PricesPage {
    layout: Layout,
    models: Vec<ModelSummary>,
    model: String,
    days: u32,
    /// The charts, as HTML; empty if the market never had a machine.
    charts: Vec<String>,
    lowest: Option<HourlyRate>,
    median: Option<HourlyRate>,
    machines: u32,
    free: u32,
}

impl PricesPage {
    fn is_chosen(&self, summary: &ModelSummary) -> bool {
        summary.model == self.model
    }
}

/// `GET /market/prices`.
pub(crate) async fn page(
    State(app): State<App>,
    viewer: Viewer,
    Query(query): Query<HistoryQuery>,
) -> Result<Html<String>, PageError> {
    let models = recent_models(&app, viewer.actor()).await?;
    let days = if query.days == "30" { 30 } else { 7 };
    let model = if query.model.is_empty() { default_model(&models) } else { query.model };
    let now = ModelHour::number(app.now());
    let from = now.saturating_sub(days * 24);
    let hours = if models.is_empty() {
        Vec::new()
    } else {
        let query = ModelHistoryQuery { model: model.clone(), from_hour: from };
        app.queries.model_history(viewer.actor(), query).await?.hours
    };
    // A young market has no history before its first hour. A day is the shortest period that is drawn.
    let first = hours.first().map_or(from, |hour| hour.hour.min(now.saturating_sub(24)));
    let from = from.max(first);
    let last = hours.last().copied();
    Ok(render_page(&PricesPage {
        layout: Layout::new("Prices and availability", "market", viewer),
        charts: if models.is_empty() { Vec::new() } else { charts(&hours, from, now) },
        models,
        model,
        days,
        lowest: last.and_then(|hour| hour.lowest),
        median: last.and_then(|hour| hour.median),
        machines: last.map_or(0, |hour| hour.machines),
        free: last.map_or(0, |hour| hour.free),
    })?)
}

/// The value of each hour from `from` to `now` in which it is known, as (time in milliseconds, value). An hour without
/// a row has the value of the hour before.
fn hourly(hours: &[ModelHour], from: u32, now: u32, value: impl Fn(&ModelHour) -> Option<f64>) -> Vec<(i64, f64)> {
    let known = |hour: u32| hours.iter().rev().find(|row| row.hour <= hour);
    let point = |hour: u32| Some((i64::from(hour) * HOUR_MS, value(known(hour)?)?));
    (from..=now).filter_map(point).collect()
}

/// The charts of the median and the lowest price, and of the machines and the free machines.
// The prices become pixels, so the lost precision is invisible.
#[allow(clippy::cast_precision_loss)]
fn charts(hours: &[ModelHour], from: u32, now: u32) -> Vec<String> {
    let dollars = |rate: Option<HourlyRate>| rate.map(|rate| rate.0.0 as f64);
    let draw = |name: &str, points: Vec<(i64, f64)>, text: fn(f64) -> String| {
        let period = (i64::from(from) * HOUR_MS, i64::from(now) * HOUR_MS);
        Line { name, unit: "", points: &points, period, scale: 0.0, gap: HOUR_MS, text }.draw()
    };
    vec![
        draw("Median price", hourly(hours, from, now, |hour| dollars(hour.median)), price),
        draw("Lowest price", hourly(hours, from, now, |hour| dollars(hour.lowest)), price),
        draw("Free machines", hourly(hours, from, now, |hour| Some(f64::from(hour.free))), whole),
        draw("Machines that take jobs", hourly(hours, from, now, |hour| Some(f64::from(hour.machines))), whole),
    ]
}

/// A price in micro-dollars per hour.
// The values are prices of the market, far from the limits of an integer.
#[allow(clippy::cast_possible_truncation)]
fn price(micros: f64) -> String {
    HourlyRate(MicroUsd(micros as i64)).to_string()
}

fn whole(value: f64) -> String {
    format!("{value:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_without_a_change_has_the_value_of_the_hour_before() {
        let row = |hour, micros: Option<i64>| {
            let rate = micros.map(|micros| HourlyRate(MicroUsd(micros)));
            ModelHour { hour, machines: 1, free: 0, lowest: rate, median: rate }
        };
        let rows = [row(10, Some(5)), row(12, None), row(14, Some(7))];
        let values: Vec<_> = hourly(&rows, 9, 15, |hour| hour.lowest.map(|rate| if rate.0.0 == 5 { 5.0 } else { 7.0 }))
            .into_iter()
            .map(|(at, value)| (at / HOUR_MS, value))
            .collect();
        assert_eq!(values, [(10, 5.0), (11, 5.0), (14, 7.0), (15, 7.0)]);
        let charts = charts(&rows, 9, 15);
        assert!(charts[0].contains("Median price") && charts[0].contains("now $0.000007"), "{}", charts[0]);
    }
}
