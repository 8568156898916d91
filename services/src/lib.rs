//! The decisions of `GPUbnb`: a pure domain, the process managers that drive it, and the command endpoints.
//!
//! Belongs here: who may do what, and what follows from it. Must not come here: a read model, a page, or sled.

mod aggregate_lock;
pub mod backup;
pub mod config;
mod credentials;
mod endpoint;
mod enrollment;
mod execute;
mod gauges;
mod phase_spans;
mod process;
mod redispatch;
mod replica;
mod run;
mod secrets;
mod snapshot;
pub mod whatif;

pub use backup::{backup, restore};
pub use config::{Cli, Config};
pub use credentials::bootstrap;
pub use run::run;
