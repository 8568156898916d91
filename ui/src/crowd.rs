//! How many connections one address may have open at once, so that nobody takes all the places of this server.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{Extension, middleware::AddExtension};
use axum_server::accept::Accept;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tower::Layer as _;

/// Connections of each address.
#[derive(Clone)]
pub(crate) struct Crowd<A> {
    inner: A,
    most: usize,
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl<A> Crowd<A> {
    /// Lets in at most so many of one address at once; `inner` goes on with each.
    pub(crate) fn new(inner: A, most: usize) -> Self {
        Self { inner, most, counts: Arc::default() }
    }
}

/// One connection; its place is free when this is dropped, with the last request that came by it.
pub(crate) struct Place {
    address: IpAddr,
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

fn locked(counts: &Mutex<HashMap<IpAddr, usize>>) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    fn take(counts: &Arc<Mutex<HashMap<IpAddr, usize>>>, address: IpAddr, most: usize) -> Option<Self> {
        let mut all = locked(counts);
        let count = all.entry(address).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        drop(all);
        Some(Self { address, counts: Arc::clone(counts) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = locked(&self.counts);
        if let Some(count) = all.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.address);
            }
        }
    }
}

impl<A, S> Accept<TcpStream, S> for Crowd<A>
where
    A: Accept<TcpStream, S>,
    A::Future: Send + 'static,
    A::Stream: Send + 'static,
    A::Service: Send + 'static,
{
    type Stream = A::Stream;
    type Service = AddExtension<A::Service, Arc<Place>>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let address = stream.peer_addr().map(|peer| peer.ip());
        let place = address.map(|address| Place::take(&self.counts, address, self.most));
        match place {
            Ok(Some(place)) => {
                let accepted = self.inner.accept(stream, service);
                Box::pin(async move {
                    let (stream, service) = accepted.await?;
                    Ok((stream, Extension(Arc::new(place)).layer(service)))
                })
            }
            Ok(None) => Box::pin(std::future::ready(Err(io::Error::other("too many connections of one address")))),
            Err(e) => Box::pin(std::future::ready(Err(e))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_places_and_others_have_their_own() {
        let counts = Arc::default();
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let first = Place::take(&counts, one, 1);
        assert!(first.is_some() && Place::take(&counts, one, 1).is_none() && Place::take(&counts, other, 1).is_some());
        drop(first);
        assert!(Place::take(&counts, one, 1).is_some());
        assert!(locked(&counts).is_empty());
    }
}
