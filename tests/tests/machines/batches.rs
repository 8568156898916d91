//! Batches on real machines: what tasks get, what they leave, and what becomes of the money.

use std::{collections::BTreeSet, fs};

use gpubnb_tests::{
    market::Market,
    shared::{Plan, SharedMarket},
    system::MarketSettings,
    wait::wait_until,
};
use serde_json::{Value, json};

use crate::person::Person;

const IMAGE: &str = "gpubnb/hostile:1";
/// The number of files of `gpubnb map`.
const FILES: usize = 200;

static MARKET: SharedMarket = SharedMarket::new(|| {
    let services = ["--approve-image", IMAGE].map(str::to_owned).into();
    Plan::with_settings(MarketSettings { services, ..MarketSettings::default() })
        .with_worker("attic", &["--slots", "4"])
});

/// The batch with this name, as the API describes it. All tests of this file share an account.
fn named(person: &Person, name: &str) -> Value {
    let batches = person.json(&["batch", "list"]);
    batches["rows"].as_array().unwrap().iter().find(|batch| batch["spec"]["name"] == name).unwrap().clone()
}

fn micros(amount: &Value) -> i64 {
    amount.as_i64().unwrap()
}

/// The sum of the bills of a batch's tasks, from their receipts.
async fn sum_of_receipts(market: &Market, batch: &str) -> i64 {
    let tasks = market.consumer.get(&format!("/batches/{batch}/tasks")).await.unwrap();
    assert_eq!(tasks["next"], Value::Null, "one page has all tasks");
    let mut sum = 0;
    for task in tasks["rows"].as_array().unwrap() {
        let receipt = market.consumer.get(&format!("/jobs/{}/receipt", task["job"].as_str().unwrap())).await.unwrap();
        let postings = receipt["postings"].as_array().unwrap();
        assert_eq!(postings.iter().map(|posting| micros(&posting["amount"])).sum::<i64>(), 0);
        sum += micros(&receipt["cost"]);
    }
    sum
}

#[tokio::test]
async fn a_map_gives_each_task_its_file_and_brings_all_results_back() {
    let market = MARKET.open().await.unwrap();
    let person = Person::new(&market, "map").await;
    let names: Vec<String> = (0..FILES).map(|number| format!("in/{number}/words.txt")).collect();
    for (number, name) in names.iter().enumerate() {
        person.write(name, format!("content {number}"));
    }
    let files: Vec<&str> = names.iter().map(String::as_str).collect();
    let options = ["--image", IMAGE, "--name", "map", "--time", "60", "--env", "TOKEN=abc", "-o", "out"];
    person.run_successfully(&[&["map", "task {}"], &files[..], &options[..]].concat());
    for number in 0..FILES {
        let result = fs::read_to_string(person.home.join(format!("out/{number}/result.txt"))).unwrap();
        let item = format!("GPUBNB_PARAM_ITEM=/data/files/{number}/words.txt");
        assert_eq!(result, format!("{number} of {FILES}: content {number} [{item}] abc"));
    }
    let batch = named(&person, "map");
    let id = batch["batch"].as_str().unwrap();
    assert_eq!(
        (&batch["status"], &batch["counts"]["completed"], &batch["held"]),
        (&json!("Finished"), &json!(FILES), &json!(0))
    );
    assert_eq!(micros(&batch["cost"]), sum_of_receipts(&market, id).await);
    assert!(micros(&batch["cost"]) > 0);
    // One event holds the money of all tasks, and the trail of the batch is short.
    let trail = market.consumer.get(&format!("/batches/{id}/events")).await.unwrap();
    let events: Vec<&str> = trail["rows"].as_array().unwrap().iter().filter_map(|row| row["event"].as_str()).collect();
    assert_eq!((events.first(), events.last()), (Some(&"BatchSubmitted"), Some(&"BatchClosed")), "{events:?}");
    assert!(events.len() < FILES / 4, "{events:?}");
    // The table has parameters, results and measurements.
    let table = person.run_successfully(&["batch", "results", id]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], "index,state,reason,seconds,cost_usd,machine,job,item,score");
    assert!(lines[8].starts_with("7,Completed,,") && lines[8].ends_with(",/data/files/7/words.txt,7"), "{table}");
    // One archive has all files.
    let (_, archive) = market.consumer.bytes(&format!("/api/v1/batches/{id}/artifacts.tar")).await.unwrap();
    assert!(archive.windows(12).any(|part| part == b"9/result.txt"));
}

