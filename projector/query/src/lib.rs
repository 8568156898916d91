//! The contract between a projector and those who ask it: requests, answers, and a client.
//!
//! Belongs here: what goes over the wire. Must not come here: how rows are stored (`gpubnb-projector`); a change of the
//! storage must not change an answer.

pub mod client;
pub mod request;
pub mod view;

pub use client::QueryClient;
