//! A machine whose worker lies. The test is the worker, and has the machine's real credential.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use gpubnb_events::{
    Clock as _, CommandId, HourlyRate, JobId, Lease, MicroUsd, Seq, SystemClock,
    command::{Accept, AddOutput, Done, Grant, ListMachine, Listed, Outcome, Report, Start},
    output::{LogLine, LogLines, LogStream, Output},
    signed_log::SignedLog,
    spec::{Artifact, Gpu, Hardware, Mebibytes, Offer, OwnerPolicy, Usage},
};
use gpubnb_runtime::rpc::RpcError;
use gpubnb_tests::{
    api_client::ApiClient,
    jobs::{noop_job, pin_to_machine},
    machine_keys::MachineKeys,
    market::Market,
    shared::{Plan, SharedMarket},
    system::MarketSettings,
    wait::wait_until,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::attacks::enroll_new_machine;

/// The market keeps 1 MiB of a job's log.
static MARKET: SharedMarket = SharedMarket::new(|| {
    let services = ["--job-log-mib", "1"].map(str::to_owned).to_vec();
    Plan::with_settings(MarketSettings { services, ..MarketSettings::default() })
});

const MARKUP: &str = "<img src=x onerror=y>";

/// A lying machine that has started a job.
struct Liar {
    market: Market,
    /// The account that submitted the job.
    consumer: ApiClient,
    /// The machine's id and keys. The test has them in place of a worker; nobody stole them.
    stolen: MachineKeys,
    client: async_nats::Client,
    job: JobId,
    lease: Lease,
    grant: Grant,
}

/// An offer in which every text is HTML markup.
fn markup_offer() -> Offer {
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
    /// Enrolls a machine with its keys in the directory `state`, and starts a job on it.
    async fn start(state: &str) -> Self {
        Self::start_with(state, None).await
    }

    /// Like [`Self::start`], with a job that reads an input file of this text.
    async fn start_with(state: &str, input: Option<&'static str>) -> Self {
        let market = MARKET.open().await.unwrap();
        let consumer = market.consumer.clone();
        Self::start_for(market, consumer, state, input).await
    }

    /// Like [`Self::start_with`], at this market, with a job of this consumer.
    async fn start_for(market: Market, consumer: ApiClient, state: &str, input: Option<&'static str>) -> Self {
        let mut job = noop_job();
        if let Some(text) = input {
            let id = CommandId::generate();
            let put = consumer.build_request(Method::PUT, &format!("/api/v1/inputs/{id}")).body(text);
            assert_eq!(put.send().await.unwrap().status(), StatusCode::CREATED);
            job["inputs"] = json!([{ "input": id, "path": "a.txt" }]);
        }
        let stolen = enroll_new_machine(&market, &market.consumer, state).await;
        let client = stolen.renew_and_connect(&market).await.unwrap();
        stolen.send_command::<Listed>(&client, "list", &ListMachine { offer: markup_offer() }).await.unwrap();
        let body = pin_to_machine(job, &stolen.machine.to_string());
        let job = consumer.submit(&body).await.unwrap();
        let assigned = |job: &Value| job["state"] == "Assigned";
        let assigned = consumer.wait_for(&job, Duration::from_secs(20), assigned).await.unwrap();
        let lease = Lease(Seq(assigned["attempts"][0]["lease"].as_u64().unwrap()));
        let job: JobId = job.parse().unwrap();
        let grant: Grant = stolen.send_command(&client, "accept", &Accept { job, lease }).await.unwrap();
        let start = Start { job, lease, image_digest: "sha256:x".to_owned() };
        stolen.send_command::<Done>(&client, "start", &start).await.unwrap();
        Self { market, consumer, stolen, client, job, lease, grant }
    }

    /// Uploads a file of the job.
    async fn upload(&self, name: &str, body: Vec<u8>) -> StatusCode {
        let upload = self.grant.upload.as_ref().unwrap();
        let request = reqwest::Client::new().put(format!("{}/{name}", upload.url)).bearer_auth(&upload.token);
        request.body(body).send().await.unwrap().status()
    }

    /// Opens a connection and sends only the head of an upload. The head announces a file of `bytes` bytes.
    fn send_upload_head(&self, name: &str, bytes: usize) -> TcpStream {
        let upload = self.grant.upload.as_ref().unwrap();
        let path = upload.url.strip_prefix(&self.market.url()).unwrap();
        let authorization = format!("authorization: Bearer {}", upload.token);
        let mut stream = TcpStream::connect(self.market.url().strip_prefix("http://").unwrap()).unwrap();
        write!(stream, "PUT {path}/{name} HTTP/1.1\r\nhost: x\r\n{authorization}\r\ncontent-length: {bytes}\r\n\r\n")
            .unwrap();
        stream
    }

    /// A report that the job is completed and left these files. The hash of each file is wrong.
    fn report(&self, files: &[&str]) -> Report {
        let outputs = files.iter().map(|path| Artifact { path: (*path).to_owned(), bytes: 1, sha256: "0".repeat(64) });
        let outputs: Vec<_> = outputs.collect();
        let text = gpubnb_events::manifest::signed_text(self.job, self.lease, &outputs);
        Report {
            left_out: Vec::new(),
            job: self.job,
            lease: self.lease,
            outcome: Outcome::Completed,
            outputs,
            usage: Some(Usage::default()),
            traffic: None,
            occurred_at: SystemClock.now(),
            signature: Some(self.stolen.sign(&text).unwrap()),
            log: None,
        }
    }

    /// Sends the report and waits for the settlement.
    async fn end_job(&self, files: &[&str]) {
        self.stolen.send_command::<Done>(&self.client, "report", &self.report(files)).await.unwrap();
        self.consumer.wait_until_settled(&self.job.to_string()).await.unwrap();
    }
}

#[tokio::test]
async fn uploads_beyond_the_output_limit_are_refused() {
    let liar = Liar::start("puts-too-much").await;
    let half = usize::try_from(liar.grant.spec.resources.output.bytes() / 2 + 1).unwrap();
    assert_eq!(liar.upload("a", vec![1; half]).await, StatusCode::NO_CONTENT);
    assert_eq!(liar.upload("a", vec![2; 10]).await, StatusCode::CONFLICT);
    // A file that is too large is refused by its announced length, before it is sent.
    let mut large = liar.send_upload_head("b", half);
    let answer = tokio::task::spawn_blocking(move || {
        let mut answer = [0; 12];
        large.read_exact(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    });
    assert_eq!(answer.await.unwrap(), "HTTP/1.1 413");
    assert_eq!(liar.upload("..%2fb", vec![1]).await, StatusCode::UNPROCESSABLE_ENTITY);
    let body_without_length =
        reqwest::Body::wrap_stream(futures_util::stream::once(async { Ok::<_, std::io::Error>(vec![1_u8]) }));
    let upload = liar.grant.upload.as_ref().unwrap();
    let chunked =
        reqwest::Client::new().put(format!("{}/c", upload.url)).bearer_auth(&upload.token).body(body_without_length);
    assert_eq!(chunked.send().await.unwrap().status(), StatusCode::LENGTH_REQUIRED);
}

#[tokio::test]
async fn an_interrupted_upload_leaves_no_file_and_can_be_repeated() {
    let liar = Liar::start("breaks-off").await;
    let mut broken = liar.send_upload_head("d", 100);
    broken.write_all(b"half").unwrap();
    drop(broken);
    wait_until("the whole file is uploaded", async || liar.upload("d", vec![1; 100]).await == StatusCode::NO_CONTENT)
        .await;
    let inbox = gpubnb_events::subject::UI_INBOX;
    let client = liar.market.nats_args("ui").connect("ui", inbox).await.unwrap();
    let files = gpubnb_runtime::nats::jetstream(client).get_object_store(gpubnb_log::stream::ARTIFACTS).await.unwrap();
    assert_eq!(files.info(format!("{}/{}/d", liar.job, liar.lease)).await.unwrap().metadata["bytes"], "100");
}

impl Liar {
    /// Sends lines of a log. The first of them has the number `first_line`. Returns the sequence in the answer, or
    /// the refusal.
    async fn add_lines(&self, job: JobId, lease: Lease, first_line: u64, lines: &[&str]) -> Result<Seq, RpcError> {
        let line = |text: &&str| LogLine {
            stream: LogStream::Stdout,
            at: SystemClock.now(),
            text: (*text).to_owned(),
            cut: 0,
        };
        let output = Output::Log(LogLines { lease, first_line, lines: lines.iter().map(line).collect() });
        let add = AddOutput { job, output };
        self.stolen.send_command::<Done>(&self.client, "output", &add).await.map(|done| done.seq)
    }

    /// The texts of the job's log.
    async fn log(&self) -> Vec<String> {
        let (mut texts, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.consumer.get(&format!("/jobs/{}/logs{cursor}", self.job)).await.unwrap();
            let lines = page["rows"].as_array().unwrap();
            texts.extend(lines.iter().map(|line| line["text"].as_str().unwrap().to_owned()));
            match page["next"].as_str() {
                Some(next) => cursor = format!("?cursor={next}"),
                None => return texts,
            }
        }
    }
}

#[tokio::test]
async fn a_machine_adds_output_only_under_its_own_live_lease_and_once() {
    let liar = Liar::start("talks-too-much").await;
    let (job, lease) = (liar.job, liar.lease);
    let first = liar.add_lines(job, lease, 0, &["one", "two"]).await.unwrap();
    assert_eq!(liar.add_lines(job, lease, 0, &["one", "two"]).await.unwrap(), first, "a repetition");
    liar.add_lines(job, lease, 1, &["two", "three"]).await.unwrap();
    let is_refused = |answer: Result<Seq, RpcError>| matches!(answer, Err(RpcError::Refused(_)));
    assert!(is_refused(liar.add_lines(job, Lease(Seq(1)), 0, &["another lease"]).await));
    assert!(is_refused(liar.add_lines(JobId::generate(), lease, 0, &["another job"]).await));
    let long = "x".repeat(200 << 10);
    assert!(is_refused(liar.add_lines(job, lease, 3, &[&long]).await));
    // A request that is too large for the services is answered, too.
    assert!(is_refused(liar.add_lines(job, lease, 3, &[&"x".repeat(300 << 10)]).await));
    assert_eq!(liar.log().await, ["one", "two", "three"]);
    liar.end_job(&[]).await;
    assert!(is_refused(liar.add_lines(job, lease, 3, &["after the end"]).await));
    assert_eq!(liar.log().await, ["one", "two", "three"]);
}

#[tokio::test]
async fn a_machine_that_floods_its_log_takes_no_room_from_others() {
    let liar = Liar::start("floods-its-log").await;
    let text = "x".repeat(60 << 10);
    for line in 0..100 {
        liar.add_lines(liar.job, liar.lease, line, &[&text]).await.unwrap();
    }
    let log = liar.log().await;
    assert!((10..20).contains(&log.len()), "{} lines", log.len());
    assert!(log.last().unwrap().starts_with("the log is cut here: the market keeps 1 MiB"), "{:?}", log.last());
}

/// A market with 16 MiB for output, so that a room has 4 MiB.
static SMALL: SharedMarket = SharedMarket::new(|| {
    let services = ["--output-mib", "16"].map(str::to_owned).to_vec();
    Plan::with_settings(MarketSettings { services, ..MarketSettings::default() })
});

#[tokio::test]
async fn the_output_of_an_accounts_jobs_takes_its_share_and_no_room_of_others() {
    let market = SMALL.open().await.unwrap();
    let consumer = market.consumer.clone();
    let liar = Liar::start_for(market, consumer, "fills-its-room", None).await;
    let text = "x".repeat(60 << 10);
    for line in 0..80 {
        liar.add_lines(liar.job, liar.lease, line, &[&text]).await.unwrap();
    }
    let log = liar.log().await;
    assert!((60..70).contains(&log.len()), "{} lines", log.len());
    assert!(log.last().unwrap().contains("your share of the market's room, 4 MiB"), "{:?}", log.last());
    let other = ApiClient::sign_up(&liar.market.url(), "has-room").await.unwrap();
    other.deposit("5").await.unwrap();
    let other = Liar::start_for(SMALL.open().await.unwrap(), other, "has-room-too", None).await;
    other.add_lines(other.job, other.lease, 0, &["there is room"]).await.unwrap();
    assert_eq!(other.log().await, ["there is room"]);
}

#[tokio::test]
async fn a_permit_for_an_input_ends_with_the_attempt() {
    let liar = Liar::start_with("reads-later", Some("secret")).await;
    let download = || reqwest::get(&liar.grant.inputs[0]);
    assert_eq!(download().await.unwrap().text().await.unwrap(), "secret");
    liar.end_job(&[]).await;
    assert_eq!(download().await.unwrap().status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_report_without_the_machines_signature_is_refused() {
    let liar = Liar::start("unsigned").await;
    for signature in [None, Some(liar.stolen.sign("something else").unwrap())] {
        let unsigned = Report { signature, ..liar.report(&["a"]) };
        let answer = liar.stolen.send_command::<Done>(&liar.client, "report", &unsigned).await;
        assert!(matches!(answer, Err(RpcError::Refused(_))), "{answer:?}");
    }
    let log = SignedLog { lines: 1, sha256: "0".repeat(64), signature: liar.stolen.sign("something else").unwrap() };
    let unsigned = Report { log: Some(log), ..liar.report(&["a"]) };
    let answer = liar.stolen.send_command::<Done>(&liar.client, "report", &unsigned).await;
    assert!(matches!(answer, Err(RpcError::Refused(_))), "{answer:?}");
    liar.end_job(&["a"]).await;
    assert_eq!(liar.upload("e", vec![1]).await, StatusCode::UNAUTHORIZED, "the job has ended");
}

#[tokio::test]
async fn a_log_that_differs_from_the_signed_log_is_found() {
    for (lines, why) in [(1, "a line is another one"), (5, "the market shows 1 lines, the machine signed 5")] {
        let liar = Liar::start(&format!("signs-{lines}-lines")).await;
        liar.add_lines(liar.job, liar.lease, 0, &["shown"]).await.unwrap();
        let sha256 = "0".repeat(64);
        let signature = liar.stolen.sign(&SignedLog::signed_text(liar.job, liar.lease, lines, &sha256)).unwrap();
        let report = Report { log: Some(SignedLog { lines, sha256, signature }), ..liar.report(&[]) };
        liar.stolen.send_command::<Done>(&liar.client, "report", &report).await.unwrap();
        liar.market.consumer.wait_until_settled(&liar.job.to_string()).await.unwrap();
        let (code, verdict) = liar.market.consumer.verify_with_client(&liar.job.to_string()).unwrap();
        assert_eq!((code, verdict["log"]["differs"].as_str()), (Some(1), Some(why)), "{verdict:#}");
    }
}

#[tokio::test]
async fn a_file_that_differs_from_its_signed_hash_is_not_served() {
    let liar = Liar::start("another-file").await;
    assert_eq!(liar.upload("a", vec![1]).await, StatusCode::NO_CONTENT);
    liar.end_job(&["a"]).await;
    let (status, _) = liar.market.consumer.bytes(&format!("/api/v1/jobs/{}/artifacts/a", liar.job)).await.unwrap();
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    let link = liar.market.consumer.post(&format!("/jobs/{}/links", liar.job), &json!({ "path": "a" })).await.unwrap();
    let (status, _) = liar.market.consumer.stranger().bytes(link["path"].as_str().unwrap()).await.unwrap();
    assert_eq!(status, StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn html_in_the_names_from_a_machine_is_escaped_on_every_page() {
    let liar = Liar::start("markup").await;
    liar.end_job(&[MARKUP]).await;
    let (machine, job) = (format!("/machines/{}", liar.stolen.machine), format!("/jobs/{}", liar.job));
    let browser = liar.market.consumer.browser_session();
    for page in ["/", "/market", "/jobs/new", &machine, &job] {
        let (status, html) = browser.bytes(page).await.unwrap();
        let html = String::from_utf8_lossy(&html).into_owned();
        assert!(status.is_success() && !html.contains(MARKUP), "{page}");
        // Without this check the test would pass on pages that do not show the names at all.
        assert!(
            page == "/" || page == "/jobs/new" || html.contains("&lt;img src=x") || html.contains("&#60;img"),
            "{page}"
        );
    }
}

#[tokio::test]
async fn an_offer_with_a_text_that_is_too_long_is_refused() {
    let market = MARKET.open().await.unwrap();
    let stolen = enroll_new_machine(&market, &market.consumer, "long").await;
    let client = stolen.renew_and_connect(&market).await.unwrap();
    let mut long = markup_offer();
    long.hardware.cpu_model = "x".repeat(10_000);
    let answer = stolen.send_command::<Listed>(&client, "list", &ListMachine { offer: long }).await;
    assert!(matches!(answer, Err(RpcError::Refused(_))), "{answer:?}");
}

#[tokio::test]
async fn of_many_connections_of_one_machine_only_the_newest_stay() {
    use async_nats::connection::State::Connected;
    let market = MARKET.open().await.unwrap();
    let stolen = enroll_new_machine(&market, &market.consumer, "connects-often").await;
    let renewed = stolen.renew(&market.consumer.stranger()).await.unwrap();
    let jwt = renewed["jwt"].as_str().unwrap();
    let other = enroll_new_machine(&market, &market.consumer, "connects-once").await;
    let other = other.renew_and_connect(&market).await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push(stolen.connect_with_pause(&market, jwt, Duration::from_secs(3_600)).await.unwrap());
    }
    let connected = || clients.iter().filter(|client| client.connection_state() == Connected).count();
    wait_until("four connections stay", async || connected() == 4).await;
    assert!(clients[..8].iter().all(|client| client.connection_state() != Connected), "the newest stay");
    other.flush().await.unwrap();
    assert_eq!(other.connection_state(), Connected);
    assert_eq!(
        other.statistics().connects.load(std::sync::atomic::Ordering::Relaxed),
        1,
        "nobody ended this connection"
    );
}

/// Number of requests of the flooding machine. It is more than twice the allowed burst.
const FLOOD: usize = 2_500;
/// Requests of one machine that the services decide per second (`services/src/endpoint/context.rs`).
const DECIDED_PER_SECOND: u64 = 50;
/// Requests of one machine that the services decide in a burst.
const DECIDED_IN_BURST: u64 = 1_000;

#[tokio::test]
async fn a_flood_of_one_machine_is_limited_and_other_machines_still_get_answers() {
    let market = MARKET.open().await.unwrap();
    let (flooding, other) = (
        enroll_new_machine(&market, &market.consumer, "floods").await,
        enroll_new_machine(&market, &market.consumer, "quiet").await,
    );
    let (flooding_client, other_client) =
        (flooding.renew_and_connect(&market).await.unwrap(), other.renew_and_connect(&market).await.unwrap());
    let nonsense = Accept { job: JobId::generate(), lease: Lease(Seq(u64::MAX)) };
    let body = serde_json::to_vec(&nonsense).unwrap();
    let subject = gpubnb_events::subject::machine_command(flooding.machine, "accept");
    let inbox = flooding_client.new_inbox();
    let mut answers = flooding_client.subscribe(inbox.clone()).await.unwrap();
    let began = Instant::now();
    for _ in 0..FLOOD {
        flooding_client.publish_with_reply(subject.clone(), inbox.clone(), body.clone().into()).await.unwrap();
    }
    flooding_client.flush().await.unwrap();
    // The second machine gets an ordinary answer during the flood of the first machine.
    let answer = other.send_command::<Grant>(&other_client, "accept", &nonsense).await;
    let Err(RpcError::Refused(refusal)) = answer else { panic!("{answer:?}") };
    assert_eq!(refusal.name, "UnknownJob");
    let (mut decided, mut limited) = (0, 0);
    while decided + limited < FLOOD {
        let answer = tokio::time::timeout(Duration::from_secs(30), answers.next()).await.unwrap().unwrap();
        match serde_json::from_slice::<Result<Grant, RpcError>>(&answer.payload).unwrap() {
            Err(RpcError::Refused(_)) => decided += 1,
            Err(RpcError::Unavailable(why)) if why.contains("asks too often") => limited += 1,
            unexpected => panic!("{unexpected:?}"),
        }
    }
    // The bound uses the measured time, so that a slow computer does not fail the test.
    let allowed = DECIDED_IN_BURST + DECIDED_PER_SECOND * (began.elapsed().as_secs() + 1);
    assert!(
        decided as u64 <= allowed,
        "{decided} requests were decided, {limited} refused as too many; {allowed} are allowed"
    );
    assert!(limited > 0, "a flood of {FLOOD} was never refused");
}
