//! A machine's GPUs, by stand-ins for NVIDIA's library and for NVIDIA's container toolkit.

use std::{fs, path::PathBuf, time::Duration};

use gpubnb_tests::{
    engine::Engine,
    jobs::{counting, on_machine, running},
    market::Market,
    parts::fake_nvml,
    shared::{Plan, Shared},
    system::{Options, System},
    wait::until,
};
use serde_json::{Value, json};

static MARKET: Shared = Shared::new(Plan::default);

const UUID: &str = "GPU-11111111-2222-3333-4444-555555555555";

/// A GPU as the stand-in for NVML describes it, with some of it changed.
fn gpu(changes: &[(&str, Value)]) -> Value {
    let mut gpu = json!({
        "uuid": UUID, "name": "NVIDIA Test 9000", "total_mib": 24_576,
        "used_mib": 1_000, "utilisation": 37, "celsius": 61, "watts": 215, "pids": [], "ecc": 0,
    });
    for (name, value) in changes {
        gpu[*name] = value.clone();
    }
    gpu
}

/// Lets the workers of a test load the stand-in for NVML, which answers from the file that is returned.
fn with_gpus(market: &mut Market, name: &str, gpus: &[Value]) -> PathBuf {
    let file = market.path().join(format!("{name}.gpus.json"));
    show(&file, gpus);
    market.environment = vec![("GPUBNB_NVML", fake_nvml().unwrap()), ("GPUBNB_FAKE_NVML", file.clone())];
    file
}

/// Writes the file from which the stand-in answers.
fn show(file: &PathBuf, gpus: &[Value]) {
    let partial = file.with_extension("partial");
    fs::write(&partial, json!({ "driver": "550.54", "cuda": 12_040, "gpus": gpus }).to_string()).unwrap();
    fs::rename(partial, file).unwrap();
}

/// A check of a machine's self-test.
fn check(checks: &Value, id: &str) -> Value {
    checks
        .as_array()
        .unwrap()
        .iter()
        .find(|check| check["id"] == id)
        .unwrap_or_else(|| panic!("{id}: {checks:#}"))
        .clone()
}

#[tokio::test]
async fn a_gpus_model_and_readings_are_shown() {
    let mut market = MARKET.open().await.unwrap();
    with_gpus(&mut market, "shown", &[gpu(&[])]);
    let _worker = market.own_worker("shown", &["--unfit"]).await.unwrap();
    let view = market.machine_until("shown", |m| m["heartbeat"]["gpus"][0]["watts"] == 215).await.unwrap();
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
}

#[tokio::test]
async fn a_gpu_that_was_not_measured_says_how_to_measure_it() {
    let mut market = MARKET.open().await.unwrap();
    with_gpus(&mut market, "unmeasured", &[gpu(&[])]);
    let _worker = market.own_worker("unmeasured", &["--unfit"]).await.unwrap();
    let tested = |m: &Value| !m["checks"].as_array().unwrap().is_empty();
    let view = market.machine_until("unmeasured", tested).await.unwrap();
    assert_eq!(check(&view["checks"], "gpu.0.matmul")["actual"], "not measured");
    let (_, text) = market.worker("unmeasured", &["self-test", "--json"]).unwrap();
    let checks: Value = serde_json::Deserializer::from_str(&text).into_iter().next().unwrap().unwrap();
    assert!(check(&checks, "gpu.0.matmul")["remedy"].as_str().unwrap().contains("--measure-gpus"), "{text}");
}

#[tokio::test]
async fn a_gpu_in_trouble_is_named_with_its_trouble() {
    let mut market = MARKET.open().await.unwrap();
    let file = with_gpus(&mut market, "troubled", &[gpu(&[])]);
    let _worker = market.own_worker("troubled", &["--unfit"]).await.unwrap();
    for (trouble, changes) in [
        ("ecc", [("ecc", json!(3))]),
        ("lost", [("trouble", json!("lost"))]),
        ("reset_required", [("trouble", json!("reset"))]),
        ("driver", [("trouble", json!("driver"))]),
    ] {
        show(&file, &[gpu(&changes)]);
        market.machine_until("troubled", |m| m["heartbeat"]["gpus"][0]["trouble"] == trouble).await.unwrap();
    }
    let (_, text) = market.worker("troubled", &["status"]).unwrap();
    assert!(text.contains("driver does not answer"), "{text}");
    show(&file, &[gpu(&[])]);
    market.machine_until("troubled", |m| m["heartbeat"]["gpus"][0]["trouble"].is_null()).await.unwrap();
}

/// A job that wants a GPU of one machine, once.
fn wants_a_gpu(market: &Market, machine: &str) -> Value {
    let mut body = on_machine(counting(600, 50), &market.machine(machine).unwrap());
    body["gpus"] = json!(1);
    body["max_attempts"] = json!(1);
    body
}

/// The machine's trouble is this job, and the owner's page tells how to mend it.
async fn the_owner_is_told(market: &Market, machine: &str, job: &str, remedy: &str) {
    let view = market.machine_until(machine, |m| !m["trouble"].is_null()).await.unwrap();
    assert_eq!(view["trouble"]["job"], json!(job));
    let (_, page) = market.owner.at_browser().bytes("/provider").await.unwrap();
    let page = String::from_utf8_lossy(&page).into_owned();
    assert!(page.contains(remedy), "{page}");
}

