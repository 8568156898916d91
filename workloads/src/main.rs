//! The `gpubnb-workload` program: reads the arguments, runs the job, ends with its exit code.
//!
//! Only wiring belongs here; the jobs live in the library. The exit codes are 0 for success, 1 for
//! a job which failed and 2 for arguments which make no sense.

use std::process::ExitCode;

use clap::Parser;
use gpubnb_workloads::cli::Cli;

fn main() -> ExitCode {
    match gpubnb_workloads::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
