//! Shows the lines that a job has not finished yet: `loading… `, or a progress bar that writes over itself.
//!
//! Docker's log has a line only when it is finished. So the worker attaches to the container as well, keeps what stands
//! on the last line of each stream, and publishes it when it has changed. No stream of the broker stores these
//! messages, and nothing depends on them: the log itself is the matter of `log`.

use std::time::Duration;

use async_nats::HeaderMap;
use bollard::{container::LogOutput, errors::Error};
use futures_util::{Stream, StreamExt as _};
use gpubnb_events::{
    Clock as _, SystemClock,
    message::header,
    output::{MAX_UNFINISHED, UNFINISHED_LINES, UnfinishedLines},
    subject,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::debug;

use super::{context::AttemptContext, watch::RunSignals};

/// Pause between a change and its message. A line that is finished meanwhile needs no message.
const SETTLE: Duration = Duration::from_millis(200);
/// Time after which the same lines are published again, for readers that came later.
const REPEAT: Duration = Duration::from_secs(2);
/// Time from the end of a container's streams until the worker surely knows of the container's end.
const ENDED_BY_NOW: Duration = Duration::from_millis(500);
/// Longest time to hand a message to the connection.
const SEND_TIMEOUT: Duration = Duration::from_secs(3);

/// Publishes the unfinished lines of a container until `output` ends, which is when the container ends. Signals when
/// the container has written something. `output` is `None` if the worker could not attach to the container.
pub(super) async fn show(
    context: &AttemptContext,
    output: Option<impl Stream<Item = Result<LogOutput, Error>>>,
    signals: &RunSignals,
) {
    let Some(output) = output else { return signals.set_written() };
    let (sender, receiver) = watch::channel(ScreenLines::default());
    let read = async move {
        tokio::pin!(output);
        while let Some(Ok(frame)) = output.next().await {
            signals.set_written();
            sender.send_if_modified(|lines| lines.write(&frame));
        }
        drop(sender);
        // Most often the container has ended, and its log is read anyway. Otherwise Docker was restarted, and what the
        // container writes from now on is seen in its log only.
        sleep(ENDED_BY_NOW).await;
        signals.set_written();
    };
    tokio::join!(read, publish_changes(context, receiver));
}

/// Publishes the lines when they have changed, and repeats them. Ends with the sender.
async fn publish_changes(context: &AttemptContext, mut lines: watch::Receiver<ScreenLines>) {
    let (mut published, mut is_unchanged) = (ScreenLines::default(), true);
    loop {
        let needs_repeat = !is_unchanged || !published.is_empty();
        let is_repetition = match timeout(if needs_repeat { REPEAT } else { Duration::MAX }, lines.changed()).await {
            Ok(Ok(())) => false,
            Ok(Err(_)) if published.is_empty() => return,
            // The container has ended, and the log has the last lines.
            Ok(Err(_)) => return publish(context, &ScreenLines::default()).await,
            Err(_) => true,
        };
        if !is_repetition {
            sleep(SETTLE).await;
        }
        let now = lines.borrow_and_update().clone();
        is_unchanged = now == published;
        if is_repetition || !is_unchanged {
            publish(context, &now).await;
            published = now;
        }
    }
}

/// Hands a message to the connection. A message that is lost is replaced by the next one.
async fn publish(context: &AttemptContext, lines: &ScreenLines) {
    let message = UnfinishedLines {
        lease: context.lease,
        occurred_at: SystemClock.now(),
        stdout: lines.stdout.text(),
        stderr: lines.stderr.text(),
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::TYPE, UNFINISHED_LINES);
    let subject = subject::unfinished(context.tools.machine, context.job);
    let payload = match serde_json::to_vec(&message) {
        Ok(payload) => payload,
        Err(e) => return debug!(error = %e, "unfinished lines cannot be written as JSON"),
    };
    let client = context.tools.js.client();
    let sent = client.publish_with_headers(subject, headers, payload.into());
    if !matches!(timeout(SEND_TIMEOUT, sent).await, Ok(Ok(()))) {
        debug!("unfinished lines could not be published");
    }
}

/// The last line of each stream, as it stands on a screen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct ScreenLines {
    stdout: ScreenLine,
    stderr: ScreenLine,
}

