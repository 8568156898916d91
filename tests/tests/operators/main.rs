//! Tests of the operators' tools: the commands, the console, archives, backups and monitoring.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod accounts;
mod archive;
mod cluster;
mod commands;
mod console;
mod letters;
mod monitor;
mod operator;
mod projectors;
mod proofs;
mod rebuild;
mod recovery;
mod snapshot;
mod tampered;
