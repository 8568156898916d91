//! The whole system, put together from its real parts: for tests, for the demo and for the benchmarks.

pub mod bench;
pub mod browser;
pub mod engine;
pub mod history;
pub mod machine;
pub mod models;
pub mod parts;
pub mod process;
pub mod registry;
pub mod system;
pub mod web;
