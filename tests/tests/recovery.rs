//! The broker's disk is lost: the market comes back from its backup, and goes on.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, path::Path, time::Duration};

use gpubnb_tests::system::{Options, System};
use serde_json::{Value, json};

fn said(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn audit(system: &System) -> Value {
    serde_json::from_slice(&system.tool(&["audit", "--json"]).unwrap().stdout).unwrap()
}

/// Loses all that the broker had, and everything that is connected to it; then a broker with nothing is there.
async fn lose_the_disk(system: &mut System) {
    system.stop();
    fs::remove_dir_all(system.path().join("nats")).unwrap();
    system.start_nats().await.unwrap();
}

async fn restore(system: &mut System, backup: &Path) {
    let backup = backup.to_str().unwrap();
    let restored = system.services_tool(&["restore", backup]).unwrap();
    assert!(restored.status.success(), "{}", said(&restored));
    // Saying it again changes nothing.
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
    // Another one holds its lease through all of it.
    let long = json!({ "template": "count", "parameters": { "lines": "400", "interval-ms": "50" } });
    let runs = system.web.submit(&long).await.unwrap();
    system.web.wait_for(&runs, Duration::from_secs(60), |job| job["state"] == "Running").await.unwrap();
    let before = audit(&system);
    let backup = system.path().join("backup");
    let saved = system.services_tool(&["backup", backup.to_str().unwrap()]).unwrap();
    assert!(saved.status.success(), "{}", said(&saved));
    let again = system.services_tool(&["backup", backup.to_str().unwrap()]).unwrap();
    assert!(!again.status.success() && said(&again).contains("holds a whole backup"), "{}", said(&again));

    lose_the_disk(&mut system).await;
    // One that was cut off is none.
    let list = backup.join("backup.json");
    let whole = fs::read_to_string(&list).unwrap();
    let mut partial: Value = serde_json::from_str(&whole).unwrap();
    partial["streams"].as_array_mut().unwrap().pop();
    fs::write(&list, partial.to_string()).unwrap();
    let refused = system.services_tool(&["restore", backup.to_str().unwrap()]).unwrap();
    assert!(!refused.status.success() && said(&refused).contains("it lacks OBJ_ARTIFACTS"), "{}", said(&refused));
    fs::write(&list, whole).unwrap();
    restore(&mut system, &backup).await;
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
