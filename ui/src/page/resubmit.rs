//! A job's own form, filled in anew: to run the job again, or with something changed. The values of its environment are
//! known to nobody any more, and are to be typed again.

use gpubnb_events::job_request::JobRequest;
use gpubnb_query::view::JobView;

use crate::input;

/// The form's fields, as they would have been typed.
pub(super) fn fields(job: &JobView) -> Vec<(String, String)> {
    input::to_form(&JobRequest::again(&job.spec, &job.placement, &job.limits))
}