#[tokio::test]
async fn a_sweep_names_its_failures_and_only_they_are_tried_again() {
    let market = MARKET.open().await.unwrap();
    let person = Person::new(&market, "sweep").await;
    let options = [
        "--image",
        IMAGE,
        "--name",
        "sweep",
        "--time",
        "60",
        "--no-download",
        "--sweep",
        "lr=0.1,0.2",
        "--sweep",
        "word=a,fail,b",
    ];
    let output = person.run(&[&["run"], &options[..], &["--", "task", "{word}"]].concat());
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("task 1 lr=0.1 word=fail: NonZeroExit") && error.contains("task 4 lr=0.2 word=fail"),
        "{error}"
    );
    let batch = named(&person, "sweep");
    assert_eq!((&batch["status"], &batch["counts"]["failed"]), (&json!("Finished with failures"), &json!(2)));
    let id = batch["batch"].as_str().unwrap();
    let retried = person.run_successfully(&["batch", "retry", id]);
    let output = person.run(&["batch", "wait", retried.trim()]);
    assert_eq!(output.status.code(), Some(1));
    let again = market.consumer.get(&format!("/batches/{}/tasks", retried.trim())).await.unwrap();
    let tasks: Vec<(u64, &str)> = again["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|task| (task["index"].as_u64().unwrap(), task["parameters"]["lr"].as_str().unwrap()))
        .collect();
    assert_eq!(tasks, [(1, "0.1"), (4, "0.2")]);
    let second = market.consumer.get(&format!("/batches/{}", retried.trim())).await.unwrap();
    assert_eq!(micros(&second["cost"]), sum_of_receipts(&market, retried.trim()).await);
}

#[tokio::test]
async fn a_cancelled_batch_stops_its_tasks_and_frees_the_rest_of_the_money() {
    let market = MARKET.open().await.unwrap();
    let person = Person::new(&market, "cancel").await;
    let options =
        ["--image", IMAGE, "--name", "cancel", "--time", "600", "--array", "0-39", "--max-running", "2", "--detach"];
    let id = person.run_successfully(&[&["run"], &options[..], &["--", "checkpoint"]].concat());
    let id = id.trim();
    let batch = || async { market.consumer.get(&format!("/batches/{id}")).await.unwrap() };
    wait_until("two tasks run", async || batch().await["counts"]["running"] == 2).await;
    let before = batch().await;
    assert!(before["opened"].as_u64().unwrap() < 40, "{before}");
    assert_eq!(micros(&before["held"]), micros(&before["hold"]));
    person.run_successfully(&["batch", "cancel", id]);
    wait_until("the batch is over", async || !batch().await["ended_at"].is_null()).await;
    let after = batch().await;
    assert_eq!(
        (&after["status"], &after["counts"]["cancelled"], &after["held"]),
        (&json!("Cancelled"), &json!(40), &json!(0))
    );
    // A cancellation may be repeated, and the batch of another ending cannot be cancelled.
    person.run_successfully(&["batch", "cancel", id]);
}

#[tokio::test]
async fn too_many_failures_cancel_the_rest() {
    let market = MARKET.open().await.unwrap();
    let person = Person::new(&market, "failures").await;
    person.write("words", "fail\n".repeat(60));
    let options = [
        "--image",
        IMAGE,
        "--name",
        "failures",
        "--time",
        "60",
        "--each-line",
        "words",
        "--max-failures",
        "2",
        "--no-download",
    ];
    let output = person.run(&[&["run"], &options[..], &["--", "task", "{}"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let batch = named(&person, "failures");
    let failed = batch["counts"]["failed"].as_u64().unwrap();
    assert_eq!((&batch["status"], &batch["closed"]), (&json!("Stopped"), &json!("too_many_failures")), "{batch}");
    // Those that run when the third task fails may fail, too.
    assert!((3..60).contains(&failed), "{batch}");
    let states: BTreeSet<String> = person.json(&["batch", "tasks", batch["batch"].as_str().unwrap()])["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|task| task["state"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(states, ["Cancelled", "Failed"].map(str::to_owned).into());
}
