//! A tar archive of all output files of a job. The archive is streamed while the files are read, and it is not stored.

use std::io;

use axum::{
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use gpubnb_events::{JobId, Seq};
use tokio::io::AsyncReadExt as _;

use super::{deliver::StoredFile, download::manifest_entry, store::artifact_name};
use crate::{access::SignedIn, app::App, error::ApiError, extract::Path};

/// The block size of the tar format, in bytes. Headers and contents are padded to a multiple of the block size.
const BLOCK: u64 = 512;
/// The number of bytes in one read.
const READ_BYTES: usize = 64 * 1024;

/// `GET /jobs/{job}/artifacts.tar`: downloads all output files of a job.
pub(crate) async fn get(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
) -> Result<Response, ApiError> {
    let row = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let disposition = format!("attachment; filename=\"{job}.tar\"");
    let archive = async_stream::try_stream! {
        for artifact in &row.outputs {
            let failure = |what: &str| io::Error::other(format!("{}: {what}", artifact.path));
            let (_, lease) = manifest_entry(&row, &artifact.path).map_err(|p| failure(&p.detail))?;
            let stored = StoredFile::open(&app.artifacts, &artifact_name(job, lease, &artifact.path)).await;
            let stored = stored.map_err(|p| failure(&p.detail))?;
            if (stored.bytes, &stored.sha256) != (artifact.bytes, &artifact.sha256) {
                Err(failure("the stored file differs from the listed file"))?;
            }
            yield Bytes::from(header_of(&artifact.path, artifact.bytes)?);
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
        // Two empty blocks mark the end of the archive.
        yield Bytes::from(vec![0; 1_024]);
    };
    let archive: std::pin::Pin<Box<dyn futures_util::Stream<Item = io::Result<Bytes>> + Send>> = Box::pin(archive);
    let headers = [(header::CONTENT_TYPE, "application/x-tar".to_owned()), (header::CONTENT_DISPOSITION, disposition)];
    Ok((headers, Body::from_stream(archive)).into_response())
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
