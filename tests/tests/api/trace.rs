//! One job is one distributed trace, from the request that submits the job to its settlement. The test is the
//! collector that receives the trace.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use gpubnb_events::{JobId, Seq, message::header, subject};
use gpubnb_log::Log;
use gpubnb_runtime::nats;
use gpubnb_tests::{
    system::{MarketSettings, System},
    wait::wait_until,
};
use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span};
use prost::Message as _;
use serde_json::json;

/// All spans that were received, each with the service that sent it.
type Spans = Arc<Mutex<Vec<(String, Span)>>>;

/// Starts a collector that receives OTLP over HTTP. Returns its URL and the spans.
async fn start_collector() -> (String, Spans) {
    async fn receive(State(spans): State<Spans>, body: Bytes) -> StatusCode {
        let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
        for resource_spans in request.resource_spans {
            let service =
                resource_spans.resource.unwrap().attributes.into_iter().find(|a| a.key == "service.name").unwrap();
            let service = format!("{:?}", service.value);
            let found =
                resource_spans.scope_spans.into_iter().flat_map(|s| s.spans).map(|span| (service.clone(), span));
            spans.lock().unwrap().extend(found);
        }
        StatusCode::OK
    }
    let spans = Spans::default();
    let router = Router::new().route("/v1/traces", post(receive)).with_state(Arc::clone(&spans));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, spans)
}

/// The spans of a job's trace by name, each with the service that sent it.
type Trace = BTreeMap<String, (String, Span)>;

/// Waits until the job's span and the request's span have arrived, and returns the trace of the job.
async fn wait_for_trace(job: &str, spans: &Spans) -> Trace {
    let trace = job.parse::<JobId>().unwrap().as_bytes().to_vec();
    let mut found = Trace::new();
    wait_until("the trace of the job", async || {
        let all = spans.lock().unwrap().clone();
        let of_job = all.into_iter().filter(|(_, span)| span.trace_id == trace);
        found = of_job.map(|(service, span)| (span.name.clone(), (service, span))).collect();
        found.contains_key("job") && found.contains_key("POST /api/v1/jobs")
    })
    .await;
    found
}

/// The spans of a completed job.
const STEPS: [&str; 22] = [
    "POST /api/v1/jobs",
    "command Submit",
    "append JobSubmitted",
    "queue",
    "command Assign",
    "append JobAssigned",
    "dispatch",
    "command Accept",
    "append Accepted",
    "prepare",
    "command Start",
    "append Started",
    "container",
    "command Exit",
    "append Exited",
    "files",
    "command Report",
    "append Completed",
    "settlement",
    "command Settle",
    "append Settled",
    "job",
];

/// Checks that the span `job` is the root, and that the parent of every other span is in the trace.
fn assert_is_one_tree(trace: &Trace) {
    let ids: BTreeSet<&[u8]> = trace.values().map(|(_, span)| span.span_id.as_slice()).collect();
    for (name, (_, span)) in trace {
        let parent = span.parent_span_id.as_slice();
        assert!(if name == "job" { parent.is_empty() } else { ids.contains(parent) }, "{name}");
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{name}");
    }
    for (child, parent) in [
        ("append JobSubmitted", "command Submit"),
        ("command Submit", "POST /api/v1/jobs"),
        ("POST /api/v1/jobs", "job"),
        ("container", "job"),
    ] {
        assert_eq!(trace[child].1.parent_span_id, trace[parent].1.span_id, "{child}");
    }
    assert!(trace["command Submit"].0.contains("gpubnb-services"), "{}", trace["command Submit"].0);
    assert!(trace["POST /api/v1/jobs"].0.contains("gpubnb-ui"));
}

/// Checks that each phase of the job begins when the phase before it ends.
fn assert_phases_are_contiguous(trace: &Trace) {
    for (before, after) in [
        ("queue", "dispatch"),
        ("dispatch", "prepare"),
        ("prepare", "container"),
        ("container", "files"),
        ("files", "settlement"),
    ] {
        let (before, after) = (&trace[before].1, &trace[after].1);
        assert_eq!(before.end_time_unix_nano, after.start_time_unix_nano, "{}, {}", before.name, after.name);
    }
    let attributes: BTreeSet<&str> = trace["container"].1.attributes.iter().map(|a| a.key.as_str()).collect();
    assert_eq!(attributes, BTreeSet::from(["gpubnb.job", "gpubnb.machine", "gpubnb.lease"]));
}

/// Checks that every event of the job has the trace in a header, and that the services' log names the job, the machine
/// and the lease.
async fn assert_events_name_the_trace(system: &System, job: &str) {
    let client = system.nats_args("projector").connect("projector", subject::PROJECTOR_INBOX).await.unwrap();
    let log = Log::open(nats::jetstream(client)).await.unwrap();
    let (last, mut events) = (log.last_seq().await.unwrap(), 0);
    let trace = job.replace('-', "");
    for seq in 1..=last.0 {
        let headers = log.get_raw(Seq(seq)).await.unwrap().unwrap().headers.unwrap();
        if headers.get(header::CORRELATION).is_some_and(|value| value.as_str() == job) {
            events += 1;
            let trace_parent = headers.get(header::TRACE).unwrap().as_str();
            assert!(trace_parent.starts_with(&format!("00-{trace}-")), "{trace_parent}");
        }
    }
    assert_eq!(events, 7, "submitted, assigned, accepted, started, exited, completed, settled");
    let line = format!("job={job} machine={} lease=", system.machine_id("attic").unwrap());
    assert!(system.process_log("services-0").contains(&line), "{line}: {}", system.process_log("services-0"));
}

#[tokio::test]
async fn a_job_is_one_trace_from_the_request_to_the_settlement() {
    let (address, spans) = start_collector().await;
    let mut system = System::start(MarketSettings { otlp: Some(address), ..MarketSettings::default() }).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    // The job leaves a file, so it always has the phase between the end of its program and its own end. A job without
    // files has that phase only on a slow machine.
    let request = json!({ "template": "render", "parameters": { "width": "160", "height": "90", "samples": "1" } });
    let job = system.consumer.submit(&request).await.unwrap();
    system.consumer.wait_until_settled(&job).await.unwrap();
    let trace = wait_for_trace(&job, &spans).await;
    assert_eq!(trace.keys().map(String::as_str).collect::<BTreeSet<_>>(), BTreeSet::from(STEPS));
    assert_is_one_tree(&trace);
    assert_phases_are_contiguous(&trace);
    assert_events_name_the_trace(&system, &job).await;
}
