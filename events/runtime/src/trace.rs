//! Traces that follow a job through the market (<https://www.w3.org/TR/trace-context/>).
//!
//! A trace is the tree of all spans of one job; a span is one step of the work, with a start and an end. The id of
//! a job's trace *is* the job's id, so everybody who knows the job can find its trace. The current span is sent in the
//! `traceparent` header of requests and events. The broker copies the header of an assignment into DISPATCH, so the
//! worker receives it with the job.
//!
//! Spans are recorded only if a collector is configured (`monitor`). Without a collector, tracing costs almost nothing.

use std::{cell::Cell, future::Future, time::SystemTime};

use async_nats::HeaderMap;
use gpubnb_events::{JobId, Lease, MachineId, Timestamp, message::header};
use opentelemetry::{
    Context, KeyValue,
    context::FutureExt as _,
    global,
    trace::{
        Span as _, SpanBuilder, SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, Tracer as _,
    },
};
use tracing::Instrument as _;

pub use opentelemetry::trace::SpanKind;

/// The version of the `traceparent` header.
const VERSION: &str = "00";

thread_local! {
    /// The ids of the next span of this thread, in place of random ids.
    static CHOSEN_IDS: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
}

/// A step of the work. A span is recorded for the step.
#[derive(Debug, Clone)]
pub struct Step {
    name: String,
    kind: SpanKind,
    since: Option<Timestamp>,
}

impl Step {
    /// A step that begins now.
    pub fn now(name: String, kind: SpanKind) -> Self {
        Self { name, kind, since: None }
    }

    /// A step that began at a time in the past.
    pub fn since(name: String, kind: SpanKind, since: Timestamp) -> Self {
        Self { name, kind, since: Some(since) }
    }
}

/// The job, the machine and the attempt of a span. They are recorded as attributes of the span, and as fields of every
/// log line within the span.
#[derive(Debug, Clone, Copy, Default)]
pub struct SpanFields {
    /// The job.
    pub job: Option<JobId>,
    /// The machine.
    pub machine: Option<MachineId>,
    /// The attempt.
    pub lease: Option<Lease>,
}

impl SpanFields {
    /// A job, without a machine or an attempt.
    pub fn job(job: JobId) -> Self {
        Self { job: Some(job), ..Self::default() }
    }

    fn attributes(self) -> Vec<KeyValue> {
        let text = |name, value: Option<String>| value.map(|value| KeyValue::new(name, value));
        let job = text("gpubnb.job", self.job.map(|v| v.to_string()));
        let machine = text("gpubnb.machine", self.machine.map(|v| v.to_string()));
        let lease = self.lease.and_then(|v| i64::try_from(v.0.0).ok()).map(|v| KeyValue::new("gpubnb.lease", v));
        job.into_iter().chain(machine).chain(lease).collect()
    }

    /// A span for log lines: every log line within the span has these fields.
    pub fn log_span(self) -> tracing::Span {
        use tracing::field::{Empty, display};
        // The span has the highest level, so that every level that `RUST_LOG` chooses keeps the fields.
        let span = tracing::error_span!("at", job = Empty, machine = Empty, lease = Empty);
        if let Some(job) = self.job {
            span.record("job", display(job));
        }
        if let Some(machine) = self.machine {
            span.record("machine", display(machine));
        }
        if let Some(lease) = self.lease {
            span.record("lease", lease.0.0);
        }
        span
    }
}

/// The ids of a job's trace and of the span of the whole job, which is the parent of the job's other spans. Both ids
/// are computed from the job's id, because the span of the whole job is recorded last, when the job is settled.
fn ids_of_job(job: JobId) -> (TraceId, SpanId) {
    let bytes = *job.as_bytes();
    let [_, _, _, _, _, _, _, _, half @ ..] = bytes;
    // The id of a span must not be zero. A client chooses the job's id, so its last eight bytes may be zero.
    (TraceId::from(u128::from_be_bytes(bytes)), SpanId::from(u64::from_be_bytes(half).max(1)))
}

/// The context of a span that another process recorded.
fn remote(trace: TraceId, span: SpanId, flags: TraceFlags) -> Context {
    Context::new().with_remote_span_context(SpanContext::new(trace, span, flags, true, TraceState::default()))
}

