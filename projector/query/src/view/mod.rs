//! The answers to queries. Each file has the answers about one topic.

mod event;
mod job;
mod machine;
mod market;
mod money;
mod notice;
pub mod ops;
mod page;

pub use self::{event::*, job::*, machine::*, market::*, money::*, notice::*, page::*};
