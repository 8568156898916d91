//! Starts a whole market from its real programs. The tests, the demo and the benchmarks use this crate.

pub mod api_client;
pub mod bench;
#[cfg(feature = "browser")]
pub mod browser;
#[cfg(feature = "contract")]
mod contract;
pub mod engine;
pub mod history;
pub mod jobs;
pub mod machine_keys;
pub mod market;
mod market_slots;
pub mod models;
pub mod pages;
pub mod process;
pub mod programs;
pub mod registry;
pub mod shared;
pub mod system;
pub mod wait;
