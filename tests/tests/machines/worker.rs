//! The worker as its owner sees it: its commands, its options, and its self-test.

use std::fs;

use gpubnb_tests::{
    jobs::{counting, on_machine, running},
    market::Market,
    shared::{Plan, Shared},
    wait::until,
};
use serde_json::{Value, json};

static MARKET: Shared = Shared::new(Plan::default);

/// The worker's state, as its own command tells it.
fn status(market: &Market, worker: &str) -> Value {
    let (ok, text) = market.worker(worker, &["status", "--json"]).unwrap();
    assert!(ok, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// Waits until a worker answers its owner's commands, or no longer does.
async fn answers(market: &Market, worker: &str, wanted: bool) {
    let condition = format!("the worker answers: {wanted}");
    until(&condition, async || market.worker(worker, &["status"]).unwrap().0 == wanted).await;
}

#[tokio::test]
async fn a_worker_that_does_not_run_says_how_to_start_it() {
    let market = MARKET.open().await.unwrap();
    let (ok, text) = market.worker("nowhere", &["status"]).unwrap();
    assert!(!ok && text.contains("not enrolled") && text.contains("gpubnb-provider run"), "{text}");
}

#[tokio::test]
async fn the_owner_pauses_and_resumes_on_the_machine_itself() {
    let market = MARKET.open().await.unwrap();
    let _worker = market.own_worker("paused", &["--slots", "2"]).await.unwrap();
    answers(&market, "paused", true).await;
    let first = status(&market, "paused");
    assert_eq!((&first["state"], &first["slots"], &first["connected"]), (&json!("ready"), &json!(2), &json!(true)));
    assert!(market.worker("paused", &["pause"]).unwrap().0);
    market.machine_until("paused", |m| m["wanted"] == "Paused").await.unwrap();
    assert_eq!(status(&market, "paused")["state"], "paused");
    assert!(market.worker("paused", &["resume"]).unwrap().0);
    market.machine_until("paused", |m| m["wanted"] == "Online").await.unwrap();
    // A second worker with the same directory would speak for the same machine.
    let (ok, text) = market.worker("paused", &["run"]).unwrap();
    assert!(!ok && text.contains("another worker runs"), "{text}");
}

#[tokio::test]
async fn a_worker_that_is_drained_finishes_its_job_and_stops() {
    let market = MARKET.open().await.unwrap();
    let _worker = market.own_worker("drained", &[]).await.unwrap();
    answers(&market, "drained", true).await;
    let body = on_machine(counting(60, 50), &market.machine("drained").unwrap());
    let job = market.web.submit(&body).await.unwrap();
    running(&market.web, &job).await;
    assert_eq!(status(&market, "drained")["jobs"][0]["job"], json!(job));
    let (ok, text) = market.worker("drained", &["drain", "--stop"]).unwrap();
    assert!(ok && text.contains("Nothing runs any more"), "{text}");
    assert_eq!(market.web.settled(&job).await.unwrap()["state"], "Completed");
    answers(&market, "drained", false).await;
    let (ok, text) = market.worker("drained", &["status"]).unwrap();
    assert!(!ok && text.contains("does not work now"), "{text}");
    let logs = || market.worker("drained", &["logs", "-n", "1000"]).unwrap().1;
    until("the worker's last line", async || logs().contains("stopped")).await;
    assert!(logs().contains("listed"), "{}", logs());
}

#[tokio::test]
async fn options_stand_in_a_file_and_a_wrong_one_is_named() {
    let market = MARKET.open().await.unwrap();
    let file = market.path().join("provider.toml");
    fs::write(&file, "price = \"0.42\"\nregion = \"under the roof\"\nhours = \"00:00-24:00\"\n").unwrap();
    let _worker = market.own_worker("configured", &["--config", file.to_str().unwrap()]).await.unwrap();
    let view = market.machine_view("configured").await.unwrap();
    assert_eq!((&view["offer"]["price"], &view["offer"]["region"]), (&json!(420_000), &json!("under the roof")));
    assert_eq!(view["offer"]["policy"]["hours"], "00:00-24:00");
    fs::write(&file, "prise = 1\n").unwrap();
    let (ok, text) = market.worker("misspelt", &["run", "--config", file.to_str().unwrap()]).unwrap();
    assert!(!ok && text.contains("no option `prise`"), "{text}");
}

#[tokio::test]
async fn the_self_test_says_what_is_there_and_what_is_missing() {
    let market = MARKET.open().await.unwrap();
    let _worker = market.own_worker("tested", &[]).await.unwrap();
    let of = |checks: &Value, id: &str| checks.as_array().unwrap().iter().find(|c| c["id"] == id).cloned();
    let view = market.machine_until("tested", |m| !m["checks"].as_array().unwrap().is_empty()).await.unwrap();
    for id in [
        "docker.answers",
        "docker.version",
        "docker.runc",
        "disk.room",
        "disk.write",
        "cpu.cores",
        "clock.skew",
        "network.down",
        "network.up",
    ] {
        let check = of(&view["checks"], id).unwrap_or_else(|| panic!("{id}: {view:#}"));
        assert_ne!(check["actual"], "", "{id}");
    }
    let (_, text) = market.worker("tested", &["self-test", "--json", "--runtime", "nowhere"]).unwrap();
    // After the JSON the command prints in words what failed.
    let checks: Value = serde_json::Deserializer::from_str(&text).into_iter().next().unwrap().unwrap();
    let runtime = of(&checks, "docker.runtime").unwrap();
    assert!(runtime["passed"] == json!(false) && runtime["remedy"].as_str().unwrap().contains("daemon.json"));
    // A machine whose self-test fails is not listed, and says why.
    market.enroll("unfit", &market.owner).await.unwrap();
    let (ok, text) = market.worker("unfit", &["run", "--runtime", "nowhere"]).unwrap();
    assert!(!ok && text.contains("not fit") && text.contains("nowhere"), "{text}");
}
