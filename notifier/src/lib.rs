//! The notifier tells people and their programs what happened: it reads the log, asks the projector for names and
//! amounts, and sends webhooks and e-mail.
//!
//! Each notification goes through the stream DELIVERIES. [`watch`] puts it there, once, and remembers its position in
//! the log; [`webhook`] and [`mail`] send what is there, again and again until it arrives or is too old. A replay of
//! the log by another process sends nothing.
//!
//! Belongs here: which events are told, and how. Must not come here: a decision of the market, or an append to MARKET.

mod config;
mod letter;
mod mail;
mod notice;
mod run;
mod tries;
mod watch;
mod webhook;

pub use self::{
    config::{Cli, Command, RunArgs},
    run::run,
};
