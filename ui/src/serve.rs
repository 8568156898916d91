//! The server itself: TLS, time-outs, and the headers that every answer carries.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, MatchedPath, Request},
    http::{HeaderName, HeaderValue, Method, StatusCode, header, uri::Authority},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use axum_server::{
    Handle,
    accept::NoDelayAcceptor,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use gpubnb_runtime::metric;
use tokio_util::sync::CancellationToken;
use tower_http::{
    compression::{CompressionLayer, Predicate, predicate::SizeAbove},
    set_header::SetResponseHeaderLayer,
    timeout::RequestBodyTimeoutLayer,
};
use tracing::info;

use crate::{
    app::App,
    conditional,
    config::RunArgs,
    crowd::Crowd,
    error::{ApiError, PageError, Problem},
    extract::is_for_program,
    requested::answering,
    routes,
};

/// Methods that are counted by name.
const METHODS: [&str; 5] = ["GET", "HEAD", "POST", "PUT", "DELETE"];
/// Largest body of a form or of an API request.
const MAX_BODY: usize = 256 * 1024;
/// How long open requests may take to end at shutdown.
const DRAIN: Duration = Duration::from_secs(3);
/// How long a client may take to say what it wants.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// How long a client may be silent within a body.
const BODY_SILENCE: Duration = Duration::from_secs(30);
/// How long a request may take until its answer begins; a file's is put within hours.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
const FILE_WITHIN: Duration = Duration::from_secs(4 * 3600);
/// Connections that one address may have; behind a proxy all come from one.
const CROWD: usize = 512;
/// Scripts and styles from here only; nothing inline; no frame around the pages.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                   form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Serves until shutdown.
pub(crate) async fn serve(app: App, args: &RunArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let tls = args.tls_cert.as_ref().zip(args.tls_key.as_ref());
    let crowd = Crowd::new(NoDelayAcceptor::new(), if app.behind_proxy { usize::MAX } else { CROWD });
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
        let acceptor = RustlsAcceptor::new(config).acceptor(crowd);
        let mut server = axum_server::from_tcp(listener)?.acceptor(acceptor).handle(handle);
        slow_clients_end(server.http_builder());
        server.first_request_timeout(HEADERS_WITHIN).serve(service).await?;
    } else {
        let mut server = axum_server::from_tcp(listener)?.acceptor(crowd).handle(handle);
        slow_clients_end(server.http_builder());
        server.first_request_timeout(HEADERS_WITHIN).serve(service).await?;
    }
    Ok(())
}

/// A client that does not say what it wants holds no place for long.
fn slow_clients_end<E>(builder: &mut hyper_util::server::conn::auto::Builder<E>) {
    let timer = hyper_util::rt::TokioTimer::new;
    builder.http1().timer(timer()).header_read_timeout(HEADERS_WITHIN);
    builder.http2().timer(timer()).keep_alive_interval(HEADERS_WITHIN).keep_alive_timeout(HEADERS_WITHIN);
}

fn router(app: App, tls: bool) -> Router {
    let fixed = |name: &'static str, value: &'static str| {
        SetResponseHeaderLayer::if_not_present(HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    let (router, _) = routes::all().fallback(nothing_here).finish();
    let hsts = tls.then(|| fixed("strict-transport-security", "max-age=31536000"));
    router
        .method_not_allowed_fallback(not_like_this)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(RequestBodyTimeoutLayer::new(BODY_SILENCE))
        .layer(middleware::from_fn(conditional::versions))
        .layer(CompressionLayer::new().compress_when(Squeezed))
        .layer(middleware::from_fn(in_time))
        .layer(middleware::from_fn(counted))
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

/// What is sent smaller: pages, scripts, styles and JSON. Not files of jobs, whose length and ranges are theirs; not
/// streams of events, which must not wait for more.
#[derive(Clone, Copy)]
struct Squeezed;

impl Predicate for Squeezed {
    fn should_compress<B: axum::body::HttpBody>(&self, response: &axum::http::Response<B>) -> bool {
        let header = |name: HeaderName| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let kind = header(header::CONTENT_TYPE);
        let kinds = ["text/html", "text/css", "text/javascript", "application/json", "image/svg+xml"];
        SizeAbove::default().should_compress(response)
            && kinds.iter().any(|k| kind.starts_with(k))
            && header(header::CONTENT_DISPOSITION).is_empty()
    }
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

/// Counts a request by the route that takes it: addresses are as many as visitors make up.
async fn counted(request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let (route, method) = (path.unwrap_or_else(|| "none".to_owned()), request.method().as_str().to_owned());
    let method = if METHODS.contains(&method.as_str()) { method } else { "other".to_owned() };
    let began = std::time::Instant::now();
    let response = answering(format!("{method} {route}"), next.run(request)).await;
    metrics::histogram!(metric::HTTP_SECONDS, "route" => route.clone()).record(began.elapsed());
    let status = response.status().as_u16().to_string();
    metrics::counter!(metric::HTTP_REQUESTS, "method" => method, "route" => route, "status" => status).increment(1);
    response
}

/// Whatever takes longer than it should is given up. Files move at their own pace.
async fn in_time(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_file = path.starts_with("/transfer/") || path.starts_with("/api/v1/inputs/");
    let patience = if is_file { FILE_WITHIN } else { ANSWER_WITHIN };
    let path = path.to_owned();
    tokio::time::timeout(patience, next.run(request)).await.unwrap_or_else(|_| {
        let detail = "The request took too long. Try again.";
        problem(&path, Problem::new(StatusCode::REQUEST_TIMEOUT, "TooSlow", detail))
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
    // HTTP/2 says in the address itself which host is meant.
    let host = header(header::HOST).or_else(|| request.uri().authority().map(Authority::as_str));
    let foreign_origin = origin.is_some_and(|origin| Some(origin) != host);
    !safe && (foreign_site || foreign_origin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    #[test]
    fn a_request_of_another_site_is_foreign_by_either_version_of_http() {
        let request = |host: Option<&str>, uri: &str, origin: &str| {
            let mut builder = Request::builder().method(Method::POST).uri(uri).header("origin", origin);
            if let Some(host) = host {
                builder = builder.header("host", host);
            }
            builder.body(Body::empty()).unwrap()
        };
        assert!(!is_foreign(&request(Some("m.example"), "/x", "https://m.example")));
        assert!(is_foreign(&request(Some("m.example"), "/x", "https://evil.example")));
        // HTTP/2 has no Host, and the whole address in its place.
        assert!(!is_foreign(&request(None, "https://m.example/x", "https://m.example")));
        assert!(is_foreign(&request(None, "https://m.example/x", "https://evil.example")));
        assert!(is_foreign(&request(None, "/x", "null")));
    }
}
