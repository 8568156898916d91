//! Tests of the source code itself: the rules for crates and files, and the reading of every old version of every
//! event.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod boundaries;
mod versions;
