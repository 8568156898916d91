//! The web server of `GPUbnb`: pages, the JSON API, live updates, and the files of jobs.
//!
//! Belongs here: reading the requests of people and programs, and answering them. Must not come here: a rule of the
//! market, which belongs to `services`, or the storage of a read model, which belongs to `projector`.

mod access;
mod accounts;
mod ansi;
mod api;
mod app;
mod assets;
mod batches;
mod chart;
mod conditional;
pub mod config;
mod connection_limit;
mod drained_body;
mod earnings;
mod error;
mod escape;
mod event_search;
mod extract;
mod format;
mod hardware;
mod image_names;
mod input;
mod keyed_limit;
mod live;
mod market_filters;
mod openapi;
mod page;
mod portrait;
mod prices;
mod request_span;
mod routes;
mod run;
mod serve;
mod snippets;
mod state;
mod submission;
mod templates;
#[cfg(test)]
mod testing;
mod transfer;
mod webhooks;
mod worker_download;

pub use config::{Cli, Command};
pub use openapi::{openapi_document, routes_table};
pub use run::{operator_link, run};
pub use templates::approve_templates;
