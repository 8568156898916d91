//! The approved demo jobs of GPUbnb: real, short batch jobs that behave like any other job.
//!
//! A job takes arguments, reports progress on standard output ([`progress`]), writes its results
//! into one folder ([`output`]) and ends with an exit code. A demo job uses no network and knows
//! nothing about the marketplace, containers or the machine that runs the job.

pub mod cli;
pub mod count;
pub mod error;
pub mod matmul;
pub mod number;
pub mod output;
pub mod progress;
pub mod render;
pub mod train;

use std::process::ExitCode;

use crate::cli::{Cli, Job};
use crate::error::Error;
use crate::output::OutputDir;
use crate::progress::Reporter;

/// Runs the job that the command line names and returns the exit code of the process.
pub fn run(cli: Cli) -> Result<ExitCode, Error> {
    let mut reporter = Reporter::stdout();
    match cli.job {
        Job::Train(options) => {
            train::run(&options, &OutputDir::open(cli.output)?, &mut reporter)?;
        }
        Job::Render(options) => {
            render::run(&options, &OutputDir::open(cli.output)?, &mut reporter)?;
        }
        Job::Matmul(options) => {
            matmul::run(&options, &OutputDir::open(cli.output)?, &mut reporter)?;
        }
        Job::Count(options) => {
            let code = count::run(&options, &mut reporter, &mut std::io::stderr())?;
            return Ok(ExitCode::from(code));
        }
        Job::Noop => {}
    }
    Ok(ExitCode::SUCCESS)
}
