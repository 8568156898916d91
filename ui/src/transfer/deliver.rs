//! Delivering a stored file: streamed, whole or a range of it, with a name and a type that cannot harm a browser.

use std::io;

use async_nats::jetstream::object_store::{ObjectInfo, ObjectStore};
use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use data_encoding::BASE64URL;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::io::{ReaderStream, StreamReader};

use super::parts;
use crate::{conditional::knows, error::Problem};

/// Bytes read at once.
const PIECE: usize = 64 * 1024;

/// A file in an object store.
pub(super) struct Stored {
    store: ObjectStore,
    /// The objects that hold its bytes, in order.
    objects: Vec<String>,
    pub(super) bytes: u64,
    /// In hex.
    pub(super) sha256: String,
}

impl Stored {
    /// Opens a file. This server computed its size and hash when the file was uploaded.
    pub(super) async fn open(store: &ObjectStore, name: &str) -> Result<Self, Problem> {
        let info = parts::present(store, name).await?.ok_or_else(|| {
            Problem::new(StatusCode::NOT_FOUND, "NotStored", "This file is not here, or not any more.")
        })?;
        let (objects, bytes, sha256) = parts::sealed(&info.metadata).unwrap_or_else(|| {
            let (bytes, sha256) = described(&info);
            (vec![name.to_owned()], bytes, sha256)
        });
        Ok(Self { store: store.clone(), objects, bytes, sha256 })
    }

    /// Reads `count` bytes, beginning with byte `first`.
    pub(super) async fn read(self, first: u64, count: u64) -> io::Result<impl AsyncRead + Send + 'static> {
        let (objects, before) = parts::from(self.objects, first);
        let store = self.store;
        let pieces = stream::iter(objects).then(move |name| {
            let store = store.clone();
            async move {
                let object = store.get(&name).await.map_err(io::Error::other)?;
                Ok::<_, io::Error>(ReaderStream::with_capacity(object, PIECE))
            }
        });
        let mut reader = StreamReader::new(Box::pin(pieces.try_flatten()));
        // The store cannot read from the middle of an object, so the bytes before the first one are read and dropped.
        tokio::io::copy(&mut (&mut reader).take(before), &mut tokio::io::sink()).await?;
        Ok(reader.take(count))
    }
}

/// Size of an object, and its hash in hex.
pub(super) fn described(info: &ObjectInfo) -> (u64, String) {
    let digest = info.digest.as_deref().and_then(|d| d.strip_prefix("SHA-256="));
    let digest = digest.and_then(|d| BASE64URL.decode(d.as_bytes()).ok()).unwrap_or_default();
    (info.size as u64, gpubnb_events::hex(digest))
}

/// The form in which a browser gets a file.
#[derive(Clone, Copy)]
pub(super) enum Show {
    /// As a download.
    Saved,
    /// As a picture in a page, with its media type.
    Picture(&'static str),
}

/// The media type of a picture, by the file's name. No other file is ever shown in a page.
pub(super) fn picture(path: &str) -> Option<&'static str> {
    match path.rsplit('.').next()?.to_lowercase().as_str() {
        "png" => Some("image/png"),
        "jpg" | "jpeg" => Some("image/jpeg"),
        "gif" => Some("image/gif"),
        "webp" => Some("image/webp"),
        _ => None,
    }
}

/// The first byte and the number of bytes that a request asks for; `None` for the whole file. A request for several
/// ranges gets the whole file. An error means that the file has no such bytes.
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
pub(super) async fn deliver(headers: &HeaderMap, stored: Stored, path: &str, show: Show) -> Response {
    let etag = format!("\"{}\"", stored.sha256);
    if knows(headers, &etag) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response();
    }
    let Ok(part) = range(headers, stored.bytes, &etag) else {
        let size = format!("bytes */{}", stored.bytes);
        return (StatusCode::RANGE_NOT_SATISFIABLE, [(header::CONTENT_RANGE, size)]).into_response();
    };
    let (first, count) = part.unwrap_or((0, stored.bytes));
    let bytes = stored.bytes;
    let content = match stored.read(first, count).await {
        Ok(content) => content,
        Err(e) => {
            tracing::warn!(error = %e, "a file cannot be read");
            return StatusCode::BAD_GATEWAY.into_response();
        }
    };
    let (kind, disposition) = match show {
        Show::Saved => ("application/octet-stream", format!("attachment; filename=\"{}\"", plain_name(path))),
        Show::Picture(kind) => (kind, "inline".to_owned()),
    };
    let body = Body::from_stream(ReaderStream::with_capacity(content, PIECE));
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
    // If a browser took the file for a page in spite of its type, the page could do nothing.
    set(header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox");
    if part.is_some() {
        set(header::CONTENT_RANGE, &format!("bytes {first}-{}/{bytes}", first + count - 1));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

/// The last part of a path, without characters that could break a header or mean something to a file system.
fn plain_name(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    let plain: String = name.chars().filter(|c| c.is_ascii_graphic() && !"\"\\;%".contains(*c)).take(100).collect();
    if plain.trim_matches('.').is_empty() { "file".to_owned() } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(range_header: &str, bytes: u64) -> Result<Option<(u64, u64)>, ()> {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_str(range_header).unwrap());
        range(&headers, bytes, "\"e\"")
    }

    #[test]
    fn a_range_is_what_it_says_and_never_past_the_end() {
        assert_eq!(of("bytes=0-9", 100), Ok(Some((0, 10))));
        assert_eq!(of("bytes=90-", 100), Ok(Some((90, 10))));
        assert_eq!(of("bytes=90-1000", 100), Ok(Some((90, 10))));
        assert_eq!(of("bytes=-5", 100), Ok(Some((95, 5))));
        assert_eq!(of("bytes=-500", 100), Ok(Some((0, 100))));
        assert_eq!(of("bytes=100-", 100), Err(()));
        assert_eq!(of("bytes=5-4", 100), Err(()));
        for whole in ["bytes=0-1,5-6", "lines=0-1", "bytes=x-y", "bytes=5"] {
            assert_eq!(of(whole, 100), Ok(None), "{whole}");
        }
    }

    #[test]
    fn a_name_cannot_break_out_of_its_header() {
        assert_eq!(plain_name("a/b\"; x=\"c.png"), "bx=c.png");
        assert_eq!(plain_name("a\r\nb"), "ab");
        assert_eq!(plain_name("a/.."), "file");
        assert_eq!(plain_name(""), "file");
    }
}
