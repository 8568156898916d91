//! The client that sent a request: its IP address and its `User-Agent`.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
};

use axum::{
    extract::{ConnectInfo, FromRequestParts, Request},
    http::{header, request::Parts},
};

/// The IP address of the client. The gate (`gate.rs`, the middleware before every handler) determines the address.
#[derive(Debug, Clone, Copy)]
pub(super) struct PeerAddress(pub(super) IpAddr);

impl PeerAddress {
    /// Behind a proxy the address is the last one in `X-Forwarded-For`. The proxy wrote this last address; the client
    /// can forge the addresses before it.
    pub(super) fn of(request: &Request, behind_proxy: bool) -> Self {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map_or([0; 4].into(), |info| info.0.ip());
        let forwarded = || {
            let header = request.headers().get_all("x-forwarded-for").iter().next_back()?;
            header.to_str().ok()?.rsplit(',').next()?.trim().parse().ok()
        };
        Self(if behind_proxy { forwarded().unwrap_or(peer) } else { peer })
    }
}

/// The client that sent a request.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) address: IpAddr,
    /// The `User-Agent`; empty if the client sent none.
    pub(crate) name: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Client {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let address = parts.extensions.get::<PeerAddress>().map_or([0; 4].into(), |peer| peer.0);
        let name = parts.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        Ok(Self { address, name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    #[test]
    fn the_last_forwarded_address_is_used_only_behind_a_proxy() {
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([10, 0, 0, 9], 1))));
        let address = |request: &Request, behind_proxy| PeerAddress::of(request, behind_proxy).0.to_string();
        assert_eq!(address(&request, true), "10.0.0.9");
        request.headers_mut().append("x-forwarded-for", "1.1.1.1".parse().unwrap());
        request.headers_mut().append("x-forwarded-for", "2.2.2.2, 3.3.3.3".parse().unwrap());
        assert_eq!(address(&request, true), "3.3.3.3");
        assert_eq!(address(&request, false), "10.0.0.9");
    }
}
