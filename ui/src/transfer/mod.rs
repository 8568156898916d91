//! The files of jobs: their inputs, and the artifacts that they leave. A file is uploaded or downloaded with a permit,
//! which is valid for one purpose and a short time, or by its owner. Files are streamed, limited in size, and hashed.
//!
//! Must not come here: anything that shows a file of a job as a page of this server.

mod artifacts;
mod deliver;
mod download;
mod inputs;
mod parts;
mod store;
mod tar;

pub(crate) use self::{
    artifacts::{put, received},
    download::{AskLink, Link, by_permit, get, link},
    inputs::{Uploaded, describe, put_input},
    tar::get as get_tar,
};
