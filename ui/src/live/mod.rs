//! Live updates of open pages: the parts of a page that changed, and new output of jobs.
//!
//! Belongs here: the events that the server sends to a page, and the reading of jobs' output. Must not come here: a
//! page, or a handler.

pub(crate) mod log;
pub(crate) mod output;
pub(crate) mod parts;
pub(crate) mod unfinished;
