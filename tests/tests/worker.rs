//! The worker on a real machine: its commands, its owner's policies, its GPUs (by a fake of NVML), and what it keeps when the
//! market is away.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, path::PathBuf, time::Duration};

use data_encoding::BASE64URL_NOPAD;
use gpubnb_events::{Lease, Seq, manifest, spec::Artifact};
use gpubnb_tests::{
    parts::fake_nvml,
    system::{Options, System},
};
use reqwest::StatusCode;
use serde_json::{Value, json};

fn counting(lines: u32, pause_ms: u32) -> Value {
    let parameters = json!({ "lines": lines.to_string(), "interval-ms": pause_ms.to_string() });
    json!({ "template": "count", "parameters": parameters, "budget_usd": "0.50" })
}

async fn running(system: &System, job: &str) {
    system.web.wait_for(job, Duration::from_secs(30), |job| job["state"] == "Running").await.unwrap();
}

/// A GPU as the fake of NVML describes it, with some of it changed.
fn gpu(changes: &[(&str, Value)]) -> Value {
    let mut gpu = json!({
        "uuid": "GPU-11111111-2222-3333-4444-555555555555", "name": "NVIDIA Test 9000", "total_mib": 24_576,
        "used_mib": 1_000, "utilisation": 37, "celsius": 61, "watts": 215, "pids": [], "ecc": 0,
    });
    for (name, value) in changes {
        gpu[*name] = value.clone();
    }
    gpu
}

/// Lets the workers of a system load the fake of NVML; what it answers stands in the file that is returned.
fn with_gpus(system: &mut System, gpus: &[Value]) -> PathBuf {
    let file = system.path().join("gpus.json");
    say(&file, gpus);
    system.environment = vec![("GPUBNB_NVML", fake_nvml().unwrap()), ("GPUBNB_FAKE_NVML", file.clone())];
    file
}

fn say(file: &PathBuf, gpus: &[Value]) {
    let partial = file.with_extension("partial");
    fs::write(&partial, json!({ "driver": "550.54", "cuda": 12_040, "gpus": gpus }).to_string()).unwrap();
    fs::rename(partial, file).unwrap();
}

