//! The command endpoints: `cmd.account.*`, `cmd.job.*`, `cmd.market.*`, `cmd.enrollment.*`, `cmd.machine.<id>.*`.
//!
//! Each endpoint reads a request, names the command and the actor, and leaves the decision to the domain.
//!
//! The services have two connections to the broker with different rights. Requests arrive and answers leave over the
//! connection of the user `serve`, which may publish only to reply subjects. The executor appends events over the
//! connection of the user `append`. So a request with a forged reply subject cannot make the services write to the log.

mod context;
mod dead_letters;
mod edge;
mod enrollment;
mod machine;
mod serve;

pub(crate) use self::{
    context::{EndpointContext, FileTransfer, new_machine_rate},
    serve::serve,
};
