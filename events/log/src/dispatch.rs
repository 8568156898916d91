//! Job messages in DISPATCH, and the lease in each of them.

use async_nats::HeaderMap;
use gpubnb_events::{Lease, Seq, message::header};

use crate::stream::MARKET;

/// The lease of a job message: the sequence of the assignment in MARKET, from which the broker copied the message.
pub fn lease_of(headers: Option<&HeaderMap>) -> Option<Lease> {
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
    fn a_lease_is_where_the_broker_found_the_message() {
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
