//! The client that sent a request: its IP address and its `User-Agent`.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
};

use super::sessions::cookie;
use axum::{
    extract::{ConnectInfo, FromRequestParts, Request},
    http::{header, request::Parts},
};

/// The cookie of a browser in which a person has signed in. The cookie gives no access. It only gives the browser its
/// own allowance of wrong passwords, which strangers cannot use up.
pub(crate) const KNOWN_COOKIE: &str = "__Host-gpubnb-known";

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
            parse_address(header.to_str().ok()?.rsplit(',').next()?.trim())
        };
        Self(if behind_proxy { forwarded().unwrap_or(peer) } else { peer })
    }
}

/// Parses an address as proxies write it, some of them with a port: `192.0.2.1`, `192.0.2.1:5000`,
/// `[2001:db8::1]:5000`.
fn parse_address(text: &str) -> Option<IpAddr> {
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    text.parse().ok().or_else(with_port).or_else(bracketed)
}

/// The client that sent a request.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) address: IpAddr,
    /// The `User-Agent`; empty if the client sent none.
    pub(crate) name: String,
    /// The cookie [`KNOWN_COOKIE`], if the client sent one. The cookie is not checked yet.
    pub(crate) known: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Client {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let address = parts.extensions.get::<PeerAddress>().map_or([0; 4].into(), |peer| peer.0);
        let name = parts.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let known = cookie(&parts.headers, KNOWN_COOKIE).map(ToOwned::to_owned);
        Ok(Self { address, name: name.to_owned(), known })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    #[test]
    fn an_address_may_have_a_port() {
        for text in ["192.0.2.1", "192.0.2.1:5000"] {
            assert_eq!(parse_address(text), Some([192, 0, 2, 1].into()), "{text}");
        }
        for text in ["2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:5000"] {
            assert_eq!(parse_address(text), Some([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into()), "{text}");
        }
        assert_eq!(parse_address("unknown"), None);
    }

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
