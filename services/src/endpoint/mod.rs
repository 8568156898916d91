//! The command endpoints: `cmd.account.*`, `cmd.job.*`, `cmd.market.*`, `cmd.enrollment.*`, `cmd.machine.<id>.*`.
//!
//! Each endpoint reads a request, names the command and the actor, and leaves the decision to the domain. The endpoints
//! are served over a connection that may publish to inboxes only.

mod context;
mod dead_letters;
mod edge;
mod enrollment;
mod machine;
mod serve;

pub(crate) use self::{
    context::{Endpoints, FileTransfer, new_machine_rate},
    serve::serve,
};
