//! The projector of `GPUbnb`: folds events into read models, and answers queries from them.
//!
//! Belongs here: folding, queries, time travel, verification. Must not come here: a decision, or a write to MARKET.

mod change_feed;
mod config;
pub mod fold;
mod gauges;
pub mod ops;
mod run;
mod serve;
mod snapshot;
mod telemetry;
pub mod tree_head;

pub use config::RunArgs;
pub use run::run;
