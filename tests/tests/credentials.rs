//! A machine's credential: got with a code, good for its own subjects and a short time, and gone at once when it is revoked.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{process::Command, time::Duration};

use bytes::Bytes;
use gpubnb_events::{CommandId, JobId, MachineId, subject};
use gpubnb_log::stream;
use gpubnb_runtime::nats::connected;
use gpubnb_tests::{
    machine::Stolen,
    parts::binary,
    system::{Options, System},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// Waits until something is so.
async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    for _ in 0..400 {
        if so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} did not come about");
}

#[tokio::test]
async fn a_machine_touches_no_subject_but_its_own() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    system.start_worker("cellar", &[]).await.unwrap();
    let thief = Stolen::from(&system.path().join("attic")).unwrap();
    let other: MachineId = system.machine("cellar").unwrap().parse().unwrap();
    let client = thief.enter(&system).await.unwrap();
    let asked = async |subject: String| {
        let request =
            async_nats::Request::new().payload(Bytes::from_static(b"{}")).timeout(Some(Duration::from_millis(250)));
        client.send_request(subject, request).await.is_ok()
    };
    // What is its own is answered.
    assert!(asked(subject::machine_command(thief.machine, "sync")).await);
    let consumer = stream::machine_consumer(other);
    for subject in [
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
        "$JS.API.STREAM.INFO.MARKET".to_owned(),
        "$JS.API.DIRECT.GET.MARKET".to_owned(),
        "$JS.API.DIRECT.GET.KV_CREDENTIALS".to_owned(),
        "$JS.API.DIRECT.GET.KV_SESSIONS".to_owned(),
        "$JS.API.DIRECT.GET.KV_ENROLLMENTS".to_owned(),
        "$JS.API.DIRECT.GET.KV_JOBENV".to_owned(),
        "$JS.API.STREAM.MSG.GET.KV_JOBENV".to_owned(),
        "$JS.API.CONSUMER.CREATE.OUTPUT".to_owned(),
        "$JS.API.STREAM.PURGE.DISPATCH".to_owned(),
        "$KV.CREDENTIALS.x".to_owned(),
        "$KV.SESSIONS.x".to_owned(),
        "$KV.ENROLLMENTS.x".to_owned(),
        "$O.ARTIFACTS.M.x".to_owned(),
        "$SYS.REQ.CLAIMS.UPDATE".to_owned(),
        subject::heartbeat(other),
        subject::output(other, JobId::generate(), subject::OutputKind::Log),
    ] {
        assert!(!asked(subject.clone()).await, "{subject}");
    }
    // Nor does it hear what is not for it.
    for subject in [format!("{}.>", subject::machine_inbox(other)), "_INBOX.ui.>".to_owned(), ">".to_owned()] {
        let mut heard = client.subscribe(subject.clone()).await.unwrap();
        client.flush().await.unwrap();
        let web = system.web.get("/machines").await.unwrap();
        assert_eq!(web["rows"].as_array().unwrap().len(), 2);
        let next = tokio::time::timeout(Duration::from_millis(300), futures_util::StreamExt::next(&mut heard)).await;
        assert!(next.is_err() || next.is_ok_and(|m| m.is_none()), "{subject}");
    }
}

#[tokio::test]
async fn a_code_is_good_once_and_a_token_without_its_key_is_good_for_nothing() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let code = system.owner.post("/enrollments", &json!({})).await.unwrap()["code"].as_str().unwrap().to_owned();
    let enroll = |state: &str| {
        let output = Command::new(binary("gpubnb-provider").unwrap())
            .args(["enroll", &code, "--market", &system.url(), "--state"])
            .arg(system.path().join(state))
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(enroll("first").0);
    // Said again by the same machine, it is the same; by another, it is used up.
    assert!(enroll("first").0);
    let (done, why) = enroll("second");
    assert!(!done && why.contains("BadCode"), "{why}");
    // Somebody who enrolls a machine of another account under its id gets nowhere.
    let known = Stolen::from(&system.path().join("attic")).unwrap();
    let code = system.web.post("/enrollments", &json!({})).await.unwrap()["code"].as_str().unwrap().to_owned();
    let mine = Stolen::unknown();
    let body = json!({ "code": code, "machine": known.machine, "public_key": "UX", "sealing_key": "XX", "signature": mine.sign("x").unwrap() });
    let (status, problem) = system.web.stranger().request(Method::POST, "/enroll", Some(&body)).await.unwrap();
    assert_eq!((status, &problem["title"]), (StatusCode::FORBIDDEN, &json!("BadSignature")));
    // A token that was overheard is of no use without the machine's key; a challenge is not either.
    let jwt = known.renew(&system.web.stranger()).await.unwrap()["jwt"].as_str().unwrap().to_owned();
    assert!(mine.connect(&system, &jwt).await.is_err());
    let refused = mine.renew(&system.web.stranger()).await.unwrap_err().to_string();
    assert!(refused.contains("NotEnrolled"), "{refused}");
}

