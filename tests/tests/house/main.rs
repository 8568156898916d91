//! The rules of the source, and the promise that every event that was ever written can be read.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod boundaries;
mod versions;