#[tokio::test]
async fn the_owner_is_obeyed_on_the_machine_itself() {
    let mut system = System::start(Options::default()).await.unwrap();
    let (ok, text) = system.worker("attic", &["status"]).unwrap();
    assert!(!ok && text.contains("not enrolled") && text.contains("gpubnb-provider run"), "{text}");
    system.start_worker("attic", &["--slots", "2"]).await.unwrap();
    let status = |system: &System| -> Value {
        let (ok, text) = system.worker("attic", &["status", "--json"]).unwrap();
        assert!(ok, "{text}");
        serde_json::from_str(&text).unwrap()
    };
    for _ in 0..200 {
        if system.worker("attic", &["status"]).unwrap().0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let first = status(&system);
    assert_eq!((&first["state"], &first["slots"], &first["connected"]), (&json!("ready"), &json!(2), &json!(true)));
    let job = system.web.submit(&counting(60, 50)).await.unwrap();
    running(&system, &job).await;
    assert_eq!(status(&system)["jobs"][0]["job"], json!(job));
    assert!(system.worker("attic", &["pause"]).unwrap().0);
    system.machine_until("attic", |m| m["wanted"] == "Paused").await.unwrap();
    assert_eq!(status(&system)["state"], "paused");
    assert!(system.worker("attic", &["resume"]).unwrap().0);
    system.machine_until("attic", |m| m["wanted"] == "Online").await.unwrap();
    // A second worker with the same directory would speak for the same machine.
    let (ok, text) = system.worker("attic", &["run"]).unwrap();
    assert!(!ok && text.contains("another worker runs"), "{text}");
    let (ok, text) = system.worker("attic", &["drain", "--stop"]).unwrap();
    assert!(ok && text.contains("Nothing runs any more"), "{text}");
    assert_eq!(system.web.settled(&job).await.unwrap()["state"], "Completed");
    for _ in 0..200 {
        if !system.worker("attic", &["status"]).unwrap().0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (ok, text) = system.worker("attic", &["status"]).unwrap();
    assert!(!ok && text.contains("does not work now"), "{text}");
    let logs = || system.worker("attic", &["logs", "-n", "1000"]).unwrap().1;
    for _ in 0..200 {
        if logs().contains("stopped") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(logs().contains("listed") && logs().contains("stopped"), "{}", logs());
}

#[tokio::test]
async fn options_stand_in_a_file_and_a_wrong_one_is_named() {
    let mut system = System::start(Options::default()).await.unwrap();
    let file = system.path().join("provider.toml");
    fs::write(&file, "price = \"0.42\"\nregion = \"under the roof\"\nhours = \"00:00-24:00\"\n").unwrap();
    system.start_worker("attic", &["--config", file.to_str().unwrap()]).await.unwrap();
    let view = system.machine_view("attic").await.unwrap();
    assert_eq!((&view["offer"]["price"], &view["offer"]["region"]), (&json!(420_000), &json!("under the roof")));
    assert_eq!(view["offer"]["policy"]["hours"], "00:00-24:00");
    fs::write(&file, "prise = 1\n").unwrap();
    let (ok, text) = system.worker("cellar", &["run", "--config", file.to_str().unwrap()]).unwrap();
    assert!(!ok && text.contains("no option `prise`"), "{text}");
}

#[tokio::test]
async fn the_self_test_says_what_is_there_and_what_is_missing() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let of = |checks: &Value, id: &str| checks.as_array().unwrap().iter().find(|c| c["id"] == id).cloned();
    let view = system.machine_until("attic", |m| !m["checks"].as_array().unwrap().is_empty()).await.unwrap();
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
    let (_, text) = system.worker("attic", &["self-test", "--json", "--runtime", "nowhere"]).unwrap();
    // What went wrong is said after it, in words.
    let checks: Value = serde_json::Deserializer::from_str(&text).into_iter().next().unwrap().unwrap();
    let runtime = of(&checks, "docker.runtime").unwrap();
    assert!(runtime["passed"] == json!(false) && runtime["remedy"].as_str().unwrap().contains("daemon.json"));
    // A machine whose self-test fails is not listed, and says why.
    system.enroll("cellar", &system.owner).await.unwrap();
    let (ok, text) = system.worker("cellar", &["run", "--runtime", "nowhere"]).unwrap();
    assert!(!ok && text.contains("not fit") && text.contains("nowhere"), "{text}");
}

#[tokio::test]
async fn gpus_are_read_and_what_is_wrong_with_one_is_named() {
    let mut system = System::start(Options::default()).await.unwrap();
    let file = with_gpus(&mut system, &[gpu(&[])]);
    system.start_worker("attic", &["--unfit"]).await.unwrap();
    let view = system.machine_until("attic", |m| m["heartbeat"]["gpus"][0]["watts"] == 215).await.unwrap();
    let offered = &view["offer"]["hardware"];
    assert_eq!((&offered["driver"], &offered["cuda"]), (&json!("550.54"), &json!("12.4")));
    assert_eq!(offered["gpus"][0]["capability"], "9.0");
    assert_eq!(
        (&offered["gpus"][0]["model"], &offered["gpus"][0]["pci"]),
        (&json!("NVIDIA Test 9000"), &json!("00000000:01:00.0"))
    );
    let reading = &view["heartbeat"]["gpus"][0];
    assert_eq!(
        (&reading["utilisation_percent"], &reading["memory_used"], &reading["celsius"]),
        (&json!(37), &json!(1_000), &json!(61))
    );
    // Docker here has not NVIDIA's runtime: the self-test says so, and how to come by it.
    let checks = view["checks"].as_array().unwrap();
    let runtime = checks.iter().find(|c| c["id"] == "gpu.runtime").unwrap();
    assert!(
        runtime["passed"] == json!(true) || runtime["remedy"].as_str().unwrap().contains("nvidia-ctk"),
        "{runtime}"
    );
    // Nor can it be measured without that, and the image: that is said, and how.
    let matmul =
        |checks: &Value| checks.as_array().unwrap().iter().find(|c| c["id"] == "gpu.0.matmul").unwrap().clone();
    assert_eq!(matmul(&view["checks"])["actual"], "not measured");
    let (_, text) = system.worker("attic", &["self-test", "--json"]).unwrap();
    let checks: Value = serde_json::Deserializer::from_str(&text).into_iter().next().unwrap().unwrap();
    assert!(matmul(&checks)["remedy"].as_str().unwrap().contains("--measure-gpus"), "{text}");
    for (what, changes) in [
        ("ecc", [("ecc", json!(3))]),
        ("lost", [("trouble", json!("lost"))]),
        ("reset_required", [("trouble", json!("reset"))]),
        ("driver", [("trouble", json!("driver"))]),
    ] {
        say(&file, &[gpu(&changes)]);
        system.machine_until("attic", |m| m["heartbeat"]["gpus"][0]["trouble"] == what).await.unwrap();
    }
    let (_, text) = system.worker("attic", &["status"]).unwrap();
    assert!(text.contains("driver does not answer"), "{text}");
    say(&file, &[gpu(&[])]);
    system.machine_until("attic", |m| m["heartbeat"]["gpus"][0]["trouble"].is_null()).await.unwrap();
}

#[tokio::test]
async fn a_job_on_a_gpu_is_given_that_gpu_or_the_missing_runtime_is_named() {
    let mut system = System::start(Options::default()).await.unwrap();
    let file = with_gpus(&mut system, &[gpu(&[])]);
    system.start_worker("attic", &["--unfit"]).await.unwrap();
    let mut body = counting(600, 50);
    body["gpus"] = json!(1);
    body["max_attempts"] = json!(1);
    let job = system.web.submit(&body).await.unwrap();
    let view = system.machine_until("attic", |m| !m["checks"].as_array().unwrap().is_empty()).await.unwrap();
    let runtime = view["checks"].as_array().unwrap().iter().find(|check| check["id"] == "gpu.runtime").unwrap().clone();
    if runtime["passed"] == json!(true) {
        // An engine that gives GPUs away: this one falls off the bus meanwhile.
        running(&system, &job).await;
        say(&file, &[gpu(&[("trouble", json!("lost"))])]);
        let ended = system.web.settled(&job).await.unwrap();
        assert_eq!(ended["reason"]["name"], "GpuLost", "{ended:#}");
    } else {
        let ended = system.web.settled(&job).await.unwrap();
        assert_eq!(ended["reason"]["name"], "RuntimeMisconfigured", "{ended:#}");
    }
    let view = system.machine_view("attic").await.unwrap();
    assert_eq!(view["trouble"]["job"], json!(job));
    // Its owner is told what to do.
    let (_, page) = system.owner.at_browser().bytes("/provider").await.unwrap();
    let page = String::from_utf8_lossy(&page).into_owned();
    assert!(page.contains("self-test") || page.contains("nvidia-smi"), "{page}");
}

#[tokio::test]
async fn without_a_driver_the_machine_is_listed_without_gpus() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.environment = vec![("GPUBNB_NVML", system.path().join("no-such-library.so"))];
    system.start_worker("attic", &[]).await.unwrap();
    let view = system.machine_view("attic").await.unwrap();
    assert_eq!(view["offer"]["hardware"]["gpus"], json!([]));
}

#[tokio::test]
async fn when_the_owner_returns_the_machine_is_theirs_and_the_job_goes_elsewhere() {
    let mut system = System::start(Options::default()).await.unwrap();
    let file = with_gpus(&mut system, &[gpu(&[])]);
    system
        .start_worker("attic", &["--unfit", "--idle-minutes", "0", "--price", "0.1", "--reclaim-grace", "1"])
        .await
        .unwrap();
    let job = system.web.submit(&counting(100, 50)).await.unwrap();
    running(&system, &job).await;
    // Somebody plays a game: a process that is in none of our containers.
    say(&file, &[gpu(&[("pids", json!([std::process::id()]))])]);
    let stopped = system.web.wait_for(&job, Duration::from_secs(20), |job| job["attempts"][0]["ended"] == "Requeued");
    assert_eq!(stopped.await.unwrap()["reason"]["name"], "Preempted");
    let view = system.machine_until("attic", |m| m["away"] == json!(true)).await.unwrap();
    assert_eq!((&view["wanted"], &view["trouble"]), (&json!("Online"), &Value::Null));
    assert_eq!(view["offer"]["policy"]["idle_minutes"], 0);
    let (_, text) = system.worker("attic", &["status"]).unwrap();
    assert!(text.contains("takes no new jobs: somebody else's process"), "{text}");
    let (_, market) = system.web.stranger().bytes("/market").await.unwrap();
    assert!(String::from_utf8_lossy(&market).contains("In use by its owner"));
    // It starts anew elsewhere, and only that is billed.
    system.environment.clear();
    system.start_worker("cellar", &["--price", "0.2"]).await.unwrap();
    let settled = system.web.settled(&job).await.unwrap();
    assert_eq!(settled["state"], "Completed", "{settled:#}");
    let receipt = system.web.get(&format!("/jobs/{job}/receipt")).await.unwrap();
    assert_eq!(receipt["lease"], settled["attempts"][1]["lease"]);
    say(&file, &[gpu(&[])]);
    system.machine_until("attic", |m| m["away"] == json!(false)).await.unwrap();
}

#[tokio::test]
async fn what_ends_while_the_market_is_away_is_settled_when_it_is_back_by_its_own_run_time() {
    // Machines are given up after two seconds: an outage of the market must not count as theirs.
    let services = ["--suspect-after", "1", "--lost-after", "2"].map(str::to_owned).into();
    let mut system = System::start(Options { services, ..Options::default() }).await.unwrap();
    system.start_worker("attic", &["--price", "1"]).await.unwrap();
    let picture = json!({ "template": "render", "budget_usd": "0.50",
        "parameters": { "width": "320", "height": "180", "samples": "64" } });
    let job = system.web.submit(&picture).await.unwrap();
    running(&system, &job).await;
    system.ui = None;
    system.services.clear();
    system.nats = None;
    // The job ends in the dark, and its worker is killed besides.
    let lease = system.path().join("attic").join("leases");
    let kept = || fs::read_dir(&lease).unwrap().flatten().any(|entry| entry.path().join("outbox.json").exists());
    for _ in 0..1_200 {
        if kept() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(kept(), "{}", system.log("attic"));
    system.workers.remove(0).kill();
    // The machine is rebooted: what was mounted is not any more.
    for attempt in fs::read_dir(&lease).unwrap().flatten() {
        let taken_down = std::process::Command::new("umount").arg(attempt.path().join("output")).status().unwrap();
        assert_eq!(taken_down.success(), attempt.path().join("room.img").exists());
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    system.start_nats().await.unwrap();
    system.start_services().await.unwrap();
    system.start_ui().await.unwrap();
    system.start_worker("attic", &["--price", "1"]).await.unwrap();
    let settled = system.web.settled(&job).await.unwrap();
    assert_eq!(settled["state"], "Completed", "{settled:#}");
    let receipt = system.web.get(&format!("/jobs/{job}/receipt")).await.unwrap();
    let (billed, broker) = (&receipt["metering"]["billed"], &receipt["metering"]["broker"]);
    assert_eq!(billed, &receipt["metering"]["worker"], "{receipt:#}");
    assert!(billed.as_u64().unwrap() + 4_000 < broker.as_u64().unwrap(), "{receipt:#}");
    // Its picture waited, too. And whoever has the log can check whose it is.
    let (status, file) = system.web.bytes(&format!("/api/v1/jobs/{job}/artifacts/render.png")).await.unwrap();
    assert!(status == StatusCode::OK && file.starts_with(b"\x89PNG"));
    let events = system.web.get(&format!("/jobs/{job}/events")).await.unwrap();
    let completed = events["rows"].as_array().unwrap().iter().find(|e| e["event"] == "Completed").unwrap();
    let outputs: Vec<Artifact> = serde_json::from_value(completed["body"]["outputs"].clone()).unwrap();
    let lease = Lease(Seq(completed["body"]["lease"].as_u64().unwrap()));
    let text = manifest::signed_text(job.parse().unwrap(), lease, &outputs);
    let machine = system.machine("attic").unwrap();
    let trail = system.owner.get(&format!("/machines/{machine}/events")).await.unwrap();
    let listed = trail["rows"].as_array().unwrap().iter().find(|e| e["event"] == "MachineListed").unwrap();
    let key = nkeys::KeyPair::from_public_key(listed["body"]["public_key"].as_str().unwrap()).unwrap();
    let signature = BASE64URL_NOPAD.decode(completed["body"]["signature"].as_str().unwrap().as_bytes()).unwrap();
    key.verify(text.as_bytes(), &signature).unwrap();
    assert!(key.verify(b"another manifest", &signature).is_err());
}

#[tokio::test]
async fn a_machine_that_comes_back_too_late_is_refused_and_cleans_up() {
    let services = ["--suspect-after", "1", "--lost-after", "2"].map(str::to_owned).into();
    let mut system = System::start(Options { services, ..Options::default() }).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.web.submit(&counting(20, 50)).await.unwrap();
    running(&system, &job).await;
    // Only this machine sleeps, and its job ends meanwhile.
    let worker = &system.workers[0];
    worker.signal(rustix::process::Signal::STOP);
    let lost = system.web.wait_for(&job, Duration::from_secs(30), |job| job["attempts"][0]["ended"] == "Requeued");
    assert_eq!(lost.await.unwrap()["reason"]["name"], "ProviderLost");
    tokio::time::sleep(Duration::from_secs(1)).await;
    worker.signal(rustix::process::Signal::CONT);
    system.start_worker("cellar", &[]).await.unwrap();
    let leases = system.path().join("attic").join("leases");
    for _ in 0..400 {
        let first = fs::read_dir(&leases).unwrap().count();
        let label = format!("label=gpubnb.job={job}");
        let listed = std::process::Command::new("docker").args(["ps", "-aq", "--filter", &label]).output().unwrap();
        let settled = system.web.get(&format!("/jobs/{job}")).await.unwrap()["settled"] == json!(true);
        if first == 0 && listed.stdout.is_empty() && settled {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let settled = system.web.settled(&job).await.unwrap();
    assert_eq!(settled["attempts"].as_array().unwrap().len(), 2, "{settled:#}");
    assert_eq!(fs::read_dir(&leases).unwrap().count(), 0, "{}", system.log("attic"));
    // What it did after its time was over is nobody's to pay for.
    let receipt = system.web.get(&format!("/jobs/{job}/receipt")).await.unwrap();
    assert_eq!(receipt["lease"], settled["attempts"][1]["lease"]);
}
