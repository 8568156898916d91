//! The worker's program as the owner of the machine uses it: its commands, its options, and its self-test.

use std::fs;

use gpubnb_tests::{
    jobs::{counting_job, pin_to_machine, wait_until_running},
    market::Market,
    shared::{Plan, SharedMarket},
    wait::wait_until,
};
use serde_json::{Value, json};

static MARKET: SharedMarket = SharedMarket::new(Plan::default);

/// The answer of the command `status --json`.
fn status(market: &Market, worker: &str) -> Value {
    let (ok, text) = market.run_worker_command(worker, &["status", "--json"]).unwrap();
    assert!(ok, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// Waits until a worker answers the command `status`, or, if `is_expected` is false, until it does not answer.
async fn wait_for_answer(market: &Market, worker: &str, is_expected: bool) {
    let condition = format!("the worker answers: {is_expected}");
    wait_until(&condition, async || market.run_worker_command(worker, &["status"]).unwrap().0 == is_expected).await;
}

#[tokio::test]
async fn status_without_a_worker_tells_how_to_start_one() {
    let market = MARKET.open().await.unwrap();
    let (ok, text) = market.run_worker_command("nowhere", &["status"]).unwrap();
    assert!(!ok && text.contains("not enrolled") && text.contains("gpubnb-provider run"), "{text}");
}

#[tokio::test]
async fn the_owner_pauses_and_resumes_the_worker_from_the_command_line() {
    let market = MARKET.open().await.unwrap();
    let _worker = market.start_scoped_worker("paused", &["--slots", "2"]).await.unwrap();
    wait_for_answer(&market, "paused", true).await;
    let first = status(&market, "paused");
    assert_eq!((&first["state"], &first["slots"], &first["connected"]), (&json!("ready"), &json!(2), &json!(true)));
    assert!(market.run_worker_command("paused", &["pause"]).unwrap().0);
    market.wait_for_machine("paused", |m| m["wanted"] == "Paused").await.unwrap();
    assert_eq!(status(&market, "paused")["state"], "paused");
    assert!(market.run_worker_command("paused", &["resume"]).unwrap().0);
    market.wait_for_machine("paused", |m| m["wanted"] == "Online").await.unwrap();
    // A second worker in the same directory is refused, because it would be the same machine.
    let (ok, text) = market.run_worker_command("paused", &["run"]).unwrap();
    assert!(!ok && text.contains("another worker runs"), "{text}");
}

#[tokio::test]
async fn the_worker_takes_the_settings_of_the_page_and_keeps_them_until_an_option_changes() {
    let market = MARKET.open().await.unwrap();
    let options = ["--price", "0.1", "--slots", "1"];
    let worker = market.start_scoped_worker("tuned", &options).await.unwrap();
    let machine = market.machine_id("tuned").unwrap();
    let settings = |slots: u32| json!({ "configure": { "price": 300_000, "slots": slots, "hours": "00:00-24:00" } });
    let wish = format!("/machines/{machine}/wish");
    market.machine_owner.post(&wish, &settings(2)).await.unwrap();
    let has = |slots: u32| {
        move |m: &Value| {
            let offer = &m["offer"];
            offer["slots"] == slots
                && offer["price"] == 300_000
                && offer["policy"]["hours"] == "00:00-24:00"
                && m["requested"].is_null()
        }
    };
    market.wait_for_machine("tuned", has(2)).await.unwrap();
    wait_until("the worker has two slots", async || status(&market, "tuned")["slots"] == 2).await;

    // A restart with the same options keeps the settings; a changed option overrides the page.
    drop(worker);
    let worker = market.start_scoped_worker("tuned", &options).await.unwrap();
    wait_for_answer(&market, "tuned", true).await;
    assert_eq!(status(&market, "tuned")["slots"], 2);
    drop(worker);
    let worker = market.start_scoped_worker("tuned", &["--price", "0.1", "--slots", "3"]).await.unwrap();
    market.wait_for_machine("tuned", has(3)).await.unwrap();

    // A pinned option cannot be changed on the page.
    drop(worker);
    let pinned = ["--price", "0.1", "--slots", "3", "--pin", "slots"];
    let _worker = market.start_scoped_worker("tuned", &pinned).await.unwrap();
    market.wait_for_machine("tuned", |m| m["offer"]["policy"]["pinned"] == json!(["slots"])).await.unwrap();
    let refused = market.machine_owner.post(&wish, &settings(4)).await.unwrap_err().to_string();
    assert!(refused.contains("pinned on the machine"), "{refused}");
}

#[tokio::test]
async fn a_drained_worker_finishes_its_job_and_stops() {
    let market = MARKET.open().await.unwrap();
    let _worker = market.start_scoped_worker("drained", &[]).await.unwrap();
    wait_for_answer(&market, "drained", true).await;
    let body = pin_to_machine(counting_job(60, 50), &market.machine_id("drained").unwrap());
    let job = market.consumer.submit(&body).await.unwrap();
    wait_until_running(&market.consumer, &job).await;
    assert_eq!(status(&market, "drained")["jobs"][0]["job"], json!(job));
    let (ok, text) = market.run_worker_command("drained", &["drain", "--stop"]).unwrap();
    assert!(ok && text.contains("Nothing runs any more"), "{text}");
    assert_eq!(market.consumer.wait_until_settled(&job).await.unwrap()["state"], "Completed");
    wait_for_answer(&market, "drained", false).await;
    let (ok, text) = market.run_worker_command("drained", &["status"]).unwrap();
    assert!(!ok && text.contains("does not work now"), "{text}");
    let logs = || market.run_worker_command("drained", &["logs", "-n", "1000"]).unwrap().1;
    wait_until("the worker's last line", async || logs().contains("stopped")).await;
    assert!(logs().contains("listed"), "{}", logs());
}

#[tokio::test]
async fn options_are_read_from_a_file_and_an_unknown_one_is_refused() {
    let market = MARKET.open().await.unwrap();
    let file = market.path().join("provider.toml");
    fs::write(&file, "price = \"0.42\"\nregion = \"under the roof\"\nhours = \"00:00-24:00\"\n").unwrap();
    let _worker = market.start_scoped_worker("configured", &["--config", file.to_str().unwrap()]).await.unwrap();
    let view = market.machine_view("configured").await.unwrap();
    assert_eq!((&view["offer"]["price"], &view["offer"]["region"]), (&json!(420_000), &json!("under the roof")));
    assert_eq!(view["offer"]["policy"]["hours"], "00:00-24:00");
    fs::write(&file, "prise = 1\n").unwrap();
    let (ok, text) = market.run_worker_command("misspelt", &["run", "--config", file.to_str().unwrap()]).unwrap();
    assert!(!ok && text.contains("no option `prise`"), "{text}");
}

#[tokio::test]
async fn the_self_test_lists_all_checks_and_a_failed_one_keeps_the_machine_off_the_market() {
    let market = MARKET.open().await.unwrap();
    let _worker = market.start_scoped_worker("tested", &[]).await.unwrap();
    let find = |checks: &Value, id: &str| checks.as_array().unwrap().iter().find(|c| c["id"] == id).cloned();
    let view = market.wait_for_machine("tested", |m| !m["checks"].as_array().unwrap().is_empty()).await.unwrap();
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
        let check = find(&view["checks"], id).unwrap_or_else(|| panic!("{id}: {view:#}"));
        assert_ne!(check["actual"], "", "{id}");
    }
    let (_, text) = market.run_worker_command("tested", &["self-test", "--json", "--runtime", "nowhere"]).unwrap();
    // After the JSON the command prints the failed checks in words.
    let checks: Value = serde_json::Deserializer::from_str(&text).into_iter().next().unwrap().unwrap();
    let runtime = find(&checks, "docker.runtime").unwrap();
    assert!(runtime["passed"] == json!(false) && runtime["remedy"].as_str().unwrap().contains("daemon.json"));
    // A worker whose self-test fails does not list its machine, and prints the reason.
    market.enroll("unfit", &market.machine_owner).await.unwrap();
    let (ok, text) = market.run_worker_command("unfit", &["run", "--runtime", "nowhere"]).unwrap();
    assert!(!ok && text.contains("not fit") && text.contains("nowhere"), "{text}");
}
