//! The JSON API, `/api/v1`: the same data as on the pages.

pub(crate) mod account;
pub(crate) mod jobs;
pub(crate) mod machines;
pub(crate) mod ops;
pub(crate) mod stream;
pub(crate) mod wallet;
