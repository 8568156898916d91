//! The answers of `GPUbnb`: events folded into read models, and the queries over them.
//!
//! Belongs here: projections, queries, looking back. Must not come here: a decision, or a write to MARKET.

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
