//! A machine's credential: got with a code, good for its own subjects and a short time, and gone at once when it is revoked.

use std::{process::Command, time::Duration};

use bytes::Bytes;
use gpubnb_events::{CommandId, JobId, MachineId, subject};
use gpubnb_log::stream;
use gpubnb_runtime::nats::is_connected;
use gpubnb_tests::{
    jobs::noop,
    machine::Stolen,
    parts::binary,
    shared::{Plan, Shared},
    system::{Options, System},
    wait::until,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::attacks::{code, enrolled};

static MARKET: Shared = Shared::new(|| Plan::default().worker("attic", &[]).worker("cellar", &[]));

/// Subjects of others that a machine with the keys of another one would like to publish to.
fn of_others(other: MachineId) -> Vec<String> {
    let consumer = stream::machine_consumer(other);
    let mut subjects = vec![
        subject::machine_command(other, "sync"),
        subject::machine_command(other, "list"),
        subject::machine_command(other, "wish"),
        subject::command("account", "deposit"),
        subject::command("job", "cancel"),
        subject::command("market", "machine"),
        subject::command("enrollment", "create"),
        subject::command("enrollment", "revoke"),
        subject::query("jobs"),
        format!("{}.CONSUMER.INFO.DISPATCH.{consumer}", subject::MACHINE_API),
        format!("{}.CONSUMER.MSG.NEXT.DISPATCH.{consumer}", subject::MACHINE_API),
        format!("$JS.API.CONSUMER.INFO.DISPATCH.{consumer}"),
        format!("$JS.API.CONSUMER.MSG.NEXT.DISPATCH.{consumer}"),
        format!("$JS.API.CONSUMER.DELETE.DISPATCH.{consumer}"),
        subject::heartbeat(other),
        subject::output(other, JobId::generate(), subject::OutputKind::Log),
    ];
    let of_the_platform = [
        "$JS.API.STREAM.INFO.MARKET",
        "$JS.API.DIRECT.GET.MARKET",
        "$JS.API.DIRECT.GET.KV_CREDENTIALS",
        "$JS.API.DIRECT.GET.KV_SESSIONS",
        "$JS.API.DIRECT.GET.KV_ENROLLMENTS",
        "$JS.API.DIRECT.GET.KV_JOBENV",
        "$JS.API.STREAM.MSG.GET.KV_JOBENV",
        "$JS.API.CONSUMER.CREATE.OUTPUT",
        "$JS.API.STREAM.PURGE.DISPATCH",
        "$KV.CREDENTIALS.x",
        "$KV.SESSIONS.x",
        "$KV.ENROLLMENTS.x",
        "$O.ARTIFACTS.M.x",
        "$SYS.REQ.CLAIMS.UPDATE",
    ];
    subjects.extend(of_the_platform.map(str::to_owned));
    subjects
}

#[tokio::test]
async fn the_broker_refuses_a_machine_every_subject_but_its_own() {
    let market = MARKET.open().await.unwrap();
    let thief = Stolen::from(&market.path().join("attic")).unwrap();
    let other: MachineId = market.machine("cellar").unwrap().parse().unwrap();
    let client = thief.enter(&market).await.unwrap();
    for subject in of_others(other) {
        client.publish(subject.clone(), Bytes::from_static(b"{}")).await.unwrap();
        let violation = format!("Permissions Violation for Publish to \"{subject}\"");
        until(&violation, async || thief.refused().iter().any(|error| error.contains(&violation))).await;
    }
    for inbox in [format!("{}.>", subject::machine_inbox(other)), "_INBOX.ui.>".to_owned(), ">".to_owned()] {
        let _heard = client.subscribe(inbox.clone()).await.unwrap();
        let violation = format!("Permissions Violation for Subscription to \"{inbox}\"");
        until(&violation, async || thief.refused().iter().any(|error| error.contains(&violation))).await;
    }
    // Its own subject is open: the broker says nothing against it, and the services answer.
    let refused = thief.refused().len();
    let own = client.request(subject::machine_command(thief.machine, "sync"), Bytes::from_static(b"{\"leases\":[]}"));
    assert!(own.await.unwrap().payload.starts_with(b"{\"Ok\""));
    assert_eq!(thief.refused().len(), refused);
}

#[tokio::test]
async fn a_code_is_good_once() {
    let market = MARKET.open().await.unwrap();
    let code = code(&market.web).await;
    let enroll = |state: &str| {
        let output = Command::new(binary("gpubnb-provider").unwrap())
            .args(["enroll", &code, "--market", &market.url(), "--state"])
            .arg(market.path().join(state))
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(enroll("first").0);
    // The same machine may repeat its request; the code is used up for every other.
    assert!(enroll("first").0);
    let (done, why) = enroll("second");
    assert!(!done && why.contains("BadCode"), "{why}");
}

#[tokio::test]
async fn an_id_or_a_token_without_the_machines_key_is_good_for_nothing() {
    let market = MARKET.open().await.unwrap();
    let known = Stolen::from(&market.path().join("attic")).unwrap();
    let mine = Stolen::unknown();
    let body = json!({ "code": code(&market.web).await, "machine": known.machine, "public_key": "UX",
        "sealing_key": "XX", "signature": mine.sign("x").unwrap() });
    let (status, problem) = market.web.stranger().request(Method::POST, "/enroll", Some(&body)).await.unwrap();
    assert_eq!((status, &problem["title"]), (StatusCode::FORBIDDEN, &json!("BadSignature")));
    let jwt = known.renew(&market.web.stranger()).await.unwrap()["jwt"].as_str().unwrap().to_owned();
    assert!(mine.connect(&market, &jwt).await.is_err());
    let refused = mine.renew(&market.web.stranger()).await.unwrap_err().to_string();
    assert!(refused.contains("NotEnrolled"), "{refused}");
}

#[tokio::test]
async fn a_revoked_machine_is_cut_off_at_once() {
    let market = MARKET.open().await.unwrap();
    let thief = enrolled(&market, &market.web, "cut-off").await;
    let client = thief.enter(&market).await.unwrap();
    assert!(is_connected(&client));
    let path = format!("/machines/{}/credential", thief.machine);
    let (status, _) = market.web.request(Method::DELETE, &path, None).await.unwrap();
    assert_eq!(status, StatusCode::NO_CONTENT);
    until("the end of the thief's connection", async || !is_connected(&client)).await;
    let refused = thief.renew(&market.web.stranger()).await.unwrap_err().to_string();
    assert!(refused.contains("NotEnrolled"), "{refused}");
}

/// Life of a credential, seconds.
const LIFE: u64 = 3;

#[tokio::test]
async fn a_credential_is_renewed_before_it_runs_out_and_after_an_outage_longer_than_its_life() {
    let services = ["--credential-life".to_owned(), LIFE.to_string()].into();
    let mut system = System::start(Options { services, ..Options::default() }).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let run = async |system: &System| {
        let job = system.web.submit(&json!({ "template": "noop", "budget_usd": "0.10" })).await.unwrap();
        assert_eq!(system.web.settled(&job).await.unwrap()["state"], "Completed");
    };
    // Jobs run without a pause for longer than two credentials live.
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(2 * LIFE + 1) {
        run(&system).await;
    }
    // Without the edge there is no new credential: the broker ends the connection with the last one.
    system.ui = None;
    let is_worker_connected = |system: &System| {
        let (_, text) = system.worker("attic", &["status", "--json"]).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["connected"] == json!(true)
    };
    assert!(is_worker_connected(&system));
    until("the end of the worker's connection", async || !is_worker_connected(&system)).await;
    system.start_ui().await.unwrap();
    run(&system).await;
}

/// Files of a machine that nobody else may read.
fn secrets_of(state: &std::path::Path) -> [String; 2] {
    ["machine.seed", "sealing.seed"].map(|file| std::fs::read_to_string(state.join(file)).unwrap().trim().to_owned())
}

#[tokio::test]
async fn secrets_reach_the_job_and_nothing_else() {
    let market = MARKET.open().await.unwrap();
    let secret = "swordfish-under-the-stairs";
    let body = json!({ "template": "count", "parameters": { "lines": "1", "interval-ms": "0" }, "env": { "API_KEY": secret } });
    let job = market.web.submit(&body).await.unwrap();
    let settled = market.web.settled(&job).await.unwrap();
    assert_eq!((&settled["state"], &settled["spec"]["env"]), (&json!("Completed"), &json!(["API_KEY"])), "{settled:#}");
    for path in [format!("/jobs/{job}"), format!("/jobs/{job}/events"), "/wallet".to_owned()] {
        assert!(!market.web.get(&path).await.unwrap().to_string().contains(secret), "{path}");
    }
    let (_, page) = market.web.bytes(&format!("/jobs/{job}")).await.unwrap();
    assert!(!String::from_utf8_lossy(&page).contains(secret));
    // No process writes a secret into its log: neither the job's, nor a person's, nor a machine's.
    let token = market.web.new_token(&["jobs:read"]).await.unwrap();
    let cookie = market.web.cookie().split_once('=').unwrap().1.to_owned();
    let [seed, sealing] = secrets_of(&market.path().join("attic"));
    let code = code(&market.web).await;
    let hidden = [secret, &market.web.password, &token, &code, "eyJ0eXAi", &cookie, &seed, &sealing, "upload."];
    for process in ["services-0", "projector", "ui", "attic", "nats"] {
        let log = market.log(process);
        assert!(hidden.iter().all(|text| !log.contains(text)), "{process} wrote a secret: {log}");
    }
    // The job's secret is removed with the job.
    let client = market.nats_args("services").connect("append", subject::SERVICES_INBOX).await.unwrap();
    let bucket = gpubnb_runtime::nats::jetstream(client).get_key_value(stream::JOBENV).await.unwrap();
    until("the end of the job's secret", async || bucket.get(&job).await.unwrap().is_none()).await;
}

#[tokio::test]
async fn a_job_is_given_its_files_and_nobody_elses() {
    let market = MARKET.open().await.unwrap();
    let another = market.newcomer().await.unwrap();
    let input = CommandId::generate();
    let put = market.web.ask(Method::PUT, &format!("/api/v1/inputs/{input}")).body("seven bytes, or so");
    let put = put.send().await.unwrap();
    assert_eq!(put.status(), StatusCode::CREATED);
    let put: Value = put.json().await.unwrap();
    assert_eq!(put["bytes"], 18);
    let mut body = noop();
    body["inputs"] = json!([{ "input": input, "path": "data/in.txt" }]);
    let job = market.web.submit(&body).await.unwrap();
    let settled = market.web.settled(&job).await.unwrap();
    assert_eq!((&settled["state"], &settled["spec"]["inputs"][0]["sha256"]), (&json!("Completed"), &put["sha256"]));
    let (status, problem) = another.request(Method::POST, "/jobs", Some(&body)).await.unwrap();
    assert_eq!((status, &problem["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("inputs")));
}
