//! Jobs that try to harm their machine, run in real Docker. The machine is unharmed, the job ends with the right
//! reason, and the next job runs at once. The jobs are the subcommands of `tests/hostile`. `make hostile` runs only
//! these tests.

use std::{fs, process::Command, time::Duration};

use gpubnb_tests::{
    jobs::pin_to_machine,
    market::Market,
    shared::{Plan, SharedMarket},
    system::MarketSettings,
    wait::wait_until,
};
use serde_json::{Value, json};

static MARKET: SharedMarket = SharedMarket::new(|| {
    let services = ["--approve-image", "gpubnb/hostile:1"].map(str::to_owned).into();
    Plan::with_settings(MarketSettings { services, ..MarketSettings::default() })
        .with_worker(QUOTA_MACHINE, &["--slots", "4", "--max-log-mib", "1"])
        .with_worker(POLL_MACHINE, &["--slots", "4", "--disk-quota", "poll"])
});

/// The machine that mounts a file system of limited size for the disk of each job.
const QUOTA_MACHINE: &str = "attic";
/// The machine that measures the disk of each job from time to time, because the disk is a plain directory.
const POLL_MACHINE: &str = "cellar";

/// A hostile job that has ended.
struct EndedJob {
    market: Market,
    job: Value,
    /// The lines that the job printed.
    output: String,
}

/// Runs a hostile job on a machine, and then a harmless job on the same machine.
async fn run_hostile(machine: &str, name: &str, seconds: u64) -> EndedJob {
    let market = MARKET.open().await.unwrap();
    let id = market.machine_id(machine).unwrap();
    let body = json!({ "image": "gpubnb/hostile:1", "command": [name], "name": name, "time_seconds": seconds,
        "memory_mib": 256, "output_mib": 32, "disk_mib": 40, "cpu_millis": 2_000, "budget_usd": "0.50",
        "max_attempts": 1 });
    let job = market.consumer.submit(&pin_to_machine(body, &id)).await.unwrap();
    // A job may leave a thousand files. They are uploaded one by one, which takes long while other tests run.
    let limit = Duration::from_secs(seconds + 60);
    let settled = market.consumer.wait_for(&job, limit, |job| job["settled"] == true).await.unwrap();
    let harmless = pin_to_machine(json!({ "template": "noop", "budget_usd": "0.10" }), &id);
    let next = market.consumer.submit(&harmless).await.unwrap();
    let next = market.consumer.wait_until_settled(&next).await.unwrap();
    assert_eq!(next["state"], "Completed", "after {name}: {next:#}");
    let logs = market.consumer.get(&format!("/jobs/{job}/logs?limit=200")).await.unwrap();
    let lines: Vec<_> = logs["rows"].as_array().unwrap().iter().filter_map(|l| l["text"].as_str()).collect();
    EndedJob { output: lines.join("\n"), job: settled, market }
}

/// Runs a hostile job that reports whether it could do harm, and checks that it could not.
async fn assert_harmless(name: &str) {
    let EndedJob { job, output, .. } = run_hostile(QUOTA_MACHINE, name, 60).await;
    assert_eq!(job["state"], "Completed", "{name}: {job:#}\n{output}");
    assert!(output.contains("held") && !output.contains("GOT THROUGH"), "{output}");
}

/// Runs a hostile job, and checks that the machine ends the job with this reason.
async fn assert_fails(machine: &str, name: &str, seconds: u64, reason: &str) -> Value {
    let ended = run_hostile(machine, name, seconds).await;
    let job = &ended.job;
    let why = (&job["state"], &job["reason"]["name"]);
    assert_eq!(why, (&json!("Failed"), &json!(reason)), "{name}: {job:#}\n{}", ended.output);
    wait_until_removed(&ended, machine).await;
    ended.job
}

/// Waits until the job's container, mount and directory are removed.
async fn wait_until_removed(ended: &EndedJob, machine: &str) {
    let id = ended.job["job"].as_str().unwrap();
    let lease = ended.job["attempts"][0]["lease"].to_string();
    let directory = ended.market.path().join(machine).join("leases").join(lease);
    wait_until(&format!("the end of container, mount and directory of job {id}"), async || {
        let label = format!("label=gpubnb.job={id}");
        let listed = Command::new("docker").args(["ps", "-aq", "--filter", &label]).output().unwrap();
        let mounted = fs::read_to_string("/proc/mounts").unwrap().contains(directory.to_str().unwrap());
        listed.stdout.is_empty() && !mounted && !directory.exists()
    })
    .await;
}

