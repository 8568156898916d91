//! The process managers: loops that compare what is with what should be, and give commands. They decide
//! nothing themselves; the guards make it safe that several replicas run them at once.

mod leader;
mod manager;
mod watchdog;

pub(crate) use self::{
    leader::Leadership,
    manager::manage,
    watchdog::{SilenceLimits, watch},
};
