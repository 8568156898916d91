//! The process managers: loops that find the commands that are due, and execute them. The domain computes these
//! commands from the state. The guards of the log make it safe to run the loops in several replicas.

mod leader;
mod manager;
mod watchdog;

pub(crate) use self::{
    leader::Leadership,
    manager::manage,
    watchdog::{SilenceLimits, watch},
};
