//! The files of jobs: inputs, which a job reads, and artifacts, which a job writes. A file is uploaded or downloaded by
//! its owner, or with a permit, which is valid for one purpose and a short time. Files are streamed, limited in size,
//! and hashed.
//!
//! Must not come here: code that serves a file of a job as a page, because the page could act for the signed-in user.

mod artifacts;
mod datasets;
mod deliver;
mod download;
mod inputs;
mod parts;
mod share;
mod store;
mod store_use;
mod tar;

pub(crate) use self::{
    artifacts::{put, upload_status},
    datasets::{ContentRange, manifest, remove_dataset, resolve_datasets, store_contents, store_manifest},
    download::{Link, LinkRequest, by_permit, get, link},
    inputs::{StoredInput, put_input, resolve_inputs},
    store::has_money,
    store_use::{StoreUse, store_uses},
    tar::get as get_tar,
    tar::get_of_batch as get_tar_of_batch,
};
