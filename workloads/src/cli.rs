//! The command line: the jobs, their options, and the bounds of each option.
//!
//! The parser checks all bounds, so a job can rely on its options.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// The demo jobs of GPUbnb.
///
/// Progress goes to standard output, results go to the output folder. The exit code is 0 for
/// success, 1 for a failed job, and 2 for invalid arguments.
#[derive(Clone, Debug, Parser)]
#[command(name = "gpubnb-workload", version)]
pub struct Cli {
    /// Folder for the results
    #[arg(
        long,
        global = true,
        env = "GPUBNB_OUTPUT",
        display_order = 100,
        default_value = "/output",
        value_name = "DIR"
    )]
    pub output: PathBuf,
    /// The job to run.
    #[command(subcommand)]
    pub job: Job,
}

/// One job.
#[derive(Clone, Debug, Subcommand)]
pub enum Job {
    /// Train a small neural network to read handwritten digits
    Train(TrainOptions),
    /// Render a picture of coloured spheres by tracing paths of light
    Render(RenderOptions),
    /// Measure how fast one processor core multiplies matrices
    Matmul(MatmulOptions),
    /// Write numbered lines, then end with a chosen exit code
    Count(CountOptions),
    /// Do nothing and end at once
    Noop,
}

/// The options of `train`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// Number of passes over the training data
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub epochs: u16,
    /// Neurons in each of the two hidden layers
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub hidden: u16,
    /// Learning rate of the first epoch; it falls towards the end
    #[arg(long, default_value_t = 0.003, value_parser = learning_rate, value_name = "RATE")]
    pub learning_rate: f64,
    /// Pictures per training step
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub batch: u16,
    /// Turned and shifted variations of each picture in an epoch
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub variations: u16,
    /// Seed of the random numbers: the same seed gives the same result
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
}

/// The options of `render`.
#[derive(Args, Clone, Debug)]
pub struct RenderOptions {
    /// Width of the picture in pixels
    #[arg(long, default_value_t = 640, value_parser = clap::value_parser!(u16).range(16..=4096))]
    pub width: u16,
    /// Height of the picture in pixels
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u16).range(16..=4096))]
    pub height: u16,
    /// Paths of light traced for each pixel
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub samples: u16,
    /// Seed of the scene: each seed has its own arrangement and colours
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
}

/// The options of `matmul`.
#[derive(Args, Clone, Debug)]
pub struct MatmulOptions {
    /// Rows and columns of each matrix
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub size: u16,
    /// Duration of the measurement, in seconds
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    pub seconds: f64,
}

/// The options of `count`.
#[derive(Args, Clone, Debug)]
pub struct CountOptions {
    /// Number of lines: odd lines go to standard output, even lines to standard error
    #[arg(long, default_value_t = 10)]
    pub lines: u32,
    /// Pause between two lines, in milliseconds
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(..=60_000))]
    pub interval_ms: u64,
    /// Exit code of the job
    #[arg(long, default_value_t = 0)]
    pub exit_code: u8,
}

fn learning_rate(text: &str) -> Result<f64, String> {
    number_between(text, 1e-9, 1.0)
}

fn seconds(text: &str) -> Result<f64, String> {
    number_between(text, 0.01, 86_400.0)
}

fn number_between(text: &str, low: f64, high: f64) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (low..=high).contains(&number) => Ok(number),
        _ => Err(format!("enter a number from {low} to {high}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_within_bounds() {
        for job in ["train", "render", "matmul", "count", "noop"] {
            Cli::try_parse_from(["gpubnb-workload", job]).unwrap();
        }
    }

    #[test]
    fn invalid_arguments_are_refused_with_exit_code_2() {
        for arguments in [
            &["train", "--epochs", "0"][..],
            &["train", "--epochs", "1001"],
            &["train", "--learning-rate", "NaN"],
            &["train", "--learning-rate", "0"],
            &["render", "--width", "5000"],
            &["matmul", "--seconds", "-1"],
            &["count", "--exit-code", "256"],
            &["unknown"],
        ] {
            let error = Cli::try_parse_from([&["gpubnb-workload"], arguments].concat()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{arguments:?}");
            assert_ne!(error.kind(), ErrorKind::DisplayHelp);
        }
    }
}
