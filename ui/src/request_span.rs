//! The trace span of the request that is being answered. A command's trace begins when its request arrived.

use gpubnb_events::{Clock as _, SystemClock, Timestamp};
use gpubnb_runtime::trace::{SpanKind, Step};

tokio::task_local! {
    static REQUEST: (String, Timestamp);
}

/// Runs the answer to a request that arrived now. `name` is, for example, `POST /api/v1/jobs`.
pub(crate) async fn within<F: Future>(name: String, answer: F) -> F::Output {
    REQUEST.scope((name, SystemClock.now()), answer).await
}

/// The span of the request that is being answered.
pub(crate) fn current() -> Step {
    let known = REQUEST.try_with(|(name, since)| Step::since(name.clone(), SpanKind::Server, *since));
    known.unwrap_or_else(|_| Step::now("command".to_owned(), SpanKind::Client))
}
