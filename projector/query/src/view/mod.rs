//! The answers to queries. Each file has the answers about one topic.

mod batch;
mod event;
mod job;
mod machine;
mod market;
mod money;
mod notice;
pub mod ops;
mod page;

pub use self::{batch::*, event::*, job::*, machine::*, market::*, money::*, notice::*, page::*};
