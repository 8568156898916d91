//! Sending a stored file, or a range of its bytes, as a stream. The file name and the media type in the response are
//! safe for a browser.

use std::io;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use gpubnb_files::{FileInfo, Files};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::io::{ReaderStream, StreamReader};

use super::{parts, store::unavailable};
use crate::{conditional::matches_etag, error::Problem, escape};

/// The number of bytes in one read.
const READ_BYTES: usize = 64 * 1024;

/// A file in a store.
pub(super) struct StoredFile {
    store: Files,
    /// The names of the objects that contain the file's bytes, in order.
    objects: Vec<String>,
    pub(super) bytes: u64,
    /// The SHA-256 hash of the file, in hex.
    pub(super) sha256: String,
}

impl StoredFile {
    /// Opens a file, and reads its size and its hash. The server computed both during the upload.
    pub(super) async fn open(store: &Files, name: &str) -> Result<Self, Problem> {
        let info = store.info(name).await.map_err(unavailable)?.ok_or_else(|| {
            Problem::new(StatusCode::NOT_FOUND, "NotStored", "This file is not stored, or it was deleted.")
        })?;
        let in_parts = parts::complete_file(&info.metadata);
        let FileInfo { bytes, sha256, .. } = info;
        let (objects, bytes, sha256) = in_parts.unwrap_or_else(|| (vec![name.to_owned()], bytes, sha256));
        Ok(Self { store: store.clone(), objects, bytes, sha256 })
    }

    /// Reads `count` bytes, beginning at the offset `first`.
    pub(super) fn read(self, first: u64, count: u64) -> impl AsyncRead + Send + 'static {
        let (objects, skipped) = parts::objects_from(self.objects, first);
        let store = self.store;
        let pieces = stream::iter(objects.into_iter().enumerate()).then(move |(index, name)| {
            let (store, skipped) = (store.clone(), if index == 0 { skipped } else { 0 });
            async move {
                let gone = || io::Error::new(io::ErrorKind::NotFound, "a part of the file is not stored");
                let content = store.read(&name, skipped).await.map_err(io::Error::other)?.ok_or_else(gone)?;
                Ok::<_, io::Error>(ReaderStream::with_capacity(content, READ_BYTES))
            }
        });
        StreamReader::new(Box::pin(pieces.try_flatten())).take(count)
    }
}

/// Tells a browser to save a file or to show it, as in the header `Content-Disposition`.
#[derive(Clone, Copy)]
pub(super) enum Disposition {
    /// The browser saves the file.
    Attachment,
    /// The browser shows the file, an image of this media type.
    Inline(&'static str),
}

/// The media type of an image, by the extension of its name. `None` for any other file, which browsers may only save.
pub(super) fn image_type(path: &str) -> Option<&'static str> {
    match path.rsplit('.').next()?.to_lowercase().as_str() {
        "png" => Some("image/png"),
        "jpg" | "jpeg" => Some("image/jpeg"),
        "gif" => Some("image/gif"),
        "webp" => Some("image/webp"),
        _ => None,
    }
}

/// The range that a request asks for: the first byte and the number of bytes. `None` means the whole file, which also
/// answers a request for several ranges. An error means that the range is outside of the file.
fn range(headers: &HeaderMap, bytes: u64, etag: &str) -> Result<Option<(u64, u64)>, ()> {
    let text = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
    let Some(spec) = text(header::RANGE).and_then(|r| r.strip_prefix("bytes=")) else { return Ok(None) };
    if spec.contains(',') || text(header::IF_RANGE).is_some_and(|tag| tag != etag) {
        return Ok(None);
    }
    let Some((first, last)) = spec.split_once('-') else { return Ok(None) };
    let (first, last) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) => (first, last.min(bytes.saturating_sub(1))),
        (Ok(first), Err(_)) if last.is_empty() => (first, bytes.saturating_sub(1)),
        (Err(_), Ok(count)) if first.is_empty() => (bytes.saturating_sub(count), bytes.saturating_sub(1)),
        _ => return Ok(None),
    };
    if bytes == 0 || first > last { Err(()) } else { Ok(Some((first, last - first + 1))) }
}

