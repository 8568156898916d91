//! Backup and restore: the broker loses its disk or a stream, or its disk is full, and the market continues after the
//! repair. Also the options that limit a stream.

use std::{fs, io::Write as _, path::Path, time::Duration};

use async_nats::jetstream::stream;
use gpubnb_events::{CommandId, subject::SERVICES_INBOX};
use gpubnb_log::stream::{DISPATCH, MARKET, OUTPUT, TELEMETRY};
use gpubnb_runtime::nats;
use gpubnb_tests::{
    system::{MarketSettings, System},
    wait::wait_until,
};
use serde_json::{Value, json};

/// The whole output of a command: first stdout, then stderr.
fn text_of(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The report of the command `audit`.
fn audit(system: &System) -> Value {
    serde_json::from_slice(&system.run_operator_tool(&["audit", "--json"]).unwrap().stdout).unwrap()
}

/// Stops the market, deletes the broker's files, and starts an empty broker.
async fn lose_disk(system: &mut System) {
    system.stop();
    fs::remove_dir_all(system.path().join("nats")).unwrap();
    system.start_nats().await.unwrap();
}

/// Restores the streams from a backup, and starts the market.
async fn restore(system: &mut System, backup: &Path) {
    let backup = backup.to_str().unwrap();
    let restored = system.run_services_tool(&["restore", backup]).unwrap();
    assert!(restored.status.success(), "{}", text_of(&restored));
    // A second restore changes nothing.
    let second = system.run_services_tool(&["restore", backup]).unwrap();
    assert!(second.status.success() && text_of(&second).contains("is there already"), "{}", text_of(&second));
    system.start_services().await.unwrap();
    system.start_projector().await.unwrap();
    system.start_ui().await.unwrap();
}

#[tokio::test]
async fn a_market_whose_broker_lost_its_disk_is_restored_and_its_running_job_completes() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("attic", &["--slots", "2"]).await.unwrap();
    let job = system.consumer.submit(&json!({ "template": "noop" })).await.unwrap();
    system.consumer.wait_until_settled(&job).await.unwrap();
    // A second job runs during the backup and the restore, and keeps its lease.
    let long = json!({ "template": "count", "parameters": { "lines": "400", "interval-ms": "50" } });
    let running_job = system.consumer.submit(&long).await.unwrap();
    let running =
        system.consumer.wait_for(&running_job, Duration::from_secs(60), |job| job["state"] == "Running").await.unwrap();
    let lease = running["attempts"][0]["lease"].as_u64().unwrap();
    let before = audit(&system);
    let backup = system.path().join("backup");
    let saved = system.run_services_tool(&["backup", backup.to_str().unwrap()]).unwrap();
    assert!(saved.status.success(), "{}", text_of(&saved));
    // Makes the backup look interrupted: takes the last stream off its list. The same command saves only this stream.
    let list = backup.join("backup.json");
    let mut interrupted_list: Value = serde_json::from_str(&fs::read_to_string(&list).unwrap()).unwrap();
    let removed = interrupted_list["streams"].as_array_mut().unwrap().pop().unwrap();
    fs::write(&list, interrupted_list.to_string()).unwrap();
    let kept = interrupted_list["streams"].as_array().unwrap().len();
    let continued = system.run_services_tool(&["backup", backup.to_str().unwrap()]).unwrap();
    let messages = text_of(&continued);
    assert!(continued.status.success() && messages.matches("is here already").count() == kept, "{messages}");
    // The first column of a line is the stream that was saved now.
    assert!(messages.contains(&format!("{:<16} ", removed["stream"].as_str().unwrap())), "{messages}");
    let refused_backup = system.run_services_tool(&["backup", backup.to_str().unwrap()]).unwrap();
    assert!(
        !refused_backup.status.success() && text_of(&refused_backup).contains("already holds a complete backup"),
        "{}",
        text_of(&refused_backup)
    );

    lose_disk(&mut system).await;
    // An incomplete backup cannot be restored.
    let whole = fs::read_to_string(&list).unwrap();
    let mut incomplete_list: Value = serde_json::from_str(&whole).unwrap();
    incomplete_list["streams"].as_array_mut().unwrap().pop();
    fs::write(&list, incomplete_list.to_string()).unwrap();
    let refused = system.run_services_tool(&["restore", backup.to_str().unwrap()]).unwrap();
    assert!(!refused.status.success() && text_of(&refused).contains("it lacks OBJ_ARTIFACTS"), "{}", text_of(&refused));
    fs::write(&list, whole).unwrap();
    restore(&mut system, &backup).await;
    assert_eq!(dispatch_start(&system).await, lease, "DISPATCH must not contain jobs that ended before the backup");
    let verified = system.run_operator_tool(&["verify", "--json"]).unwrap();
    assert!(verified.status.success(), "{}", text_of(&verified));
    assert_eq!(audit(&system)["accounts"], before["accounts"]);
    // Tokens and passwords are still valid, and the machine comes back with its old key.
    assert_eq!(system.consumer.get(&format!("/jobs/{job}")).await.unwrap()["settled"], true);
    system.start_worker("attic", &["--slots", "2"]).await.unwrap();
    assert_eq!(
        system.consumer.wait_until_settled(&running_job).await.unwrap()["state"],
        "Completed",
        "the job ran on during the outage"
    );
    let next = system.consumer.submit(&json!({ "template": "noop" })).await.unwrap();
    assert_eq!(system.consumer.wait_until_settled(&next).await.unwrap()["status"], "Settled");
}

