//! Tests of the market from the outside: over HTTP as a person or a program, and over the broker as a machine or an
//! attacker.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod attacks;
mod batches;
mod client;
mod credentials;
mod deputy;
mod edge;
mod files;
mod foreign;
mod idempotency;
mod input;
mod install;
mod liar;
mod notifications;
mod people;
mod scripts;
mod secrets;
mod snippets;
mod trace;
mod transfer;
mod whole_loop;
