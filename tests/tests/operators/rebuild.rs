//! Failures of read models: a rebuild whose projector is killed, a model that stops at an event, and a full disk.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use gpubnb_model::figures::MarketFigures;
use gpubnb_tests::{
    api_client::ApiClient,
    history, models,
    system::{MarketSettings, System},
    wait::wait_until,
};
use serde_json::{Value, json};

/// Starts a market with a long log, and stops its services. Returns the market and an operator.
async fn start_market_with_history(events: u64) -> (System, ApiClient) {
    let options = MarketSettings { is_fsync_off: true, snapshot_every: Some(0), ..MarketSettings::default() };
    let mut system = System::start(options).await.unwrap();
    let operator = ApiClient::sign_up_operator(&system).await.unwrap();
    system.services.clear();
    history::write(&system, events).await.unwrap();
    (system, operator)
}

/// The state of a model, as the API shows it to operators.
async fn model_state(operator: &ApiClient, name: &str) -> anyhow::Result<Value> {
    let platform = operator.get("/ops/platform").await?;
    let found = platform["models"].as_array().and_then(|models| models.iter().find(|m| m["name"] == name));
    found.cloned().with_context(|| format!("{name} is not in {platform}"))
}

/// Waits until `wanted` returns true for the state of a model, and returns that state. Errors are ignored, because a
/// killed projector does not answer.
async fn wait_for_model(operator: &ApiClient, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let state = model_state(operator, name).await;
        let state = match state {
            Ok(state) if wanted(&state) => return state,
            state => format!("{state:?}"),
        };
        assert!(Instant::now() < deadline, "{state}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_rebuild_continues_after_its_projector_is_killed() {
    let (mut system, operator) = start_market_with_history(30_000).await;
    let last = system.run_operator_tool(&["lag", "--json"]).unwrap();
    let last = serde_json::from_slice::<Value>(&last.stdout).unwrap()["last"].clone();
    wait_for_model(&operator, "jobs", |m| m["checkpoint"] == last).await;
    operator.post("/ops/models/jobs/rebuild", &json!({})).await.unwrap();
    let refused = operator.post("/ops/models/jobs/rebuild", &json!({})).await.unwrap_err();
    assert!(refused.to_string().contains("One runs already"), "{refused}");
    let mut continued = 0;
    for share in [0.2, 0.5, 0.7] {
        let is_far_enough = |m: &Value| {
            let (at, end) = (m["rebuild"]["progress"]["at"].as_f64(), last.as_f64().unwrap());
            at.is_some_and(|at| at > share * end) || m["rebuild"]["swapped_at"].is_string()
        };
        if wait_for_model(&operator, "jobs", is_far_enough).await["rebuild"]["swapped_at"].is_string() {
            break;
        }
        system.projector.take().unwrap().kill();
        system.start_projector().await.unwrap();
        continued += usize::from(system.projector.as_ref().unwrap().has_printed("a rebuild goes on"));
    }
    assert!(continued > 0, "no rebuild was continued: {}", system.process_log("projector"));
    let swapped = wait_for_model(&operator, "jobs", |m| m["rebuild"]["swapped_at"].is_string()).await;
    assert_eq!((&swapped["stopped"], &swapped["rebuild"]["failed"]), (&Value::Null, &Value::Null));
    let verified = system.run_operator_tool(&["verify", "--json"]).unwrap();
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
}

#[tokio::test]
async fn a_model_stops_at_an_event_that_it_cannot_fold_and_continues_after_the_repair() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    let operator = ApiClient::sign_up_operator(&system).await.unwrap();
    let replace_row = |system: &System, write: Option<Vec<u8>>| {
        let table = models::open_table(system, &MarketFigures).unwrap();
        let before = table.get("f").unwrap().map(|row| row.to_vec());
        models::write_row(&table, b"f", write).unwrap();
        before
    };
    system.projector = None;
    let good = replace_row(&system, Some(b"no figures".to_vec()));
    system.start_projector().await.unwrap();
    let submitted = system.consumer.post("/jobs", &json!({ "template": "noop", "budget_usd": "0.10" })).await.unwrap();
    let seq = submitted["seq"].as_u64().unwrap();
    let stopped = wait_for_model(&operator, "figures", |m| m["stopped"].is_string()).await;
    assert!(stopped["stopped"].as_str().unwrap().contains(&format!("at sequence {seq}")), "{stopped}");
    let checkpoint = stopped["checkpoint"].as_u64().unwrap();
    assert!(checkpoint < seq, "the model has folded an event after the failure: {stopped}");
    // The other models continue, and answer.
    wait_for_model(&operator, "jobs", |m| m["checkpoint"].as_u64() >= Some(seq) && m["stopped"].is_null()).await;
    let job = submitted["job"].as_str().unwrap();
    assert_eq!(system.consumer.get(&format!("/jobs/{job}?min_seq={seq}")).await.unwrap()["job"], job);
    let metrics = system.run_operator_tool(&["lag"]).unwrap();
    assert!(String::from_utf8_lossy(&metrics.stdout).contains(&format!("at sequence {seq}")));

    system.projector = None;
    replace_row(&system, good);
    system.start_projector().await.unwrap();
    wait_for_model(&operator, "figures", |m| m["checkpoint"].as_u64() >= Some(seq) && m["stopped"].is_null()).await;
    let verified = system.run_operator_tool(&["verify", "--json"]).unwrap();
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
}

#[tokio::test]
async fn a_projector_whose_disk_was_full_says_so_and_answers_again_when_there_is_room() {
    let options = MarketSettings {
        has_monitoring: true,
        is_fsync_off: true,
        snapshot_every: Some(0),
        ..MarketSettings::default()
    };
    let mut system = System::start(options).await.unwrap();
    let honest = system.consumer.get("/wallet").await.unwrap()["balance"].clone();
    system.projector = None;
    let disk = system.path().join("projector");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"]).arg(&disk).status().unwrap();
    assert!(mounted.success());
    system.start_projector().await.unwrap();
    let log = system.process_log("projector");
    let address = log.lines().rev().find_map(|line| line.split("monitoring listens address=").nth(1)).unwrap();
    let ready_page = format!("http://{}/readyz", address.trim());
    let readiness = async || reqwest::get(&ready_page).await.unwrap().text().await.unwrap();
    assert_eq!(readiness().await, "ready\n");

    let filler = disk.join("filler");
    let filled = Command::new("dd").args(["if=/dev/zero", "bs=64K", &format!("of={}", filler.display())]).output();
    assert!(!filled.unwrap().status.success(), "the disk is full");
    system.services.clear();
    let last = history::write(&system, 20_000).await.unwrap();
    wait_until("the projector says that its disk is full", async || readiness().await.contains("trying again")).await;
    // Rows that are not current any more are not shown.
    assert!(system.consumer.get("/wallet").await.is_err());

    std::fs::remove_file(&filler).unwrap();
    wait_until("the projector is ready again", async || readiness().await == "ready\n").await;
    let wallet = system.consumer.get(&format!("/wallet?min_seq={last}")).await.unwrap();
    assert_eq!(wallet["balance"], honest);
    // The projector ends before its disk is unmounted.
    system.projector = None;
}
