//! Puts the server together: connections, routes, and the headers every answer carries.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use gpubnb_events::{
    Actor, CommandId, MicroUsd, SystemClock,
    command::{Deposit, Done, OpenAccount},
    nats::jetstream,
    rpc::{Caller, Failure},
    stream::ARTIFACTS,
    subject::UI_INBOX,
    transfer::TransferKey,
};
use gpubnb_projector::client::QueryClient;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_http::set_header::SetResponseHeaderLayer;
use tracing::{info, warn};

use crate::{
    api,
    app::App,
    assets,
    config::Config,
    error::{PageError, Problem},
    live::{self, Changes},
    page, transfer,
    viewer::{Accounts, DemoAccounts},
};

/// Largest body of a form or of an API request.
const MAX_BODY: usize = 256 * 1024;
/// How long open requests may take to end at shutdown.
const DRAIN: Duration = Duration::from_secs(3);
/// Scripts and styles from here only; nothing inline; no frame around the pages.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                   form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Serves until shutdown.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let demo = config.demo_consumer.zip(config.demo_provider);
    let demo = demo.map(|(consumer, provider)| DemoAccounts { consumer, provider });
    ensure!(
        demo.is_none() || config.demo_in_public || config.listen.ip().is_loopback(),
        "visitors are signed in by themselves: listen on 127.0.0.1, or say --demo-in-public"
    );
    let client = config.nats.connect("ui", UI_INBOX).await?;
    let js = jetstream(client.clone());
    let caller = Caller::new(client.clone());
    let transfer = match &config.transfer_key {
        Some(path) => Some(TransferKey::read(path).with_context(|| format!("reading {}", path.display()))?),
        None => None,
    };
    let artifacts = js
        .get_object_store(ARTIFACTS)
        .await
        .context("ARTIFACTS is missing: start gpubnb-services --provision first")?;
    let changes = Changes::new();
    let tasks = TaskTracker::new();
    tasks.spawn(changes.clone().listen(client, shutdown.clone()));
    let app = App {
        accounts: Accounts(demo),
        queries: QueryClient::new(caller.clone()),
        caller,
        js,
        artifacts,
        changes,
        transfer,
        clock: Arc::new(SystemClock),
    };
    if let Some(demo) = demo {
        open_demo_accounts(&app, demo, &shutdown).await?;
    }
    let listener = tokio::net::TcpListener::bind(config.listen).await.with_context(|| {
        format!("cannot listen on {}: is the port taken? Choose another with --listen", config.listen)
    })?;
    info!(address = %listener.local_addr()?, "ready");
    let stopping = shutdown.clone();
    let serving = axum::serve(listener, routes(app)).with_graceful_shutdown(stopping.cancelled_owned());
    let ended = async {
        shutdown.cancelled().await;
        // Live pages never end by themselves.
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = serving => served?,
        () = ended => {}
    }
    tasks.close();
    tasks.wait().await;
    info!("stopped");
    Ok(())
}

