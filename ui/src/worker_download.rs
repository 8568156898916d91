//! The worker's program for owners of machines, and the script that installs it.
//!
//! The program is a file on this server (`--worker`), by default the one beside this server's own program. The script
//! checks the program's SHA-256.

use std::{env, io};

use askama::Template;
use axum::{
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use tokio_util::io::ReaderStream;
use tracing::warn;

use crate::{
    app::App,
    error::{ApiError, Problem},
    state::WORKER_PROGRAM,
};

fn missing() -> Problem {
    Problem::not_found("program on this server: the operator can name one with --worker")
}

fn unreadable(e: &io::Error) -> Problem {
    warn!(error = %e, "the worker's program cannot be read");
    missing()
}

/// The script that installs the program.
#[derive(Template)]
#[template(path = "install.sh", escape = "none")]
struct InstallScript<'a> {
    architecture: &'a str,
    sha256: &'a str,
    unit: &'a str,
}

/// `GET /install.sh`: the script that installs the worker.
pub(crate) async fn install_script(State(app): State<App>) -> Result<Response, ApiError> {
    let path = app.worker.path().ok_or_else(missing)?;
    let sha256 = app.worker.sha256(path).await.map_err(|e| unreadable(&e))?;
    let unit = include_str!("../../deploy/gpubnb-provider.service");
    let script = InstallScript { architecture: env::consts::ARCH, sha256, unit }.render();
    let script = script.map_err(|e| Problem::internal(&e))?;
    Ok(([(header::CONTENT_TYPE, "text/x-shellscript; charset=utf-8")], script).into_response())
}

/// `GET /download/gpubnb-provider`: the program.
pub(crate) async fn program(State(app): State<App>) -> Result<Response, ApiError> {
    let path = app.worker.path().ok_or_else(missing)?;
    let file = tokio::fs::File::open(path).await.map_err(|e| unreadable(&e))?;
    let bytes = file.metadata().await.map_err(|e| unreadable(&e))?.len();
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, bytes.to_string()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{WORKER_PROGRAM}\"")),
    ];
    Ok((headers, Body::from_stream(ReaderStream::new(file))).into_response())
}
