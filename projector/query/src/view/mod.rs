//! The answers to queries: plain values, one file for each subject.

mod event;
mod job;
mod machine;
mod market;
mod money;
mod notice;
pub mod ops;
mod page;

pub use self::{event::*, job::*, machine::*, market::*, money::*, notice::*, page::*};
