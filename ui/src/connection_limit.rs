//! Limits how many connections one address may have open at once, so that no address takes all the server's
//! connections.

use std::{io, net::IpAddr, sync::Arc};

use axum::{Extension, middleware::AddExtension};
use axum_server::accept::Accept;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tower::Layer as _;

use crate::keyed_limit::{KeyedLimit, Share};

/// Accepts connections, each address at most `most` at once; `inner` handles those that are accepted.
#[derive(Clone)]
pub(crate) struct ConnectionLimit<A> {
    inner: A,
    most: u64,
    open: KeyedLimit<IpAddr>,
}

impl<A> ConnectionLimit<A> {
    pub(crate) fn new(inner: A, most: u64) -> Self {
        Self { inner, most, open: KeyedLimit::default() }
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
    /// Every request of a connection carries the connection's share of the limit, so the share is given back when the
    /// last of these requests has been answered.
    type Service = AddExtension<A::Service, Arc<Share<IpAddr>>>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let address = stream.peer_addr().map(|peer| peer.ip());
        match address.map(|address| self.open.take(address, 1, self.most)) {
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
