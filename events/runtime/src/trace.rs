//! Traces that follow a job through the market (<https://www.w3.org/TR/trace-context/>).
//!
//! The id of a job's trace *is* the job's id. Everybody who knows the job can find the trace, and no sender has to be
//! believed about it. The current span travels in the `traceparent` header of requests and events; in DISPATCH, it
//! reaches the worker together with the job.
//!
//! Spans are recorded only if a collector is configured (`monitor`). Without one, tracing costs next to nothing.

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

/// The only version of the header that exists.
const VERSION: &str = "00";

thread_local! {
    /// The ids that the next span of this thread gets instead of random ones.
    static CHOSEN: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
}

/// A step of the work, for which a span is recorded.
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

/// The job, machine and attempt that a span is about. They become attributes of the span and fields of every log line
/// within it.
#[derive(Debug, Clone, Copy, Default)]
pub struct About {
    /// The job.
    pub job: Option<JobId>,
    /// The machine.
    pub machine: Option<MachineId>,
    /// The attempt.
    pub lease: Option<Lease>,
}

impl About {
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

    /// A logging span that gives these fields to every log line within it.
    pub fn logged(self) -> tracing::Span {
        use tracing::field::{Empty, display};
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

/// The ids of a job's trace and of the span of the whole job. That span is recorded when the job is settled; the other
/// spans of the job name it as their parent before.
fn ids(job: JobId) -> (TraceId, SpanId) {
    let bytes = *job.as_bytes();
    let [_, _, _, _, _, _, _, _, half @ ..] = bytes;
    // An id of a client's choice may have zeroes there, but zero is not a valid id of a span.
    (TraceId::from(u128::from_be_bytes(bytes)), SpanId::from(u64::from_be_bytes(half).max(1)))
}

fn remote(trace: TraceId, span: SpanId, flags: TraceFlags) -> Context {
    Context::new().with_remote_span_context(SpanContext::new(trace, span, flags, true, TraceState::default()))
}

/// The context of a job's trace.
pub fn of_job(job: JobId) -> Context {
    let (trace, span) = ids(job);
    remote(trace, span, TraceFlags::SAMPLED)
}

/// The context of a new trace.
pub fn apart() -> Context {
    Context::new()
}

/// The context of the current span; `None` if there is none.
pub fn current() -> Option<Context> {
    Some(Context::current()).filter(|context| context.span().span_context().is_valid())
}

/// Writes the current span into headers.
pub fn inject(headers: &mut HeaderMap) {
    if let Some(context) = current() {
        let span = context.span();
        let at = span.span_context();
        let sampled = u8::from(at.is_sampled());
        headers.insert(header::TRACE, format!("{VERSION}-{}-{}-{sampled:02x}", at.trace_id(), at.span_id()));
    }
}

/// Reads the sender's span from headers. A header that cannot be read counts as none.
pub fn extract(headers: Option<&HeaderMap>) -> Context {
    headers.and_then(|h| h.get(header::TRACE)).and_then(|value| parse(value.as_str())).unwrap_or_default()
}

fn parse(text: &str) -> Option<Context> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lengths = (version, trace.len(), span.len(), flags.len()) == (VERSION, 32, 16, 2);
    let hex = text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit());
    if !lengths || !hex || parts.next().is_some() {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    let context = remote(trace, span, flags);
    let valid = context.span().span_context().is_valid();
    valid.then_some(context)
}

/// Runs `work` in a context from elsewhere.
pub async fn inside<F: Future>(context: Context, work: F) -> F::Output {
    work.with_context(context).await
}

/// Runs `work` as a step within `parent`. The step's span ends with `work`.
pub async fn within<F: Future>(parent: &Context, step: Step, about: About, work: F) -> F::Output {
    let mut span = SpanBuilder::from_name(step.name).with_kind(step.kind).with_attributes(about.attributes());
    span.start_time = step.since.map(system_time);
    let span = global::tracer("gpubnb").build_with_context(span, parent);
    work.with_context(parent.with_span(span)).instrument(about.logged()).await
}

/// Records a span of the past in a job's trace.
pub fn past(job: JobId, name: &'static str, about: About, (from, to): (Timestamp, Timestamp)) {
    record(name, about, (from, to), &of_job(job));
}

/// Records the span of a whole job, which is the parent of all other spans of the job.
pub fn whole(job: JobId, (from, to): (Timestamp, Timestamp)) {
    CHOSEN.set(Some(ids(job)));
    record("job", About::job(job), (from, to), &Context::new());
    CHOSEN.set(None);
}

fn system_time(at: Timestamp) -> SystemTime {
    jiff::Timestamp::from(at).into()
}

fn record(name: &'static str, about: About, (from, to): (Timestamp, Timestamp), parent: &Context) {
    let (from, to) = (system_time(from), system_time(to));
    let span = SpanBuilder::from_name(name).with_start_time(from).with_attributes(about.attributes());
    global::tracer("gpubnb").build_with_context(span, parent).end_with_timestamp(to.max(from));
}

/// The ids that were chosen for the span that is being made, if there are any.
#[cfg(feature = "monitor")]
pub(crate) fn chosen() -> Option<(TraceId, SpanId)> {
    CHOSEN.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_found_by_its_id_in_the_traces() {
        let job = JobId::generate();
        let mut headers = HeaderMap::new();
        let _inside = of_job(job).attach();
        inject(&mut headers);
        let header = headers.get(header::TRACE).map(ToString::to_string).unwrap_or_default();
        let hex = job.to_string().replace('-', "");
        assert_eq!(header, format!("00-{hex}-{}-01", &hex[16..]));
        let back = extract(Some(&headers));
        assert_eq!(back.span().span_context().trace_id().to_string(), hex);
    }

    #[test]
    fn what_cannot_be_read_says_nothing() {
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
        assert!(current().is_none());
    }
}
