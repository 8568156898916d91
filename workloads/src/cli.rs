//! The command line: which jobs there are, what they take, and within which bounds.
//!
//! Bounds are checked here, so that a job can rely on its options. Nothing is run here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// The demo jobs of GPUbnb.
///
/// Progress is told on standard output, results are stored in the output folder. The exit code is
/// 0 for success, 1 for a job which failed, and 2 for arguments which make no sense.
#[derive(Clone, Debug, Parser)]
#[command(name = "gpubnb-workload", version)]
pub struct Cli {
    /// The folder for the results
    #[arg(
        long,
        global = true,
        env = "GPUBNB_OUTPUT",
        display_order = 100,
        default_value = "/output",
        value_name = "DIR"
    )]
    pub output: PathBuf,
    /// What to do.
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
    /// Measure how fast matrices are multiplied
    Matmul(MatmulOptions),
    /// Write numbered lines, then end with a chosen exit code
    Count(CountOptions),
    /// Do nothing and end at once
    Noop,
}

/// What `train` takes.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// How often to go through the training data
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub epochs: u16,
    /// How many neurons each of the two hidden layers has
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub hidden: u16,
    /// How large the first steps are; they get smaller towards the end
    #[arg(long, default_value_t = 0.003, value_parser = learning_rate, value_name = "RATE")]
    pub learning_rate: f64,
    /// How many pictures are learned from in one step
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub batch: u16,
    /// How many turned and shifted variations of each picture are shown in an epoch
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub variations: u16,
    /// Where chance starts: the same seed gives the same result
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
}

/// What `render` takes.
#[derive(Args, Clone, Debug)]
pub struct RenderOptions {
    /// Width of the picture in pixels
    #[arg(long, default_value_t = 640, value_parser = clap::value_parser!(u16).range(16..=4096))]
    pub width: u16,
    /// Height of the picture in pixels
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u16).range(16..=4096))]
    pub height: u16,
    /// How many paths of light are followed for each pixel
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub samples: u16,
    /// Which scene: each seed has its own arrangement and colours
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
}

/// What `matmul` takes.
#[derive(Args, Clone, Debug)]
pub struct MatmulOptions {
    /// Rows and columns of each matrix
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub size: u16,
    /// How long to measure, in seconds
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    pub seconds: f64,
}

/// What `count` takes.
#[derive(Args, Clone, Debug)]
pub struct CountOptions {
    /// How many lines to write: odd ones to standard output, even ones to standard error
    #[arg(long, default_value_t = 10)]
    pub lines: u32,
    /// How long to wait between two lines, in milliseconds
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(..=60_000))]
    pub interval_ms: u64,
    /// The exit code to end with
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
        _ => Err(format!("a number from {low} to {high} is needed")),
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
    fn senseless_arguments_are_refused_with_exit_code_2() {
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
