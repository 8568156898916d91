//! The command endpoints: `cmd.account.*`, `cmd.job.*`, `cmd.market.*`, `cmd.enrollment.*`, `cmd.machine.<id>.*`.
//!
//! Each endpoint reads a request, names the command and the actor, and leaves the decision to the domain.
//!
//! The services have three connections to the broker with different rights. Requests arrive and answers leave over the
//! connection of the user `serve`, which may publish only to reply subjects. The executor appends events over the
//! connection of the user `append`, and the output of jobs is written over the connection of the user `output`. So a
//! request with a forged reply subject cannot make the services write to a stream.

mod context;
mod dead_letters;
mod edge;
mod enrollment;
mod machine;
mod serve;

pub(crate) use self::{
    context::{EndpointContext, FileTransfer, new_machine_rate, new_output_rate},
    serve::serve,
};
