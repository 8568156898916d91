//! The page *Templates*: the jobs that this market has approved, each with its needs, its usual time and cost.

use std::sync::Arc;

use askama::Template;
use axum::{extract::State, response::Html};
use gpubnb_events::{spec::Resources, template::Template as JobTemplate};
use gpubnb_query::view::TypicalRun;
use serde::Deserialize;

use super::{Layout, render_page};
use crate::{access::Viewer, app::App, error::PageError, extract::Query, format};

#[derive(Template)]
#[template(path = "templates.html")]
struct TemplatesPage {
    layout: Layout,
    search: String,
    only: String,
    cards: Vec<Card>,
}

/// A template with what its jobs usually take; `None` before the first completed run.
struct Card {
    template: Arc<JobTemplate>,
    typical: Option<TypicalRun>,
}

impl Card {
    /// The hardware that a job gets, in a few words: `1 GPU with 8 GiB, 4 cores, 16 GiB`.
    fn needs(&self) -> String {
        let Resources { cpu_millis, memory, gpus, vram, .. } = &self.template.resources;
        let cores = format!("{} cores, {}", cpu_millis.div_ceil(1_000), format::bytes(memory.bytes()));
        let cores = if *cpu_millis <= 1_000 { cores.replacen("cores", "core", 1) } else { cores };
        match (*gpus, vram.0) {
            (0, _) => cores,
            (1, 0) => format!("1 GPU, {cores}"),
            (1, _) => format!("1 GPU with {}, {cores}", format::bytes(vram.bytes())),
            (gpus, _) => format!("{gpus} GPUs with {}, {cores}", format::bytes(vram.bytes())),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct TemplatesQuery {
    /// Words of the title, the description or the image.
    #[serde(default)]
    q: String,
    /// `gpu` or `cpu`; anything else shows all.
    #[serde(default)]
    only: String,
}

/// `GET /templates`.
pub(crate) async fn page(
    State(app): State<App>,
    viewer: Viewer,
    Query(TemplatesQuery { q, only }): Query<TemplatesQuery>,
) -> Result<Html<String>, PageError> {
    let search: String = q.trim().chars().take(100).collect();
    let words: Vec<String> = search.to_lowercase().split_whitespace().map(ToOwned::to_owned).collect();
    let is_shown = |t: &JobTemplate| {
        let text = format!("{} {} {}", t.title, t.about, t.image_name).to_lowercase();
        let fits = match only.as_str() {
            "gpu" => t.resources.gpus > 0,
            "cpu" => t.resources.gpus == 0,
            _ => true,
        };
        fits && words.iter().all(|word| text.contains(word))
    };
    let listed = app.listed_templates(viewer.actor()).await.into_iter();
    let cards = listed.filter(|(template, _)| is_shown(template)).map(|(template, typical)| Card { template, typical });
    let cards = cards.collect();
    render_page(&TemplatesPage { layout: Layout::new("Templates", "new", viewer), search, only, cards })
        .map_err(Into::into)
}
