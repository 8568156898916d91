//! The GPUs of a machine. Stand-ins replace NVIDIA's library NVML and NVIDIA's container toolkit.

use std::{fs, path::PathBuf};

use gpubnb_tests::{
    engine::Engine,
    jobs::{counting_job, noop_job, pin_to_machine, wait_until_running},
    market::Market,
    programs::fake_nvml,
    shared::{Plan, SharedMarket},
    system::{MarketSettings, System},
    wait::wait_until,
};
use serde_json::{Value, json};

static MARKET: SharedMarket = SharedMarket::new(Plan::default);

const UUID: &str = "GPU-11111111-2222-3333-4444-555555555555";

/// The description of a GPU for the stand-in for NVML, with some fields changed.
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

/// Lets the workers of a test load the stand-in for NVML. Returns the file with the GPUs that the stand-in reports.
/// These workers need the option `--unfit`, which lists a machine although its self-test failed.
fn use_fake_gpus(market: &mut Market, name: &str, gpus: &[Value]) -> PathBuf {
    let file = market.path().join(format!("{name}.gpus.json"));
    write_gpus(&file, gpus);
    market.environment = vec![("GPUBNB_NVML", fake_nvml().unwrap()), ("GPUBNB_FAKE_NVML", file.clone())];
    file
}

/// Writes the file with the GPUs that the stand-in reports.
fn write_gpus(file: &PathBuf, gpus: &[Value]) {
    let partial = file.with_extension("partial");
    fs::write(&partial, json!({ "driver": "550.54", "cuda": 12_040, "gpus": gpus }).to_string()).unwrap();
    fs::rename(partial, file).unwrap();
}

/// The check with this id from a machine's self-test.
fn find_check(checks: &Value, id: &str) -> Value {
    checks
        .as_array()
        .unwrap()
        .iter()
        .find(|check| check["id"] == id)
        .unwrap_or_else(|| panic!("{id}: {checks:#}"))
        .clone()
}