/// Opens the accounts of a demonstration and gives the consumer play money, once.
async fn open_demo_accounts(app: &App, demo: DemoAccounts, shutdown: &CancellationToken) -> anyhow::Result<()> {
    // The deposit's id is made of the account's: saying it at every start is one deposit.
    let deposit: CommandId = demo.consumer.to_string().parse().context("the demo account's id")?;
    let funds = Deposit { deposit, amount: MicroUsd::dollars(100) };
    let consumer = Actor::Account(demo.consumer);
    loop {
        let opened = async {
            app.command::<Done>("account", "open", consumer, &OpenAccount {}).await?;
            app.command::<Done>("account", "open", Actor::Account(demo.provider), &OpenAccount {}).await?;
            app.command::<Done>("account", "deposit", consumer, &funds).await
        };
        match opened.await {
            Ok(_) => return Ok(()),
            Err(Failure::Refused(refusal)) => bail!("the demo accounts: {refusal} (services run with --test-funds?)"),
            Err(Failure::Unavailable(problem)) => warn!(problem, "waiting for the services"),
        }
        tokio::select! {
            () = shutdown.cancelled() => bail!("stopped before the services answered"),
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
    }
}

fn routes(app: App) -> Router {
    let fixed = |name: &'static str, value: &'static str| {
        SetResponseHeaderLayer::if_not_present(HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    Router::new()
        .merge(pages())
        .nest("/api/v1", api_routes())
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .route("/transfer/{job}/{lease}/{*path}", put(transfer::put).layer(DefaultBodyLimit::disable()))
        .layer(middleware::from_fn(same_origin))
        .layer(SetResponseHeaderLayer::if_not_present(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CSP)))
        .layer(fixed("x-content-type-options", "nosniff"))
        .layer(fixed("referrer-policy", "same-origin"))
        .layer(fixed("cross-origin-opener-policy", "same-origin"))
        .layer(fixed("cross-origin-resource-policy", "same-origin"))
        .with_state(app)
}

fn pages() -> Router<App> {
    Router::new()
        .route("/", get(page::landing::page))
        .route("/market", get(page::market::page))
        .route("/market/live", get(page::market::live))
        .route("/machines/{machine}", get(page::machine::page))
        .route("/machines/{machine}/live", get(page::machine::live))
        .route("/machines/{machine}/wish", post(page::provider::change))
        .route("/jobs", get(page::jobs::page).post(page::new_job::submit))
        .route("/jobs/live", get(page::jobs::live))
        .route("/jobs/new", get(page::new_job::page))
        .route("/jobs/quote", post(page::new_job::quote))
        .route("/jobs/{job}", get(page::job::page))
        .route("/jobs/{job}/live", get(live::job::live))
        .route("/jobs/{job}/cancel", post(page::job::cancel))
        .route("/jobs/{job}/log.txt", get(api::jobs::log_text))
        .route("/jobs/{job}/artifacts/{*path}", get(transfer::get))
        .route("/wallet", get(page::wallet::page))
        .route("/wallet/deposits", post(page::wallet::deposit))
        .route("/wallet/payouts", post(page::wallet::payout))
        .route("/provider", get(page::provider::page))
        .route("/persona", post(page::persona::choose))
        .route("/assets/{version}/{name}", get(assets::serve))
        .route("/healthz", get(|| async { "ok" }))
        .fallback(|| async { PageError(Problem::not_found("page")) })
}

fn api_routes() -> Router<App> {
    Router::new()
        .route("/market", get(api::market::figures))
        .route("/machines", get(api::market::machines))
        .route("/machines/{machine}", get(api::market::machine))
        .route("/templates", get(api::market::templates))
        .route("/quote", post(api::jobs::quote))
        .route("/jobs", get(api::jobs::list).post(api::jobs::submit))
        .route("/jobs/{job}", get(api::jobs::get))
        .route("/jobs/{job}/cancel", post(api::jobs::cancel))
        .route("/jobs/{job}/events", get(api::jobs::events))
        .route("/jobs/{job}/logs", get(api::jobs::logs))
        .route("/jobs/{job}/receipt", get(api::jobs::receipt))
        .route("/jobs/{job}/artifacts", get(api::jobs::artifacts))
        .route("/jobs/{job}/artifacts/{*path}", get(transfer::get))
        .route("/wallet", get(api::account::wallet))
        .route("/wallet/deposits", post(api::account::deposit))
        .fallback(|| async { crate::error::ApiError(Problem::not_found("endpoint")) })
}

/// Refuses what another site makes a visitor's browser send. Browsers say where a request comes from;
/// programs, which have no visitor to betray, need not.
async fn same_origin(request: Request, next: Next) -> Response {
    if is_foreign(&request) {
        let detail = "The request comes from another site.";
        return crate::error::ApiError(Problem::new(StatusCode::FORBIDDEN, "ForeignOrigin", detail)).into_response();
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