/// The configuration of a stream.
async fn stream_config(system: &System, name: &str) -> stream::Config {
    let client = system.nats_args("services").connect("bootstrap", SERVICES_INBOX).await.unwrap();
    nats::jetstream(client).get_stream(name).await.unwrap().cached_info().config.clone()
}

/// The sequence in MARKET from which DISPATCH, the stream with the jobs for machines, copies events.
async fn dispatch_start(system: &System) -> u64 {
    let sources = stream_config(system, DISPATCH).await.sources.unwrap();
    sources[0].start_sequence.unwrap_or(1)
}

#[tokio::test]
async fn a_lost_dispatch_stream_is_made_again_from_the_oldest_live_lease() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("attic", &["--slots", "2"]).await.unwrap();
    let done = system.consumer.submit(&json!({ "template": "noop" })).await.unwrap();
    system.consumer.wait_until_settled(&done).await.unwrap();
    let long = json!({ "template": "count", "parameters": { "lines": "100", "interval-ms": "50" } });
    let running_job = system.consumer.submit(&long).await.unwrap();
    let running =
        system.consumer.wait_for(&running_job, Duration::from_secs(60), |job| job["state"] == "Running").await.unwrap();
    let lease = running["attempts"][0]["lease"].as_u64().unwrap();
    assert_eq!(dispatch_start(&system).await, 1, "a new DISPATCH starts at the first event");
    // A process that is dropped is stopped.
    system.services.clear();
    system.nats = None;
    fs::remove_dir_all(system.stream_directory(DISPATCH).unwrap()).unwrap();
    system.start_nats().await.unwrap();
    system.start_services().await.unwrap();
    assert_eq!(dispatch_start(&system).await, lease);
    assert_eq!(system.consumer.wait_until_settled(&running_job).await.unwrap()["state"], "Completed");
    let next = system.consumer.submit(&json!({ "template": "noop" })).await.unwrap();
    assert_eq!(
        system.consumer.wait_until_settled(&next).await.unwrap()["state"],
        "Completed",
        "the machine has a consumer on the new stream"
    );
}

#[tokio::test]
async fn the_retention_options_change_only_the_streams_output_and_telemetry() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    let (output, market) = (stream_config(&system, OUTPUT).await, stream_config(&system, MARKET).await);
    system.services.clear();
    let arguments = ["--output-days", "7", "--output-mib", "64", "--telemetry-minutes", "10", "--telemetry-mib", "32"];
    system.settings.services.extend(arguments.map(str::to_owned));
    system.start_services().await.unwrap();
    let days = |days: u64| Duration::from_secs(days * 24 * 3_600);
    let changed = stream_config(&system, OUTPUT).await;
    assert_eq!((changed.max_age, changed.max_bytes), (days(7), 64 << 20));
    // Nothing but the two limits has changed.
    assert_eq!(stream::Config { max_age: output.max_age, max_bytes: output.max_bytes, ..changed }, output);
    let telemetry = stream_config(&system, TELEMETRY).await;
    assert_eq!((telemetry.max_age, telemetry.max_bytes), (Duration::from_secs(600), 32 << 20));
    assert_eq!(stream_config(&system, MARKET).await, market);
    // The command `lag` shows the limits, as JSON and as a table.
    let lag: Value = serde_json::from_slice(&system.run_operator_tool(&["lag", "--json"]).unwrap().stdout).unwrap();
    let shown = lag["streams"].as_array().unwrap().iter().find(|s| s["name"] == OUTPUT).unwrap();
    assert_eq!((&shown["max_bytes"], &shown["max_age"]), (&json!(64 << 20), &json!(7 * 24 * 3_600_000_u64)));
    let table = system.run_operator_tool(&["lag"]).unwrap();
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    let row = table.lines().find(|line| line.starts_with(OUTPUT)).unwrap();
    assert!(row.contains("64 MiB") && row.contains("7 d"), "{table}");
}

