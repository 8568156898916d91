//! Sends the spans that `trace` records to an OpenTelemetry collector, over OTLP (OpenTelemetry's protocol). If the
//! collector is too slow, spans are dropped: no work waits for monitoring.

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

/// Longest time for sending one batch of spans, also the last batch when the process ends.
const SEND_TIMEOUT: Duration = Duration::from_secs(3);

/// Generates the ids of traces and spans: random ids, unless `trace::chosen_ids` gives ids for the next span.
#[derive(Debug, Default)]
struct SpanIds(RandomIdGenerator);

impl IdGenerator for SpanIds {
    fn new_trace_id(&self) -> TraceId {
        trace::chosen_ids().map_or_else(|| self.0.new_trace_id(), |(trace, _)| trace)
    }

    fn new_span_id(&self) -> SpanId {
        trace::chosen_ids().map_or_else(|| self.0.new_span_id(), |(_, span)| span)
    }
}

/// Sends spans until this value is dropped. Dropping the value sends the last spans.
#[derive(Debug)]
pub(crate) struct TraceExport(SdkTracerProvider);

impl TraceExport {
    /// Begins to send to `collector`, which is an address such as `http://127.0.0.1:4318`.
    pub(crate) fn start(collector: &str, service: &'static str) -> Result<Self, ExporterBuildError> {
        // The exporter needs a TLS provider. It may use one that another library in this process has installed.
        drop(rustls::crypto::ring::default_provider().install_default());
        let endpoint = format!("{}/v1/traces", collector.trim_end_matches('/'));
        let exporter =
            SpanExporter::builder().with_http().with_endpoint(endpoint).with_timeout(SEND_TIMEOUT).build()?;
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
        if let Err(e) = self.0.shutdown_with_timeout(SEND_TIMEOUT) {
            warn!(error = %e, "the last traces were not sent");
        }
    }
}
