//! Monitoring of a service over HTTP: `/metrics` for Prometheus, `/healthz` and `/readyz` for the program that starts
//! and stops the service. These pages have a separate address, so that a firewall can hide them from the public.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::get};
use clap::Args;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    collector::TraceExport,
    metric::{self, Kind},
};

/// Upper bounds of the histograms' buckets, seconds: from a query that is answered from memory to a query that waits
/// until the projector has caught up.
const BUCKETS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];
/// Time between two moves of new measurements into the histograms.
const UPKEEP: Duration = Duration::from_secs(5);

/// Options of monitoring.
#[derive(Debug, Clone, Args)]
pub struct MonitorArgs {
    /// Address for `/metrics`, `/healthz` and `/readyz`; without an address they are not served. The public must not
    /// reach the address.
    #[arg(long, env = "GPUBNB_MONITOR", value_name = "ADDRESS")]
    pub monitor: Option<SocketAddr>,
    /// OpenTelemetry collector for traces, over OTLP/HTTP (such as `http://127.0.0.1:4318`); without a collector
    /// no traces are sent.
    #[arg(long, env = "GPUBNB_OTLP", value_name = "URL")]
    pub otlp: Option<String>,
}

/// The reason why a service cannot be monitored.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The service cannot listen on the address.
    #[error("cannot listen on {address} for monitoring")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// Metrics cannot be recorded: something else in this process records them already.
    #[error("cannot record metrics")]
    Record(#[from] metrics_exporter_prometheus::BuildError),
    /// The sender of traces cannot be set up.
    #[error("cannot send traces")]
    Trace(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// The readiness of the service, which `/readyz` reports. Keep this value until the service ends: dropping it sends the
/// last traces.
#[derive(Debug, Clone, Default)]
pub struct Ready {
    state: Arc<RwLock<Readiness>>,
    /// Dropping the export sends the last traces.
    _export: Option<Arc<TraceExport>>,
}

/// The readiness of a service.
#[derive(Debug, Clone, Default)]
enum Readiness {
    #[default]
    Starting,
    Ready,
    /// The service cannot do its work for this reason, and tries again.
    Failing(String),
}

impl Ready {
    /// Tells `/readyz` that the service is ready.
    pub fn set(&self) {
        self.replace(Readiness::Ready);
    }

    /// Tells `/readyz` that the service cannot do its work for this reason, and tries again.
    pub fn set_failing(&self, why: impl Into<String>) {
        self.replace(Readiness::Failing(why.into()));
    }

    fn replace(&self, state: Readiness) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// True between [`Ready::set`] and [`Ready::set_failing`].
    pub fn is_set(&self) -> bool {
        matches!(self.state(), Readiness::Ready)
    }

    fn state(&self) -> Readiness {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves the pages of monitoring until shutdown, if an address was given. Sends traces, if a collector was given.
/// `service` is the name of the service in traces. Call this function before anything is counted.
pub async fn start(
    args: &MonitorArgs,
    service: &'static str,
    shutdown: CancellationToken,
) -> Result<Ready, MonitorError> {
    let export = args.otlp.as_deref().map(|collector| TraceExport::start(collector, service)).transpose()?;
    let ready = Ready { state: Arc::default(), _export: export.map(Arc::new) };
    let Some(address) = args.monitor else { return Ok(ready) };
    let mut builder = PrometheusBuilder::new();
    for metric in metric::ALL.iter().filter(|m| m.kind == Kind::Seconds) {
        builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), &BUCKETS)?;
    }
    let recorded = builder.install_recorder()?;
    for metric in metric::ALL {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Seconds => metrics::describe_histogram!(metric.name, metrics::Unit::Seconds, metric.help),
        }
    }
    let listen = |source| MonitorError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    info!(address = %listener.local_addr().map_err(listen)?, "monitoring listens");
    tokio::spawn(upkeep(recorded.clone(), shutdown.clone()));
    let router = router(recorded, ready.clone(), shutdown.clone());
    tokio::spawn(async move {
        if let Err(e) = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await {
            warn!(error = %e, "monitoring has ended");
        }
    });
    Ok(ready)
}

/// Moves new measurements into the histograms, again and again, until shutdown.
async fn upkeep(recorded: PrometheusHandle, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(UPKEEP)).await.is_some() {
        recorded.run_upkeep();
    }
}

fn router(recorded: PrometheusHandle, ready: Ready, shutdown: CancellationToken) -> Router {
    let is_ready = move || {
        let (state, stopping) = (ready.state(), shutdown.is_cancelled());
        async move {
            match state {
                _ if stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned()),
                Readiness::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n".to_owned()),
                Readiness::Failing(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
                Readiness::Ready => (StatusCode::OK, "ready\n".to_owned()),
            }
        }
    };
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(is_ready))
        .route("/metrics", get(move || async move { recorded.render() }))
}
