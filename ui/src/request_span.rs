//! The trace span of the current HTTP request. The trace of a command begins at the arrival of the HTTP request that
//! sent the command.

use gpubnb_events::{Clock as _, SystemClock, Timestamp};
use gpubnb_runtime::trace::{SpanKind, Step};

tokio::task_local! {
    /// The name of the current request, and the time of its arrival.
    static REQUEST: (String, Timestamp);
}

/// Runs `answer`, the handling of a request that arrived now. `name` is, for example, `POST /api/v1/jobs`.
pub(crate) async fn within<F: Future>(name: String, answer: F) -> F::Output {
    REQUEST.scope((name, SystemClock.now()), answer).await
}

/// The span of the current request. Outside of a request, the span of a command that begins now.
pub(crate) fn current() -> Step {
    let known = REQUEST.try_with(|(name, since)| Step::since(name.clone(), SpanKind::Server, *since));
    known.unwrap_or_else(|_| Step::now("command".to_owned(), SpanKind::Client))
}