/// The response that carries a file.
pub(super) fn deliver(headers: &HeaderMap, stored: StoredFile, path: &str, disposition: Disposition) -> Response {
    let etag = format!("\"{}\"", stored.sha256);
    if matches_etag(headers, &etag) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response();
    }
    let Ok(part) = range(headers, stored.bytes, &etag) else {
        let size = format!("bytes */{}", stored.bytes);
        return (StatusCode::RANGE_NOT_SATISFIABLE, [(header::CONTENT_RANGE, size)]).into_response();
    };
    let (first, count) = part.unwrap_or((0, stored.bytes));
    let bytes = stored.bytes;
    let content = stored.read(first, count);
    let (kind, disposition) = match disposition {
        Disposition::Attachment => ("application/octet-stream", attachment(path)),
        Disposition::Inline(kind) => (kind, "inline".to_owned()),
    };
    let body = Body::from_stream(ReaderStream::with_capacity(content, READ_BYTES));
    let mut response = body.into_response();
    let mut set = |name, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    };
    set(header::CONTENT_TYPE, kind);
    set(header::CONTENT_DISPOSITION, &disposition);
    set(header::CONTENT_LENGTH, &count.to_string());
    set(header::ETAG, &etag);
    set(header::ACCEPT_RANGES, "bytes");
    set(header::CACHE_CONTROL, "private, max-age=86400, immutable");
    // If a browser opens the file as a page in spite of its media type, this policy stops all scripts of the page.
    set(header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox");
    if part.is_some() {
        set(header::CONTENT_RANGE, &format!("bytes {first}-{}/{bytes}", first + count - 1));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

/// The header `Content-Disposition` of a download (RFC 6266): the file's name in UTF-8, and an ASCII name for clients
/// that do not read the first.
fn attachment(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    format!("attachment; filename=\"{}\"; filename*=UTF-8''{}", safe_file_name(path), escape::url(name))
}

/// The last segment of a path, without characters that have a meaning in a header or in a file system.
fn safe_file_name(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    let plain: String = name.chars().filter(|c| c.is_ascii_graphic() && !"\"\\;%".contains(*c)).take(100).collect();
    if plain.trim_matches('.').is_empty() { "file".to_owned() } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range_of(range_header: &str, bytes: u64) -> Result<Option<(u64, u64)>, ()> {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_str(range_header).unwrap());
        range(&headers, bytes, "\"e\"")
    }

    #[test]
    fn a_file_keeps_its_name_whatever_letters_it_has() {
        let name = attachment("a/结果 1.csv");
        assert_eq!(name, "attachment; filename=\"1.csv\"; filename*=UTF-8''%E7%BB%93%E6%9E%9C%201.csv");
        assert!(attachment("x\"; y").contains("filename*=UTF-8''x%22%3B%20y"));
    }

    #[test]
    fn a_range_never_ends_after_the_file() {
        assert_eq!(range_of("bytes=0-9", 100), Ok(Some((0, 10))));
        assert_eq!(range_of("bytes=90-", 100), Ok(Some((90, 10))));
        assert_eq!(range_of("bytes=90-1000", 100), Ok(Some((90, 10))));
        assert_eq!(range_of("bytes=-5", 100), Ok(Some((95, 5))));
        assert_eq!(range_of("bytes=-500", 100), Ok(Some((0, 100))));
        assert_eq!(range_of("bytes=100-", 100), Err(()));
        assert_eq!(range_of("bytes=5-4", 100), Err(()));
        for ignored in ["bytes=0-1,5-6", "lines=0-1", "bytes=x-y", "bytes=5"] {
            assert_eq!(range_of(ignored, 100), Ok(None), "{ignored}");
        }
    }

    #[test]
    fn a_file_name_has_no_characters_that_break_a_header() {
        assert_eq!(safe_file_name("a/b\"; x=\"c.png"), "bx=c.png");
        assert_eq!(safe_file_name("a\r\nb"), "ab");
        assert_eq!(safe_file_name("a/.."), "file");
        assert_eq!(safe_file_name(""), "file");
    }
}
