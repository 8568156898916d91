//! The face of `GPUbnb`: pages, the JSON API, live updates, and the files of jobs.
//!
//! Belongs here: the answers that people and programs get, and the reading of their requests. Must not come here: a
//! rule of the market (that belongs to `services`), or the inside of a read model.

mod access;
mod accounts;
mod ansi;
mod api;
mod app;
mod assets;
mod chart;
mod conditional;
pub mod config;
mod connection_limit;
mod earnings;
mod error;
mod escape;
mod event_search;
mod extract;
mod format;
mod hardware;
mod input;
mod keyed_limit;
mod live;
mod openapi;
mod page;
mod request_span;
mod routes;
mod run;
mod serve;
mod state;
#[cfg(test)]
mod testing;
mod transfer;

pub use config::{Cli, Command};
pub use openapi::{openapi_document, routes_table};
pub use run::{operator_link, run};
