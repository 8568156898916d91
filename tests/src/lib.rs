//! The whole system, put together from its real parts: for tests, for the demo and for the benchmarks.

pub mod bench;
#[cfg(feature = "browser")]
pub mod browser;
pub mod engine;
pub mod history;
pub mod jobs;
pub mod machine;
pub mod market;
pub mod models;
pub mod pages;
pub mod parts;
mod places;
pub mod process;
pub mod registry;
pub mod shared;
pub mod system;
pub mod wait;
pub mod web;
