//! The page *Datasets*: the directories of files that an account has uploaded for its jobs.

use askama::Template;
use axum::{
    extract::State,
    response::{Html, Redirect},
};
use gpubnb_events::{Timestamp, dataset::DatasetId};
use serde::Deserialize;

use super::{Layout, render_page};
use crate::{
    access::SignedIn,
    app::App,
    error::PageError,
    extract::{Path, Query},
    state::StoredDataset,
    transfer,
};

#[derive(Template)]
#[template(path = "datasets.html")]
struct DatasetsPage {
    layout: Layout,
    datasets: Vec<StoredDataset>,
    is_deleted: bool,
    now: Timestamp,
}

impl DatasetsPage {
    /// The value of the field `dataset` in the form of a job. A dataset without a name is the code of a job, which gets
    /// a copy.
    fn field(&self, dataset: &StoredDataset) -> String {
        match dataset.name {
            Some(_) => self.reference(dataset).to_owned(),
            None => format!("{} code rw", dataset.dataset),
        }
    }

    /// The name by which a job asks for the dataset: a newer dataset may have the same name.
    fn reference<'a>(&self, dataset: &'a StoredDataset) -> &'a str {
        let newest = self.datasets.iter().find(|other| other.name == dataset.name);
        let is_newest = newest.is_some_and(|newest| newest.dataset == dataset.dataset);
        dataset.name.as_deref().filter(|_| is_newest).unwrap_or_else(|| dataset.dataset.as_str())
    }
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct DatasetsQuery {
    /// Present after a redirect to this page, when a dataset was deleted.
    #[serde(default)]
    deleted: Option<String>,
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(query): Query<DatasetsQuery>,
) -> Result<Html<String>, PageError> {
    let datasets = app.datasets.of(signed_in.account, app.now()).await?;
    let layout = Layout::new("Datasets", "account", signed_in.viewer);
    Ok(render_page(&DatasetsPage { layout, datasets, is_deleted: query.deleted.is_some(), now: app.now() })?)
}

/// `POST /datasets/{dataset}/delete`
pub(crate) async fn delete(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(dataset): Path<DatasetId>,
) -> Result<Redirect, PageError> {
    Box::pin(transfer::remove_dataset(&app, signed_in.account, &dataset)).await?;
    Ok(Redirect::to("/datasets?deleted=1"))
}
