//! The one way to addresses that a stranger chose, such as the registry of a job's image. The dialer resolves the name,
//! checks each address, and connects to exactly the addresses that it checked. A name that points to another address a
//! moment later therefore reaches nothing else.
//!
//! Belongs here: the decision which addresses may be reached, and the connection. Must not come here: a protocol that
//! is spoken over the connection.

mod public;
mod routes;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

pub use public::is_public;
use reqwest::{Client, RequestBuilder, Url};
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};

/// Longest time to resolve a name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time to connect to one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 6;
/// Most names that are resolved at once. Each takes a thread.
const MAX_LOOKUPS: usize = 16;

/// A refused or failed connection. The texts name the host that the stranger named, and nothing that only this machine
/// knows, because they are shown to the stranger.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The host has addresses, and none of them is public.
    #[error("{0} has no public address, and jobs reach public addresses only")]
    NotPublic(String),
    /// The name of the host cannot be resolved. The text is the same as for a host without a public address: a stranger
    /// must not find out which names the owner's network knows.
    #[error("{host} has no public address, and jobs reach public addresses only")]
    Unresolved {
        /// The host.
        host: String,
        /// The error of the resolver; `None` if the resolver took too long.
        source: Option<io::Error>,
    },
    /// No address of the host accepts a connection.
    #[error("{host} cannot be reached")]
    Unreachable {
        /// The host.
        host: String,
        /// The error of the last address; `None` if the address took too long.
        source: Option<io::Error>,
    },
    /// This machine cannot list its own networks, and therefore cannot tell which addresses are its own.
    #[error("the machine cannot tell which networks are its own")]
    Routes(#[source] io::Error),
    /// The HTTP client cannot be made.
    #[error("the HTTP client cannot be made")]
    Client(#[source] reqwest::Error),
}

/// A host that the machine's owner allows although its address may be private, such as a registry in the local network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedHost {
    /// The name or the address of the host.
    pub host: String,
    /// The only allowed port.
    pub port: u16,
}

/// A host for which another address answers, such as a mirror in the network of the machine's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The name of the host.
    pub host: String,
    /// The address that answers at every port of the host. It may be private, because the owner chose it.
    pub address: SocketAddr,
}

/// Connects to public addresses. Clones share one state.
#[derive(Debug, Clone)]
pub struct Dialer {
    proc_net: PathBuf,
    /// The machine's address as others on the internet see it. A router may lead that address back into the owner's
    /// network.
    seen_as: Arc<RwLock<Option<IpAddr>>>,
    lookups: Arc<Semaphore>,
    /// The one host whose address may be private.
    allowed: Option<AllowedHost>,
    mirrors: Arc<[Mirror]>,
}

impl Default for Dialer {
    fn default() -> Self {
        Self {
            proc_net: PathBuf::from("/proc/net"),
            seen_as: Arc::default(),
            lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            allowed: None,
            mirrors: Arc::default(),
        }
    }
}

impl Dialer {
    /// Refuses this address from now on: the machine's address as another computer on the internet sees it.
    pub fn refuse_own_address(&self, address: IpAddr) {
        *self.seen_as.write().unwrap_or_else(PoisonError::into_inner) = Some(address);
    }

    /// The same dialer, which also connects to one host whose address may be private.
    #[must_use]
    pub fn allowing(&self, host: AllowedHost) -> Self {
        Self { allowed: Some(host), ..self.clone() }
    }

    /// The same dialer with a bound of its own on the names that are resolved at once. Whoever uses the bound up delays
    /// nobody else.
    #[must_use]
    pub fn with_own_lookups(&self, most: usize) -> Self {
        Self { lookups: Arc::new(Semaphore::new(most)), ..self.clone() }
    }

    /// The same dialer, which connects to other addresses for some hosts.
    #[must_use]
    pub fn with_mirrors(&self, mirrors: &[Mirror]) -> Self {
        Self { mirrors: mirrors.into(), ..self.clone() }
    }

