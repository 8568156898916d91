//! A tar archive of all output files of a job or of a batch. The archive is streamed while the files are read, and it
//! is not stored.

use std::{io, pin::Pin};

use axum::{
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::Stream;
use gpubnb_events::{BatchId, JobId, Seq};
use gpubnb_query::{
    request::{TaskOrder, TasksQuery},
    view::JobView,
};
use tokio::io::AsyncReadExt as _;

use super::{deliver::StoredFile, download::manifest_entry, store::artifact_name};
use crate::{access::SignedIn, app::App, error::ApiError, extract::Path};

/// The block size of the tar format, in bytes. Headers and contents are padded to a multiple of the block size.
const BLOCK: u64 = 512;
/// Two empty blocks mark the end of an archive.
const END: &[u8] = &[0; 1_024];
/// The number of tasks that are read with one query.
const TASKS_PER_QUERY: u32 = 200;
/// The number of bytes in one read.
const READ_BYTES: usize = 64 * 1024;

/// `GET /jobs/{job}/artifacts.tar`: downloads all output files of a job.
pub(crate) async fn get(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
) -> Result<Response, ApiError> {
    let row = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let archive = async_stream::try_stream! {
        for await piece in files_of(&app, &row, "") {
            yield piece?;
        }
        yield Bytes::from_static(END);
    };
    Ok(respond(&job.to_string(), archive))
}

/// `GET /api/v1/batches/{batch}/artifacts.tar`: downloads all output files of all tasks, in a directory for each index.
pub(crate) async fn get_of_batch(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(batch): Path<BatchId>,
) -> Result<Response, ApiError> {
    let view = app.queries.batch(signed_in.actor(), batch, Seq::ZERO).await?;
    let archive = async_stream::try_stream! {
        let mut next = Some(0);
        while let Some(skip) = next {
            let query = TasksQuery { batch, state: None, order: TaskOrder::Number, skip, limit: TASKS_PER_QUERY };
            let page = app.queries.tasks(signed_in.actor(), query, view.seq).await.map_err(io::Error::other)?;
            next = page.next.and_then(|next| next.parse().ok());
            for task in page.rows.into_iter().filter(|task| task.ended_at.is_some()) {
                let row = app.queries.job(signed_in.actor(), task.job, view.seq).await.map_err(io::Error::other)?;
                let directory = format!("{}/", task.index);
                for await piece in files_of(&app, &row, &directory) {
                    yield piece?;
                }
            }
        }
        yield Bytes::from_static(END);
    };
    Ok(respond(&format!("batch-{}", batch.short()), archive))
}

fn respond(name: &str, archive: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Response {
    let disposition = format!("attachment; filename=\"{name}.tar\"");
    let archive: Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>> = Box::pin(archive);
    let headers = [(header::CONTENT_TYPE, "application/x-tar".to_owned()), (header::CONTENT_DISPOSITION, disposition)];
    (headers, Body::from_stream(archive)).into_response()
}

/// The output files of a job as pieces of an archive, below a directory.
fn files_of<'a>(
    app: &'a App,
    row: &'a JobView,
    directory: &'a str,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'a {
    async_stream::try_stream! {
        for artifact in &row.outputs {
            let failure = |what: &str| io::Error::other(format!("{}: {what}", artifact.path));
            let (_, lease) = manifest_entry(row, &artifact.path).map_err(|p| failure(&p.detail))?;
            let stored = StoredFile::open(&app.artifacts, &artifact_name(row.job, lease, &artifact.path)).await;
            if let (Err(problem), false) = (&stored, directory.is_empty()) {
                // The files of a batch that ran for long do not all have the same age.
                let note = format!("{}\n", problem.detail);
                yield Bytes::from(header_of(&format!("{directory}{}.missing.txt", artifact.path), note.len() as u64)?);
                let padding = note.len().next_multiple_of(512);
                let mut bytes = note.into_bytes();
                bytes.resize(padding, 0);
                yield Bytes::from(bytes);
                continue;
            }
            let stored = stored.map_err(|p| failure(&p.detail))?;
            if (stored.bytes, &stored.sha256) != (artifact.bytes, &artifact.sha256) {
                Err(failure("the stored file differs from the listed file"))?;
            }
            yield Bytes::from(header_of(&format!("{directory}{}", artifact.path), artifact.bytes)?);
            let mut content = stored.read(0, artifact.bytes);
            let mut left = artifact.bytes;
            while left > 0 {
                let mut piece = vec![0; READ_BYTES];
                let read = content.read(&mut piece).await?;
                if read == 0 {
                    Err(failure("the stored file ends too early"))?;
                }
                left = left.saturating_sub(read as u64);
                piece.truncate(read);
                yield Bytes::from(piece);
            }
            let padding = usize::try_from(artifact.bytes.next_multiple_of(BLOCK) - artifact.bytes).unwrap_or(0);
            yield Bytes::from(vec![0; padding]);
        }
    }
}

/// The header of a file, with its name and its size. The name may have any length.
fn header_of(path: &str, bytes: u64) -> io::Result<Vec<u8>> {
    let mut header = ::tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o644);
    let mut archive = ::tar::Builder::new(Vec::new());
    // Only the header is written here. The caller sends the content after the header.
    archive.append_data(&mut header, path, io::empty())?;
    Ok(archive.get_ref().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_name_is_not_cut() {
        let path = format!("{}model.bin", "deep/".repeat(60));
        let mut bytes = header_of(&path, 3).unwrap();
        bytes.extend(b"abc");
        bytes.resize(bytes.len().next_multiple_of(512) + 1_024, 0);
        let mut archive = ::tar::Archive::new(bytes.as_slice());
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!((entry.path().unwrap().to_str().unwrap(), entry.size()), (path.as_str(), 3));
    }
}
