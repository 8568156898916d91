//! The face of `GPUbnb`: pages, the JSON API, live updates, and the files of jobs.
//!
//! Belongs here: what people and programs see, and the reading of what they send. Must not come here: a
//! rule of the market (that is `services`), or the inside of a read model.

mod api;
mod app;
mod assets;
pub mod config;
mod error;
mod extract;
mod format;
mod input;
mod live;
mod page;
mod run;
mod transfer;
mod viewer;

pub use config::Config;
pub use run::run;
