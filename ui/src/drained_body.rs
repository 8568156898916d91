//! A request's body that is read to its end even if its handler refuses the request. If a server answers and closes a
//! connection on which unread bytes arrive, the client may see a broken connection instead of the answer.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::header,
    middleware::Next,
    response::Response,
};
use futures_util::StreamExt as _;
use http_body::{Frame, SizeHint};

/// The longest time for which the rest of a body is read.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the rest of the request's body after the handler has dropped the body.
pub(crate) async fn drain_body(request: Request, next: Next) -> Response {
    // A client that asks whether it may send the body does not send the body after a refusal.
    if request.headers().contains_key(header::EXPECT) {
        return next.run(request).await;
    }
    next.run(request.map(|body| Body::new(DrainedBody(body)))).await
}

/// A body whose rest is read after this value is dropped.
struct DrainedBody(Body);

impl HttpBody for DrainedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.0).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Drop for DrainedBody {
    fn drop(&mut self) {
        if self.0.is_end_stream() {
            return;
        }
        let mut rest = std::mem::take(&mut self.0).into_data_stream();
        let drain = async move { while rest.next().await.is_some_and(|piece| piece.is_ok()) {} };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(TIMEOUT, drain));
        }
    }
}
