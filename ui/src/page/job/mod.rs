//! One job: summary first, then log, files, receipt and trail, all live.

mod handlers;
mod live;
mod render;

pub(crate) use self::{
    handlers::{cancel, log_part, log_search, metrics, page, trail_lines},
    live::live,
};
