//! Server-sent events, opened again where they end, from where they were.

use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::Value;

use crate::api::Api;

const PAUSE: Duration = Duration::from_millis(500);
/// Tries in a row before giving up on a market that does not answer.
const TRIES: u32 = 60;

/// An event.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: Value,
}

/// A stream that resumes by the id of the last event.
pub(crate) struct Events<'a> {
    api: &'a Api,
    path: String,
    last: Option<String>,
    open: Option<(reqwest::Response, Parser)>,
}

impl<'a> Events<'a> {
    pub(crate) fn of(api: &'a Api, path: String) -> Self {
        Self { api, path, last: None, open: None }
    }

    /// The next event. Reconnects for as long as the market is away.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Event> {
        let mut tries = 0;
        loop {
            if let Some((response, parser)) = &mut self.open {
                if let Some((event, id)) = parser.next() {
                    self.last = id.or(self.last.take());
                    return Ok(event);
                }
                match response.chunk().await {
                    Ok(Some(bytes)) => parser.push(&bytes),
                    // It ended, or broke: it is opened again below.
                    Ok(None) | Err(_) => self.open = None,
                }
                continue;
            }
            let mut request = self.api.request(Method::GET, &self.path);
            if let Some(last) = &self.last {
                request = request.header("last-event-id", last);
            }
            match self.api.send(request).await {
                Ok(response) => self.open = Some((response, Parser::default())),
                Err(e) if tries >= TRIES => return Err(e),
                Err(_) => tries += 1,
            }
            tokio::time::sleep(if tries > 0 { PAUSE } else { Duration::ZERO }).await;
        }
    }
}

/// Reads `text/event-stream`.
#[derive(Default)]
struct Parser {
    bytes: Vec<u8>,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole event, and its id.
    fn next(&mut self) -> Option<(Event, Option<String>)> {
        loop {
            let end = self.bytes.windows(2).position(|pair| pair == b"\n\n")?;
            let block: Vec<u8> = self.bytes.drain(..end + 2).collect();
            let (mut event, mut id, mut data) = (Event::default(), None, String::new());
            for line in String::from_utf8_lossy(&block).lines() {
                match line.split_once(':').map(|(field, value)| (field, value.strip_prefix(' ').unwrap_or(value))) {
                    Some(("event", value)) => value.clone_into(&mut event.name),
                    Some(("id", value)) => id = Some(value.to_owned()),
                    Some(("data", value)) => data.push_str(value),
                    _ => {}
                }
            }
            // A comment, which only keeps the line alive.
            if let Ok(value) = serde_json::from_str(&data) {
                event.data = value;
                return Some((event, id));
            }
        }
    }
}

/// Saves a body to a file, and returns its hash and size.
pub(crate) async fn save(response: reqwest::Response, path: &std::path::Path) -> anyhow::Result<(String, u64)> {
    use sha2::{Digest as _, Sha256};
    use tokio::io::AsyncWriteExt as _;
    let mut file = tokio::fs::File::create(path).await?;
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let mut body = response.bytes_stream();
    while let Some(piece) = body.next().await {
        let piece = piece?;
        hash.update(&piece);
        bytes += piece.len() as u64;
        file.write_all(&piece).await?;
    }
    file.flush().await?;
    Ok((gpubnb_events::hex(hash.finalize()), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_come_whole_however_they_are_cut() {
        let text = ": hello\n\nevent: line\nid: 7\ndata: {\"text\":\"a\"}\n\nevent: progress\ndata: 1\n\n";
        for cut in 0..text.len() {
            let mut parser = Parser::default();
            let mut seen = Vec::new();
            for part in [&text[..cut], &text[cut..]] {
                parser.push(part.as_bytes());
                seen.extend(std::iter::from_fn(|| parser.next()));
            }
            let expected = [
                (Event { name: "line".to_owned(), data: json!({ "text": "a" }) }, Some("7".to_owned())),
                (Event { name: "progress".to_owned(), data: json!(1) }, None),
            ];
            assert_eq!(seen, expected, "{cut}");
        }
    }
}
