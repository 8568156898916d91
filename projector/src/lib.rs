//! The answers of `GPUbnb`: events folded into read models in sled, the queries over them, and the operator's tool.
//!
//! Belongs here: projections, queries, looking back. Must not come here: a decision, or a write to MARKET.

pub mod client;
pub mod config;
pub mod view;

mod block;
mod copier;
pub mod database;
pub mod fold;
mod gauges;
pub mod heads;
mod live;
pub mod model;
mod notice;
mod ops;
mod query;
mod run;
mod snapshot;
pub mod store;
mod tool;
pub mod tree;

pub use config::{Cli, Command, RunArgs};
pub use run::run;
pub use tool::operate;
