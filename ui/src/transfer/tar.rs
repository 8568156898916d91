//! All files of a job as one tar archive. It is streamed while the files are read; nothing of it is stored.

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

use super::{deliver::Stored, download::listed, store::artifact_name};
use crate::{access::SignedIn, app::App, error::ApiError, extract::Path};

/// The block size of the format: headers and contents are padded to it.
const BLOCK: u64 = 512;
/// Bytes read at once.
const PIECE: usize = 64 * 1024;

/// `GET /jobs/{job}/artifacts.tar`
pub(crate) async fn get(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
) -> Result<Response, ApiError> {
    let row = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let name = format!("attachment; filename=\"{job}.tar\"");
    let archive = async_stream::try_stream! {
        for artifact in &row.outputs {
            let gone = |what: &str| io::Error::other(format!("{}: {what}", artifact.path));
            let (_, lease) = listed(&row, &artifact.path).map_err(|p| gone(&p.detail))?;
            let stored = Stored::open(&app.artifacts, &artifact_name(job, lease, &artifact.path)).await;
            let stored = stored.map_err(|p| gone(&p.detail))?;
            if stored.bytes != artifact.bytes {
                Err(gone("it is not as it was listed"))?;
            }
            yield Bytes::from(header_of(&artifact.path, artifact.bytes)?);
            let mut content = stored.read(0, artifact.bytes).await?;
            let mut left = artifact.bytes;
            while left > 0 {
                let mut piece = vec![0; PIECE];
                let read = content.read(&mut piece).await?;
                if read == 0 {
                    Err(gone("it ends too early"))?;
                }
                left = left.saturating_sub(read as u64);
                piece.truncate(read);
                yield Bytes::from(piece);
            }
            let rest = usize::try_from(artifact.bytes.next_multiple_of(BLOCK) - artifact.bytes).unwrap_or(0);
            yield Bytes::from(vec![0; rest]);
        }
        // Two empty blocks end an archive.
        yield Bytes::from(vec![0; 1_024]);
    };
    let archive: std::pin::Pin<Box<dyn futures_util::Stream<Item = io::Result<Bytes>> + Send>> = Box::pin(archive);
    let headers = [(header::CONTENT_TYPE, "application/x-tar".to_owned()), (header::CONTENT_DISPOSITION, name)];
    Ok((headers, Body::from_stream(archive)).into_response())
}

/// The header of a file: its name, which may be of any length, and its size.
fn header_of(path: &str, bytes: u64) -> io::Result<Vec<u8>> {
    let mut header = ::tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o644);
    let mut archive = ::tar::Builder::new(Vec::new());
    // Only the header is written here. The caller sends the content after it.
    archive.append_data(&mut header, path, io::empty())?;
    Ok(archive.get_ref().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_kept() {
        let path = format!("{}model.bin", "deep/".repeat(60));
        let mut bytes = header_of(&path, 3).unwrap();
        bytes.extend(b"abc");
        bytes.resize(bytes.len().next_multiple_of(512) + 1_024, 0);
        let mut archive = ::tar::Archive::new(bytes.as_slice());
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!((entry.path().unwrap().to_str().unwrap(), entry.size()), (path.as_str(), 3));
    }
}
