//! Jobs that try to harm their machine, against real Docker: the machine is unharmed, the job ends with the right reason,
//! and the next job runs at once. `make hostile` runs just these.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use gpubnb_tests::{
    jobs::on_machine,
    market::Market,
    shared::{Plan, Shared},
    system::Options,
    wait::until,
};
use serde_json::{Value, json};

static MARKET: Shared = Shared::new(|| {
    let services = ["--approve-image", "gpubnb/hostile:1"].map(str::to_owned).into();
    Plan::with(Options { services, ..Options::default() })
        .worker(QUOTA, &["--slots", "4"])
        .worker(POLL, &["--slots", "4", "--output-quota", "poll"])
});

/// The machine that gives the output of each job a file system of its own.
const QUOTA: &str = "attic";
/// The machine that looks at the size of the output from time to time.
const POLL: &str = "cellar";
/// Longest that a next job may take, with its container.
const AT_ONCE: Duration = Duration::from_secs(10);

/// A hostile job that has ended.
struct Tried {
    market: Market,
    job: Value,
    /// The lines that it printed.
    said: String,
}

/// Runs a hostile job on a machine, and a harmless one after it.
async fn tried(machine: &str, name: &str, seconds: u64) -> Tried {
    let market = MARKET.open().await.unwrap();
    let id = market.machine(machine).unwrap();
    let body = json!({ "image": "gpubnb/hostile:1", "command": [name], "name": name, "time_seconds": seconds,
        "memory_mib": 256, "output_mib": 32, "cpu_millis": 2_000, "budget_usd": "0.50", "max_attempts": 1 });
    let job = market.web.submit(&on_machine(body, &id)).await.unwrap();
    let settled = market.web.settled(&job).await.unwrap();
    let began = Instant::now();
    let harmless = on_machine(json!({ "template": "noop", "budget_usd": "0.10" }), &id);
    let next = market.web.submit(&harmless).await.unwrap();
    let next = market.web.settled(&next).await.unwrap();
    assert_eq!(next["state"], "Completed", "after {name}: {next:#}");
    assert!(began.elapsed() < AT_ONCE, "after {name}: {:?}", began.elapsed());
    let logs = market.web.get(&format!("/jobs/{job}/logs?limit=200")).await.unwrap();
    let said: Vec<_> = logs["rows"].as_array().unwrap().iter().filter_map(|l| l["text"].as_str()).collect();
    Tried { said: said.join("\n"), job: settled, market }
}

/// The job could do no harm, and reports so.
async fn held(name: &str) {
    let Tried { job, said, .. } = tried(QUOTA, name, 60).await;
    assert_eq!(job["state"], "Completed", "{name}: {job:#}\n{said}");
    assert!(said.contains("held") && !said.contains("GOT THROUGH"), "{said}");
}

/// The machine ended the job, with this reason.
async fn ended(machine: &str, name: &str, seconds: u64, reason: &str) -> Value {
    let tried = tried(machine, name, seconds).await;
    let job = &tried.job;
    let why = (&job["state"], &job["reason"]["name"]);
    assert_eq!(why, (&json!("Failed"), &json!(reason)), "{name}: {job:#}\n{}", tried.said);
    nothing_is_left(&tried, machine).await;
    tried.job
}

/// Neither container nor file system nor directory of the job is left behind.
async fn nothing_is_left(tried: &Tried, machine: &str) {
    let id = tried.job["job"].as_str().unwrap();
    let lease = tried.job["attempts"][0]["lease"].to_string();
    let directory = tried.market.path().join(machine).join("leases").join(lease);
    until(&format!("the end of container, mount and directory of job {id}"), async || {
        let label = format!("label=gpubnb.job={id}");
        let listed = Command::new("docker").args(["ps", "-aq", "--filter", &label]).output().unwrap();
        let mounted = fs::read_to_string("/proc/mounts").unwrap().contains(directory.to_str().unwrap());
        listed.stdout.is_empty() && !mounted && !directory.exists()
    })
    .await;
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
    ended(QUOTA, "memory-bomb", 60, "OutOfMemory").await;
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
    ended(QUOTA, "fill-output", 60, "OutputTooLarge").await;
}

#[tokio::test]
async fn output_that_is_watched_is_stopped_when_it_outgrows_its_room() {
    ended(POLL, "fill-output", 60, "OutputTooLarge").await;
}

#[tokio::test]
async fn a_million_tiny_files_find_no_place() {
    ended(QUOTA, "tiny-files", 120, "OutputTooLarge").await;
}

#[tokio::test]
async fn a_million_tiny_files_are_stopped_where_output_is_watched() {
    ended(POLL, "tiny-files", 120, "OutputTooLarge").await;
}

#[tokio::test]
async fn a_huge_file_ends_at_the_limit() {
    ended(QUOTA, "huge-file", 60, "OutputTooLarge").await;
}

#[tokio::test]
async fn a_huge_file_of_nothing_ends_at_the_limit_too() {
    ended(QUOTA, "sparse-file", 60, "OutputTooLarge").await;
}

#[tokio::test]
async fn a_flood_of_log_is_stopped() {
    ended(QUOTA, "log-flood", 60, "LogFlood").await;
}

#[tokio::test]
async fn a_job_that_ignores_the_signal_to_stop_is_killed() {
    let job = ended(QUOTA, "deaf", 1, "TimeLimit").await;
    let cost = job["cost"].as_u64().unwrap();
    // A second at $0.10 an hour.
    assert!(cost <= 28, "the grace is not billed: {job:#}");
}

#[tokio::test]
async fn odd_files_are_left_where_they_are() {
    let tried = tried(QUOTA, "odd-files", 60).await;
    let Tried { market, job, said } = &tried;
    assert_eq!(job["state"], "Completed", "{job:#}\n{said}");
    let mut paths: Vec<_> = job["outputs"].as_array().unwrap().iter().map(|o| o["path"].as_str().unwrap()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["..hidden", "<img src=x onerror=y>", "bomb.tar.gz"]);
    let (_, page) = market.web.at_browser().bytes(&format!("/jobs/{}", job["job"].as_str().unwrap())).await.unwrap();
    let page = String::from_utf8_lossy(&page).into_owned();
    assert!(!page.contains("<img src=x") && !page.contains('\u{1b}') && !page.contains("<script>alert"));
    nothing_is_left(&tried, QUOTA).await;
}
