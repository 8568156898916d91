//! The projector of `GPUbnb`. It reads MARKET (the JetStream stream that is the log of all events), folds the events
//! into read models, and answers queries from the read models. To fold an event into a model means to change the
//! model's rows as the event requires.
//!
//! The projector makes no decisions and never writes to MARKET.

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
