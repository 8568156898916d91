//! The server itself: TLS, time-outs, and the headers that every answer carries.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, Request},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use axum_server::{
    Handle,
    accept::NoDelayAcceptor,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tower_http::{set_header::SetResponseHeaderLayer, timeout::RequestBodyTimeoutLayer};
use tracing::info;

use crate::{
    app::App,
    config::RunArgs,
    error::{ApiError, PageError, Problem},
    extract::is_for_program,
    routes,
};

/// Largest body of a form or of an API request.
const MAX_BODY: usize = 256 * 1024;
/// How long open requests may take to end at shutdown.
const DRAIN: Duration = Duration::from_secs(3);
/// How long a client may take to say what it wants.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// How long a client may be silent within a body.
const BODY_SILENCE: Duration = Duration::from_secs(30);
/// After so long a stream of events ends, and its reader comes through the gate again.
const STREAM_LIFE: Duration = Duration::from_secs(15 * 60);
/// Scripts and styles from here only; nothing inline; no frame around the pages.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                   form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Serves until shutdown.
pub(crate) async fn serve(app: App, args: &RunArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let tls = args.tls_cert.as_ref().zip(args.tls_key.as_ref());
    let service = router(app, tls.is_some()).into_make_service_with_connect_info::<SocketAddr>();
    let listener = std::net::TcpListener::bind(args.listen).with_context(|| {
        format!("cannot listen on {}: is the port taken? Choose another with --listen", args.listen)
    })?;
    listener.set_nonblocking(true)?;
    let handle = Handle::new();
    tokio::spawn({
        let handle = handle.clone();
        async move {
            shutdown.cancelled().await;
            // Live pages never end by themselves.
            handle.graceful_shutdown(Some(DRAIN));
        }
    });
    info!(address = %listener.local_addr()?, tls = tls.is_some(), "ready");
    if let Some((cert, key)) = tls {
        // Another library in this process may have installed one: either is good.
        drop(rustls::crypto::ring::default_provider().install_default());
        let config = RustlsConfig::from_pem_file(cert, key).await.context("the certificate of this server")?;
        let acceptor = RustlsAcceptor::new(config).acceptor(NoDelayAcceptor::new());
        let mut server = axum_server::from_tcp(listener)?.acceptor(acceptor).handle(handle);
        slow_clients_end(server.http_builder());
        server.serve(service).await?;
    } else {
        let mut server = axum_server::from_tcp(listener)?.acceptor(NoDelayAcceptor::new()).handle(handle);
        slow_clients_end(server.http_builder());
        server.serve(service).await?;
    }
    Ok(())
}

/// A client that does not say what it wants holds no place for long.
fn slow_clients_end<E>(builder: &mut hyper_util::server::conn::auto::Builder<E>) {
    builder.http1().timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
}

fn router(app: App, tls: bool) -> Router {
    let fixed = |name: &'static str, value: &'static str| {
        SetResponseHeaderLayer::if_not_present(HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    let (router, _) = routes::all().finish();
    let hsts = tls.then(|| fixed("strict-transport-security", "max-age=31536000"));
    router
        .fallback(nothing_here)
        .method_not_allowed_fallback(not_like_this)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(RequestBodyTimeoutLayer::new(BODY_SILENCE))
        .layer(middleware::from_fn(streams_end))
        .layer(Extension(app.clone()))
        .layer(middleware::from_fn(same_origin))
        .layer(SetResponseHeaderLayer::if_not_present(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CSP)))
        .layer(fixed("x-content-type-options", "nosniff"))
        .layer(fixed("x-frame-options", "DENY"))
        .layer(fixed("referrer-policy", "same-origin"))
        .layer(fixed("cross-origin-opener-policy", "same-origin"))
        .layer(fixed("cross-origin-resource-policy", "same-origin"))
        .layer(fixed("permissions-policy", "camera=(), geolocation=(), microphone=()"))
        .layer(tower::util::option_layer(hsts))
        .layer(SetResponseHeaderLayer::if_not_present(header::CACHE_CONTROL, HeaderValue::from_static("no-store")))
        .with_state(app)
}

fn problem(path: &str, problem: Problem) -> Response {
    if is_for_program(path) { ApiError(problem).into_response() } else { PageError(problem).into_response() }
}

async fn nothing_here(request: Request) -> Response {
    problem(request.uri().path(), Problem::not_found("page"))
}

async fn not_like_this(request: Request) -> Response {
    let detail = "This address does not take such a request.";
    problem(request.uri().path(), Problem::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", detail))
}

/// Ends streams of events after a while, so that who was signed out meanwhile learns nothing more.
async fn streams_end(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let kind = response.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    if kind != Some(b"text/event-stream") {
        return response;
    }
    response.map(|body| {
        let until = Box::pin(tokio::time::sleep(STREAM_LIFE));
        axum::body::Body::from_stream(body.into_data_stream().take_until(until))
    })
}

/// Refuses what another site makes a visitor's browser send. Browsers say where a request comes from;
/// programs, which have no visitor to betray, need not.
async fn same_origin(request: Request, next: Next) -> Response {
    if is_foreign(&request) {
        let detail = "The request comes from another site.";
        return ApiError(Problem::new(StatusCode::FORBIDDEN, "ForeignOrigin", detail)).into_response();
    }
    next.run(request).await
}

fn is_foreign(request: &Request) -> bool {
    let header = |name: HeaderName| request.headers().get(name).and_then(|v| v.to_str().ok());
    let safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let site = header(HeaderName::from_static("sec-fetch-site"));
    // An origin without a host ("null") is nobody's.
    let origin = header(header::ORIGIN).map(|o| o.split_once("://").map_or("", |(_, host)| host));
    let foreign_site = site.is_some_and(|site| !matches!(site, "same-origin" | "none"));
    let foreign_origin = origin.is_some_and(|origin| Some(origin) != header(header::HOST));
    !safe && (foreign_site || foreign_origin)
}