#[tokio::test]
async fn a_fork_bomb_is_stopped_by_the_process_limit() {
    assert_harmless("fork-bomb").await;
}

#[tokio::test]
async fn zombie_processes_are_stopped_by_the_process_limit() {
    assert_harmless("zombies").await;
}

#[tokio::test]
async fn a_memory_bomb_fails_as_out_of_memory() {
    assert_fails(QUOTA_MACHINE, "memory-bomb", 60, "OutOfMemory").await;
}

#[tokio::test]
async fn a_job_cannot_fill_the_root_tmp_or_shared_memory() {
    assert_harmless("fill-disks").await;
}

#[tokio::test]
async fn a_job_cannot_escape_from_its_container() {
    assert_harmless("escape").await;
}

#[tokio::test]
async fn a_job_has_no_network() {
    assert_harmless("egress").await;
}

#[tokio::test]
async fn output_beyond_the_quota_fails_as_too_large() {
    assert_fails(QUOTA_MACHINE, "fill-output", 60, "OutputTooLarge").await;
}

#[tokio::test]
async fn output_beyond_the_limit_fails_as_too_large_on_a_polling_machine() {
    assert_fails(POLL_MACHINE, "fill-output", 60, "OutputTooLarge").await;
}

#[tokio::test]
async fn a_million_tiny_files_fail_as_too_large() {
    assert_fails(QUOTA_MACHINE, "tiny-files", 120, "OutputTooLarge").await;
}

#[tokio::test]
async fn a_million_tiny_files_fail_as_too_large_on_a_polling_machine() {
    assert_fails(POLL_MACHINE, "tiny-files", 120, "OutputTooLarge").await;
}

#[tokio::test]
async fn a_huge_file_fails_as_too_large() {
    assert_fails(QUOTA_MACHINE, "huge-file", 60, "OutputTooLarge").await;
}

#[tokio::test]
async fn a_huge_sparse_file_fails_as_too_large() {
    assert_fails(QUOTA_MACHINE, "sparse-file", 60, "OutputTooLarge").await;
}

#[tokio::test]
async fn a_flood_of_log_lines_is_cut_with_a_word_and_fails_as_log_flood() {
    let EndedJob { market, job, .. } = run_hostile(QUOTA_MACHINE, "log-flood", 40).await;
    // A busy machine may be too slow for a flood. The time limit then ends the job.
    assert!(["LogFlood", "TimeLimit"].contains(&job["reason"]["name"].as_str().unwrap()), "{job:#}");
    let path = format!("/jobs/{}/log.txt", job["job"].as_str().unwrap());
    let (_, log) = market.consumer.browser_session().bytes(&path).await.unwrap();
    assert!(log.len() > 1 << 19 && log.len() < 4 << 20, "{}", log.len());
    let last = String::from_utf8_lossy(&log).lines().last().unwrap_or_default().to_owned();
    assert!(last.contains("the log is cut here: a job keeps 1 MiB"), "{last}");
}

#[tokio::test]
async fn a_job_that_ignores_sigterm_is_killed_and_the_grace_is_not_billed() {
    let job = assert_fails(QUOTA_MACHINE, "deaf", 1, "TimeLimit").await;
    let cost = job["cost"].as_u64().unwrap();
    // One second at $0.10 an hour costs 28 millionths of a dollar.
    assert!(cost <= 28, "the time between SIGTERM and SIGKILL is billed: {job:#}");
}

#[tokio::test]
async fn only_regular_files_are_collected_and_their_names_are_escaped() {
    let ended = run_hostile(QUOTA_MACHINE, "odd-files", 60).await;
    let EndedJob { market, job, output } = &ended;
    assert_eq!(job["state"], "Completed", "{job:#}\n{output}");
    let mut paths: Vec<_> = job["outputs"].as_array().unwrap().iter().map(|o| o["path"].as_str().unwrap()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["..hidden", "<img src=x onerror=y>", "bomb.tar.gz"]);
    let left_out: Vec<_> = job["left_out"].as_array().unwrap().iter().map(|l| l["reason"].as_str().unwrap()).collect();
    assert_eq!(left_out, ["UnusableName", "TooDeep", "NotAFile"], "{job:#}");
    let (_, page) =
        market.consumer.browser_session().bytes(&format!("/jobs/{}", job["job"].as_str().unwrap())).await.unwrap();
    let page = String::from_utf8_lossy(&page).into_owned();
    assert!(!page.contains("<img src=x") && !page.contains('\u{1b}') && !page.contains("<script>alert"));
    wait_until_removed(&ended, QUOTA_MACHINE).await;
}
