//! The program `gpubnb`: runs jobs on other people's GPUs, from a terminal.

use clap::Parser;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let code = gpubnb_cli::run(gpubnb_cli::Cli::parse()).await.unwrap_or_else(|e| {
        eprintln!("gpubnb: {e:#}");
        gpubnb_cli::FAILED
    });
    // A directory may still be read by another thread, and nobody waits for its end.
    std::process::exit(code.into());
}
