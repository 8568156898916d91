//! The services of `GPUbnb`: the command endpoints, the process managers, and the operator's commands for keys, backups
//! and what-if questions.
//!
//! Belongs here: everything that surrounds a decision, from the request to the append. Must not come here: the decision
//! itself (`gpubnb-domain`), a read model, or a page.

mod account_secrets;
mod aggregate_lock;
pub mod backup;
pub mod config;
mod credentials;
mod endpoint;
mod enrollment;
mod execute;
mod gauges;
mod job_output;
mod output_room;
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
