//! The decisions of `GPUbnb`: a pure domain, the process managers that drive it, and the command endpoints.
//!
//! Belongs here: who may do what, and what follows from it. Must not come here: a read model, a page, or sled.

mod bootstrap;
pub mod config;
pub mod domain;
mod endpoint;
mod execute;
mod process;
mod run;
mod turns;
mod view;

pub use bootstrap::bootstrap;
pub use config::{Cli, Config};
pub use run::run;
