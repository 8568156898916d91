//! Job messages: the copies of `JobAssigned` that the broker makes in the stream DISPATCH. The broker adds a header
//! that names the source of the copy: the stream MARKET and the sequence there. That sequence is the lease.

use async_nats::HeaderMap;
use gpubnb_events::{Lease, Seq, message::header};

use crate::stream::MARKET;

/// The lease of a job message, from the message's headers; `None` if the message is not a copy from MARKET.
pub fn lease_of(headers: Option<&HeaderMap>) -> Option<Lease> {
    // The value begins with the stream's name and the sequence, separated by a space. The rest is not used here.
    let source = headers?.get(header::STREAM_SOURCE)?.as_str();
    let mut parts = source.split(' ');
    let from_market = parts.next()? == MARKET;
    let lease = Lease(Seq(parts.next()?.parse().ok()?));
    from_market.then_some(lease)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_is_the_sequence_of_the_source_in_market() {
        let with = |source: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::STREAM_SOURCE, source);
            lease_of(Some(&headers))
        };
        assert_eq!(with("MARKET 7 x > y"), Some(Lease(Seq(7))));
        assert_eq!(with("OTHER 7"), None);
        assert_eq!(with("MARKET"), None);
        assert_eq!(lease_of(None), None);
    }
}
