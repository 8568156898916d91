//! The HTTP server: TLS, time-outs, the check of cross-site requests, and the headers that every response carries.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request},
    http::{HeaderName, HeaderValue, StatusCode, header},
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
    csrf::{CsrfLayer, ProtectionError},
    set_header::SetResponseHeaderLayer,
    timeout::RequestBodyTimeoutLayer,
};
use tracing::info;

use crate::{
    app::App,
    conditional,
    config::RunArgs,
    connection_limit::ConnectionLimit,
    error::{ApiError, PageError, Problem},
    extract::is_for_program,
    page, request_span, routes,
};

/// Methods that have a counter of their own.
const METHODS: [&str; 5] = ["GET", "HEAD", "POST", "PUT", "DELETE"];
/// Largest body of a form or of an API request.
const MAX_BODY: usize = 256 * 1024;
/// How long open requests may take to end at shutdown.
const DRAIN: Duration = Duration::from_secs(3);
/// How long a client may take to send the headers of a request.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// How long a client may pause within a body.
const BODY_SILENCE: Duration = Duration::from_secs(30);
/// How long a request may take until its response begins.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// The same for the upload of a file.
const FILE_WITHIN: Duration = Duration::from_secs(4 * 3600);
/// Connections that one address may have open. Behind a proxy there is no such limit, as all come from one address.
const CONNECTIONS: u64 = 512;
/// Scripts and styles from here only; nothing inline; no frame around the pages.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                   form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Serves until shutdown.
pub(crate) async fn serve(app: App, args: &RunArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let tls = args.tls_cert.as_ref().zip(args.tls_key.as_ref());
    let most = if app.behind_proxy { u64::MAX } else { CONNECTIONS };
    let limited = ConnectionLimit::new(NoDelayAcceptor::new(), most);
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
            // Live pages never end by themselves, so the server does not wait for them.
            handle.graceful_shutdown(Some(DRAIN));
        }
    });
    info!(address = %listener.local_addr()?, tls = tls.is_some(), "ready");
    if let Some((cert, key)) = tls {
        // Installing fails if another library has installed a provider already, which is just as good.
        drop(rustls::crypto::ring::default_provider().install_default());
        let config = RustlsConfig::from_pem_file(cert, key).await.context("the certificate of this server")?;
        let acceptor = RustlsAcceptor::new(config).acceptor(limited);
        let mut server = axum_server::from_tcp(listener)?.acceptor(acceptor).handle(handle);
        limit_slow_clients(server.http_builder());
        server.first_request_timeout(HEADERS_WITHIN).serve(service).await?;
    } else {
        let mut server = axum_server::from_tcp(listener)?.acceptor(limited).handle(handle);
        limit_slow_clients(server.http_builder());
        server.first_request_timeout(HEADERS_WITHIN).serve(service).await?;
    }
    Ok(())
}

/// Ends connections whose client is slow to send a request or does not answer pings.
fn limit_slow_clients<E>(builder: &mut hyper_util::server::conn::auto::Builder<E>) {
    let timer = hyper_util::rt::TokioTimer::new;
    builder.http1().timer(timer()).header_read_timeout(HEADERS_WITHIN);
    builder.http2().timer(timer()).keep_alive_interval(HEADERS_WITHIN).keep_alive_timeout(HEADERS_WITHIN);
}

fn router(app: App, tls: bool) -> Router {
    let fixed = |name: &'static str, value: &'static str| {
        SetResponseHeaderLayer::if_not_present(HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    let hsts = tls.then(|| fixed("strict-transport-security", "max-age=31536000"));
    routes::all()
        .router(&app, nothing_here)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(RequestBodyTimeoutLayer::new(BODY_SILENCE))
        .layer(middleware::from_fn(conditional::versions))
        .layer(middleware::from_fn(in_time))
        .layer(middleware::from_fn(page::error::draw))
        .layer(CompressionLayer::new().compress_when(Compressible))
        .layer(middleware::from_fn(counted))
        .layer(CsrfLayer::new().with_rejection_response(from_another_site))
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

/// Compresses pages, scripts, styles and JSON. Files of jobs keep their length and ranges, and streams of events must
/// not wait for more text.
#[derive(Clone, Copy)]
struct Compressible;

impl Predicate for Compressible {
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

async fn method_not_allowed(request: Request) -> Response {
    let detail = "This address does not take such a request.";
    problem(request.uri().path(), Problem::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", detail))
}

/// Counts a request by its route and not by its address, because clients can make up any number of addresses.
async fn counted(request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let (route, method) = (path.unwrap_or_else(|| "none".to_owned()), request.method().as_str().to_owned());
    let method = if METHODS.contains(&method.as_str()) { method } else { "other".to_owned() };
    let began = std::time::Instant::now();
    let response = request_span::within(format!("{method} {route}"), next.run(request)).await;
    metrics::histogram!(metric::HTTP_SECONDS, "route" => route.clone()).record(began.elapsed());
    let status = response.status().as_u16().to_string();
    metrics::counter!(metric::HTTP_REQUESTS, "method" => method, "route" => route, "status" => status).increment(1);
    response
}

/// Gives up a request that takes too long. Files get much more time.
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

/// The answer to a request that another site made a visitor's browser send. The layer goes by `Sec-Fetch-Site`, and by
/// `Origin` for browsers that do not send it. Programs send neither, and have no visitor whom they could betray.
fn from_another_site(_: ProtectionError) -> Response {
    let detail = "The request comes from another site.";
    ApiError(Problem::new(StatusCode::FORBIDDEN, "ForeignOrigin", detail)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{body::Body, routing::any};
    use tower::ServiceExt as _;

    async fn status(method: &str, uri: &str, headers: &[(&str, &str)]) -> StatusCode {
        let router: Router = Router::new()
            .route("/x", any(|| async { "done" }))
            .layer(CsrfLayer::new().with_rejection_response(from_another_site));
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status()
    }

    #[tokio::test]
    async fn a_request_of_another_site_is_refused_by_either_version_of_http() {
        let own = [("host", "m.example"), ("origin", "https://m.example")];
        let foreign = [("host", "m.example"), ("origin", "https://evil.example")];
        assert_eq!(status("POST", "/x", &own).await, StatusCode::OK);
        assert_eq!(status("POST", "/x", &foreign).await, StatusCode::FORBIDDEN);
        // HTTP/2 has no Host, and the whole address in its place.
        assert_eq!(status("POST", "https://m.example/x", &own[1..]).await, StatusCode::OK);
        assert_eq!(status("POST", "https://m.example/x", &foreign[1..]).await, StatusCode::FORBIDDEN);
        assert_eq!(status("POST", "/x", &[("origin", "null")]).await, StatusCode::FORBIDDEN);
    }

    #[tokio::test]
    async fn a_browser_says_itself_that_a_request_is_foreign() {
        for (site, expected) in [
            ("same-origin", StatusCode::OK),
            ("none", StatusCode::OK),
            ("same-site", StatusCode::FORBIDDEN),
            ("cross-site", StatusCode::FORBIDDEN),
        ] {
            let headers = [("host", "m.example"), ("sec-fetch-site", site)];
            for method in ["POST", "PUT", "DELETE"] {
                assert_eq!(status(method, "/x", &headers).await, expected, "{method} {site}");
            }
            assert_eq!(status("GET", "/x", &headers).await, StatusCode::OK, "reading changes nothing");
        }
        assert_eq!(status("POST", "/x", &[]).await, StatusCode::OK, "a program says nothing");
    }
}
