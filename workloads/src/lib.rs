//! The approved demo jobs of GPUbnb: real, short batch jobs which behave as any other job does.
//!
//! They take arguments, report progress on standard output ([`progress`]), write their results
//! into one folder ([`output`]) and end with an exit code. What belongs here is the work of the
//! demo jobs and nothing else: no networking, no knowledge of the marketplace, of containers or of
//! the machine they run on. A job which cannot be written this way is not a demo job.

pub mod canvas;
pub mod chart;
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

/// Runs the job that was asked for and says with which exit code the process ends.
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
