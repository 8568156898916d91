//! The machine of `GPUbnb`: pulls job messages, runs them in Docker on the GPU, reports with the lease.
//!
//! Belongs here: the machine's hardware, the sandbox, the life of one attempt on this machine. Must not
//! come here: trust in a job, or a credential of another machine.

mod attempt;
pub mod config;
mod credential;
mod dispatch;
mod docker;
mod gpu;
mod hand;
mod hardware;
mod heartbeat;
mod identity;
mod market;
mod platform;
mod run;
mod sync;

pub use config::Cli;
pub use docker::{Frame, container_name, hardened, job_user};
pub use run::{enroll, run};
