//! The request that is being answered, as those who watch see it: a command is traced from when its request came in.

use gpubnb_events::{Clock as _, SystemClock, Timestamp};
use gpubnb_runtime::trace::{SpanKind, Step};

tokio::task_local! {
    static REQUESTED: (String, Timestamp);
}

/// Answers a request that came in now: `POST /api/v1/jobs`.
pub(crate) async fn answering<F: Future>(what: String, answer: F) -> F::Output {
    REQUESTED.scope((what, SystemClock.now()), answer).await
}

/// The step that began with the request.
pub(crate) fn requested() -> Step {
    let known = REQUESTED.try_with(|(what, since)| Step::since(what.clone(), SpanKind::Server, *since));
    known.unwrap_or_else(|_| Step::now("command".to_owned(), SpanKind::Client))
}
