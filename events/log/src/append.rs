//! The append of one event to the log. The broker guards each append: the broker refuses the event if its aggregate
//! has got another event since the decision was taken.
//!
//! An append may be repeated if its answer was lost. For two minutes (the stream's duplicate window), the broker
//! confirms the repetition as a duplicate, with the sequence of the stored event. Later, the broker refuses the
//! repetition like a conflict, because the stored event is newer than the guard. This file distinguishes a repetition
//! from a conflict with another writer.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    jetstream::{
        context::{PublishError, PublishErrorKind},
        message::PublishMessage,
    },
};
use gpubnb_events::{
    Actor, BoxError, Event, Proposal, Recorded, Seq,
    message::{Envelope, header},
    subject,
};
use gpubnb_runtime::trace;

use crate::Log;

/// Longest time that an append waits for the broker's confirmation.
const ACK_TIMEOUT: Duration = Duration::from_secs(3);

/// The result of a successful append: the event is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The event's sequence in the log.
    pub seq: Seq,
    /// True if an earlier append of the same proposal had already written the event.
    pub is_repetition: bool,
}

/// The append failed: the event is not in the log, or nobody knows yet if the event is there.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Another writer appended an event of the same aggregate first. Fold the log up to `last` and decide again.
    #[error("the aggregate has moved on to sequence {last}")]
    Conflict {
        /// The sequence of the aggregate's last event; zero if the aggregate has no event.
        last: Seq,
    },
    /// The broker did not confirm the append. The event may be in the log: append the same proposal again to find out.
    #[error("the broker does not answer")]
    Unavailable(#[source] BoxError),
    /// The event is larger than the broker's limit for a message (`max_payload`). Nothing was sent.
    #[error("the event is too large for the log")]
    TooLarge(#[source] PublishError),
    /// The event cannot be encoded.
    #[error("the event cannot be encoded")]
    Encoding(#[source] serde_json::Error),
}

/// Converts an error of a publish. The caller handles a refusal by the guard itself.
fn publish_error(e: PublishError) -> AppendError {
    match e.kind() {
        PublishErrorKind::MaxPayloadExceeded => AppendError::TooLarge(e),
        _ => unavailable(e),
    }
}

fn unavailable(e: impl Into<BoxError>) -> AppendError {
    AppendError::Unavailable(e.into())
}

impl Log {
    /// Appends the event of one decision. The broker refuses the event unless the aggregate's last event is still the
    /// one with the sequence `proposal.expected`, which the decider saw.
    ///
    /// An append whose answer was lost may be repeated. If the first append had succeeded, the result is a success
    /// again: the broker reports a duplicate, or the broker refuses the event and the aggregate's last event is the
    /// event of this proposal.
    pub async fn append(&self, proposal: &Proposal, actor: Actor) -> Result<Appended, AppendError> {
        let address = subject::address(&proposal.event);
        let envelope =
            Envelope { id: proposal.id.clone(), actor, cause: proposal.cause, correlation: proposal.event.job() };
        let payload = serde_json::to_vec(&proposal.event).map_err(AppendError::Encoding)?;
        let message = PublishMessage::build()
            .headers(headers(&envelope, &proposal.event))
            .header(header::EXPECTED_SUBJECT, address.guard.as_str())
            .expected_last_subject_sequence(proposal.expected.0)
            .payload(payload.into());
        let confirmation = self.js.send_publish(address.subject, message).await.map_err(publish_error)?;
        let ack = tokio::time::timeout(ACK_TIMEOUT, confirmation).await.map_err(unavailable)?;
        match ack {
            // The broker has stored a message with this id before, and did not store this one. Different events may
            // have one id: for example, `Completed` and `Requeued` both end an attempt. So the events are compared.
            Ok(ack) if ack.duplicate => {
                let stored = self.get(Seq(ack.sequence)).await.map_err(unavailable)?;
                if stored.as_ref().and_then(Recorded::event) == Some(&proposal.event) {
                    return Ok(Appended { seq: Seq(ack.sequence), is_repetition: true });
                }
                self.conflict_or_repetition(proposal).await
            }
            Ok(ack) => Ok(Appended { seq: Seq(ack.sequence), is_repetition: false }),
            Err(e) if e.kind() == PublishErrorKind::WrongLastSequence => self.conflict_or_repetition(proposal).await,
            Err(e) => Err(publish_error(e)),
        }
    }

    /// Finds out why the log did not take a proposal: its event is already in the log, or another event of the
    /// aggregate came first.
    async fn conflict_or_repetition(&self, proposal: &Proposal) -> Result<Appended, AppendError> {
        let last = self.last_of(proposal.event.aggregate()).await.map_err(unavailable)?;
        let Some(last) = last else {
            return Err(AppendError::Conflict { last: Seq::ZERO });
        };
        if last.envelope().is_some_and(|e| e.id == proposal.id) && last.event() == Some(&proposal.event) {
            return Ok(Appended { seq: last.seq, is_repetition: true });
        }
        Err(AppendError::Conflict { last: last.seq })
    }
}

/// The headers of the message: those of the envelope, and the trace context of the writer.
fn headers(envelope: &Envelope, event: &Event) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in envelope.headers(event) {
        headers.insert(name, value);
    }
    trace::inject(&mut headers);
    headers
}