/// The context of a job's trace: a new span in it is a child of the span of the whole job.
pub fn job_context(job: JobId) -> Context {
    let (trace, span) = ids_of_job(job);
    remote(trace, span, TraceFlags::SAMPLED)
}

/// An empty context: a new span in it begins a new trace.
pub fn new_trace() -> Context {
    Context::new()
}

/// The context of the current span; `None` if there is none.
pub fn current_context() -> Option<Context> {
    Some(Context::current()).filter(|context| context.span().span_context().is_valid())
}

/// Writes the current span into the `traceparent` header.
pub fn inject(headers: &mut HeaderMap) {
    if let Some(context) = current_context() {
        let span = context.span();
        let at = span.span_context();
        let sampled = u8::from(at.is_sampled());
        headers.insert(header::TRACE, format!("{VERSION}-{}-{}-{sampled:02x}", at.trace_id(), at.span_id()));
    }
}

/// Reads the sender's span from the `traceparent` header. The context is empty if the header is missing or invalid.
pub fn extract(headers: Option<&HeaderMap>) -> Context {
    headers.and_then(|h| h.get(header::TRACE)).and_then(|value| parse(value.as_str())).unwrap_or_default()
}

/// Parses a `traceparent` header: `00-<trace>-<span>-<flags>`, all hexadecimal.
fn parse(text: &str) -> Option<Context> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let has_lengths = (version, trace.len(), span.len(), flags.len()) == (VERSION, 32, 16, 2);
    let is_hex = text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit());
    if !has_lengths || !is_hex || parts.next().is_some() {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    let context = remote(trace, span, flags);
    let is_valid = context.span().span_context().is_valid();
    is_valid.then_some(context)
}

/// Runs `work` in `context`, which may come from another process.
pub async fn in_context<F: Future>(context: Context, work: F) -> F::Output {
    work.with_context(context).await
}

/// Runs `work` and records its span, which is a child of `parent` and ends when `work` ends.
pub async fn in_span<F: Future>(parent: &Context, step: Step, fields: SpanFields, work: F) -> F::Output {
    let mut span = SpanBuilder::from_name(step.name).with_kind(step.kind).with_attributes(fields.attributes());
    span.start_time = step.since.map(system_time);
    let span = global::tracer("gpubnb").build_with_context(span, parent);
    work.with_context(parent.with_span(span)).instrument(fields.log_span()).await
}

/// Records a span in a job's trace, with a start and an end in the past.
pub fn record_past_span(job: JobId, name: &'static str, fields: SpanFields, (from, to): (Timestamp, Timestamp)) {
    record(name, fields, (from, to), &job_context(job));
}

/// Records the span of a whole job, which is the parent of all other spans of the job.
pub fn record_job_span(job: JobId, (from, to): (Timestamp, Timestamp)) {
    CHOSEN_IDS.set(Some(ids_of_job(job)));
    record("job", SpanFields::job(job), (from, to), &Context::new());
    CHOSEN_IDS.set(None);
}

fn system_time(at: Timestamp) -> SystemTime {
    jiff::Timestamp::from(at).into()
}

fn record(name: &'static str, fields: SpanFields, (from, to): (Timestamp, Timestamp), parent: &Context) {
    let (from, to) = (system_time(from), system_time(to));
    let span = SpanBuilder::from_name(name).with_start_time(from).with_attributes(fields.attributes());
    global::tracer("gpubnb").build_with_context(span, parent).end_with_timestamp(to.max(from));
}

/// The ids for the span that is being recorded; `None` for random ids.
#[cfg(feature = "monitor")]
pub(crate) fn chosen_ids() -> Option<(TraceId, SpanId)> {
    CHOSEN_IDS.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_jobs_trace_is_the_jobs_id() {
        let job = JobId::generate();
        let mut headers = HeaderMap::new();
        let _context = job_context(job).attach();
        inject(&mut headers);
        let header = headers.get(header::TRACE).map(ToString::to_string).unwrap_or_default();
        let hex = job.to_string().replace('-', "");
        assert_eq!(header, format!("00-{hex}-{}-01", &hex[16..]));
        let back = extract(Some(&headers));
        assert_eq!(back.span().span_context().trace_id().to_string(), hex);
    }

    #[test]
    fn an_invalid_header_is_ignored() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(parse(good).is_some());
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319é-b7ad6b7169203331-01",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
        assert!(current_context().is_none());
    }
}
