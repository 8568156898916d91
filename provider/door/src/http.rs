//! The HTTP proxy (RFC 9110, 7.6 and 9.3.6): tunnels by CONNECT, and plain requests by their whole address.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use gpubnb_dialer::DialError;
use http_body_util::{Either, Empty, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{
        CONNECTION, CONTENT_TYPE, EXPECT, HOST, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{io::copy_bidirectional, net::UnixStream, sync::OwnedSemaphorePermit};
use tracing::debug;

use crate::{Door, Refusal, stream::MeteredStream};

/// Longest time until a client has sent the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of a head.
const MAX_HEAD: usize = 64 * 1024;
/// Most headers.
const MAX_HEADERS: usize = 128;

type Body = Either<Incoming, Either<Full<Bytes>, Empty<Bytes>>>;

/// A tunnel that was granted, and begins when the answer is sent.
type Tunnel = Mutex<Option<(OnUpgrade, MeteredStream)>>;

/// Serves one connection of the job: any number of plain requests, or one tunnel.
pub(crate) async fn serve(door: Arc<Door>, stream: UnixStream, permit: Arc<OwnedSemaphorePermit>) {
    let tunnel = Tunnel::default();
    let service =
        hyper::service::service_fn(async |request| Ok::<_, Infallible>(answer(&door, &tunnel, &permit, request).await));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(e) = served {
        debug!(error = %e, "an HTTP connection of a job has ended");
    }
    let granted = tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some((upgrade, mut connection)) = granted else { return };
    let carried = async {
        let mut job = TokioIo::new(upgrade.await.map_err(std::io::Error::other)?);
        copy_bidirectional(&mut job, &mut connection).await
    };
    if let Err(e) = carried.await {
        debug!(error = %e, "a tunnel of a job has ended");
    }
}

async fn answer(
    door: &Arc<Door>,
    tunnel: &Tunnel,
    permit: &Arc<OwnedSemaphorePermit>,
    request: Request<Incoming>,
) -> Response<Body> {
    let answered = if request.method() == Method::CONNECT {
        open_tunnel(door, tunnel, request).await
    } else {
        forward(door, Arc::clone(permit), request).await
    };
    answered.unwrap_or_else(|refusal| refused(&refusal))
}

async fn open_tunnel(
    door: &Arc<Door>,
    tunnel: &Tunnel,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let (host, port) = request
        .uri()
        .host()
        .zip(request.uri().port_u16())
        .ok_or(Refusal::Protocol("a tunnel needs a host and a port, such as example.org:443"))?;
    let connection = door.connect(host, port).await?;
    let upgrade = hyper::upgrade::on(&mut request);
    *tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, connection));
    Ok(Response::new(Either::Right(Either::Right(Empty::new()))))
}

/// Sends a plain request on to its host, over a connection of its own.
async fn forward(
    door: &Arc<Door>,
    permit: Arc<OwnedSemaphorePermit>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let uri = request.uri().clone();
    let host = uri.host().filter(|_| uri.scheme_str() == Some("http")).ok_or(Refusal::Protocol(
        "this is a proxy: it answers CONNECT, and requests with a whole address such as http://example.org/",
    ))?;
    let connection = door.connect(host, uri.port_u16().unwrap_or(80)).await?;
    let unreachable =
        |e: hyper::Error| DialError::Unreachable { host: host.to_owned(), source: Some(std::io::Error::other(e)) };
    let handshake = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .preserve_header_case(true)
        .handshake(TokioIo::new(connection))
        .await;
    let (mut sender, connection) = handshake.map_err(unreachable)?;
    let closed = door.closed.clone();
    // The connection to the host may outlive the request. It counts as one of the job's connections until it closes.
    tokio::spawn(async move {
        drop(closed.run_until_cancelled(connection).await);
        drop(permit);
    });
    remove_headers_of_the_connection(request.headers_mut());
    request.headers_mut().remove(EXPECT);
    let authority = uri.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    if let Ok(authority) = HeaderValue::from_str(&authority) {
        request.headers_mut().insert(HOST, authority);
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
    let mut response = sender.send_request(request).await.map_err(unreachable)?;
    remove_headers_of_the_connection(response.headers_mut());
    Ok(response.map(Either::Left))
}

/// Removes the headers that are meant for the next hop only (RFC 9110, 7.6.1).
fn remove_headers_of_the_connection(headers: &mut HeaderMap) {
    let listed = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<_> = listed.flat_map(|names| names.split(',')).filter_map(|n| n.trim().parse().ok()).collect();
    let hop_by_hop = ["keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate"];
    let fixed = [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE].into_iter();
    for name in named.into_iter().chain(fixed).chain(hop_by_hop.map(HeaderName::from_static)) {
        headers.remove(&name);
    }
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let status = match refusal {
        Refusal::Dial(DialError::Unreachable { .. } | DialError::Routes(_) | DialError::Client(_)) => {
            StatusCode::BAD_GATEWAY
        }
        Refusal::Protocol(_) => StatusCode::BAD_REQUEST,
        _ => StatusCode::FORBIDDEN,
    };
    let mut response = Response::new(Either::Right(Either::Left(Full::from(format!("{refusal}\n")))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
