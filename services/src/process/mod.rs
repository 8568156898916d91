//! The process managers: loops that compare the state with what should be, and give commands. The domain decides the
//! commands, and the guards of the log make it safe that several replicas run the loops at once.

mod leader;
mod manager;
mod watchdog;

pub(crate) use self::{
    leader::Leadership,
    manager::manage,
    watchdog::{SilenceLimits, watch},
};
