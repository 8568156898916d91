//! Server-sent events. A stream that ends or breaks is opened again, and continues after its last event.

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use anyhow::ensure;
use futures_util::{Stream, StreamExt as _, future::BoxFuture};
use reqwest::Method;
use serde_json::Value;
use sse_stream::{Sse, SseByteStream};

use crate::api::Api;

/// The pause before the next try, if the market did not answer.
const PAUSE: Duration = Duration::from_millis(500);
/// Number of failed tries in a row before an error is returned.
const MAX_TRIES: u32 = 60;
/// A stream that ends sooner, without an event, counts as a failed try.
const MIN_STREAM: Duration = Duration::from_secs(10);

/// An event whose data is JSON.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: Value,
}

type Blocks = Pin<Box<dyn Stream<Item = Result<Sse, sse_stream::Error>> + Send>>;

/// A stream of events that resumes after the last event that it got.
pub(crate) struct EventStream<'a> {
    api: &'a Api,
    path: String,
    /// The id of the last event that had one.
    last: Option<String>,
    connection: Connection<'a>,
    /// The failed tries in a row.
    tries: u32,
}

enum Connection<'a> {
    Opening(BoxFuture<'a, anyhow::Result<reqwest::Response>>),
    Open(Blocks, Instant),
}

impl<'a> EventStream<'a> {
    pub(crate) fn new(api: &'a Api, path: String) -> Self {
        let connection = Connection::Opening(open(api, &path, None, Duration::ZERO));
        Self { api, path, last: None, connection, tries: 0 }
    }

    /// The next event. If the market does not answer, tries again. The future may be dropped and called again: no event
    /// is lost, and a connection that is being opened goes on.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Event> {
        loop {
            match &mut self.connection {
                Connection::Opening(opening) => match opening.await {
                    Ok(response) => {
                        let blocks = Box::pin(SseByteStream::new(response.bytes_stream()));
                        self.connection = Connection::Open(blocks, Instant::now());
                    }
                    Err(e) if self.tries >= MAX_TRIES => return Err(e),
                    Err(_) => self.open_again(),
                },
                Connection::Open(blocks, since) => {
                    if let Some(Ok(block)) = blocks.next().await {
                        self.tries = 0;
                        self.last = block.id.clone().or(self.last.take());
                        if let Some(event) = parse_event(block) {
                            return Ok(event);
                        }
                        continue;
                    }
                    // The stream ended or broke.
                    if since.elapsed() > MIN_STREAM {
                        self.tries = 0;
                    }
                    ensure!(self.tries < MAX_TRIES, "{} ends again and again without an event", self.path);
                    self.open_again();
                }
            }
        }
    }

    /// Opens the stream after a pause, from its last event on.
    fn open_again(&mut self) {
        self.tries += 1;
        self.connection = Connection::Opening(open(self.api, &self.path, self.last.as_deref(), PAUSE));
    }
}

fn open<'a>(
    api: &'a Api,
    path: &str,
    last: Option<&str>,
    pause: Duration,
) -> BoxFuture<'a, anyhow::Result<reqwest::Response>> {
    let mut request = api.request(Method::GET, path);
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    Box::pin(async move {
        tokio::time::sleep(pause).await;
        api.send(request).await
    })
}

/// Parses a block; `None` for a block without JSON, such as a comment that only keeps the connection open.
fn parse_event(block: Sse) -> Option<Event> {
    let data = serde_json::from_str(&block.data?).ok()?;
    Some(Event { name: block.event.unwrap_or_default(), data })
}

/// Saves the body of a response to a new file. Returns the SHA-256 (hexadecimal) and the size in bytes.
pub(crate) async fn save(response: reqwest::Response, path: &std::path::Path) -> anyhow::Result<(String, u64)> {
    use sha2::{Digest as _, Sha256};
    use tokio::io::AsyncWriteExt as _;
    let mut file = tokio::fs::File::create_new(path).await?;
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

    /// Parses a text that arrives in these pieces. Returns the events, each with its id.
    async fn read(pieces: &[&str]) -> Vec<(Event, Option<String>)> {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok::<_, std::io::Error>(piece.as_bytes())).collect();
        let blocks: Vec<_> = SseByteStream::new(futures_util::stream::iter(pieces)).collect().await;
        let event = |block: Result<Sse, _>| {
            let block = block.unwrap();
            let id = block.id.clone();
            Some((parse_event(block)?, id))
        };
        blocks.into_iter().filter_map(event).collect()
    }

    fn event(name: &str, data: Value) -> Event {
        Event { name: name.to_owned(), data }
    }

    #[tokio::test]
    async fn events_are_whole_wherever_the_text_is_split() {
        let text = ": hello\n\nevent: line\nid: 7\ndata: {\"text\":\"a\"}\n\nevent: progress\ndata: 1\n\n";
        let expected =
            [(event("line", json!({ "text": "a" })), Some("7".to_owned())), (event("progress", json!(1)), None)];
        for cut in 0..text.len() {
            assert_eq!(read(&[&text[..cut], &text[cut..]]).await, expected, "{cut}");
        }
    }

    #[tokio::test]
    async fn data_may_have_several_lines() {
        let text = "event: line\ndata: {\ndata:\"text\":\ndata: \"a\"}\n\n";
        assert_eq!(read(&[text]).await, [(event("line", json!({ "text": "a" })), None)]);
    }

    #[tokio::test]
    async fn lines_may_end_with_crlf_or_cr() {
        let text = "event: line\r\nid: 7\r\ndata: 1\r\n\r\nevent: line\r\ndata: 2\r\n\r\n";
        let expected = [(event("line", json!(1)), Some("7".to_owned())), (event("line", json!(2)), None)];
        for cut in 0..text.len() {
            assert_eq!(read(&[&text[..cut], &text[cut..]]).await, expected, "{cut}");
        }
        assert_eq!(read(&[&text.replace("\r\n", "\r")]).await, expected);
    }

    #[tokio::test]
    async fn comments_and_events_without_json_are_skipped() {
        let text = ": keep alive\n\ndata: not json\n\nevent: line\n: within an event\ndata: 1\n\nevent: line\ndata: 2";
        assert_eq!(read(&[text]).await, [(event("line", json!(1)), None)], "the last event has not arrived yet");
    }
}
