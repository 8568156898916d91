//! Sends the spans that `trace` records to an OpenTelemetry collector, over OTLP. Spans that the collector does not
//! take in time are dropped: no work waits for monitoring.

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

/// How long the collector may take for a batch, also for the last batch when the process ends.
const PATIENCE: Duration = Duration::from_secs(3);

/// Random ids, except for spans whose ids are chosen beforehand (`trace::chosen`).
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

/// Sends spans until it is dropped; dropping it sends the last ones.
#[derive(Debug)]
pub(crate) struct TraceExport(SdkTracerProvider);

impl TraceExport {
    /// Begins to send to a collector, whose address is such as `http://127.0.0.1:4318`.
    pub(crate) fn start(collector: &str, service: &'static str) -> Result<Self, ExporterBuildError> {
        // Another library in this process may have installed a provider already: that one serves as well.
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
