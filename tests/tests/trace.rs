//! One job, followed by those who watch: from the request that brings it in to its settlement, in one trace.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use gpubnb_events::{JobId, Seq, message::header, subject};
use gpubnb_log::Log;
use gpubnb_runtime::nats;
use gpubnb_tests::system::{Options, System};
use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span};
use prost::Message as _;
use serde_json::json;

type Spans = Arc<Mutex<Vec<(String, Span)>>>;

/// A collector of traces, as far as a sender sees it: it takes OTLP over HTTP.
async fn collector() -> (String, Spans) {
    async fn take(State(spans): State<Spans>, body: Bytes) -> StatusCode {
        let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
        for of in request.resource_spans {
            let service = of.resource.unwrap().attributes.into_iter().find(|a| a.key == "service.name").unwrap();
            let service = format!("{:?}", service.value);
            let found = of.scope_spans.into_iter().flat_map(|s| s.spans).map(|span| (service.clone(), span));
            spans.lock().unwrap().extend(found);
        }
        StatusCode::OK
    }
    let spans = Spans::default();
    let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&spans));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, spans)
}

/// The spans of a job's trace, by name, once its own is among them.
async fn trace_of(job: &str, spans: &Spans) -> BTreeMap<String, (String, Span)> {
    let trace = job.parse::<JobId>().unwrap().as_bytes().to_vec();
    let by = Instant::now() + Duration::from_secs(30);
    loop {
        let all = spans.lock().unwrap().clone();
        let of_job = all.into_iter().filter(|(_, span)| span.trace_id == trace);
        let found: BTreeMap<_, _> = of_job.map(|(service, span)| (span.name.clone(), (service, span))).collect();
        if found.contains_key("job") && found.contains_key("POST /api/v1/jobs") {
            return found;
        }
        assert!(Instant::now() < by, "no trace of the job: {:?}", found.keys());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_job_is_one_trace_from_the_request_to_the_settlement() {
    let (address, spans) = collector().await;
    let mut system = System::start(Options { otlp: Some(address), ..Options::default() }).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.web.submit(&json!({ "template": "noop" })).await.unwrap();
    system.web.settled(&job).await.unwrap();
    let found = trace_of(&job, &spans).await;

    let names: BTreeSet<&str> = found.keys().map(String::as_str).collect();
    let whole = [
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
        "command Report",
        "append Completed",
        "settlement",
        "command Settle",
        "append Settled",
        "job",
    ];
    assert_eq!(names, BTreeSet::from(whole));
    // One root; and everything else hangs from something that is there.
    let span = |name: &str| &found[name].1;
    let ids: BTreeSet<&[u8]> = found.values().map(|(_, span)| span.span_id.as_slice()).collect();
    for (name, (_, span)) in &found {
        let parent = span.parent_span_id.as_slice();
        assert!(if name == "job" { parent.is_empty() } else { ids.contains(parent) }, "{name}");
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{name}");
    }
    let hangs = |child: &str, parent: &str| assert_eq!(span(child).parent_span_id, span(parent).span_id, "{child}");
    hangs("append JobSubmitted", "command Submit");
    hangs("command Submit", "POST /api/v1/jobs");
    hangs("POST /api/v1/jobs", "job");
    hangs("container", "job");
    assert!(found["command Submit"].0.contains("gpubnb-services"), "{}", found["command Submit"].0);
    assert!(found["POST /api/v1/jobs"].0.contains("gpubnb-ui"));
    // Its phases follow one another.
    for (before, after) in
        [("queue", "dispatch"), ("dispatch", "prepare"), ("prepare", "container"), ("container", "settlement")]
    {
        assert_eq!(span(before).end_time_unix_nano, span(after).start_time_unix_nano, "{before}, {after}");
    }
    let about: BTreeSet<&str> = span("container").attributes.iter().map(|a| a.key.as_str()).collect();
    assert_eq!(about, BTreeSet::from(["gpubnb.job", "gpubnb.machine", "gpubnb.lease"]));

    // Every event about the job says in a header what was going on; and so do the lines of the log.
    let client = system.nats_args("projector").connect("projector", subject::PROJECTOR_INBOX).await.unwrap();
    let log = Log::open(nats::jetstream(client)).await.unwrap();
    let (last, mut events) = (log.last_seq().await.unwrap(), 0);
    let trace = job.replace('-', "");
    for seq in 1..=last.0 {
        let headers = log.get_raw(Seq(seq)).await.unwrap().unwrap().headers.unwrap();
        if headers.get(header::CORRELATION).is_some_and(|of| of.as_str() == job) {
            events += 1;
            let at = headers.get(header::TRACE).unwrap().as_str();
            assert!(at.starts_with(&format!("00-{trace}-")), "{at}");
        }
    }
    assert_eq!(events, 6, "submitted, assigned, accepted, started, completed, settled");
    let line = format!("job={job} machine={} lease=", system.machine("attic").unwrap());
    assert!(system.log("services-0").contains(&line), "{line}: {}", system.log("services-0"));
}
