//! The options and commands about batches.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use gpubnb_events::{BatchId, batch_request};

use crate::{args::EndArgs, job_args::JobOptions};

/// The tasks of a batch. With one of these options, the job runs once for each task.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Options for many tasks")]
pub(crate) struct TaskArgs {
    /// Runs the job once for each index: 0-999, 0-100:10 or 1,2,5-7. `{index}` in the command is the index.
    #[arg(long, value_name = "INDICES", conflicts_with_all = ["each_line", "from_json", "sweep"])]
    pub(crate) array: Option<String>,
    /// Runs the job once for each line of a file (`-` is the standard input). `{}` in the command is the line.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from_json", "sweep"])]
    pub(crate) each_line: Option<PathBuf>,
    /// Runs the job once for each object of a JSON list (`-` is the standard input). `{name}` in the command is a
    /// value.
    #[arg(long, value_name = "FILE", conflicts_with = "sweep")]
    pub(crate) from_json: Option<PathBuf>,
    /// Runs the job once for each combination of values: `--sweep lr=0.1,0.01 --sweep seed=1-5`. `{lr}` in the command
    /// is the value.
    #[arg(long, value_name = "NAME=VALUES", value_parser = parse_sweep)]
    pub(crate) sweep: Vec<(String, Vec<String>)>,
    /// The most tasks that machines have at the same time. Default: 100.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) max_running: Option<u32>,
    /// The number of failed tasks after which the rest is cancelled. Default: a tenth of the tasks, and at least ten.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) max_failures: Option<u32>,
}

impl TaskArgs {
    /// True if one of the options names tasks.
    pub(crate) fn are_named(&self) -> bool {
        self.array.is_some() || self.each_line.is_some() || self.from_json.is_some() || !self.sweep.is_empty()
    }
}

fn parse_sweep(text: &str) -> Result<(String, Vec<String>), String> {
    batch_request::parse_sweep(text).map_err(|refusal| refusal.message)
}

/// Options of `map`.
#[derive(Debug, Args)]
pub(crate) struct MapArgs {
    /// The command, with `{}` in place of a file: 'python convert.py {}'.
    pub(crate) command: String,
    /// The files. They are uploaded once, as a dataset, and each task gets one of them.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// A directory with the code, in a copy of which the command starts.
    #[arg(long, value_name = "DIR")]
    pub(crate) code: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: JobOptions,
    /// The most tasks that machines have at the same time. Default: 100.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) max_running: Option<u32>,
    /// The number of failed tasks after which the rest is cancelled. Default: a tenth of the tasks, and at least ten.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) max_failures: Option<u32>,
    #[command(flatten)]
    pub(crate) end: EndArgs,
    /// The id of the batch, a UUID of version 7 whose last 20 bits are zero. To repeat a submission safely, give the
    /// same id.
    #[arg(long)]
    pub(crate) id: Option<BatchId>,
}

/// The commands about batches.
#[derive(Debug, Subcommand)]
pub(crate) enum BatchCommand {
    /// Lists your batches, newest first.
    #[command(visible_alias = "ls")]
    List {
        /// Number of batches to list at most.
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Shows a batch: the number of tasks in each state, the cost so far, and the worst failures.
    Show {
        /// The batch: its id, or eight characters of it, as lists show it.
        batch: String,
    },
    /// Lists the tasks of a batch.
    Tasks {
        /// The batch: its id, or eight characters of it, as lists show it.
        batch: String,
        /// Lists only tasks in this state.
        #[arg(long, value_parser = ["Queued", "Running", "Completed", "Failed", "Cancelled"], ignore_case = true)]
        state: Option<String>,
    },
    /// Prints a table (CSV) with the parameters, the result and the last measurements of each task.
    Results {
        /// The batch: its id, or eight characters of it, as lists show it.
        batch: String,
    },
    /// Waits until a batch has ended. The exit code is 0 if all tasks completed.
    Wait {
        /// The batch: its id, or eight characters of it, as lists show it.
        batch: String,
    },
    /// Downloads the files of all tasks, in a directory for each index.
    Fetch {
        /// The batch: its id, or eight characters of it, as lists show it.
        batch: String,
        /// Directory for the files. Default: a directory with the id of the batch.
        directory: Option<PathBuf>,
    },
    /// Cancels the tasks of a batch that have not ended.
    Cancel {
        /// The batch: its id, or eight characters of it, as lists show it.
        batch: String,
    },
    /// Submits a new batch of the tasks that failed or were cancelled, and prints its id.
    Retry {
        /// The batch: its id, or eight characters of it, as lists show it.
        batch: String,
    },
    /// Opens the page of a batch in the browser.
    Open {
        /// The batch: its id, or eight characters of it, as lists show it.
        batch: String,
    },
}
