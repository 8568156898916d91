//! The worker of `GPUbnb` on a provider's machine: it pulls job messages, runs each job in Docker, and reports how the
//! job ended.
//!
//! An *attempt* is one try to run a job on a machine. A *lease* is the number of an attempt: the sequence of the event
//! `JobAssigned` in the market's log. A later lease of the same job makes an earlier lease stale. The *platform* is the
//! market's services behind the broker. The *edge* is the market's public web server. The *door* of a job is its way to
//! the internet.
//!
//! Belongs here: the machine's hardware, the sandbox, and each attempt on this machine. Must not come here: code that
//! trusts a job, or a credential of another machine.

mod attempt;
pub mod commands;
pub mod config;
mod control;
mod credential;
mod desired_state;
pub mod desktop;
mod dispatch;
mod docker;
mod gpu;
mod gpu_allocator;
mod hardware;
mod heartbeat;
mod identity;
mod image_fetch;
mod journal;
mod json_file;
mod lease_table;
mod market;
mod owner;
mod page;
mod platform;
mod relay;
mod selftest;
mod settings;
mod sync;
mod worker;

pub use config::Cli;
pub use docker::{LocalImage, SandboxParams, container_name, hardened_container, job_user};
pub use journal::Journal;
pub use selftest::command as self_test;
pub use worker::{enroll, run};