#[tokio::test]
async fn a_revoked_machine_is_cut_off_at_once_and_what_it_ran_is_stopped() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let thief = Stolen::from(&system.path().join("attic")).unwrap();
    let client = thief.enter(&system).await.unwrap();
    assert!(connected(&client));
    let path = format!("/machines/{}/credential", thief.machine);
    let (status, _) = system.owner.request(Method::DELETE, &path, None).await.unwrap();
    assert_eq!(status, StatusCode::NO_CONTENT);
    until("the thief's connection ending", async || !connected(&client)).await;
    let refused = thief.renew(&system.web.stranger()).await.unwrap_err().to_string();
    assert!(refused.contains("NotEnrolled"), "{refused}");
}

#[tokio::test]
async fn a_credential_is_renewed_before_it_runs_out_and_after_an_outage_longer_than_its_life() {
    let life = ["--credential-life", "3"].map(str::to_owned).into();
    let mut system = System::start(Options { services: life, ..Options::default() }).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let run = async |system: &System| {
        let job = system.web.submit(&json!({ "template": "noop", "budget_usd": "0.10" })).await.unwrap();
        system.web.settled(&job).await.unwrap()
    };
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(7) {
        assert_eq!(run(&system).await["state"], "Completed");
    }
    // The edge is away for longer than the credential lives.
    system.ui = None;
    tokio::time::sleep(Duration::from_secs(5)).await;
    system.start_ui().await.unwrap();
    assert_eq!(run(&system).await["state"], "Completed");
}

#[tokio::test]
async fn secrets_reach_the_job_and_nothing_else() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let secret = "swordfish-under-the-stairs";
    let body = json!({ "template": "count", "parameters": { "lines": "1", "interval-ms": "0" }, "env": { "API_KEY": secret } });
    let job = system.web.submit(&body).await.unwrap();
    let settled = system.web.settled(&job).await.unwrap();
    assert_eq!((&settled["state"], &settled["spec"]["env"]), (&json!("Completed"), &json!(["API_KEY"])), "{settled:#}");
    for path in [format!("/jobs/{job}"), format!("/jobs/{job}/events"), "/wallet".to_owned()] {
        assert!(!system.web.get(&path).await.unwrap().to_string().contains(secret), "{path}");
    }
    let (_, page) = system.web.bytes(&format!("/jobs/{job}")).await.unwrap();
    assert!(!String::from_utf8_lossy(&page).contains(secret));
    // Nor do the processes write down that, a password, a token, or a code.
    let code: Value = system.owner.post("/enrollments", &json!({})).await.unwrap();
    let token = system.web.new_token(&["jobs:read"]).await.unwrap();
    let cookie = system.web.cookie().split_once('=').unwrap().1.to_owned();
    let read = |file: &str| std::fs::read_to_string(system.path().join("attic").join(file)).unwrap().trim().to_owned();
    let (seed, sealing) = (read("machine.seed"), read("sealing.seed"));
    for process in ["services-0", "projector", "ui", "attic", "nats"] {
        let log = system.log(process);
        for hidden in [
            secret,
            &system.web.password,
            &token,
            code["code"].as_str().unwrap(),
            "eyJ0eXAi",
            &cookie,
            &seed,
            &sealing,
            "upload.",
        ] {
            assert!(!log.contains(hidden), "{process} wrote {hidden}");
        }
    }
    // What was kept for the job is gone with it.
    let client = system.nats_args("services").connect("append", subject::SERVICES_INBOX).await.unwrap();
    let bucket = gpubnb_runtime::nats::jetstream(client).get_key_value(stream::JOBENV).await.unwrap();
    assert!(bucket.get(&job).await.unwrap().is_none());
}

#[tokio::test]
async fn a_job_is_given_its_files_and_nobody_elses() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let input = CommandId::generate();
    let put = system
        .web
        .ask(Method::PUT, &format!("/api/v1/inputs/{input}"))
        .body("seven bytes, or so")
        .send()
        .await
        .unwrap();
    assert_eq!(put.status(), StatusCode::CREATED);
    let put: Value = put.json().await.unwrap();
    assert_eq!(put["bytes"], 18);
    let body =
        json!({ "template": "noop", "inputs": [{ "input": input, "path": "data/in.txt" }], "budget_usd": "0.10" });
    let job = system.web.submit(&body).await.unwrap();
    let settled = system.web.settled(&job).await.unwrap();
    assert_eq!((&settled["state"], &settled["spec"]["inputs"][0]["sha256"]), (&json!("Completed"), &put["sha256"]));
    let (status, problem) = system.owner.request(Method::POST, "/jobs", Some(&body)).await.unwrap();
    assert_eq!((status, &problem["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("inputs")));
}
