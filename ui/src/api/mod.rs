//! The JSON API under `/api/v1`. It offers the same data as the pages.
//!
//! Belongs here: handlers that read and answer JSON. Must not come here: HTML, which belongs to `page`.

pub(crate) mod account;
pub(crate) mod batches;
pub(crate) mod datasets;
pub(crate) mod jobs;
pub(crate) mod machines;
pub(crate) mod ops;
pub(crate) mod published;
pub(crate) mod secrets;
pub(crate) mod stream;
pub(crate) mod wallet;
pub(crate) mod webhooks;
