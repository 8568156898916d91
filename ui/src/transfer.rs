//! The files of jobs: put by workers with a signed token, read by the job's owner. Streamed, capped, hashed;
//! nothing of a job is ever shown as a page.

use std::{io, pin::pin};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::TryStreamExt;
use gpubnb_events::{JobId, Lease, Seq, spec::Artifact};
use gpubnb_projector::view::JobRow;
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::{InspectReader, ReaderStream, StreamReader};

use crate::{
    app::App,
    error::{ApiError, Problem},
    extract::{Path, Query},
    viewer::SignedIn,
};

/// Largest file that is taken.
const MAX_FILE: u64 = 8 << 30;

fn object_name(job: JobId, lease: Lease, path: &str) -> String {
    format!("{job}/{lease}/{path}")
}

/// One part of a path, safe in a URL.
pub(crate) fn escape(part: &str) -> String {
    part.bytes().fold(String::new(), |mut url, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push('%');
            url.push_str(&gpubnb_events::hex([byte]).to_uppercase());
        }
        url
    })
}

fn bad_token(detail: impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "BadToken", format!("The upload is not permitted: {detail}."))
}

/// `PUT /transfer/{job}/{lease}/{path}`: a worker puts a file of its attempt.
pub(crate) async fn put(
    State(app): State<App>,
    Path((job, lease, path)): Path<(JobId, u64, String)>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let lease = Lease(Seq(lease));
    let key = app.transfer.as_ref().ok_or_else(|| bad_token("this market keeps no files"))?;
    let authorization = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let token = authorization.and_then(|v| v.strip_prefix("Bearer ")).ok_or_else(|| bad_token("there is no token"))?;
    let permit = key.verify(token, app.now()).map_err(bad_token)?;
    if (permit.job, permit.lease) != (job, lease) {
        return Err(bad_token("the token is for another attempt").into());
    }
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") || path.len() > 512 {
        return Err(Problem::invalid("path", "The path must be relative and plain.").into());
    }
    let body = request.into_body().into_data_stream().map_err(io::Error::other);
    let mut received = 0_u64;
    let reader = InspectReader::new(StreamReader::new(body).take(MAX_FILE + 1), |part| received += part.len() as u64);
    let name = object_name(job, lease, &path);
    let stored = app.artifacts.put(name.as_str(), &mut pin!(reader)).await;
    stored.map_err(|e| Problem::from(gpubnb_events::rpc::Failure::Unavailable(format!("storing {name}: {e}"))))?;
    if received > MAX_FILE {
        app.artifacts.delete(&name).await.map_err(|e| Problem::internal(&e))?;
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", "The file is too large.").into());
    }
    Ok(StatusCode::NO_CONTENT)
}

/// How a file is to be shown.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Show {
    /// `inline` shows pictures in the page; everything else is downloaded.
    #[serde(default)]
    inline: Option<String>,
}

/// The file of a job's last attempt, as its manifest lists it.
fn listed<'a>(row: &'a JobRow, path: &str) -> Result<(&'a Artifact, Lease), Problem> {
    let artifact = row.outputs.iter().find(|a| a.path == path).ok_or_else(|| Problem::not_found("file"))?;
    let lease = row.attempts.last().map(|a| a.lease).ok_or_else(|| Problem::not_found("file"))?;
    Ok((artifact, lease))
}

/// `GET /jobs/{job}/artifacts/{path}`: the owner reads a file.
pub(crate) async fn get(
    State(app): State<App>,
    signed_in: SignedIn,
    Path((job, path)): Path<(JobId, String)>,
    Query(show): Query<Show>,
) -> Result<Response, ApiError> {
    let row = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let (artifact, lease) = listed(&row, &path)?;
    let name = object_name(job, lease, &path);
    let object = app.artifacts.get(name.as_str()).await.map_err(|e| {
        tracing::info!(error = %e, name, "a listed file is not stored");
        Problem::new(StatusCode::NOT_FOUND, "NotStored", "The file is listed, but it was not put here by the machine.")
    })?;
    let picture = picture(&path).filter(|_| show.inline.is_some());
    let name: String = path
        .rsplit('/')
        .next()
        .unwrap_or("file")
        .chars()
        .filter(|c| c.is_ascii_graphic() && !"\"\\".contains(*c))
        .collect();
    let disposition = match picture {
        Some(_) => "inline".to_owned(),
        None => format!("attachment; filename=\"{name}\""),
    };
    let headers = [
        (header::CONTENT_TYPE, picture.unwrap_or("application/octet-stream").to_owned()),
        (header::CONTENT_DISPOSITION, disposition),
        (header::CONTENT_LENGTH, artifact.bytes.to_string()),
        (header::ETAG, format!("\"{}\"", artifact.sha256)),
        (header::CACHE_CONTROL, "private, max-age=86400, immutable".to_owned()),
        // Even a picture gets no rights.
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox".to_owned()),
    ];
    let body = Body::from_stream(ReaderStream::with_capacity(object, 64 * 1024));
    Ok((headers.map(|(k, v)| (k, HeaderValue::from_str(&v).unwrap_or(HeaderValue::from_static("")))), body)
        .into_response())
}

fn picture(path: &str) -> Option<&'static str> {
    match path.rsplit('.').next()?.to_lowercase().as_str() {
        "png" => Some("image/png"),
        "jpg" | "jpeg" => Some("image/jpeg"),
        "gif" => Some("image/gif"),
        "webp" => Some("image/webp"),
        _ => None,
    }
}