#[tokio::test]
async fn a_restore_from_a_backup_older_than_the_read_models_resets_the_read_models() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    let backup = system.path().join("backup");
    let saved = system.run_services_tool(&["backup", backup.to_str().unwrap()]).unwrap();
    assert!(saved.status.success(), "{}", text_of(&saved));
    system.consumer.deposit("7").await.unwrap();
    lose_disk(&mut system).await;
    restore(&mut system, &backup).await;
    // The deposit of $7 is in the old read models, and no longer in the log. The consumer began with $100.
    assert_eq!(system.consumer.get("/wallet").await.unwrap()["balance"]["available"], 100_000_000);
    let seq = system.consumer.deposit("1").await.unwrap()["seq"].clone();
    let wallet = system.consumer.get(&format!("/wallet?min_seq={seq}")).await.unwrap();
    assert_eq!(wallet["balance"]["available"], 101_000_000);
    let verified = system.run_operator_tool(&["verify", "--json"]).unwrap();
    assert!(verified.status.success(), "{}", text_of(&verified));
}

/// Deposits a dollar once. `Ok` means that the market has confirmed the deposit.
async fn deposit(system: &System, id: CommandId) -> anyhow::Result<Value> {
    let deposit = json!({ "deposit": id, "amount_usd": "1" });
    system.consumer.browser_session().post("/wallet/deposits", &deposit).await
}

#[tokio::test]
async fn a_broker_whose_disk_was_full_is_started_again_by_its_supervisor_and_loses_and_doubles_nothing() {
    let settings = MarketSettings { broker_disk_mib: Some(64), ..MarketSettings::default() };
    let mut system = System::start(settings).await.unwrap();
    let mut confirmed = 0;
    for _ in 0..10 {
        deposit(&system, CommandId::generate()).await.unwrap();
        confirmed += 1;
    }
    let filler = system.path().join("nats/filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4_096]).is_ok() {}
    // The market must not confirm a deposit that is not on the full disk.
    let mut unconfirmed = Vec::new();
    for _ in 0..200 {
        let id = CommandId::generate();
        match deposit(&system, id).await {
            Ok(_) => confirmed += 1,
            Err(_) => unconfirmed.push(id),
        }
        if unconfirmed.len() == 3 {
            break;
        }
    }
    assert_eq!(unconfirmed.len(), 3, "the disk was never full");
    // The supervisor ends the broker, which would store nothing any more, also when there is room again.
    wait_until("the end of the broker", async || system.nats.as_mut().unwrap().check_running().is_err()).await;
    assert!(system.process_log("nats").contains("the broker cannot write"), "{}", system.process_log("nats"));
    // The operator makes room, and Compose or systemd starts the broker again, which is what the test does here. The
    // file is closed first, because an open file takes its room also after its removal.
    drop(file);
    fs::remove_file(&filler).unwrap();
    system.nats = None;
    system.start_nats().await.unwrap();
    // Whoever got no answer sends the same deposit again, which counts once.
    for id in unconfirmed {
        wait_until("the deposit", async || deposit(&system, id).await.is_ok()).await;
        deposit(&system, id).await.unwrap();
        confirmed += 1;
    }
    let balance = async || system.consumer.get("/wallet").await.unwrap()["balance"]["available"].as_i64().unwrap();
    wait_until("the balance", async || balance().await == (100 + confirmed) * 1_000_000).await;
    let verified = system.run_operator_tool(&["verify"]).unwrap();
    assert!(verified.status.success(), "{}", text_of(&verified));
}
