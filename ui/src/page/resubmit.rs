//! Fills the form of a new job with the fields of a previous job. Only the values of environment variables are missing:
//! the market has deleted them, so the user must enter them again.

use gpubnb_query::view::JobView;

use crate::{app::App, input};

/// The form fields, as (name, value).
pub(super) fn fields(app: &App, job: &JobView) -> Vec<(String, String)> {
    input::to_form(&app.request_again(&job.spec, &job.placement, &job.limits))
}
