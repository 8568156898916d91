//! Everything that can go wrong in a demo job, worded for the person who reads its log.
//!
//! One type for all jobs, since all of them end the same way: a line on standard error and exit
//! code 1. Wrong arguments never come here; they are refused when they are read (`cli`).

use std::io;
use std::path::PathBuf;

/// Why a job failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A result could not be stored in the output folder.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or folder in question.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody takes the log lines any more.
    #[error("cannot write the log: {0}")]
    Log(io::Error),
    /// A tensor operation failed.
    #[error("the calculation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A picture could not be encoded.
    #[error("cannot encode the picture: {0}")]
    Picture(#[from] png::EncodingError),
    /// Numbers could not be encoded.
    #[error("cannot encode the numbers: {0}")]
    Json(#[from] serde_json::Error),
    /// The loss is no longer a number.
    #[error("the training diverged in epoch {epoch}: try a smaller --learning-rate")]
    Diverged {
        /// The epoch, counted from one.
        epoch: usize,
    },
    /// A product of matrices is not what it must be.
    #[error("the product is wrong in row {row}: this machine does not calculate reliably")]
    WrongProduct {
        /// The row that was recalculated.
        row: usize,
    },
    /// The data set is not shaped as the training needs it.
    #[error("the data set is unusable: {0}")]
    Data(&'static str),
    /// No thread could be started.
    #[error("cannot start a thread to work with: {0}")]
    Thread(io::Error),
    /// A thread ended before its work was done.
    #[error("{missing} tiles of the picture were never finished")]
    Unfinished {
        /// How many tiles are missing.
        missing: usize,
    },
}