impl ScreenLines {
    /// Writes a frame. Returns true if a line has changed.
    fn write(&mut self, frame: &LogOutput) -> bool {
        match frame {
            LogOutput::StdErr { message } => self.stderr.write(message),
            LogOutput::StdOut { message } | LogOutput::Console { message } => self.stdout.write(message),
            LogOutput::StdIn { .. } => false,
        }
    }

    fn is_empty(&self) -> bool {
        self.stdout.bytes.is_empty() && self.stderr.bytes.is_empty()
    }
}

/// The last line of one stream: what a job wrote after the last newline. A carriage return takes the writer back to the
/// start of the line, and what is written after it replaces the line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct ScreenLine {
    /// The newest bytes of the line.
    bytes: Vec<u8>,
    /// True if the last byte was a carriage return.
    is_at_start: bool,
}

impl ScreenLine {
    /// Writes bytes. Returns true if the line has changed.
    fn write(&mut self, written: &[u8]) -> bool {
        let before = self.bytes.clone();
        let last_line = match written.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => {
                *self = Self::default();
                &written[end + 1..]
            }
            None => written,
        };
        for part in last_line.split_inclusive(|byte| *byte == b'\r') {
            let text = part.strip_suffix(b"\r").unwrap_or(part);
            if self.is_at_start && !text.is_empty() {
                self.bytes.clear();
                self.is_at_start = false;
            }
            self.bytes.extend_from_slice(text);
            self.is_at_start |= text.len() < part.len();
        }
        let excess = self.bytes.len().saturating_sub(MAX_UNFINISHED);
        self.bytes.drain(..excess);
        self.bytes != before
    }

    /// The text, at most [`MAX_UNFINISHED`] bytes. Bytes that are no character, and the halves of characters at both
    /// ends, are left out.
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).replace(char::REPLACEMENT_CHARACTER, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of a line after some writes.
    fn shown(writes: &[&[u8]]) -> String {
        let mut line = ScreenLine::default();
        for write in writes {
            line.write(write);
        }
        line.text()
    }

    #[test]
    fn only_what_follows_the_last_newline_is_unfinished() {
        assert_eq!(shown(&[b"done\nloading... "]), "loading... ");
        assert_eq!(shown(&[b"load", b"ing"]), "loading");
        assert_eq!(shown(&[b"loading", b" done\n"]), "");
        assert_eq!(shown(&[b"a\nb\nc"]), "c");
    }

    #[test]
    fn a_progress_bar_shows_its_newest_step() {
        assert_eq!(shown(&[b"10 %\r20 %\r", b"30 %\r"]), "30 %");
        assert_eq!(shown(&[b"\r10 %", b"\r9 %"]), "9 %");
        assert_eq!(shown(&[b"10 %\r", b"\r\r", b"11 %"]), "11 %");
        assert_eq!(shown(&[b"100 %\r\n"]), "");
    }

    #[test]
    fn a_long_line_shows_its_newest_bytes_in_whole_characters() {
        let long = "é".repeat(MAX_UNFINISHED);
        let text = shown(&[b"x", long.as_bytes(), &"é".as_bytes()[..1]]);
        assert!(text.len() <= MAX_UNFINISHED && text.len() >= MAX_UNFINISHED - 3, "{}", text.len());
        assert!(text.chars().all(|c| c == 'é'), "{text}");
        assert_eq!(shown(&[b"a\xffb"]), "ab");
    }

    #[test]
    fn a_write_tells_whether_the_line_changed() {
        let mut line = ScreenLine::default();
        assert!(!line.write(b"whole line\n"));
        assert!(line.write(b"part"));
        assert!(!line.write(b"\r"));
        assert!(line.write(b"\n"));
    }
}
