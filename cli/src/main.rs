//! The program `gpubnb`: runs jobs on other people's GPUs, from a terminal.

use std::process::ExitCode;

use clap::Parser;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match gpubnb_cli::run(gpubnb_cli::Cli::parse()).await {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("gpubnb: {e:#}");
            ExitCode::from(gpubnb_cli::FAILED)
        }
    }
}
