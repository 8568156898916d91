//! The `gpubnb-workload` program: reads the arguments, runs the job, ends with its exit code.
//!
//! Only wiring belongs here; the jobs live in the library. The exit codes are 0 for success, 1 for
//! a job which failed and 2 for arguments which make no sense.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use gpubnb_workloads::cli::Cli;

fn main() -> ExitCode {
    match gpubnb_workloads::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            // Where even this cannot be written, the exit code has to say it.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}
