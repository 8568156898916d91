//! The SOCKS5 proxy (RFC 1928): connections only, without a password.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use fast_socks5::{
    ReplyError, Socks5Command,
    server::{Socks5ServerProtocol, SocksServerError},
    util::target_addr::TargetAddr,
};
use gpubnb_dialer::DialError;
use tokio::{io::copy_bidirectional, net::UnixStream, time::timeout};
use tracing::debug;

use crate::{Door, Refusal};

/// Longest time until a client has said where it wants to connect to.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves one connection of the job.
pub(crate) async fn serve(door: Arc<Door>, stream: UnixStream) {
    match timeout(REQUEST_TIMEOUT, read_request(stream)).await {
        Ok(Ok((protocol, command, target))) => {
            if let Err(e) = tunnel(&door, protocol, command, target).await {
                debug!(error = %e, "a SOCKS connection of a job has ended");
            }
        }
        Ok(Err(e)) => debug!(error = %e, "a job speaks no SOCKS5"),
        Err(_) => debug!("a job has begun a SOCKS connection and sent no request"),
    }
}

type Requested = Socks5ServerProtocol<UnixStream, fast_socks5::server::states::CommandRead>;

async fn read_request(stream: UnixStream) -> Result<(Requested, Socks5Command, TargetAddr), SocksServerError> {
    Socks5ServerProtocol::accept_no_auth(stream).await?.read_command().await
}

async fn tunnel(
    door: &Arc<Door>,
    protocol: Requested,
    command: Socks5Command,
    target: TargetAddr,
) -> Result<(), SocksServerError> {
    if !matches!(command, Socks5Command::TCPConnect) {
        door.take_note(&Refusal::Protocol("a job can open TCP connections, and no other ones"));
        return protocol.reply_error(&ReplyError::CommandNotSupported).await;
    }
    let (host, port) = match target {
        TargetAddr::Ip(address) => (address.ip().to_string(), address.port()),
        TargetAddr::Domain(host, port) => (host, port),
    };
    let mut connection = match door.connect(&host, port).await {
        Ok(connection) => connection,
        Err(refusal) => return protocol.reply_error(&reply(&refusal)).await,
    };
    // The reply has room for the address from which the worker connects. The job gets zeros instead, because that
    // address may be one of the owner's network.
    let mut job = protocol.reply_success(SocketAddr::from(([0, 0, 0, 0], 0))).await?;
    if let Err(e) = copy_bidirectional(&mut job, &mut connection).await {
        debug!(error = %e, "a connection of a job has ended");
    }
    Ok(())
}

fn reply(refusal: &Refusal) -> ReplyError {
    match refusal {
        Refusal::Dial(DialError::Unreachable { .. }) => ReplyError::HostUnreachable,
        Refusal::Dial(DialError::Routes(_) | DialError::Client(_)) => ReplyError::GeneralFailure,
        _ => ReplyError::ConnectionNotAllowed,
    }
}
