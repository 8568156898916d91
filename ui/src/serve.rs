//! The HTTP server: TLS, time-outs, the refusal of cross-site requests, and the security headers of every response.

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
    drained_body::drain_body,
    error::{ApiError, PageError, Problem},
    extract::is_api_path,
    page, request_span, routes,
};

/// The methods that metrics count separately. Other methods are counted together as `other`.
const METHODS: [&str; 5] = ["GET", "HEAD", "POST", "PUT", "DELETE"];
/// The maximum size of the body of a form or of an API request, in bytes.
const MAX_BODY_BYTES: usize = 256 * 1024;
/// The maximum time for open requests to end at shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);
/// The maximum time in which a client sends the headers of a request.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum pause of a client while it sends a body.
const BODY_PAUSE_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum time until the response to a request begins.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// The maximum time until the response to a file transfer begins, including the upload.
const FILE_TIMEOUT: Duration = Duration::from_secs(4 * 3600);
/// The maximum number of open connections from one address. Behind a proxy there is no limit, because all connections
/// come from the address of the proxy.
const MAX_CONNECTIONS: u64 = 512;
/// The content security policy: scripts and styles come only from this server and are never inline, and no site may
/// show a page in a frame.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; \
                   connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Serves until shutdown.
pub(crate) async fn serve(app: App, args: &RunArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let tls = args.tls_cert.as_ref().zip(args.tls_key.as_ref());
    let max_connections = if app.behind_proxy { u64::MAX } else { MAX_CONNECTIONS };
    let limited = ConnectionLimit::new(NoDelayAcceptor::new(), max_connections);
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
            // The streams of open pages do not end by themselves, so the shutdown has a time-out.
            handle.graceful_shutdown(Some(SHUTDOWN_TIMEOUT));
        }
    });
    info!(address = %listener.local_addr()?, tls = tls.is_some(), "ready");
    if let Some((cert, key)) = tls {
        // An error means that another library has already installed a provider. That provider works as well.
        drop(rustls::crypto::ring::default_provider().install_default());
        let config = RustlsConfig::from_pem_file(cert, key).await.context("reading the certificate of this server")?;
        let acceptor = RustlsAcceptor::new(config).acceptor(limited);
        let mut server = axum_server::from_tcp(listener)?.acceptor(acceptor).handle(handle);
        limit_slow_clients(server.http_builder());
        server.first_request_timeout(HEADERS_TIMEOUT).serve(service).await?;
    } else {
        let mut server = axum_server::from_tcp(listener)?.acceptor(limited).handle(handle);
        limit_slow_clients(server.http_builder());
        server.first_request_timeout(HEADERS_TIMEOUT).serve(service).await?;
    }
    Ok(())
}

/// Closes the connection of a client that sends headers too slowly or does not answer HTTP/2 pings.
fn limit_slow_clients<E>(builder: &mut hyper_util::server::conn::auto::Builder<E>) {
    let timer = hyper_util::rt::TokioTimer::new;
    builder.http1().timer(timer()).header_read_timeout(HEADERS_TIMEOUT);
    builder.http2().timer(timer()).keep_alive_interval(HEADERS_TIMEOUT).keep_alive_timeout(HEADERS_TIMEOUT);
}

