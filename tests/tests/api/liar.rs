//! A machine that lies: its worker is the attacker's own, and has the machine's real credential.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use gpubnb_events::{
    Clock as _, HourlyRate, JobId, Lease, MicroUsd, Seq, SystemClock,
    command::{Accept, Done, Grant, ListMachine, Listed, Outcome, Report, Start},
    spec::{Artifact, Gpu, Hardware, Mebibytes, Offer, OwnerPolicy, Usage},
};
use gpubnb_runtime::rpc::RpcError;
use gpubnb_tests::{
    jobs::{noop, on_machine},
    machine::Stolen,
    market::Market,
    shared::{Plan, Shared},
    wait::until,
};
use reqwest::StatusCode;
use serde_json::json;

use crate::attacks::enrolled;

static MARKET: Shared = Shared::new(Plan::default);

const MARKUP: &str = "<img src=x onerror=y>";

/// A machine that lies, with a job that it has started.
struct Liar {
    market: Market,
    stolen: Stolen,
    client: async_nats::Client,
    job: JobId,
    lease: Lease,
    grant: Grant,
}

/// An offer whose every text is markup.
fn offer() -> Offer {
    let gpu = Gpu {
        uuid: format!("GPU-{MARKUP}"),
        model: MARKUP.to_owned(),
        memory: Mebibytes(1_024),
        capability: None,
        pci: None,
    };
    let hardware = Hardware {
        cpu_model: MARKUP.to_owned(),
        cpu_cores: 4,
        memory: Mebibytes(4_096),
        disk: Mebibytes(4_096),
        gpus: vec![gpu],
        driver: Some(MARKUP.to_owned()),
        cuda: Some(MARKUP.to_owned()),
        simulated: false,
    };
    Offer {
        name: MARKUP.to_owned(),
        region: MARKUP.to_owned(),
        hardware,
        price: HourlyRate(MicroUsd::dollars(1)),
        slots: 1,
        policy: OwnerPolicy::default(),
    }
}

impl Liar {
    /// A liar with keys in a directory of its own.
    async fn start(state: &str) -> Self {
        let market = MARKET.open().await.unwrap();
        let stolen = enrolled(&market, &market.web, state).await;
        let client = stolen.enter(&market).await.unwrap();
        stolen.say::<Listed>(&client, "list", &ListMachine { offer: offer() }).await.unwrap();
        let body = on_machine(noop(), &stolen.machine.to_string());
        let job = market.web.submit(&body).await.unwrap();
        let assigned = |job: &serde_json::Value| job["state"] == "Assigned";
        let assigned = market.web.wait_for(&job, Duration::from_secs(20), assigned).await.unwrap();
        let lease = Lease(Seq(assigned["attempts"][0]["lease"].as_u64().unwrap()));
        let job: JobId = job.parse().unwrap();
        let grant: Grant = stolen.say(&client, "accept", &Accept { job, lease }).await.unwrap();
        let start = Start { job, lease, image_digest: "sha256:x".to_owned() };
        stolen.say::<Done>(&client, "start", &start).await.unwrap();
        Self { market, stolen, client, job, lease, grant }
    }

    /// Puts a file for the job.
    async fn put(&self, name: &str, body: Vec<u8>) -> StatusCode {
        let upload = self.grant.upload.as_ref().unwrap();
        let request = reqwest::Client::new().put(format!("{}/{name}", upload.url)).bearer_auth(&upload.token);
        request.body(body).send().await.unwrap().status()
    }

    /// Opens a connection, and says no more than the head of a request that puts a file of so many bytes.
    fn begin_to_put(&self, name: &str, bytes: usize) -> TcpStream {
        let upload = self.grant.upload.as_ref().unwrap();
        let path = upload.url.strip_prefix(&self.market.url()).unwrap();
        let authorization = format!("authorization: Bearer {}", upload.token);
        let mut stream = TcpStream::connect(self.market.url().strip_prefix("http://").unwrap()).unwrap();
        write!(stream, "PUT {path}/{name} HTTP/1.1\r\nhost: x\r\n{authorization}\r\ncontent-length: {bytes}\r\n\r\n")
            .unwrap();
        stream
    }

