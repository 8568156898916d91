//! The decisions of `GPUbnb`: a pure domain, the process managers that drive it, and the command endpoints.
//!
//! Belongs here: who may do what, and what follows from it. Must not come here: a read model, a page, or sled.

pub mod backup;
pub mod config;
mod credentials;
mod endpoint;
mod enrollment;
mod execute;
mod gauges;
mod passage;
mod process;
mod redispatch;
mod run;
mod secrets;
mod snapshot;
mod turns;
mod view;
pub mod whatif;

pub use backup::{backup, restore};
pub use config::{Cli, Config};
pub use credentials::bootstrap;
pub use run::run;
