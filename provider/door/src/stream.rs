//! A connection to a host whose bytes are counted and limited.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use crate::{Door, Refusal};

/// A connection is closed after this time without a byte in either direction.
const IDLE: Duration = Duration::from_secs(30 * 60);
/// The same for a connection whose other direction has ended.
const CLOSING_IDLE: Duration = Duration::from_secs(60);
/// The timer of the idle time is set again at most once in this time, and not for every byte.
const IDLE_STEP: Duration = Duration::from_secs(10);

/// A connection from the worker to a host.
pub(crate) struct MeteredStream {
    stream: TcpStream,
    host: Arc<str>,
    door: Arc<Door>,
    /// The pause that the limit of bytes per second demands.
    pause: Option<Pin<Box<Sleep>>>,
    idle: Pin<Box<Sleep>>,
    idle_limit: Duration,
    idle_since: Instant,
}

impl MeteredStream {
    pub(crate) fn new(stream: TcpStream, host: Arc<str>, door: Arc<Door>) -> Self {
        // Without the option, small requests wait for the acknowledgement of the ones before.
        drop(stream.set_nodelay(true));
        // A new connection waits for its turn, too: otherwise many short ones would exceed the limit.
        let pause = pause_of(door.rate.count(0));
        let idle = Box::pin(sleep(IDLE));
        Self { stream, host, door, pause, idle, idle_limit: IDLE, idle_since: Instant::now() }
    }

    /// Fails when nothing has moved for too long.
    fn poll_idle<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        self.idle.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    fn has_moved(&mut self) {
        self.idle_since = Instant::now();
        self.idle.as_mut().reset(self.idle_since + self.idle_limit);
    }

    /// Ready when the limits allow more bytes.
    fn poll_allowed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        if self.door.is_used_up() {
            let refusal = Refusal::Bytes(self.door.rules.max_bytes >> 30);
            self.door.take_note(&refusal);
            return Poll::Ready(Err(io::Error::other(refusal.to_string())));
        }
        Poll::Ready(Ok(()))
    }

    fn count(&mut self, received: usize, sent: usize) {
        self.door.traffic.add(&self.host, received as u64, sent as u64);
        self.pause = pause_of(self.door.rate.count(received + sent));
        if self.idle_since.elapsed() > IDLE_STEP {
            self.has_moved();
        }
    }
}

fn pause_of(time: Duration) -> Option<Pin<Box<Sleep>>> {
    (!time.is_zero()).then(|| Box::pin(sleep(time)))
}

impl AsyncRead for MeteredStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_allowed(cx))?;
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) => {
                this.count(buffer.filled().len() - before, 0);
                Poll::Ready(Ok(()))
            }
            Poll::Pending => this.poll_idle(cx),
            failed @ Poll::Ready(Err(_)) => failed,
        }
    }
}

impl AsyncWrite for MeteredStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_allowed(cx))?;
        match Pin::new(&mut this.stream).poll_write(cx, bytes) {
            Poll::Ready(Ok(written)) => {
                this.count(0, written);
                Poll::Ready(Ok(written))
            }
            Poll::Pending => this.poll_idle(cx),
            failed @ Poll::Ready(Err(_)) => failed,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.idle_limit != CLOSING_IDLE {
            self.idle_limit = CLOSING_IDLE;
            self.has_moved();
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