    /// The addresses of a host that may be connected to: at least one, and at most [`MAX_ADDRESSES`]. `host` is a name
    /// or an address; an IPv6 address may stand in brackets.
    pub async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
        let name = host.trim_start_matches('[').trim_end_matches(']');
        if let Some(mirror) = self.mirrors.iter().find(|mirror| mirror.host.eq_ignore_ascii_case(name)) {
            return Ok(vec![mirror.address]);
        }
        let unresolved = |source| DialError::Unresolved { host: host.to_owned(), source };
        let (lookups, wanted) = (Arc::clone(&self.lookups), name.to_owned());
        let lookup = async {
            // The permit is awaited outside of the spawned task, so a caller that gives up leaves no waiting task
            // behind.
            let permit = lookups.acquire_owned().await.map_err(io::Error::other)?;
            // A lookup that takes too long keeps its thread, and therefore its permit.
            let found = tokio::spawn(async move {
                let found = tokio::net::lookup_host((wanted, port)).await?.collect::<Vec<_>>();
                drop(permit);
                Ok(found)
            });
            found.await.map_err(io::Error::other).flatten()
        };
        let found = timeout(RESOLVE_TIMEOUT, lookup).await.map_err(|_| unresolved(None))?;
        let found = found.map_err(|e| unresolved(Some(e)))?;
        let is_allowed = self.allowed.as_ref().is_some_and(|allowed| allowed.host == name && allowed.port == port);
        let local = routes::local_networks(&self.proc_net).map_err(DialError::Routes)?;
        let seen_as = *self.seen_as.read().unwrap_or_else(PoisonError::into_inner);
        let may_reach = |address: &SocketAddr| {
            let ip = address.ip();
            is_allowed || (is_public(ip) && seen_as != Some(ip) && !local.iter().any(|network| network.contains(&ip)))
        };
        let checked: Vec<_> = found.into_iter().filter(may_reach).take(MAX_ADDRESSES).collect();
        if checked.is_empty() { Err(DialError::NotPublic(host.to_owned())) } else { Ok(checked) }
    }

    /// Connects to a host. Tries its addresses one after the other.
    pub async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, DialError> {
        let mut source = None;
        for address in self.resolve(host, port).await? {
            match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(e)) => source = Some(e),
                Err(_) => source = None,
            }
        }
        Err(DialError::Unreachable { host: host.to_owned(), source })
    }

    /// A GET request to an address that was checked. The request follows no redirect and uses no proxy: the caller
    /// dials each redirect anew.
    pub async fn get(&self, url: Url, read_timeout: Duration) -> Result<RequestBuilder, DialError> {
        Ok(self.client(&url, read_timeout).await?.get(url))
    }

    /// Like [`Self::get`], but a POST request.
    pub async fn post(&self, url: Url, read_timeout: Duration) -> Result<RequestBuilder, DialError> {
        Ok(self.client(&url, read_timeout).await?.post(url))
    }

    /// A client that connects only to the addresses of this URL's host that were checked.
    async fn client(&self, url: &Url, read_timeout: Duration) -> Result<Client, DialError> {
        let host = url.host_str().unwrap_or_default();
        let addresses = self.resolve(host, url.port_or_known_default().unwrap_or_default()).await?;
        Client::builder()
            .resolve_to_addrs(host, &addresses)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(read_timeout)
            .build()
            .map_err(DialError::Client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn listener() -> (TcpListener, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    #[tokio::test]
    async fn no_way_of_writing_a_private_address_is_connected_to() {
        let (listener, port) = listener().await;
        let dialer = Dialer::default();
        for host in [
            "127.0.0.1",
            "localhost",
            "localhost.",
            "127.1",
            "0x7f.0.0.1",
            "2130706433",
            "0.0.0.0",
            "0",
            "::1",
            "[::1]",
            "::ffff:127.0.0.1",
            "[::ffff:7f00:1]",
        ] {
            let refused = dialer.connect(host, port).await.unwrap_err();
            let is_refused = matches!(refused, DialError::NotPublic(_) | DialError::Unresolved { .. });
            assert!(is_refused, "{host}: {refused:?}");
            if let Ok(url) = Url::parse(&format!("http://{host}:{port}/")) {
                let refused = dialer.get(url, CONNECT_TIMEOUT).await.unwrap_err();
                assert!(
                    matches!(refused, DialError::NotPublic(_) | DialError::Unresolved { .. }),
                    "{host}: {refused:?}"
                );
            }
        }
        let connected = timeout(Duration::ZERO, listener.accept()).await;
        assert!(connected.is_err(), "a connection was made");
    }

    #[tokio::test]
    async fn an_allowed_host_is_reached_at_its_own_port_only() {
        let ((_one, port), (_other, other_port)) = (listener().await, listener().await);
        let dialer = Dialer::default().allowing(AllowedHost { host: "127.0.0.1".to_owned(), port });
        dialer.connect("127.0.0.1", port).await.unwrap();
        assert!(matches!(dialer.connect("127.0.0.1", other_port).await, Err(DialError::NotPublic(_))));
        assert!(matches!(dialer.connect("localhost", port).await, Err(DialError::NotPublic(_))));
    }

    /// A machine whose own network has public addresses, as many servers and all computers with IPv6 have.
    #[tokio::test]
    async fn public_addresses_of_the_machine_and_of_its_networks_are_refused() {
        let proc_net = std::env::temp_dir().join(format!("gpubnb-dialer-{}", std::process::id()));
        std::fs::create_dir_all(&proc_net).unwrap();
        let trie = "|-- 0.0.0.0\n/0 universe UNICAST\n|-- 9.9.9.0\n/24 link UNICAST\n|-- 8.1.1.1\n/32 host LOCAL\n";
        std::fs::write(proc_net.join("fib_trie"), trie).unwrap();
        let dialer = Dialer { proc_net: proc_net.clone(), ..Dialer::default() };
        dialer.refuse_own_address(IpAddr::from([8, 2, 2, 2]));
        for (host, is_reached) in
            [("9.9.9.1", false), ("8.1.1.1", false), ("8.2.2.2", false), ("9.9.8.1", true), ("8.1.1.2", true)]
        {
            assert_eq!(dialer.resolve(host, 443).await.is_ok(), is_reached, "{host}");
        }
        std::fs::remove_file(proc_net.join("fib_trie")).unwrap();
        let refused = dialer.resolve("9.9.8.1", 443).await;
        assert!(matches!(refused, Err(DialError::Routes(_))), "{refused:?}");
        std::fs::remove_dir_all(&proc_net).unwrap();
    }
}
