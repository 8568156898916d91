//! The broker's disk is lost: the market comes back from its backup, and goes on.

use std::{fs, path::Path, time::Duration};

use async_nats::jetstream::stream;
use gpubnb_events::subject::SERVICES_INBOX;
use gpubnb_log::stream::{DISPATCH, MARKET, OUTPUT, TELEMETRY};
use gpubnb_runtime::nats;
use gpubnb_tests::system::{Options, System};
use serde_json::{Value, json};

fn said(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn audit(system: &System) -> Value {
    serde_json::from_slice(&system.tool(&["audit", "--json"]).unwrap().stdout).unwrap()
}

/// Stops the market and starts a broker with an empty disk.
async fn lose_the_disk(system: &mut System) {
    system.stop();
    fs::remove_dir_all(system.path().join("nats")).unwrap();
    system.start_nats().await.unwrap();
}

async fn restore(system: &mut System, backup: &Path) {
    let backup = backup.to_str().unwrap();
    let restored = system.services_tool(&["restore", backup]).unwrap();
    assert!(restored.status.success(), "{}", said(&restored));
    // A second restore changes nothing.
    let again = system.services_tool(&["restore", backup]).unwrap();
    assert!(again.status.success() && said(&again).contains("is there already"), "{}", said(&again));
    system.start_services().await.unwrap();
    system.start_projector().await.unwrap();
    system.start_ui().await.unwrap();
}

#[tokio::test]
async fn a_market_whose_broker_lost_its_disk_is_restored_verified_and_goes_on() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &["--slots", "2"]).await.unwrap();
    let job = system.web.submit(&json!({ "template": "noop" })).await.unwrap();
    system.web.settled(&job).await.unwrap();
    // A second job holds its lease through backup and restore.
    let long = json!({ "template": "count", "parameters": { "lines": "400", "interval-ms": "50" } });
    let runs = system.web.submit(&long).await.unwrap();
    let running = system.web.wait_for(&runs, Duration::from_secs(60), |job| job["state"] == "Running").await.unwrap();
    let lease = running["attempts"][0]["lease"].as_u64().unwrap();
    let before = audit(&system);
    let backup = system.path().join("backup");
    let saved = system.services_tool(&["backup", backup.to_str().unwrap()]).unwrap();
    assert!(saved.status.success(), "{}", said(&saved));
    // A backup that was cut off goes on, and keeps the streams that are whole.
    let list = backup.join("backup.json");
    let mut cut: Value = serde_json::from_str(&fs::read_to_string(&list).unwrap()).unwrap();
    let lost = cut["streams"].as_array_mut().unwrap().pop().unwrap();
    fs::write(&list, cut.to_string()).unwrap();
    let on = system.services_tool(&["backup", backup.to_str().unwrap()]).unwrap();
    let words = said(&on);
    assert!(on.status.success() && words.matches("is here already").count() == 8, "{words}");
    assert!(words.contains(&format!("{:<16} ", lost["stream"].as_str().unwrap())), "{words}");
    let again = system.services_tool(&["backup", backup.to_str().unwrap()]).unwrap();
    assert!(!again.status.success() && said(&again).contains("holds a whole backup"), "{}", said(&again));

    lose_the_disk(&mut system).await;
    // A backup that was cut off cannot be restored.
    let whole = fs::read_to_string(&list).unwrap();
    let mut partial: Value = serde_json::from_str(&whole).unwrap();
    partial["streams"].as_array_mut().unwrap().pop();
    fs::write(&list, partial.to_string()).unwrap();
    let refused = system.services_tool(&["restore", backup.to_str().unwrap()]).unwrap();
    assert!(!refused.status.success() && said(&refused).contains("it lacks OBJ_ARTIFACTS"), "{}", said(&refused));
    fs::write(&list, whole).unwrap();
    restore(&mut system, &backup).await;
    assert_eq!(dispatch_begins(&system).await, lease, "what ended before is not said to machines again");
    let verified = system.tool(&["verify", "--json"]).unwrap();
    assert!(verified.status.success(), "{}", said(&verified));
    assert_eq!(audit(&system)["accounts"], before["accounts"]);
    // People sign in with the passwords they had, and the machine comes back with its own key.
    assert_eq!(system.web.get(&format!("/jobs/{job}")).await.unwrap()["settled"], true);
    system.start_worker("attic", &["--slots", "2"]).await.unwrap();
    assert_eq!(system.web.settled(&runs).await.unwrap()["state"], "Completed", "it ran on meanwhile");
    let next = system.web.submit(&json!({ "template": "noop" })).await.unwrap();
    assert_eq!(system.web.settled(&next).await.unwrap()["status"], "Settled");
}

