//! The market as consumers, programs, attackers and stolen machines meet it, over HTTP and over the broker.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod attacks;
mod client;
mod credentials;
mod deputy;
mod edge;
mod foreign;
mod idempotency;
mod input;
mod liar;
mod people;
mod trace;
mod transfer;
mod whole_loop;
