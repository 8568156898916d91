//! Machines whose disk is full, and files of a job that was cancelled.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use gpubnb_tests::{
    jobs::counting_job,
    system::{MarketSettings, System},
    wait::wait_until,
};
use serde_json::{Value, json};

/// A disk of 2 GiB, which takes almost no space of the real one.
struct SmallDisk {
    mounted_at: PathBuf,
}

impl SmallDisk {
    fn mount(image: &Path, mounted_at: &Path) -> Self {
        File::create(image).unwrap().set_len(2 << 30).unwrap();
        std::fs::create_dir_all(mounted_at).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(image));
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(mounted_at));
        Self { mounted_at: mounted_at.to_owned() }
    }

    /// Fills the disk until `left_mib` are free. The blocks are reserved and not written.
    fn fill(&self, left_mib: u64) {
        let disk = rustix::fs::statvfs(&self.mounted_at).unwrap();
        let bytes = disk.f_bavail * disk.f_frsize - (left_mib << 20);
        run(Command::new("fallocate").arg("--length").arg(bytes.to_string()).arg(self.mounted_at.join("filler")));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(&self.mounted_at));
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A market that admits the image of the hostile jobs, and the small disk of its machine `attic`.
async fn market_with_small_disk() -> (System, SmallDisk) {
    let services = ["--approve-image", "gpubnb/hostile:1"].map(str::to_owned).into();
    let system = System::start(MarketSettings { services, ..MarketSettings::default() }).await.unwrap();
    let disk = SmallDisk::mount(&system.path().join("attic.img"), &system.path().join("attic"));
    (system, disk)
}

async fn wait_for_line(system: &System, job: &str, text: &str) {
    wait_until(&format!("the line {text:?}"), async || {
        let logs = system.consumer.get(&format!("/jobs/{job}/logs")).await.unwrap();
        logs["rows"].as_array().unwrap().iter().any(|line| line["text"] == text)
    })
    .await;
}

/// A job of the hostile image that writes files, with its command.
fn writing_job(command: &[&str]) -> Value {
    json!({ "image": "gpubnb/hostile:1", "command": command, "name": command[0], "time_seconds": 120, "memory_mib": 256,
        "output_mib": 64, "budget_usd": "0.50", "max_attempts": 1 })
}

#[tokio::test]
async fn a_job_on_a_machine_whose_disk_fills_meanwhile_costs_nothing_and_is_the_machines_fault() {
    let (mut system, disk) = market_with_small_disk().await;
    system.start_worker("attic", &["--disk-quota", "poll"]).await.unwrap();
    let job = system.consumer.submit(&writing_job(&["write-slowly"])).await.unwrap();
    wait_for_line(&system, &job, "waiting").await;
    disk.fill(0);
    let settled = system.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!((&settled["state"], &settled["reason"]["name"]), (&json!("Failed"), &json!("DiskFull")), "{settled:#}");
    assert_eq!(settled["cost"], 0, "{settled:#}");
    system.workers.clear();
}

#[tokio::test]
async fn a_worker_on_a_machine_that_became_unfit_looks_after_its_running_job_and_takes_no_other() {
    let (mut system, disk) = market_with_small_disk().await;
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.consumer.submit(&counting_job(100, 50)).await.unwrap();
    // The container runs when the first line is there.
    let has_progress = |job: &Value| job["progress"] != Value::Null;
    system.consumer.wait_for(&job, Duration::from_secs(30), has_progress).await.unwrap();
    system.workers.remove(0).kill();
    disk.fill(100);
    system.start_worker("attic", &[]).await.unwrap();
    let other = system.consumer.submit(&counting_job(1, 0)).await.unwrap();
    let settled = system.consumer.wait_until_settled(&job).await;
    let settled = settled.unwrap_or_else(|e| panic!("{e:#}\n{}", system.process_log("attic")));
    assert_eq!(settled["state"], "Completed", "{settled:#}");
    assert!(system.process_log("attic").contains("disk.room"), "the worker says why");
    let waiting = system.consumer.get(&format!("/jobs/{other}")).await.unwrap();
    assert_eq!((&waiting["state"], &waiting["attempts"]), (&json!("Queued"), &json!([])), "{waiting:#}");
    system.workers.clear();
}

#[tokio::test]
async fn the_files_of_a_cancelled_job_are_kept_and_listed() {
    let (mut system, _disk) = market_with_small_disk().await;
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.consumer.submit(&writing_job(&["checkpoint"])).await.unwrap();
    wait_for_line(&system, &job, "saved").await;
    system.consumer.post(&format!("/jobs/{job}/cancel"), &json!({})).await.unwrap();
    let cancelled = |job: &Value| job["state"] == "Cancelled" && job["settled"] != Value::Null;
    let settled = system.consumer.wait_for(&job, Duration::from_secs(60), cancelled).await.unwrap();
    assert_eq!(settled["outputs"][0]["path"], "checkpoint.bin", "{settled:#}");
    let (status, bytes) = system.consumer.bytes(&format!("/api/v1/jobs/{job}/artifacts/checkpoint.bin")).await.unwrap();
    assert!(status.is_success() && bytes == b"step 1", "{status}");
    system.workers.clear();
}
