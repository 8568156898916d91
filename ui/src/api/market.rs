//! `/api/v1/machines`, `/api/v1/templates`, `/api/v1/market`.

use axum::{Json, extract::State};
use gpubnb_events::{MachineId, Seq, template::Template};
use gpubnb_projector::view::{Figures, MachineView};

use crate::{app::App, error::ApiError, extract::Path, viewer::Viewer};

pub(crate) async fn machines(State(app): State<App>, viewer: Viewer) -> Result<Json<Vec<MachineView>>, ApiError> {
    Ok(Json(app.queries.machines(viewer.actor(), Seq::ZERO).await?))
}

pub(crate) async fn machine(
    State(app): State<App>,
    viewer: Viewer,
    Path(machine): Path<MachineId>,
) -> Result<Json<MachineView>, ApiError> {
    Ok(Json(app.queries.machine(viewer.actor(), machine, Seq::ZERO).await?))
}

pub(crate) async fn templates() -> Json<&'static [Template]> {
    Json(gpubnb_events::template::ALL)
}

pub(crate) async fn figures(State(app): State<App>, viewer: Viewer) -> Result<Json<Figures>, ApiError> {
    Ok(Json(app.queries.figures(viewer.actor()).await?))
}
