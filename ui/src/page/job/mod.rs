//! The page of one job: summary, log, metrics, files, receipt and trail, all updated live.
//!
//! The trail of a job is the list of its events.

mod handlers;
mod live;
mod remedies;
mod render;

pub(crate) use self::{
    handlers::{cancel, log_part, log_search, metrics, page, trail_lines},
    live::live,
};
