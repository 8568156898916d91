//! The part of the projector for operators: the state of the platform, a search for events, time travel (the market as
//! it was after a past event), and the rebuild and the verification of models. This part never changes the log.
//!
//! In the diagram, `a -> b` means that `a` uses `b`.
//!
//! ```text
//! endpoints.rs -> answers.rs, platform.rs -> accounts.rs doctor.rs event_search.rs stuck.rs travel.rs
//!             \-> rebuild.rs, verify.rs -> context.rs background.rs invariants.rs
//! ```

mod accounts;
mod answers;
pub mod background;
pub(crate) mod context;
pub mod doctor;
mod endpoints;
mod event_search;
pub mod invariants;
mod platform;
pub(crate) mod rebuild;
mod stuck;
pub mod travel;
mod verify;

pub(crate) use self::{answers::OperatorQueries, endpoints::serve};
