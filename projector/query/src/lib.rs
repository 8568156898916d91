//! The contract between a projector and its clients: requests, answers, and a client.
//!
//! A projector folds the log into read models, and answers queries from them. This crate contains everything that goes
//! over the wire. It must not contain the stored form of rows (`gpubnb-model`): a change of the storage must not change
//! an answer.

pub mod client;
pub mod request;
pub mod view;

pub use client::QueryClient;
