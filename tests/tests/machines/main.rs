//! Providers' machines: workers, Docker, GPUs, images, hostile jobs, and processes that are killed.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bills;
mod faults;
mod gpus;
mod hostile;
mod images;
mod outages;
mod restarts;
mod worker;
