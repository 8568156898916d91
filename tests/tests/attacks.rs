//! What somebody with a foothold would try: a machine that lies, a revoked one that comes back, uploads without end,
//! connections that say nothing, questions that wait for ever.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Output},
    time::{Duration, Instant},
};

use gpubnb_events::{
    Clock as _, CommandId, HourlyRate, JobId, Lease, MicroUsd, Seq, SystemClock,
    command::{Accept, Done, Grant, ListMachine, Listed, Outcome, Report, Start},
    spec::{Artifact, Gpu, Hardware, Mebibytes, Offer, OwnerPolicy, Usage},
};
use gpubnb_tests::{
    machine::Stolen,
    parts::binary,
    system::{Options, System},
    web::Web,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const MARKUP: &str = "<img src=x onerror=y>";

fn enroll(system: &System, state: &str, code: &str) -> Output {
    Command::new(binary("gpubnb-provider").unwrap())
        .args(["enroll", code, "--market", &system.url(), "--state"])
        .arg(system.path().join(state))
        .output()
        .unwrap()
}

async fn code(owner: &Web) -> String {
    owner.post("/enrollments", &json!({})).await.unwrap()["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_was_revoked_does_not_come_back_by_itself_and_a_ban_holds() {
    let system = System::start(Options::default()).await.unwrap();
    let first = code(&system.owner).await;
    assert!(enroll(&system, "attic", &first).status.success());
    let thief = Stolen::from(&system.path().join("attic")).unwrap();
    let stranger = system.web.stranger();
    let jwt = thief.renew(&stranger).await.unwrap()["jwt"].as_str().unwrap().to_owned();
    let path = format!("/machines/{}/credential", thief.machine);
    system.owner.request(Method::DELETE, &path, None).await.unwrap();
    // Whoever has the machine's directory has its code too, perhaps.
    let again = enroll(&system, "attic", &first);
    assert!(String::from_utf8_lossy(&again.stderr).contains("BadCode"), "{again:?}");
    // A new code brings the machine back, and not what was issued before.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert!(enroll(&system, "attic", &code(&system.owner).await).status.success());
    assert!(thief.enter(&system).await.is_ok());
    assert!(thief.connect(&system, &jwt).await.is_err());
    let operator = Web::operator(&system).await.unwrap();
    let banned = operator.request(Method::DELETE, &format!("/ops{path}"), None).await.unwrap();
    assert_eq!(banned.0, StatusCode::NO_CONTENT, "{}", banned.1);
    let refused = enroll(&system, "attic", &code(&system.owner).await);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Banned"), "{refused:?}");
    // The machines of a suspended account get no credential either.
    assert!(enroll(&system, "cellar", &code(&system.owner).await).status.success());
    let cellar = Stolen::from(&system.path().join("cellar")).unwrap();
    let body = json!({ "reason": "spam" });
    let path = format!("/ops/accounts/{}/suspension", system.owner.account);
    let suspended = operator.request(Method::POST, &path, Some(&body)).await.unwrap();
    assert_eq!(suspended.0, StatusCode::OK, "{}", suspended.1);
    let refused = cellar.renew(&stranger).await.unwrap_err().to_string();
    assert!(refused.contains("suspended"), "{refused}");
    // Nor does what it has leave it, whoever adds to it.
    let path = format!("/ops/accounts/{}/deposits", system.owner.account);
    let body = json!({ "deposit": CommandId::generate(), "amount_usd": "5" });
    for _ in 0..2 {
        let funded = operator.request(Method::POST, &path, Some(&body)).await.unwrap();
        assert_eq!(funded.0, StatusCode::OK, "{}", funded.1);
    }
    let wallet = system.owner.get("/wallet").await.unwrap();
    assert_eq!(wallet["balance"]["available"], 5_000_000, "said twice is one deposit: {wallet}");
    let payout = json!({ "payout": CommandId::generate(), "amount_usd": "1" });
    let refused = system.owner.at_browser().request(Method::POST, "/wallet/payouts", Some(&payout)).await.unwrap();
    assert_eq!((refused.0, &refused.1["title"]), (StatusCode::FORBIDDEN, &json!("Suspended")), "{}", refused.1);
    // Which operator it was stands in the log.
    let client = system.nats_args("services").connect("append", gpubnb_events::subject::SERVICES_INBOX).await.unwrap();
    let log = gpubnb_log::Log::open(gpubnb_runtime::nats::jetstream(client)).await.unwrap();
    let account = gpubnb_events::Aggregate::Account(system.owner.account.parse().unwrap());
    let last = log.load(account).await.unwrap().pop().unwrap();
    let me = operator.get("/account").await.unwrap()["account"].as_str().unwrap().to_owned();
    assert_eq!(last.envelope().unwrap().actor.to_string(), format!("operator:{me}"));
}

#[tokio::test]
async fn codes_are_counted() {
    let system = System::start(Options::default()).await.unwrap();
    for _ in 0..10 {
        code(&system.owner).await;
    }
    let (status, problem) = system.owner.request(Method::POST, "/enrollments", Some(&json!({}))).await.unwrap();
    assert_eq!((status, &problem["title"]), (StatusCode::CONFLICT, &json!("TooManyCodes")));
    code(&system.web).await;
}

/// A machine whose worker is the attacker's own, with a job on it that it has started.
struct Liar {
    system: System,
    stolen: Stolen,
    client: async_nats::Client,
    job: JobId,
    lease: Lease,
    grant: Grant,
}

async fn liar() -> Liar {
    let system = System::start(Options::default()).await.unwrap();
    assert!(enroll(&system, "attic", &code(&system.owner).await).status.success());
    let stolen = Stolen::from(&system.path().join("attic")).unwrap();
    let client = stolen.enter(&system).await.unwrap();
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
    let offer = Offer {
        name: MARKUP.to_owned(),
        region: MARKUP.to_owned(),
        hardware,
        price: HourlyRate(MicroUsd::dollars(1)),
        slots: 1,
        policy: OwnerPolicy::default(),
    };
    let long = Offer { name: "x".to_owned(), region: "x".to_owned(), ..offer.clone() };
    let long = Offer { hardware: Hardware { cpu_model: "x".repeat(10_000), ..long.hardware.clone() }, ..long };
    assert!(stolen.say::<Listed>(&client, "list", &ListMachine { offer: long }).await.is_err());
    stolen.say::<Listed>(&client, "list", &ListMachine { offer }).await.unwrap();
    let job = system.web.submit(&json!({ "template": "noop", "budget_usd": "0.10" })).await.unwrap();
    let assigned = system.web.wait_for(&job, Duration::from_secs(20), |job| job["state"] == "Assigned").await.unwrap();
    let lease = Lease(Seq(assigned["attempts"][0]["lease"].as_u64().unwrap()));
    let job: JobId = job.parse().unwrap();
    let grant: Grant = stolen.say(&client, "accept", &Accept { job, lease }).await.unwrap();
    let start = Start { job, lease, image_digest: "sha256:x".to_owned() };
    stolen.say::<Done>(&client, "start", &start).await.unwrap();
    Liar { system, stolen, client, job, lease, grant }
}

#[tokio::test]
async fn a_machine_puts_no_more_than_its_job_may_leave_and_nothing_afterwards() {
    let l = liar().await;
    let upload = l.grant.upload.clone().unwrap();
    let most = l.grant.spec.resources.output.bytes();
    let client = reqwest::Client::new();
    let put = async |name: &str, body: Vec<u8>| {
        let request = client.put(format!("{}/{name}", upload.url)).bearer_auth(&upload.token).body(body);
        request.send().await.unwrap().status()
    };
    let half = usize::try_from(most / 2 + 1).unwrap();
    assert_eq!(put("a", vec![1; half]).await, StatusCode::NO_CONTENT);
    assert_eq!(put("a", vec![2; 10]).await, StatusCode::CONFLICT);
    // It is refused for what it says it will send, before it does.
    let address = l.system.url().strip_prefix("http://").unwrap().to_owned();
    let path = upload.url.strip_prefix(&l.system.url()).unwrap();
    let head = |name: &str, bytes: usize| {
        let authorization = format!("authorization: Bearer {}", upload.token);
        format!("PUT {path}/{name} HTTP/1.1\r\nhost: x\r\n{authorization}\r\ncontent-length: {bytes}\r\n\r\n")
    };
    let mut large = TcpStream::connect(&address).unwrap();
    large.write_all(head("b", half).as_bytes()).unwrap();
    let answer = tokio::task::spawn_blocking(move || {
        let mut answer = [0; 12];
        large.read_exact(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    });
    assert_eq!(answer.await.unwrap(), "HTTP/1.1 413");
    assert_eq!(put("..%2fb", vec![1]).await, StatusCode::UNPROCESSABLE_ENTITY);
    let endless = reqwest::Body::wrap_stream(futures_util::stream::once(async { Ok::<_, std::io::Error>(vec![1_u8]) }));
    let chunked =
        client.put(format!("{}/c", upload.url)).bearer_auth(&upload.token).body(endless).send().await.unwrap();
    assert_eq!(chunked.status(), StatusCode::LENGTH_REQUIRED);
    // One that breaks off leaves nothing, and its room.
    let mut broken = TcpStream::connect(&address).unwrap();
    broken.write_all(format!("{}half", head("d", 100)).as_bytes()).unwrap();
    drop(broken);
    let js = gpubnb_runtime::nats::jetstream(
        l.system.nats_args("ui").connect("ui", gpubnb_events::subject::UI_INBOX).await.unwrap(),
    );
    let files = js.get_object_store(gpubnb_log::stream::ARTIFACTS).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while put("d", vec![1; 100]).await != StatusCode::NO_CONTENT {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(files.info(format!("{}/{}/d", l.job, l.lease)).await.unwrap().metadata["bytes"], "100");
    let outputs = [MARKUP, "a"].map(|path| Artifact { path: path.to_owned(), bytes: 1, sha256: "0".repeat(64) });
    let text = gpubnb_events::manifest::signed_text(l.job, l.lease, &outputs);
    let mut report = Report {
        job: l.job,
        lease: l.lease,
        outcome: Outcome::Completed,
        outputs: outputs.to_vec(),
        usage: Some(Usage::default()),
        occurred_at: SystemClock.now(),
        signature: None,
    };
    // A manifest is the machine's word: without its signature it is nobody's.
    for signature in [None, Some(l.stolen.sign("something else").unwrap())] {
        let unsigned = Report { signature, ..report.clone() };
        assert!(l.stolen.say::<Done>(&l.client, "report", &unsigned).await.is_err());
    }
    report.signature = Some(l.stolen.sign(&text).unwrap());
    l.stolen.say::<Done>(&l.client, "report", &report).await.unwrap();
    l.system.web.settled(&l.job.to_string()).await.unwrap();
    assert_eq!(put("e", vec![1]).await, StatusCode::UNAUTHORIZED);
    // What it put is not what it listed: nobody gets it, by no way.
    let (status, _) = l.system.web.bytes(&format!("/api/v1/jobs/{}/artifacts/a", l.job)).await.unwrap();
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    let link = l.system.web.post(&format!("/jobs/{}/links", l.job), &json!({ "path": "a" })).await.unwrap();
    let (status, _) = l.system.web.stranger().bytes(link["path"].as_str().unwrap()).await.unwrap();
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    // What it called itself, its parts and its files is text wherever it is shown.
    let browser = l.system.web.at_browser();
    for page in ["/", "/market", "/jobs/new", &format!("/machines/{}", l.stolen.machine), &format!("/jobs/{}", l.job)] {
        let (status, html) = browser.bytes(page).await.unwrap();
        assert!(status.is_success() && !String::from_utf8_lossy(&html).contains(MARKUP), "{page}");
    }
}

#[tokio::test]
async fn a_machine_that_asks_without_end_keeps_no_other_from_being_answered() {
    let l = liar().await;
    let nonsense = Accept { job: JobId::generate(), lease: Lease(Seq(u64::MAX)) };
    let body = serde_json::to_vec(&nonsense).unwrap();
    let subject = gpubnb_events::subject::machine_command(l.stolen.machine, "accept");
    for _ in 0..5_000 {
        let reply = l.client.new_inbox();
        l.client.publish_with_reply(subject.clone(), reply, body.clone().into()).await.unwrap();
    }
    l.client.flush().await.unwrap();
    assert!(enroll(&l.system, "cellar", &code(&l.system.owner).await).status.success());
    let other = Stolen::from(&l.system.path().join("cellar")).unwrap();
    let connection = other.enter(&l.system).await.unwrap();
    let began = Instant::now();
    let answer = other.say::<Grant>(&connection, "accept", &nonsense).await;
    assert!(answer.is_err_and(|e| matches!(e, gpubnb_runtime::rpc::Failure::Refused(_))));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn who_says_nothing_is_let_go_and_who_waits_for_what_never_comes_is_told() {
    let system = System::start(Options::default()).await.unwrap();
    let address = system.url().strip_prefix("http://").unwrap().to_owned();
    let mut silent = TcpStream::connect(&address).unwrap();
    let mut preface = TcpStream::connect(&address).unwrap();
    preface.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    let let_go = tokio::task::spawn_blocking(move || {
        for client in [&mut silent, &mut preface] {
            client.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap();
        }
    });
    let_go.await.unwrap();
    let began = Instant::now();
    let (status, problem) =
        system.web.stranger().request(Method::GET, "/machines?min_seq=18446744073709551615", None).await.unwrap();
    assert_eq!((status, &problem["title"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("NoSuchSequence")));
    assert!(began.elapsed() < Duration::from_secs(2));
    // So many live pages at once, and no more; a closed one makes room.
    let mut open = Vec::new();
    let refused = loop {
        let page = system.web.stranger().ask(Method::GET, "/market/live").send().await.unwrap();
        if page.status() != StatusCode::OK {
            break page.status();
        }
        open.push(page);
        assert!(open.len() < 100);
    };
    assert_eq!((refused, open.len()), (StatusCode::TOO_MANY_REQUESTS, 32));
    drop(open);
    let deadline = Instant::now() + Duration::from_secs(10);
    while system.web.stranger().ask(Method::GET, "/market/live").send().await.unwrap().status() != StatusCode::OK {
        assert!(Instant::now() < deadline, "places are free again when their readers are gone");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_answer_that_is_known_already_is_not_sent_again() {
    let system = System::start(Options::default()).await.unwrap();
    let ask = || system.web.stranger().ask(Method::GET, "/api/v1/templates");
    let first = ask().send().await.unwrap();
    let version = first.headers()["etag"].to_str().unwrap().to_owned();
    let templates: Value = first.json().await.unwrap();
    assert!(templates.as_array().is_some_and(|all| !all.is_empty()));
    let again = ask().header("if-none-match", &version).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(again.headers()["etag"].to_str().unwrap(), version);
    let other = ask().header("if-none-match", "\"other\"").send().await.unwrap();
    assert_eq!(other.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_changed_password_ends_what_was_made_with_the_old_one() {
    let system = System::start(Options::default()).await.unwrap();
    let mut other = system.web.clone();
    other.sign_in().await.unwrap();
    let form = [
        ("csrf", system.web.csrf().to_owned()),
        ("old", system.web.password.clone()),
        ("new", "quite another password".to_owned()),
    ];
    let changed = system.web.at_browser().ask(Method::POST, "/account/password").form(&form).send().await.unwrap();
    assert!(changed.status().is_redirection(), "{}", changed.status());
    let (token, _) = system.web.request(Method::GET, "/account", None).await.unwrap();
    assert_eq!(token, StatusCode::UNAUTHORIZED);
    let elsewhere = other.at_browser().ask(Method::GET, "/wallet").send().await.unwrap();
    assert!(elsewhere.status().is_redirection());
    let here = system.web.at_browser().ask(Method::GET, "/wallet").send().await.unwrap();
    assert_eq!(here.status(), StatusCode::OK);
}
