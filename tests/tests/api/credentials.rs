//! The credential of a machine: enrollment with a code, the subjects that it allows, its lifetime, and its revocation.

use std::{process::Command, time::Duration};

use bytes::Bytes;
use gpubnb_events::{CommandId, JobId, MachineId, subject};
use gpubnb_log::stream;
use gpubnb_runtime::nats::is_connected;
use gpubnb_tests::{
    jobs::noop_job,
    machine_keys::MachineKeys,
    programs::binary,
    shared::{Plan, SharedMarket},
    system::{MarketSettings, System},
    wait::wait_until,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::attacks::{enroll_new_machine, new_code};

static MARKET: SharedMarket =
    SharedMarket::new(|| Plan::default().with_worker("attic", &[]).with_worker("cellar", &[]));

/// Subjects to which a machine must not publish: those of the machine `other`, and those of the platform.
fn foreign_subjects(other: MachineId, own: MachineId) -> Vec<String> {
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
        // A machine sends a job's output as a command. Only the services write to OUTPUT, also for the machine's own
        // jobs.
        subject::output(other, JobId::generate(), subject::OutputKind::Log),
        subject::output(own, JobId::generate(), subject::OutputKind::Log),
    ];
    let platform_subjects = [
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
    subjects.extend(platform_subjects.map(str::to_owned));
    subjects
}

#[tokio::test]
async fn the_broker_allows_a_machine_only_its_own_subjects() {
    let market = MARKET.open().await.unwrap();
    let thief = MachineKeys::read_from(&market.path().join("attic")).unwrap();
    let other: MachineId = market.machine_id("cellar").unwrap().parse().unwrap();
    let client = thief.renew_and_connect(&market).await.unwrap();
    for subject in foreign_subjects(other, thief.machine) {
        client.publish(subject.clone(), Bytes::from_static(b"{}")).await.unwrap();
        let violation = format!("Permissions Violation for Publish to \"{subject}\"");
        wait_until(&violation, async || thief.broker_errors().iter().any(|error| error.contains(&violation))).await;
    }
    for inbox in [format!("{}.>", subject::machine_inbox(other)), "_INBOX.ui.>".to_owned(), ">".to_owned()] {
        let _subscription = client.subscribe(inbox.clone()).await.unwrap();
        let violation = format!("Permissions Violation for Subscription to \"{inbox}\"");
        wait_until(&violation, async || thief.broker_errors().iter().any(|error| error.contains(&violation))).await;
    }
    // The machine may publish to its own subject, and the services answer.
    let errors = thief.broker_errors().len();
    let own = client.request(subject::machine_command(thief.machine, "sync"), Bytes::from_static(b"{\"leases\":[]}"));
    assert!(own.await.unwrap().payload.starts_with(b"{\"Ok\""));
    assert_eq!(thief.broker_errors().len(), errors);
}

#[tokio::test]
async fn a_code_enrolls_only_one_machine() {
    let market = MARKET.open().await.unwrap();
    let code = new_code(&market.consumer).await;
    let enroll = |state: &str| {
        let output = Command::new(binary("gpubnb-provider").unwrap())
            .args(["enroll", &code, "--market", &market.url(), "--state"])
            .arg(market.path().join(state))
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(enroll("first").0);
    // The same machine may repeat its request, but no other machine can use the code.
    assert!(enroll("first").0);
    let (is_enrolled, why) = enroll("second");
    assert!(!is_enrolled && why.contains("BadCode"), "{why}");
}

#[tokio::test]
async fn an_id_or_a_token_without_the_machines_key_is_refused() {
    let market = MARKET.open().await.unwrap();
    let known = MachineKeys::read_from(&market.path().join("attic")).unwrap();
    let attacker = MachineKeys::of_unknown_machine();
    let body = json!({ "code": new_code(&market.consumer).await, "machine": known.machine, "public_key": "UX",
        "sealing_key": "XX", "signature": attacker.sign("x").unwrap() });
    let (status, problem) = market.consumer.stranger().request(Method::POST, "/enroll", Some(&body)).await.unwrap();
    assert_eq!((status, &problem["title"]), (StatusCode::FORBIDDEN, &json!("BadSignature")));
    let jwt = known.renew(&market.consumer.stranger()).await.unwrap()["jwt"].as_str().unwrap().to_owned();
    assert!(attacker.connect(&market, &jwt).await.is_err());
    let refused = attacker.renew(&market.consumer.stranger()).await.unwrap_err().to_string();
    assert!(refused.contains("NotEnrolled"), "{refused}");
}

#[tokio::test]
async fn a_revocation_closes_the_machines_connection() {
    let market = MARKET.open().await.unwrap();
    let thief = enroll_new_machine(&market, &market.consumer, "cut-off").await;
    let client = thief.renew_and_connect(&market).await.unwrap();
    assert!(is_connected(&client));
    let path = format!("/machines/{}/credential", thief.machine);
    let (status, _) = market.consumer.request(Method::DELETE, &path, None).await.unwrap();
    assert_eq!(status, StatusCode::NO_CONTENT);
    wait_until("the end of the thief's connection", async || !is_connected(&client)).await;
    let refused = thief.renew(&market.consumer.stranger()).await.unwrap_err().to_string();
    assert!(refused.contains("NotEnrolled"), "{refused}");
}

/// Lifetime of a credential, seconds.
const LIFETIME: u64 = 3;

#[tokio::test]
async fn a_credential_is_renewed_before_it_expires_and_after_an_outage_longer_than_its_lifetime() {
    let services = ["--credential-life".to_owned(), LIFETIME.to_string()].into();
    let mut system = System::start(MarketSettings { services, ..MarketSettings::default() }).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let run = async |system: &System| {
        let job = system.consumer.submit(&json!({ "template": "noop", "budget_usd": "0.10" })).await.unwrap();
        assert_eq!(system.consumer.wait_until_settled(&job).await.unwrap()["state"], "Completed");
    };
    // Jobs run for longer than the lifetimes of two credentials.
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(2 * LIFETIME + 1) {
        run(&system).await;
    }
    let is_worker_connected = |system: &System| {
        let (_, text) = system.run_worker_command("attic", &["status", "--json"]).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["connected"] == json!(true)
    };
    wait_until("the worker's connection", async || is_worker_connected(&system)).await;
    // Without the web server there is no new credential. The broker closes the connection when the last one expires.
    system.ui = None;
    wait_until("the end of the worker's connection", async || !is_worker_connected(&system)).await;
    system.start_ui().await.unwrap();
    run(&system).await;
}

/// The secret keys of a machine.
fn secret_keys(state: &std::path::Path) -> [String; 2] {
    ["machine.seed", "sealing.seed"].map(|file| std::fs::read_to_string(state.join(file)).unwrap().trim().to_owned())
}

#[tokio::test]
async fn a_jobs_secret_appears_in_no_answer_page_or_log_and_is_deleted_with_the_job() {
    let market = MARKET.open().await.unwrap();
    let secret = "swordfish-under-the-stairs";
    let parameters = json!({ "lines": "1", "interval-ms": "0" });
    let body = json!({ "template": "count", "parameters": parameters, "env": { "API_KEY": secret } });
    let job = market.consumer.submit(&body).await.unwrap();
    let settled = market.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!((&settled["state"], &settled["spec"]["env"]), (&json!("Completed"), &json!(["API_KEY"])), "{settled:#}");
    for path in [format!("/jobs/{job}"), format!("/jobs/{job}/events"), "/wallet".to_owned()] {
        assert!(!market.consumer.get(&path).await.unwrap().to_string().contains(secret), "{path}");
    }
    let (_, page) = market.consumer.bytes(&format!("/jobs/{job}")).await.unwrap();
    assert!(!String::from_utf8_lossy(&page).contains(secret));
    // No process writes a secret into its log: no secret of a job, of a person or of a machine.
    let token = market.consumer.new_token(&["jobs:read"]).await.unwrap();
    let cookie = market.consumer.cookie().split_once('=').unwrap().1.to_owned();
    let [seed, sealing] = secret_keys(&market.path().join("attic"));
    let code = new_code(&market.consumer).await;
    // Every token for the broker (a JWT) begins with `eyJ0eXAi`, and every permit to upload files with `upload.`.
    let hidden = [secret, &market.consumer.password, &token, &code, "eyJ0eXAi", &cookie, &seed, &sealing, "upload."];
    for process in ["services-0", "projector", "ui", "attic", "nats"] {
        let log = market.process_log(process);
        assert!(hidden.iter().all(|text| !log.contains(text)), "{process} wrote a secret: {log}");
    }
    // The job's secret is removed with the job.
    let client = market.nats_args("services").connect("append", subject::SERVICES_INBOX).await.unwrap();
    let bucket = gpubnb_runtime::nats::jetstream(client).get_key_value(stream::JOBENV).await.unwrap();
    wait_until("the end of the job's secret", async || bucket.get(&job).await.unwrap().is_none()).await;
}

#[tokio::test]
async fn a_job_gets_its_own_input_files_and_no_file_of_another_account() {
    let market = MARKET.open().await.unwrap();
    let another = market.new_consumer().await.unwrap();
    let input = CommandId::generate();
    let uploaded =
        market.consumer.build_request(Method::PUT, &format!("/api/v1/inputs/{input}")).body("seven bytes, or so");
    let uploaded = uploaded.send().await.unwrap();
    assert_eq!(uploaded.status(), StatusCode::CREATED);
    let uploaded: Value = uploaded.json().await.unwrap();
    assert_eq!(uploaded["bytes"], 18);
    let mut body = noop_job();
    body["inputs"] = json!([{ "input": input, "path": "data/in.txt" }]);
    let job = market.consumer.submit(&body).await.unwrap();
    let settled = market.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!(
        (&settled["state"], &settled["spec"]["inputs"][0]["sha256"]),
        (&json!("Completed"), &uploaded["sha256"])
    );
    let (status, problem) = another.request(Method::POST, "/jobs", Some(&body)).await.unwrap();
    assert_eq!((status, &problem["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("inputs")));
}
