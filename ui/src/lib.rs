//! The face of `GPUbnb`: pages, the JSON API, live updates, and the files of jobs.
//!
//! Belongs here: what people and programs see, and the reading of what they send. Must not come here: a
//! rule of the market (that is `services`), or the inside of a read model.

mod access;
mod ansi;
mod api;
mod app;
mod assets;
mod chart;
mod conditional;
pub mod config;
mod crowd;
mod error;
mod extract;
mod format;
mod input;
mod live;
mod openapi;
mod page;
mod requested;
mod routes;
mod run;
mod serve;
mod transfer;

pub use config::{Cli, Command};
pub use openapi::{openapi_document, routes_table};
pub use run::{operator_link, run};
