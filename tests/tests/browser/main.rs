//! Tests of the pages in a real Chromium.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod forms;
mod journeys;
mod live;
mod long_log;
mod looks;
mod passkeys;