fn router(app: App, tls: bool) -> Router {
    let fixed_header = |name: &'static str, value: &'static str| {
        SetResponseHeaderLayer::if_not_present(HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    let hsts = tls.then(|| fixed_header("strict-transport-security", "max-age=31536000"));
    routes::all()
        .router(&app, not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(RequestBodyTimeoutLayer::new(BODY_PAUSE_TIMEOUT))
        .layer(middleware::from_fn(conditional::add_etags))
        .layer(middleware::from_fn(limit_time))
        .layer(middleware::from_fn(page::error::render_errors))
        .layer(CompressionLayer::new().compress_when(Compressible))
        .layer(middleware::from_fn(measure_request))
        .layer(CsrfLayer::new().with_rejection_response(cross_site_refusal))
        .layer(middleware::from_fn(drain_body))
        .layer(SetResponseHeaderLayer::if_not_present(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CSP)))
        .layer(fixed_header("x-content-type-options", "nosniff"))
        .layer(fixed_header("x-frame-options", "DENY"))
        .layer(fixed_header("referrer-policy", "same-origin"))
        .layer(fixed_header("cross-origin-opener-policy", "same-origin"))
        .layer(fixed_header("cross-origin-resource-policy", "same-origin"))
        .layer(fixed_header("permissions-policy", "camera=(), geolocation=(), microphone=()"))
        .layer(tower::util::option_layer(hsts))
        .layer(SetResponseHeaderLayer::if_not_present(header::CACHE_CONTROL, HeaderValue::from_static("no-store")))
        .with_state(app)
}

/// Selects the responses to compress: pages, scripts, styles and JSON. Files of jobs are not compressed, because
/// clients may request ranges of them. Streams of events are not compressed, because compression would delay the
/// events.
#[derive(Clone, Copy)]
struct Compressible;

impl Predicate for Compressible {
    fn should_compress<B: axum::body::HttpBody>(&self, response: &axum::http::Response<B>) -> bool {
        let header = |name: HeaderName| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let kind = header(header::CONTENT_TYPE);
        let media_types = ["text/html", "text/css", "text/javascript", "application/json", "image/svg+xml"];
        SizeAbove::default().should_compress(response)
            && media_types.iter().any(|media_type| kind.starts_with(media_type))
            && header(header::CONTENT_DISPOSITION).is_empty()
    }
}

/// Answers with an error, as JSON or as a page.
fn problem(path: &str, problem: Problem) -> Response {
    if is_api_path(path) { ApiError(problem).into_response() } else { PageError(problem).into_response() }
}

async fn not_found(request: Request) -> Response {
    problem(request.uri().path(), Problem::not_found("page"))
}

async fn method_not_allowed(request: Request) -> Response {
    let detail = "This address does not accept this method.";
    problem(request.uri().path(), Problem::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", detail))
}

/// Measures a request. The label is the route, such as `/jobs/{job}`, and not the path, because clients can send any
/// number of different paths.
async fn measure_request(request: Request, next: Next) -> Response {
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

/// Ends a request that takes too long. Transfers of files have more time.
async fn limit_time(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_content = path.starts_with("/api/v1/datasets/") && path.ends_with("/contents");
    // The table of a large batch takes a while: the measurements of each task are read.
    let is_table = path.starts_with("/api/v1/batches/") && path.ends_with("/results.csv");
    let is_file = path.starts_with("/transfer/") || path.starts_with("/api/v1/inputs/") || is_content || is_table;
    let limit = if is_file { FILE_TIMEOUT } else { RESPONSE_TIMEOUT };
    let path = path.to_owned();
    tokio::time::timeout(limit, next.run(request)).await.unwrap_or_else(|_| {
        let detail = "The request took too long. Try again.";
        problem(&path, Problem::new(StatusCode::REQUEST_TIMEOUT, "TooSlow", detail))
    })
}

/// The answer to a cross-site request: a request that another site makes a visitor's browser send. `CsrfLayer`
/// recognises such a request by the header `Sec-Fetch-Site`, or by `Origin` in older browsers. Programs send neither
/// header, and are not affected.
fn cross_site_refusal(_: ProtectionError) -> Response {
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
            .layer(CsrfLayer::new().with_rejection_response(cross_site_refusal));
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status()
    }

    #[tokio::test]
    async fn a_cross_site_request_is_refused_in_http_1_and_http_2() {
        let own = [("host", "m.example"), ("origin", "https://m.example")];
        let foreign = [("host", "m.example"), ("origin", "https://evil.example")];
        assert_eq!(status("POST", "/x", &own).await, StatusCode::OK);
        assert_eq!(status("POST", "/x", &foreign).await, StatusCode::FORBIDDEN);
        // HTTP/2 has no header `Host`; the URI contains the host.
        assert_eq!(status("POST", "https://m.example/x", &own[1..]).await, StatusCode::OK);
        assert_eq!(status("POST", "https://m.example/x", &foreign[1..]).await, StatusCode::FORBIDDEN);
        assert_eq!(status("POST", "/x", &[("origin", "null")]).await, StatusCode::FORBIDDEN);
    }

    #[tokio::test]
    async fn a_cross_site_request_is_recognised_by_sec_fetch_site() {
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
            assert_eq!(status("GET", "/x", &headers).await, StatusCode::OK, "a GET request changes nothing");
        }
        assert_eq!(status("POST", "/x", &[]).await, StatusCode::OK, "a program sends neither header");
    }
}