    /// A report that the job is completed and left these files, each with a hash that is not its own.
    fn report(&self, files: &[&str]) -> Report {
        let outputs = files.iter().map(|path| Artifact { path: (*path).to_owned(), bytes: 1, sha256: "0".repeat(64) });
        let outputs: Vec<_> = outputs.collect();
        let text = gpubnb_events::manifest::signed_text(self.job, self.lease, &outputs);
        Report {
            job: self.job,
            lease: self.lease,
            outcome: Outcome::Completed,
            outputs,
            usage: Some(Usage::default()),
            occurred_at: SystemClock.now(),
            signature: Some(self.stolen.sign(&text).unwrap()),
        }
    }

    async fn end(&self, files: &[&str]) {
        self.stolen.say::<Done>(&self.client, "report", &self.report(files)).await.unwrap();
        self.market.web.settled(&self.job.to_string()).await.unwrap();
    }
}

#[tokio::test]
async fn a_machine_puts_no_more_than_its_job_may_leave() {
    let liar = Liar::start("puts-too-much").await;
    let half = usize::try_from(liar.grant.spec.resources.output.bytes() / 2 + 1).unwrap();
    assert_eq!(liar.put("a", vec![1; half]).await, StatusCode::NO_CONTENT);
    assert_eq!(liar.put("a", vec![2; 10]).await, StatusCode::CONFLICT);
    // A file that is too large is refused by its announced length, before it is sent.
    let mut large = liar.begin_to_put("b", half);
    let answer = tokio::task::spawn_blocking(move || {
        let mut answer = [0; 12];
        large.read_exact(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    });
    assert_eq!(answer.await.unwrap(), "HTTP/1.1 413");
    assert_eq!(liar.put("..%2fb", vec![1]).await, StatusCode::UNPROCESSABLE_ENTITY);
    let endless = reqwest::Body::wrap_stream(futures_util::stream::once(async { Ok::<_, std::io::Error>(vec![1_u8]) }));
    let upload = liar.grant.upload.as_ref().unwrap();
    let chunked = reqwest::Client::new().put(format!("{}/c", upload.url)).bearer_auth(&upload.token).body(endless);
    assert_eq!(chunked.send().await.unwrap().status(), StatusCode::LENGTH_REQUIRED);
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing_and_its_room_is_free_again() {
    let liar = Liar::start("breaks-off").await;
    let mut broken = liar.begin_to_put("d", 100);
    broken.write_all(b"half").unwrap();
    drop(broken);
    until("the file is put whole", async || liar.put("d", vec![1; 100]).await == StatusCode::NO_CONTENT).await;
    let inbox = gpubnb_events::subject::UI_INBOX;
    let client = liar.market.nats_args("ui").connect("ui", inbox).await.unwrap();
    let files = gpubnb_runtime::nats::jetstream(client).get_object_store(gpubnb_log::stream::ARTIFACTS).await.unwrap();
    assert_eq!(files.info(format!("{}/{}/d", liar.job, liar.lease)).await.unwrap().metadata["bytes"], "100");
}

#[tokio::test]
async fn a_report_without_the_machines_signature_is_nobodys_word() {
    let liar = Liar::start("unsigned").await;
    for signature in [None, Some(liar.stolen.sign("something else").unwrap())] {
        let unsigned = Report { signature, ..liar.report(&["a"]) };
        let answer = liar.stolen.say::<Done>(&liar.client, "report", &unsigned).await;
        assert!(matches!(answer, Err(RpcError::Refused(_))), "{answer:?}");
    }
    liar.end(&["a"]).await;
    assert_eq!(liar.put("e", vec![1]).await, StatusCode::UNAUTHORIZED, "the job has ended");
}

#[tokio::test]
async fn a_file_that_is_not_the_one_that_the_machine_listed_is_given_to_nobody() {
    let liar = Liar::start("another-file").await;
    assert_eq!(liar.put("a", vec![1]).await, StatusCode::NO_CONTENT);
    liar.end(&["a"]).await;
    let (status, _) = liar.market.web.bytes(&format!("/api/v1/jobs/{}/artifacts/a", liar.job)).await.unwrap();
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    let link = liar.market.web.post(&format!("/jobs/{}/links", liar.job), &json!({ "path": "a" })).await.unwrap();
    let (status, _) = liar.market.web.stranger().bytes(link["path"].as_str().unwrap()).await.unwrap();
    assert_eq!(status, StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn the_names_that_a_machine_gives_are_text_on_every_page() {
    let liar = Liar::start("markup").await;
    liar.end(&[MARKUP]).await;
    let (machine, job) = (format!("/machines/{}", liar.stolen.machine), format!("/jobs/{}", liar.job));
    let browser = liar.market.web.at_browser();
    for page in ["/", "/market", "/jobs/new", &machine, &job] {
        let (status, html) = browser.bytes(page).await.unwrap();
        let html = String::from_utf8_lossy(&html).into_owned();
        assert!(status.is_success() && !html.contains(MARKUP), "{page}");
        // The test would pass on pages that do not show the names at all.
        assert!(
            page == "/" || page == "/jobs/new" || html.contains("&lt;img src=x") || html.contains("&#60;img"),
            "{page}"
        );
    }
}

#[tokio::test]
async fn a_text_that_is_too_long_is_no_offer() {
    let market = MARKET.open().await.unwrap();
    let stolen = enrolled(&market, &market.web, "long").await;
    let client = stolen.enter(&market).await.unwrap();
    let mut long = offer();
    long.hardware.cpu_model = "x".repeat(10_000);
    let answer = stolen.say::<Listed>(&client, "list", &ListMachine { offer: long }).await;
    assert!(matches!(answer, Err(RpcError::Refused(_))), "{answer:?}");
}

/// Requests of a machine that asks without end: several times those that it may make in a burst.
const FLOOD: usize = 2_500;
/// Requests of one machine that are decided in each second, and at once after a pause (`services/src/endpoint/context.rs`).
const DECIDED_A_SECOND: u64 = 50;
const DECIDED_AT_ONCE: u64 = 1_000;

#[tokio::test]
async fn a_machine_that_asks_without_end_is_refused_by_name_and_keeps_no_other_from_an_answer() {
    let market = MARKET.open().await.unwrap();
    let (flooding, other) =
        (enrolled(&market, &market.web, "floods").await, enrolled(&market, &market.web, "quiet").await);
    let (client, quiet) = (flooding.enter(&market).await.unwrap(), other.enter(&market).await.unwrap());
    let nonsense = Accept { job: JobId::generate(), lease: Lease(Seq(u64::MAX)) };
    let body = serde_json::to_vec(&nonsense).unwrap();
    let subject = gpubnb_events::subject::machine_command(flooding.machine, "accept");
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    let began = Instant::now();
    for _ in 0..FLOOD {
        client.publish_with_reply(subject.clone(), inbox.clone(), body.clone().into()).await.unwrap();
    }
    client.flush().await.unwrap();
    // Neither its own burst nor the flood of the first machine is told to the second one.
    let answer = other.say::<Grant>(&quiet, "accept", &nonsense).await;
    let Err(RpcError::Refused(refusal)) = answer else { panic!("{answer:?}") };
    assert_eq!(refusal.name, "UnknownJob");
    let (mut decided, mut hasty) = (0, 0);
    while decided + hasty < FLOOD {
        let answer = tokio::time::timeout(Duration::from_secs(30), answers.next()).await.unwrap().unwrap();
        match serde_json::from_slice::<Result<Grant, RpcError>>(&answer.payload).unwrap() {
            Err(RpcError::Refused(_)) => decided += 1,
            Err(RpcError::Unavailable(why)) if why.contains("asks too often") => hasty += 1,
            other => panic!("{other:?}"),
        }
    }
    // However slow the machine is on which this runs: no more than the limit allows in the time that it took.
    let allowed = DECIDED_AT_ONCE + DECIDED_A_SECOND * (began.elapsed().as_secs() + 1);
    assert!(
        decided as u64 <= allowed,
        "{decided} requests were decided, {hasty} refused as too many; {allowed} are allowed"
    );
    assert!(hasty > 0, "a flood of {FLOOD} was never refused");
}