#[tokio::test]
async fn the_api_shows_a_gpus_model_and_readings() {
    let mut market = MARKET.open().await.unwrap();
    use_fake_gpus(&mut market, "shown", &[gpu(&[])]);
    let _worker = market.start_scoped_worker("shown", &["--unfit"]).await.unwrap();
    let view = market.wait_for_machine("shown", |m| m["heartbeat"]["gpus"][0]["watts"] == 215).await.unwrap();
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
async fn the_self_test_tells_how_to_measure_a_gpu() {
    let mut market = MARKET.open().await.unwrap();
    use_fake_gpus(&mut market, "unmeasured", &[gpu(&[])]);
    let _worker = market.start_scoped_worker("unmeasured", &["--unfit"]).await.unwrap();
    let tested = |m: &Value| !m["checks"].as_array().unwrap().is_empty();
    let view = market.wait_for_machine("unmeasured", tested).await.unwrap();
    assert_eq!(find_check(&view["checks"], "gpu.0.matmul")["actual"], "not measured");
    let (_, text) = market.run_worker_command("unmeasured", &["self-test", "--json"]).unwrap();
    let checks: Value = serde_json::Deserializer::from_str(&text).into_iter().next().unwrap().unwrap();
    assert!(find_check(&checks, "gpu.0.matmul")["remedy"].as_str().unwrap().contains("--measure-gpus"), "{text}");
}

#[tokio::test]
async fn the_heartbeat_names_the_trouble_of_a_gpu() {
    let mut market = MARKET.open().await.unwrap();
    let file = use_fake_gpus(&mut market, "troubled", &[gpu(&[])]);
    let _worker = market.start_scoped_worker("troubled", &["--unfit"]).await.unwrap();
    for (trouble, changes) in [
        ("ecc", [("ecc", json!(3))]),
        ("lost", [("trouble", json!("lost"))]),
        ("reset_required", [("trouble", json!("reset"))]),
        ("driver", [("trouble", json!("driver"))]),
    ] {
        write_gpus(&file, &[gpu(&changes)]);
        market.wait_for_machine("troubled", |m| m["heartbeat"]["gpus"][0]["trouble"] == trouble).await.unwrap();
    }
    let (_, text) = market.run_worker_command("troubled", &["status"]).unwrap();
    assert!(text.contains("driver does not answer"), "{text}");
    write_gpus(&file, &[gpu(&[])]);
    market.wait_for_machine("troubled", |m| m["heartbeat"]["gpus"][0]["trouble"].is_null()).await.unwrap();
}

/// A job that needs one GPU of this machine, and has one attempt.
fn gpu_job(market: &Market, machine: &str) -> Value {
    let mut body = pin_to_machine(counting_job(600, 50), &market.machine_id(machine).unwrap());
    body["gpus"] = json!(1);
    body["max_attempts"] = json!(1);
    body
}

/// Checks that the machine's trouble names this job, and that the owner's page shows the remedy.
async fn assert_owner_sees_trouble(market: &Market, machine: &str, job: &str, remedy: &str) {
    let view = market.wait_for_machine(machine, |m| !m["trouble"].is_null()).await.unwrap();
    assert_eq!(view["trouble"]["job"], json!(job));
    let (_, page) = market.machine_owner.browser_session().bytes("/provider").await.unwrap();
    let page = String::from_utf8_lossy(&page).into_owned();
    assert!(page.contains(remedy), "{page}");
}

#[tokio::test]
async fn a_gpu_job_without_nvidias_toolkit_fails_by_the_providers_fault() {
    let mut market = MARKET.open().await.unwrap();
    use_fake_gpus(&mut market, "bare", &[gpu(&[])]);
    let engine = Engine::start(&market.path().join("bare-engine"), &[]).await.unwrap();
    market.environment.push(("DOCKER_HOST", engine.host()));
    let _worker = market.start_scoped_worker("bare", &["--unfit"]).await.unwrap();
    let tested = |m: &Value| !m["checks"].as_array().unwrap().is_empty();
    let view = market.wait_for_machine("bare", tested).await.unwrap();
    let runtime = find_check(&view["checks"], "gpu.runtime");
    assert_eq!((&runtime["passed"], &runtime["actual"]), (&json!(false), &json!("none")), "{runtime}");
    assert!(runtime["remedy"].as_str().unwrap().contains("nvidia-ctk runtime configure"), "{runtime}");
    let job = market.consumer.submit(&gpu_job(&market, "bare")).await.unwrap();
    let ended = market.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!(ended["reason"]["name"], "RuntimeMisconfigured", "{ended:#}");
    assert_eq!((&ended["fault"], &ended["cost"]), (&json!("provider"), &json!(0)), "{ended:#}");
    assert!(ended["detail"].as_str().unwrap().contains("device driver \"nvidia\""), "{ended:#}");
    assert_owner_sees_trouble(&market, "bare", &job, "self-test").await;
}

#[tokio::test]
async fn a_job_gets_its_gpu_and_fails_when_the_gpu_is_lost() {
    let mut market = MARKET.open().await.unwrap();
    let file = use_fake_gpus(&mut market, "equipped", &[gpu(&[])]);
    let engine = Engine::start_with_gpus(&market.path().join("equipped-engine")).await.unwrap();
    market.environment.push(("DOCKER_HOST", engine.host()));
    let _worker = market.start_scoped_worker("equipped", &["--unfit"]).await.unwrap();
    let tested = |m: &Value| !m["checks"].as_array().unwrap().is_empty();
    let view = market.wait_for_machine("equipped", tested).await.unwrap();
    assert_eq!(find_check(&view["checks"], "gpu.runtime")["passed"], json!(true));
    let job = market.consumer.submit(&gpu_job(&market, "equipped")).await.unwrap();
    wait_until_running(&market.consumer, &job).await;
    // When the container starts, the toolkit gets the id of the job's GPU only.
    wait_until("the toolkit gets the id of a GPU", async || engine.gpus_of_last_container().is_ok()).await;
    assert_eq!(engine.gpus_of_last_container().unwrap(), [UUID]);
    // The driver reports that the GPU is lost.
    write_gpus(&file, &[gpu(&[("trouble", json!("lost"))])]);
    let ended = market.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!((&ended["reason"]["name"], &ended["fault"]), (&json!("GpuLost"), &json!("provider")), "{ended:#}");
    assert_owner_sees_trouble(&market, "equipped", &job, "nvidia-smi").await;
}

#[tokio::test]
async fn a_machine_without_a_driver_is_listed_without_gpus() {
    let mut market = MARKET.open().await.unwrap();
    market.environment = vec![("GPUBNB_NVML", market.path().join("no-such-library.so"))];
    let _worker = market.start_scoped_worker("driverless", &[]).await.unwrap();
    let view = market.machine_view("driverless").await.unwrap();
    assert_eq!(view["offer"]["hardware"]["gpus"], json!([]));
}

#[tokio::test]
async fn an_owner_who_uses_the_gpu_stops_no_job_without_a_gpu_and_gets_no_new_jobs() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    let display_server = |mib: u64| gpu(&[("graphics", json!([[std::process::id(), mib << 20]]))]);
    let file = use_fake_gpus(&mut system, "attic", &[display_server(40)]);
    system
        .start_worker("attic", &["--unfit", "--idle-minutes", "0", "--price", "0.1", "--reclaim-grace", "1"])
        .await
        .unwrap();
    // A display server that holds 40 MiB does not count as the owner's use of the GPU.
    let job = system.consumer.submit(&counting_job(400, 50)).await.unwrap();
    wait_until_running(&system.consumer, &job).await;
    // The owner uses the GPU: a process outside the job's container appears on it.
    write_gpus(&file, &[gpu(&[("pids", json!([std::process::id()]))])]);
    let view = system.wait_for_machine("attic", |m| m["away"] == json!(true)).await.unwrap();
    assert_eq!((&view["wanted"], &view["trouble"]), (&json!("Online"), &Value::Null));
    assert_eq!(view["offer"]["policy"]["idle_minutes"], 0);
    let (_, text) = system.run_worker_command("attic", &["status"]).unwrap();
    assert!(text.contains("takes no new jobs: somebody else's process"), "{text}");
    let (_, market) = system.consumer.stranger().bytes("/market").await.unwrap();
    assert!(String::from_utf8_lossy(&market).contains("In use by its owner"));
    // A new job runs on another machine, and the job without a GPU ends where it is.
    system.environment.clear();
    system.start_worker("cellar", &["--price", "0.2"]).await.unwrap();
    let other = system.consumer.submit(&noop_job()).await.unwrap();
    let other = system.consumer.wait_until_settled(&other).await.unwrap();
    assert_ne!(other["attempts"][0]["machine"], view["machine"], "{other:#}");
    let settled = system.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!((&settled["state"], settled["attempts"].as_array().unwrap().len()), (&json!("Completed"), 1));
    // A process that draws and holds much memory, such as a game or a renderer, counts as the owner's use of the GPU.
    write_gpus(&file, &[gpu(&[])]);
    system.wait_for_machine("attic", |m| m["away"] == json!(false)).await.unwrap();
    write_gpus(&file, &[display_server(2_048)]);
    system.wait_for_machine("attic", |m| m["away"] == json!(true)).await.unwrap();
}
