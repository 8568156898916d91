//! Images that a machine pulls for jobs, from a registry that the test runs.

use std::process::Command;

use gpubnb_tests::{
    registry::{ImageKind, Registry},
    system::{MarketSettings, System},
    wait::wait_until,
};
use serde_json::{Value, json};

/// Starts a market that approves these images of the registry.
async fn start_market(registry: &Registry, images: &[&str]) -> System {
    let approved = images.iter().flat_map(|image| ["--approve-image".to_owned(), registry.name(image)]);
    System::start(MarketSettings { services: approved.collect(), ..MarketSettings::default() }).await.unwrap()
}

/// Submits a job with this image, and returns the job's id.
async fn submit(system: &System, registry: &Registry, image: &str) -> String {
    let body = json!({ "image": registry.name(image), "command": ["noop"], "name": image, "budget_usd": "0.10",
        "max_attempts": 1 });
    system.consumer.submit(&body).await.unwrap()
}

/// Runs a job with this image, and returns the settled job.
async fn run(system: &System, registry: &Registry, image: &str) -> Value {
    let job = submit(system, registry, image).await;
    system.consumer.wait_until_settled(&job).await.unwrap()
}

#[tokio::test]
async fn a_pull_shows_its_progress_and_a_full_cache_removes_the_older_image() {
    let registry =
        Registry::start(&[("first", ImageKind::Slow, 6 << 20), ("second", ImageKind::Plain, 10)]).await.unwrap();
    let mut system = start_market(&registry, &["first", "second"]).await;
    system.start_worker("attic", &["--image-cache-gib", "0"]).await.unwrap();
    let job = submit(&system, &registry, "first").await;
    let settled = system.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!(settled["state"], "Completed", "{settled:#}");
    // The stream keeps every message about the progress; the job's page shows the last one.
    let replayed =
        system.run_operator_tool(&["replay", "OUTPUT", "--id", &job, "--type", "Progress", "--json"]).unwrap();
    let replayed = String::from_utf8(replayed.stdout).unwrap();
    assert!(replayed.contains("\"pulling the image: "), "{replayed}");
    assert!(settled["progress"]["message"].as_str().unwrap().contains("the image"), "{settled:#}");
    assert!(registry.is_pulled("first"), "the image is kept for the next job");
    // After a restart the worker still knows which images it has pulled.
    system.workers.clear();
    system.start_worker("attic", &["--image-cache-gib", "0"]).await.unwrap();
    assert_eq!(run(&system, &registry, "second").await["state"], "Completed");
    assert!(!registry.is_pulled("first") && registry.is_pulled("second"));
}

#[tokio::test]
async fn a_bad_image_fails_by_the_consumers_fault_and_costs_nothing() {
    let images =
        [("huge", ImageKind::Huge, 4 << 20), ("lying", ImageKind::WrongDigest, 10), ("fine", ImageKind::Plain, 10)];
    let registry = Registry::start(&images).await.unwrap();
    let mut system = start_market(&registry, &["huge", "lying", "none", "fine"]).await;
    system.start_worker("attic", &[]).await.unwrap();
    for (image, why) in [("huge", "30 GiB"), ("lying", "verification failed"), ("none", "manifest")] {
        let job = run(&system, &registry, image).await;
        assert_eq!((&job["reason"]["name"], &job["fault"]), (&json!("BadImage"), &json!("consumer")), "{job:#}");
        assert!(job["detail"].as_str().unwrap().contains(why), "{job:#}");
        assert_eq!(job["cost"], 0);
    }
    assert_eq!(run(&system, &registry, "fine").await["state"], "Completed");
    // With this option the owner allows only the images of templates.
    system.workers.clear();
    system.start_worker("attic", &["--images", "templates"]).await.unwrap();
    let job = run(&system, &registry, "fine").await;
    assert_eq!(job["reason"]["name"], "BadImage");
    assert!(job["detail"].as_str().unwrap().contains("does not allow"), "{job:#}");
}

#[tokio::test]
async fn an_images_directory_is_the_working_directory_and_its_volume_takes_no_room_on_the_disk() {
    let registry = Registry::start(&[("volume", ImageKind::Volume, 10)]).await.unwrap();
    let mut system = start_market(&registry, &["volume"]).await;
    system.start_worker("attic", &[]).await.unwrap();
    let body = json!({ "image": registry.name("volume"), "command": ["count", "--lines", "600"], "name": "volume",
        "budget_usd": "0.10" });
    let job = system.consumer.submit(&body).await.unwrap();
    // The start is recorded while the container is created.
    let container = wait_for_container(&job).await;
    let format = "{{.Config.WorkingDir}} {{range .Mounts}}{{.Type}}:{{.Destination}} {{end}}";
    let found = docker(&["inspect", "--format", format, &container]);
    assert!(found.starts_with("/data ") && found.contains("bind:/data"), "{found}");
    assert!(!found.contains("volume:"), "{found}");
    system.consumer.post(&format!("/jobs/{job}/cancel"), &json!({})).await.unwrap();
    system.consumer.wait_until_settled(&job).await.unwrap();
}

#[tokio::test]
async fn an_image_with_a_file_where_a_directory_is_mounted_is_named_and_blames_no_machine() {
    let images = [("at-output", ImageKind::FileAtOutput, 10), ("at-volume", ImageKind::FileAtVolume, 10)];
    let registry = Registry::start(&images).await.unwrap();
    let mut system = start_market(&registry, &["at-output", "at-volume"]).await;
    system.start_worker("attic", &[]).await.unwrap();
    for image in ["at-output", "at-volume"] {
        let job = run(&system, &registry, image).await;
        assert_eq!((&job["reason"]["name"], &job["fault"]), (&json!("BadImage"), &json!("consumer")), "{job:#}");
        assert_eq!(job["cost"], 0);
    }
    let machine = system.machine_view("attic").await.unwrap();
    assert_eq!((&machine["faults"], &machine["successes"]), (&json!({}), &json!(0)), "{machine:#}");
}

/// Runs a command of Docker's client, and returns its output.
pub(crate) fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Waits until a job has a container, and returns the container's id.
async fn wait_for_container(job: &str) -> String {
    let label = format!("label=gpubnb.job={job}");
    let find = || docker(&["ps", "--all", "--quiet", "--filter", &label]);
    wait_until("the job's container", async || !find().is_empty()).await;
    find()
}
