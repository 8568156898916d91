//! Sends what `trace` records to an OpenTelemetry collector, over OTLP. What it cannot take in time is dropped: nobody
//! waits for those who watch.

use std::time::Duration;

use opentelemetry::{
    global,
    trace::{SpanId, TraceId},
};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{IdGenerator, RandomIdGenerator, SdkTracerProvider},
};
use tracing::warn;

use crate::trace;

/// How long one batch may take, and the last one when the process ends.
const PATIENCE: Duration = Duration::from_secs(3);

/// Random ids, but for the spans whose ids are known before they are made.
#[derive(Debug, Default)]
struct SpanIds(RandomIdGenerator);

impl IdGenerator for SpanIds {
    fn new_trace_id(&self) -> TraceId {
        trace::chosen().map_or_else(|| self.0.new_trace_id(), |(trace, _)| trace)
    }

    fn new_span_id(&self) -> SpanId {
        trace::chosen().map_or_else(|| self.0.new_span_id(), |(_, span)| span)
    }
}

/// Sends for as long as it lives, and what is left when it goes.
#[derive(Debug)]
pub(crate) struct TraceExport(SdkTracerProvider);

impl TraceExport {
    /// To a collector's address, such as `http://127.0.0.1:4318`.
    pub(crate) fn start(collector: &str, service: &'static str) -> Result<Self, ExporterBuildError> {
        // Another library in this process may have installed one: either is good.
        drop(rustls::crypto::ring::default_provider().install_default());
        let endpoint = format!("{}/v1/traces", collector.trim_end_matches('/'));
        let exporter = SpanExporter::builder().with_http().with_endpoint(endpoint).with_timeout(PATIENCE).build()?;
        let resource = Resource::builder().with_service_name(service).build();
        let provider = SdkTracerProvider::builder()
            .with_id_generator(SpanIds::default())
            .with_resource(resource)
            .with_batch_exporter(exporter)
            .build();
        global::set_tracer_provider(provider.clone());
        Ok(Self(provider))
    }
}

impl Drop for TraceExport {
    fn drop(&mut self) {
        if let Err(e) = self.0.shutdown_with_timeout(PATIENCE) {
            warn!(error = %e, "the last traces were not sent");
        }
    }
}
