//! Accepts connections of one user of this computer only. Every user can connect to a loopback port, and can read the
//! link in the list of processes, so the link alone would not do. The kernel tells whose socket the other end is.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};
use tracing::warn;

/// The kernel's table of IPv4 connections, `proc_pid_net(5)`.
const TABLE: &str = "/proc/net/tcp";
/// Pause after a connection that could not be accepted, as when too many files are open.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Pause after a connection of another user, who could keep the worker busy otherwise.
const REFUSAL_PAUSE: Duration = Duration::from_millis(100);

/// A listener that refuses the connections of other users.
pub(super) struct OwnersListener {
    pub(super) listener: TcpListener,
    /// The user whose connections are accepted.
    pub(super) uid: u32,
    /// True after the first warning: another user could fill the log with them.
    pub(super) has_warned: bool,
}

impl OwnersListener {
    /// Warns of a refused connection, if it is the first, and waits a moment before the next one.
    async fn warn_once(&mut self, problem: &str) {
        if !std::mem::replace(&mut self.has_warned, true) {
            warn!(problem, "a connection to the page of the worker was refused");
        }
        tokio::time::sleep(REFUSAL_PAUSE).await;
    }
}

impl Listener for OwnersListener {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            let accepted = match self.listener.accept().await {
                Ok((stream, peer)) => stream.local_addr().map(|local| (stream, local, peer)),
                Err(e) => Err(e),
            };
            match accepted {
                Ok((stream, local, peer)) => {
                    let problem = match uid_of_peer(local, peer) {
                        Ok(Some(uid)) if uid == self.uid => return (stream, peer),
                        Ok(uid) => format!("another user ({uid:?}) may not see the page of the worker"),
                        Err(e) => format!("the user behind a connection is not known: {e}"),
                    };
                    self.warn_once(&problem).await;
                }
                Err(e) => {
                    warn!(error = %e, "a connection to the page of the worker was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The user who owns the socket at the other end of a connection within this computer; `None` if there is none.
fn uid_of_peer(local: SocketAddr, peer: SocketAddr) -> io::Result<Option<u32>> {
    Ok(uid_in_table(&std::fs::read_to_string(TABLE)?, peer, local))
}

/// The uid in the row of the socket that is bound to `own` and connected to `remote`.
fn uid_in_table(table: &str, own: SocketAddr, remote: SocketAddr) -> Option<u32> {
    let (own, remote) = (in_table(own)?, in_table(remote)?);
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let is_row = fields.next()? == own && fields.next()? == remote;
        if is_row { fields.nth(4)?.parse().ok() } else { None }
    })
}

/// An address as in the table: the IPv4 address as a number in this computer's byte order, and the port, both in
/// hexadecimal.
fn in_table(address: SocketAddr) -> Option<String> {
    match address.ip() {
        IpAddr::V4(ip) => Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port())),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_tells_whose_socket_connects() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (_server, peer) = accepted.unwrap();
        let own = rustix::process::getuid().as_raw();
        assert_eq!(uid_of_peer(address, peer).unwrap(), Some(own));
        let nobody = SocketAddr::new(peer.ip(), peer.port() ^ 1);
        assert_ne!(nobody, peer);
        assert_eq!(uid_in_table("header\n", peer, address), None);
    }

    #[test]
    fn a_row_is_found_by_both_of_its_ends() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout\n\
             0: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 1 1 0\n\
             1: 0100007F:C351 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1001        0 2 1 0\n";
        let uid = |own: &str| uid_in_table(table, own.parse().unwrap(), "127.0.0.1:8080".parse().unwrap());
        if cfg!(target_endian = "little") {
            assert_eq!(uid("127.0.0.1:50000"), Some(1_000));
            assert_eq!(uid("127.0.0.1:50001"), Some(1_001));
        }
        assert_eq!(uid("127.0.0.1:50002"), None);
    }
}
