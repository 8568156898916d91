//! Jobs that try to harm their machine, against real Docker: the machine is unharmed, the job ends with the right named
//! reason, and the next job runs at once. `make hostile` runs just these.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use gpubnb_tests::system::{Options, System};
use serde_json::{Value, json};

/// Longest that a next job may take, its container and all.
const AT_ONCE: Duration = Duration::from_secs(10);

async fn market(worker: &[&str]) -> System {
    let services = ["--approve-image", "gpubnb/hostile:1"].map(str::to_owned).into();
    let mut system = System::start(Options { services, ..Options::default() }).await.unwrap();
    system.start_worker("attic", worker).await.unwrap();
    system
}

/// Runs one, and a harmless one after it; returns the first as it is settled, and what it said.
async fn tried(system: &System, name: &str, seconds: u64) -> (Value, String) {
    let body = json!({ "image": "gpubnb/hostile:1", "command": [name], "name": name, "time_seconds": seconds,
        "memory_mib": 256, "output_mib": 32, "cpu_millis": 2_000, "budget_usd": "0.50", "max_attempts": 1 });
    let job = system.web.submit(&body).await.unwrap();
    let settled = system.web.settled(&job).await.unwrap();
    let began = Instant::now();
    let next = system.web.submit(&json!({ "template": "noop", "budget_usd": "0.10" })).await.unwrap();
    let next = system.web.settled(&next).await.unwrap();
    assert_eq!(next["state"], "Completed", "after {name}: {next:#}");
    assert!(began.elapsed() < AT_ONCE, "after {name}: {:?}", began.elapsed());
    let logs = system.web.get(&format!("/jobs/{job}/logs?limit=200")).await.unwrap();
    let said: Vec<_> = logs["rows"].as_array().unwrap().iter().filter_map(|l| l["text"].as_str()).collect();
    (settled, said.join("\n"))
}

/// It was held, and says so by its exit code.
async fn held(name: &str) {
    let system = market(&[]).await;
    let (job, said) = tried(&system, name, 60).await;
    assert_eq!(job["state"], "Completed", "{name}: {job:#}\n{said}");
    assert!(said.contains("held") && !said.contains("GOT THROUGH"), "{said}");
}

/// It was ended, with this reason.
async fn ended(worker: &[&str], name: &str, seconds: u64, reason: &str) -> Value {
    let system = market(worker).await;
    let (job, said) = tried(&system, name, seconds).await;
    assert_eq!((&job["state"], &job["reason"]["name"]), (&json!("Failed"), &json!(reason)), "{name}: {job:#}\n{said}");
    nothing_is_left(&system).await;
    job
}

/// Neither container nor file system nor directory of a job is left behind.
async fn nothing_is_left(system: &System) {
    let machine = system.machine("attic").unwrap();
    let leases = system.path().join("attic").join("leases");
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let label = format!("label=gpubnb.machine={machine}");
        let listed = Command::new("docker").args(["ps", "-aq", "--filter", &label]).output().unwrap();
        let mounted = fs::read_to_string("/proc/mounts").unwrap().contains(leases.to_str().unwrap());
        let directories = fs::read_dir(&leases).unwrap().count();
        if listed.stdout.is_empty() && !mounted && directories == 0 {
            return;
        }
        let left = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(
            Instant::now() < deadline,
            "{left} mounted: {mounted}, {directories} directories\n{}",
            system.log("attic")
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_fork_bomb_is_held() {
    held("fork-bomb").await;
}

#[tokio::test]
async fn a_storm_of_zombies_is_held() {
    held("zombies").await;
}

#[tokio::test]
async fn a_memory_bomb_ends_by_its_own_limit() {
    ended(&[], "memory-bomb", 60, "OutOfMemory").await;
}

#[tokio::test]
async fn root_tmp_and_shared_memory_cannot_be_filled() {
    held("fill-disks").await;
}

#[tokio::test]
async fn there_is_no_way_out() {
    held("escape").await;
}

#[tokio::test]
async fn there_is_no_network() {
    held("egress").await;
}

#[tokio::test]
async fn output_has_its_own_room_and_a_full_one_is_named() {
    ended(&[], "fill-output", 60, "OutputTooLarge").await;
}

#[tokio::test]
async fn output_that_is_watched_is_stopped_when_it_outgrows_its_room() {
    ended(&["--output-quota", "poll"], "fill-output", 60, "OutputTooLarge").await;
}

#[tokio::test]
async fn a_million_tiny_files_find_no_place() {
    ended(&[], "tiny-files", 120, "OutputTooLarge").await;
}

#[tokio::test]
async fn a_million_tiny_files_are_stopped_where_output_is_watched() {
    ended(&["--output-quota", "poll"], "tiny-files", 120, "OutputTooLarge").await;
}

#[tokio::test]
async fn a_huge_file_ends_at_the_limit() {
    ended(&[], "huge-file", 60, "OutputTooLarge").await;
}

#[tokio::test]
async fn a_huge_file_of_nothing_ends_at_the_limit_too() {
    ended(&[], "sparse-file", 60, "OutputTooLarge").await;
}

#[tokio::test]
async fn a_flood_of_log_is_stopped() {
    ended(&[], "log-flood", 60, "LogFlood").await;
}

#[tokio::test]
async fn who_does_not_hear_is_killed() {
    let job = ended(&[], "deaf", 1, "TimeLimit").await;
    let cost = job["cost"].as_u64().unwrap();
    // A second at $0.10 an hour.
    assert!(cost <= 28, "the grace is not billed: {job:#}");
}

#[tokio::test]
async fn odd_files_are_left_where_they_are() {
    let system = market(&[]).await;
    let (job, said) = tried(&system, "odd-files", 60).await;
    assert_eq!(job["state"], "Completed", "{job:#}\n{said}");
    let mut paths: Vec<_> = job["outputs"].as_array().unwrap().iter().map(|o| o["path"].as_str().unwrap()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["..hidden", "<img src=x onerror=y>", "bomb.tar.gz"]);
    let (_, page) = system.web.at_browser().bytes(&format!("/jobs/{}", job["job"].as_str().unwrap())).await.unwrap();
    let page = String::from_utf8_lossy(&page).into_owned();
    assert!(!page.contains("<img src=x") && !page.contains('\u{1b}') && !page.contains("<script>alert"));
    nothing_is_left(&system).await;
}
