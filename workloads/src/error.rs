//! The errors of all demo jobs, worded for the person who reads the log of the job.
//!
//! All jobs share one type, because every failed job ends the same way: one line on standard error
//! and exit code 1. Invalid arguments are refused earlier, by `cli`.

use std::io;
use std::path::PathBuf;

use plotters::backend::{BitMapBackend, DrawingBackend};
use plotters::drawing::DrawingAreaErrorKind;

/// The reason why a job failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A result could not be stored in the output folder.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or folder that could not be written.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Standard output or standard error is closed.
    #[error("cannot write the log")]
    Log(#[source] io::Error),
    /// The weights of the network could not be encoded.
    #[error("cannot encode the model")]
    Model(#[from] safetensors::SafeTensorError),
    /// A chart could not be drawn.
    #[error("cannot draw the picture")]
    Draw(#[from] DrawingAreaErrorKind<<BitMapBackend<'static> as DrawingBackend>::ErrorType>),
    /// The font of the charts is not a font.
    #[error("cannot read the font of the picture")]
    Font,
    /// A picture could not be encoded.
    #[error("cannot encode the picture")]
    Picture(#[from] png::EncodingError),
    /// Numbers could not be encoded.
    #[error("cannot encode the numbers")]
    Json(#[from] serde_json::Error),
    /// The loss is infinite or not a number.
    #[error("the training diverged in epoch {epoch}: try a smaller --learning-rate")]
    Diverged {
        /// The epoch, counted from one.
        epoch: u16,
    },
    /// A product of matrices is wrong.
    #[error("the product is wrong in row {row}: this machine does not calculate reliably")]
    WrongProduct {
        /// The row that was recalculated.
        row: usize,
    },
    /// The data set does not have the expected shape.
    #[error("the data set is unusable: {0}")]
    Data(&'static str),
    /// No thread could be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A thread ended before its work was done.
    #[error("{missing} tiles of the picture were never finished")]
    Unfinished {
        /// The number of missing tiles.
        missing: usize,
    },
}
