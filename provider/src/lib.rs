//! The machine of `GPUbnb`: pulls job messages, runs them in Docker on the GPU, reports with the lease.
//!
//! Belongs here: the machine's hardware, the sandbox, the life of one attempt on this machine. Must not
//! come here: trust in a job, or a credential of another machine.

mod attempt;
pub mod commands;
pub mod config;
mod control;
mod credential;
mod dispatch;
mod docker;
mod gpu;
mod hand;
mod hardware;
mod heartbeat;
mod identity;
mod journal;
mod market;
mod owner;
mod platform;
mod run;
mod selftest;
mod sync;

pub use config::Cli;
pub use docker::{Frame, container_name, hardened, job_user};
pub use journal::Journal;
pub use run::{enroll, run};
pub use selftest::command as self_test;
