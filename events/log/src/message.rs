//! Reads of single messages of a stream. With several brokers, any of them may answer such a read, also a broker that
//! does not have the newest messages yet. If that broker does not have the message, these functions ask the leader of
//! the stream, which has every message that was acknowledged.

use async_nats::{
    Client,
    jetstream::{
        message::StreamMessage,
        stream::{
            DirectGetError, DirectGetErrorKind, LastRawMessageErrorKind as LeaderErrorKind,
            RawMessageError as LeaderError, Stream,
        },
    },
};

use crate::{ReadError, unavailable};

/// The message with this sequence; `None` if the stream has none.
pub async fn at(client: &Client, stream: &Stream<()>, seq: u64) -> Result<Option<StreamMessage>, ReadError> {
    match any_broker(stream.direct_get(seq).await)? {
        None if is_in_cluster(client) => leader(stream.get_raw_message(seq).await),
        found => Ok(found),
    }
}

/// The first message with this subject whose sequence is `from` or greater; `None` if the stream has none.
pub async fn next(
    client: &Client,
    stream: &Stream<()>,
    subject: &str,
    from: u64,
) -> Result<Option<StreamMessage>, ReadError> {
    match any_broker(stream.direct_get_next_for_subject(subject, Some(from)).await)? {
        None if is_in_cluster(client) => leader(stream.get_first_raw_message_by_subject(subject, from).await),
        found => Ok(found),
    }
}

/// Like [`next`], for a stream that only its leader can read, such as DISPATCH.
pub async fn next_at_leader(stream: &Stream<()>, subject: &str, from: u64) -> Result<Option<StreamMessage>, ReadError> {
    leader(stream.get_first_raw_message_by_subject(subject, from).await)
}

/// The last message with this subject; `None` if the stream has none. Asks only the leader: another broker may answer
/// with an older message.
pub async fn last(client: &Client, stream: &Stream<()>, subject: &str) -> Result<Option<StreamMessage>, ReadError> {
    if is_in_cluster(client) {
        return leader(stream.get_last_raw_message_by_subject(subject).await);
    }
    any_broker(stream.direct_get_last_for_subject(subject).await)
}

/// True if the broker of this connection has others beside it.
fn is_in_cluster(client: &Client) -> bool {
    client.server_info().cluster.is_some()
}

fn any_broker(answer: Result<StreamMessage, DirectGetError>) -> Result<Option<StreamMessage>, ReadError> {
    match answer {
        Ok(message) => Ok(Some(message)),
        Err(e) if e.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(e) => Err(unavailable(e)),
    }
}

fn leader(answer: Result<StreamMessage, LeaderError>) -> Result<Option<StreamMessage>, ReadError> {
    match answer {
        Ok(message) => Ok(Some(message)),
        Err(e) if e.kind() == LeaderErrorKind::NoMessageFound => Ok(None),
        Err(e) => Err(unavailable(e)),
    }
}