#[tokio::test]
async fn without_nvidias_toolkit_a_job_on_a_gpu_fails_by_the_machines_fault() {
    let mut market = MARKET.open().await.unwrap();
    with_gpus(&mut market, "bare", &[gpu(&[])]);
    let engine = Engine::start(&market.path().join("bare-engine"), &[]).await.unwrap();
    market.environment.push(("DOCKER_HOST", engine.host()));
    let _worker = market.own_worker("bare", &["--unfit"]).await.unwrap();
    let tested = |m: &Value| !m["checks"].as_array().unwrap().is_empty();
    let view = market.machine_until("bare", tested).await.unwrap();
    let runtime = check(&view["checks"], "gpu.runtime");
    assert_eq!((&runtime["passed"], &runtime["actual"]), (&json!(false), &json!("none")), "{runtime}");
    assert!(runtime["remedy"].as_str().unwrap().contains("nvidia-ctk runtime configure"), "{runtime}");
    let job = market.web.submit(&wants_a_gpu(&market, "bare")).await.unwrap();
    let ended = market.web.settled(&job).await.unwrap();
    assert_eq!(ended["reason"]["name"], "RuntimeMisconfigured", "{ended:#}");
    assert_eq!((&ended["fault"], &ended["cost"]), (&json!("provider"), &json!(0)), "{ended:#}");
    assert!(ended["detail"].as_str().unwrap().contains("device driver \"nvidia\""), "{ended:#}");
    the_owner_is_told(&market, "bare", &job, "self-test").await;
}

#[tokio::test]
async fn a_job_is_given_its_gpu_and_ends_when_that_gpu_is_lost() {
    let mut market = MARKET.open().await.unwrap();
    let file = with_gpus(&mut market, "equipped", &[gpu(&[])]);
    let engine = Engine::with_gpus(&market.path().join("equipped-engine")).await.unwrap();
    market.environment.push(("DOCKER_HOST", engine.host()));
    let _worker = market.own_worker("equipped", &["--unfit"]).await.unwrap();
    let tested = |m: &Value| !m["checks"].as_array().unwrap().is_empty();
    let view = market.machine_until("equipped", tested).await.unwrap();
    assert_eq!(check(&view["checks"], "gpu.runtime")["passed"], json!(true));
    let job = market.web.submit(&wants_a_gpu(&market, "equipped")).await.unwrap();
    running(&market.web, &job).await;
    // The toolkit hears of the job's GPU, and of no other, when the container starts.
    until("the toolkit hears of a GPU", async || engine.gpus_given().is_ok()).await;
    assert_eq!(engine.gpus_given().unwrap(), [UUID]);
    // The GPU falls off the bus.
    show(&file, &[gpu(&[("trouble", json!("lost"))])]);
    let ended = market.web.settled(&job).await.unwrap();
    assert_eq!((&ended["reason"]["name"], &ended["fault"]), (&json!("GpuLost"), &json!("provider")), "{ended:#}");
    the_owner_is_told(&market, "equipped", &job, "nvidia-smi").await;
}

#[tokio::test]
async fn without_a_driver_the_machine_is_listed_without_gpus() {
    let mut market = MARKET.open().await.unwrap();
    market.environment = vec![("GPUBNB_NVML", market.path().join("no-such-library.so"))];
    let _worker = market.own_worker("driverless", &[]).await.unwrap();
    let view = market.machine_view("driverless").await.unwrap();
    assert_eq!(view["offer"]["hardware"]["gpus"], json!([]));
}

#[tokio::test]
async fn when_the_owner_returns_the_machine_is_theirs_and_the_job_goes_elsewhere() {
    let mut system = System::start(Options::default()).await.unwrap();
    let file = with_gpus(&mut system, "attic", &[gpu(&[])]);
    system
        .start_worker("attic", &["--unfit", "--idle-minutes", "0", "--price", "0.1", "--reclaim-grace", "1"])
        .await
        .unwrap();
    let job = system.web.submit(&counting(100, 50)).await.unwrap();
    running(&system.web, &job).await;
    // The owner plays a game: a process that belongs to no container of ours uses the GPU.
    show(&file, &[gpu(&[("pids", json!([std::process::id()]))])]);
    let stopped = system.web.wait_for(&job, Duration::from_secs(20), |job| job["attempts"][0]["ended"] == "Requeued");
    assert_eq!(stopped.await.unwrap()["reason"]["name"], "Preempted");
    let view = system.machine_until("attic", |m| m["away"] == json!(true)).await.unwrap();
    assert_eq!((&view["wanted"], &view["trouble"]), (&json!("Online"), &Value::Null));
    assert_eq!(view["offer"]["policy"]["idle_minutes"], 0);
    let (_, text) = system.worker("attic", &["status"]).unwrap();
    assert!(text.contains("takes no new jobs: somebody else's process"), "{text}");
    let (_, market) = system.web.stranger().bytes("/market").await.unwrap();
    assert!(String::from_utf8_lossy(&market).contains("In use by its owner"));
    // The job starts anew on another machine, and only that attempt is billed.
    system.environment.clear();
    system.start_worker("cellar", &["--price", "0.2"]).await.unwrap();
    let settled = system.web.settled(&job).await.unwrap();
    assert_eq!(settled["state"], "Completed", "{settled:#}");
    let receipt = system.web.get(&format!("/jobs/{job}/receipt")).await.unwrap();
    assert_eq!(receipt["lease"], settled["attempts"][1]["lease"]);
    show(&file, &[gpu(&[])]);
    system.machine_until("attic", |m| m["away"] == json!(false)).await.unwrap();
}
