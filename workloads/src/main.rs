//! The `gpubnb-workload` program: reads the arguments, runs the job, ends with the job's exit code.
//!
//! Exit codes: 0 for success, 1 for a failed job, 2 for invalid arguments.

use std::error::Error as _;
use std::io::Write;
use std::iter::successors;
use std::process::ExitCode;

use clap::Parser;
use gpubnb_workloads::cli::Cli;

fn main() -> ExitCode {
    match gpubnb_workloads::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            let causes = successors(error.source(), |cause| (*cause).source()).map(|cause| format!(": {cause}"));
            // If standard error is closed, the exit code alone reports the failure.
            let _ = writeln!(std::io::stderr(), "error: {error}{}", causes.collect::<String>());
            ExitCode::FAILURE
        }
    }
}
