//! Live updates: the parts of a page that changed, and the output of jobs as it comes.
//!
//! Belongs here: the protocol between a page and its one connection, and the reading of jobs' output. Must not come
//! here: a page, or a handler.

pub(crate) mod log;
pub(crate) mod output;
pub(crate) mod parts;
