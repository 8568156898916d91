//! State that the handlers of this replica share.
//!
//! Belongs here: what is kept in memory between requests, and what keeps it up to date. Must not come here: a handler,
//! or anything that needs [`crate::app::App`], which is made of this.

mod changes;
mod machine_cache;
mod upload_quota;

pub(crate) use self::{
    changes::{Change, Changes, next_change, pending_changes},
    machine_cache::MachineCache,
    upload_quota::UploadQuota,
};
