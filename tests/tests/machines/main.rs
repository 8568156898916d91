//! Tests of providers' machines: workers, Docker, GPUs, images, hostile jobs, bills, outages and killed processes.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod batches;
mod bills;
mod datasets;
mod disks;
mod door;
mod faults;
mod gpus;
mod hostile;
mod images;
mod independent;
mod ordinary;
mod outages;
mod page;
mod person;
mod python;
mod restarts;
mod templates;
mod worker;