/// The configuration of a stream.
async fn stream(system: &System, name: &str) -> stream::Config {
    let client = system.nats_args("services").connect("bootstrap", SERVICES_INBOX).await.unwrap();
    nats::jetstream(client).get_stream(name).await.unwrap().cached_info().config.clone()
}

/// The sequence of the first event that the stream of job messages takes in.
async fn dispatch_begins(system: &System) -> u64 {
    let sources = stream(system, DISPATCH).await.sources.unwrap();
    sources[0].start_sequence.unwrap_or(1)
}

#[tokio::test]
async fn a_dispatch_that_is_lost_is_made_anew_from_the_oldest_live_lease() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &["--slots", "2"]).await.unwrap();
    let done = system.web.submit(&json!({ "template": "noop" })).await.unwrap();
    system.web.settled(&done).await.unwrap();
    let long = json!({ "template": "count", "parameters": { "lines": "100", "interval-ms": "50" } });
    let runs = system.web.submit(&long).await.unwrap();
    let running = system.web.wait_for(&runs, Duration::from_secs(60), |job| job["state"] == "Running").await.unwrap();
    let lease = running["attempts"][0]["lease"].as_u64().unwrap();
    assert_eq!(dispatch_begins(&system).await, 1, "at first there is nothing to leave out");
    system.services.clear();
    system.nats = None;
    fs::remove_dir_all(system.stream_files(DISPATCH).unwrap()).unwrap();
    system.start_nats().await.unwrap();
    system.start_services().await.unwrap();
    assert_eq!(dispatch_begins(&system).await, lease);
    assert_eq!(system.web.settled(&runs).await.unwrap()["state"], "Completed");
    let next = system.web.submit(&json!({ "template": "noop" })).await.unwrap();
    assert_eq!(system.web.settled(&next).await.unwrap()["state"], "Completed", "its machine has its consumer again");
}

#[tokio::test]
async fn what_is_kept_of_output_and_telemetry_follows_the_options_and_nothing_else_does() {
    let mut system = System::start(Options::default()).await.unwrap();
    let (output, market) = (stream(&system, OUTPUT).await, stream(&system, MARKET).await);
    system.services.clear();
    let kept = ["--output-days", "7", "--output-mib", "64", "--telemetry-minutes", "10", "--telemetry-mib", "32"];
    system.options.services.extend(kept.map(str::to_owned));
    system.start_services().await.unwrap();
    let days = |days: u64| Duration::from_secs(days * 24 * 3_600);
    let changed = stream(&system, OUTPUT).await;
    assert_eq!((changed.max_age, changed.max_bytes), (days(7), 64 << 20));
    assert_eq!(stream::Config { max_age: output.max_age, max_bytes: output.max_bytes, ..changed }, output);
    let telemetry = stream(&system, TELEMETRY).await;
    assert_eq!((telemetry.max_age, telemetry.max_bytes), (Duration::from_secs(600), 32 << 20));
    assert_eq!(stream(&system, MARKET).await, market);
    // The tool shows the limits, to programs and to people.
    let lag: Value = serde_json::from_slice(&system.tool(&["lag", "--json"]).unwrap().stdout).unwrap();
    let shown = lag["streams"].as_array().unwrap().iter().find(|s| s["name"] == OUTPUT).unwrap();
    assert_eq!((&shown["most_bytes"], &shown["most_age"]), (&json!(64 << 20), &json!(7 * 24 * 3_600_000_u64)));
    let table = system.tool(&["lag"]).unwrap();
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    let row = table.lines().find(|line| line.starts_with(OUTPUT)).unwrap();
    assert!(row.contains("64 MiB") && row.contains("7 d"), "{table}");
}

#[tokio::test]
async fn a_backup_that_is_older_than_the_read_models_takes_them_back_with_it() {
    let mut system = System::start(Options::default()).await.unwrap();
    let backup = system.path().join("backup");
    let saved = system.services_tool(&["backup", backup.to_str().unwrap()]).unwrap();
    assert!(saved.status.success(), "{}", said(&saved));
    system.web.deposit("7").await.unwrap();
    lose_the_disk(&mut system).await;
    restore(&mut system, &backup).await;
    assert_eq!(system.web.get("/wallet").await.unwrap()["balance"]["available"], 100_000_000);
    let seq = system.web.deposit("1").await.unwrap()["seq"].clone();
    let wallet = system.web.get(&format!("/wallet?min_seq={seq}")).await.unwrap();
    assert_eq!(wallet["balance"]["available"], 101_000_000);
    let verified = system.tool(&["verify", "--json"]).unwrap();
    assert!(verified.status.success(), "{}", said(&verified));
}
