//! A limit on the open connections of one IP address, so that one address cannot take all connections of the server.

use std::{io, net::IpAddr, sync::Arc};

use axum::{Extension, middleware::AddExtension};
use axum_server::accept::Accept;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tower::Layer as _;

use crate::{
    access::network_of,
    keyed_limit::{KeyedLimit, Share},
};

/// Accepts at most `max_connections` open connections from each address, and passes them to `inner`.
#[derive(Clone)]
pub(crate) struct ConnectionLimit<A> {
    inner: A,
    max_connections: u64,
    open: KeyedLimit<IpAddr>,
}

impl<A> ConnectionLimit<A> {
    pub(crate) fn new(inner: A, max_connections: u64) -> Self {
        Self { inner, max_connections, open: KeyedLimit::default() }
    }
}

impl<A, S> Accept<TcpStream, S> for ConnectionLimit<A>
where
    A: Accept<TcpStream, S>,
    A::Future: Send + 'static,
    A::Stream: Send + 'static,
    A::Service: Send + 'static,
{
    type Stream = A::Stream;
    /// Every request of a connection holds the connection's share of the limit. The share is released when the
    /// connection has ended and all its requests have been answered.
    type Service = AddExtension<A::Service, Arc<Share<IpAddr>>>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        // An IPv6 customer has 2^64 addresses, which count as one.
        let address = stream.peer_addr().map(|peer| network_of(peer.ip()));
        match address.map(|address| self.open.take(address, 1, self.max_connections)) {
            Ok(Some(share)) => {
                let accepted = self.inner.accept(stream, service);
                Box::pin(async move {
                    let (stream, service) = accepted.await?;
                    Ok((stream, Extension(Arc::new(share)).layer(service)))
                })
            }
            Ok(None) => Box::pin(std::future::ready(Err(io::Error::other("too many connections from one address")))),
            Err(e) => Box::pin(std::future::ready(Err(e))),
        }
    }
}
