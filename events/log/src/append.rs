//! The guarded append, and what a conflict or a lost answer means.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    jetstream::{context::PublishErrorKind, message::PublishMessage},
};
use gpubnb_events::{
    Actor, Event, Proposal, Seq,
    message::{Envelope, header},
    subject,
};
use gpubnb_runtime::trace;

use crate::Log;

/// How long one append may take before its fate is unknown.
const ACK_TIMEOUT: Duration = Duration::from_secs(3);

/// An event is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Where.
    pub seq: Seq,
    /// Whether it was there already: this very decision had been written before.
    pub before: bool,
}

/// An event is not in the log, or it is not known whether it is.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Somebody else wrote to the aggregate first. Catch up to `last` and decide again.
    #[error("the aggregate has moved on to sequence {last}")]
    Conflict {
        /// The aggregate's last sequence.
        last: Seq,
    },
    /// The broker did not answer. The event may be in the log: say the same thing again.
    #[error("the broker is unavailable: {0}")]
    Unavailable(String),
    /// The event cannot be written at all.
    #[error("the event cannot be written: {0}")]
    Invalid(String),
}

impl Log {
    /// Appends one decision, guarded by the sequence its decider saw.
    ///
    /// A lost answer is found out: where the guard refuses and the aggregate's last message is this very
    /// event, the append had succeeded before.
    pub async fn append(&self, proposal: &Proposal, actor: Actor) -> Result<Appended, AppendError> {
        let address = subject::address(&proposal.event);
        let envelope =
            Envelope { id: proposal.id.clone(), actor, cause: proposal.cause, correlation: proposal.event.job() };
        let payload = serde_json::to_vec(&proposal.event).map_err(|e| AppendError::Invalid(e.to_string()))?;
        let message = PublishMessage::build()
            .headers(headers(&envelope, &proposal.event))
            .header(header::EXPECTED_SUBJECT, address.guard.as_str())
            .expected_last_subject_sequence(proposal.expected.0)
            .payload(payload.into());
        let unavailable = |e: &dyn std::fmt::Display| AppendError::Unavailable(e.to_string());
        let published = self.js.send_publish(address.subject, message).await.map_err(|e| unavailable(&e))?;
        let ack = tokio::time::timeout(ACK_TIMEOUT, published).await.map_err(|e| unavailable(&e))?;
        match ack {
            Ok(ack) => Ok(Appended { seq: Seq(ack.sequence), before: ack.duplicate }),
            Err(e) if e.kind() == PublishErrorKind::WrongLastSequence => self.refused(proposal).await,
            Err(e) if e.kind() == PublishErrorKind::MaxPayloadExceeded => Err(AppendError::Invalid(e.to_string())),
            Err(e) => Err(unavailable(&e)),
        }
    }

    async fn refused(&self, proposal: &Proposal) -> Result<Appended, AppendError> {
        let last =
            self.last_of(proposal.event.aggregate()).await.map_err(|e| AppendError::Unavailable(e.to_string()))?;
        let Some(last) = last else {
            return Err(AppendError::Conflict { last: Seq::ZERO });
        };
        if last.envelope().is_some_and(|e| e.id == proposal.id) {
            return Ok(Appended { seq: last.seq, before: true });
        }
        Err(AppendError::Conflict { last: last.seq })
    }
}

/// The envelope as the broker's headers, with the trace context of the writer.
fn headers(envelope: &Envelope, event: &Event) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in envelope.headers(event) {
        headers.insert(name, value);
    }
    trace::inject(&mut headers);
    headers
}
