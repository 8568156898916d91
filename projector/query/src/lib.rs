//! The contract between a projector and its clients: requests, answers, and a client.
//!
//! Belongs here: everything that goes over the wire. Must not come here: the stored form of rows
//! (`gpubnb-model`). A change of the storage must not change an answer.

pub mod client;
pub mod request;
pub mod view;

pub use client::QueryClient;
