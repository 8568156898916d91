//! Images that a machine pulls for jobs, from a registry that the test runs.

use std::{process::Command, time::Duration};

use gpubnb_events::JobId;
use gpubnb_tests::{
    registry::{ImageKind, Registry},
    system::{MarketSettings, System},
    wait::wait_until,
};
use reqwest::{Method, StatusCode};
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

/// Starts a worker that reaches this registry.
async fn start_worker(system: &mut System, registry: &Registry, arguments: &[&str]) {
    let url = registry.url();
    let arguments = [&["--private-registry", &url], arguments].concat();
    system.start_worker("attic", &arguments).await.unwrap();
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
    start_worker(&mut system, &registry, &["--image-cache-gib", "0"]).await;
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
    start_worker(&mut system, &registry, &["--image-cache-gib", "0"]).await;
    assert_eq!(run(&system, &registry, "second").await["state"], "Completed");
    assert!(!registry.is_pulled("first") && registry.is_pulled("second"));
}

#[tokio::test]
async fn a_bad_image_fails_by_the_consumers_fault_and_costs_nothing() {
    let images =
        [("huge", ImageKind::Huge, 4 << 20), ("lying", ImageKind::WrongDigest, 10), ("fine", ImageKind::Plain, 10)];
    let registry = Registry::start(&images).await.unwrap();
    let mut system = start_market(&registry, &["huge", "lying", "none", "fine"]).await;
    start_worker(&mut system, &registry, &[]).await;
    // A machine with more room may take this image, so nobody is at fault, and the job waits for another attempt.
    let huge = submit(&system, &registry, "huge").await;
    let tried = |job: &Value| job["reason"].is_object();
    let huge = system.consumer.wait_for(&huge, Duration::from_secs(60), tried).await.unwrap();
    assert_eq!(
        (&huge["reason"]["name"], &huge["fault"]),
        (&json!("RegistryUnavailable"), &json!("nobody")),
        "{huge:#}"
    );
    assert!(huge["detail"].as_str().unwrap().contains("larger than 20 GiB"), "{huge:#}");
    for (image, why) in [("lying", "verification failed"), ("none", "has no image of this name")] {
        let job = run(&system, &registry, image).await;
        assert_eq!((&job["reason"]["name"], &job["fault"]), (&json!("BadImage"), &json!("consumer")), "{job:#}");
        assert!(job["detail"].as_str().unwrap().contains(why), "{job:#}");
        assert_eq!(job["cost"], 0);
    }
    assert_eq!(run(&system, &registry, "fine").await["state"], "Completed");
    // With this option the owner allows only the images of templates, and the market passes the machine over.
    system.workers.clear();
    start_worker(&mut system, &registry, &["--images", "templates"]).await;
    let job = submit(&system, &registry, "fine").await;
    let waits = |job: &Value| job["waiting"]["rejected"].to_string().contains("ImageNotAllowed");
    system.consumer.wait_for(&job, Duration::from_secs(30), waits).await.unwrap();
}

#[tokio::test]
async fn an_image_that_unpacks_to_more_than_the_owner_allows_is_refused_before_docker_unpacks_it() {
    let registry = Registry::start(&[("bomb", ImageKind::Bomb, 10)]).await.unwrap();
    let mut system = start_market(&registry, &["bomb"]).await;
    start_worker(&mut system, &registry, &["--image-gib", "1"]).await;
    let job = run(&system, &registry, "bomb").await;
    assert_eq!((&job["reason"]["name"], &job["cost"]), (&json!("BadImage"), &json!(0)), "{job:#}");
    assert!(job["detail"].as_str().unwrap().contains("unpacks to more than 1 GiB"), "{job:#}");
    assert!(!registry.is_pulled("bomb"));
}

#[tokio::test]
async fn images_of_every_registry_are_fetched_and_known_layers_are_not_fetched_again() {
    let images = [
        ("breaking", ImageKind::Breaking, 3 << 20),
        ("indexed", ImageKind::Indexed, 10),
        ("guarded", ImageKind::NeedsToken, 10),
    ];
    let registry = Registry::start(&images).await.unwrap();
    let names = images.map(|(image, ..)| registry.pinned_name(image));
    let services = names.iter().flat_map(|name| ["--approve-image".to_owned(), name.clone()]).collect();
    let mut system = System::start(MarketSettings { services, ..MarketSettings::default() }).await.unwrap();
    start_worker(&mut system, &registry, &[]).await;
    for name in &names {
        let body =
            json!({ "image": name, "command": ["noop"], "name": "job", "budget_usd": "0.10", "max_attempts": 1 });
        let job = system.consumer.submit(&body).await.unwrap();
        let job = system.consumer.wait_until_settled(&job).await.unwrap();
        assert_eq!(job["state"], "Completed", "{name}: {job:#}");
        let local = name.replace("@sha256:", ":sha256-");
        assert!(docker(&["images", "--quiet", &local]).trim().len() > 1, "{local}");
    }
    // The worker does not fetch the layer of the demo jobs' image, because Docker has it. With the image store of
    // containerd, Docker needs every packed layer again.
    let layers = docker(&["image", "inspect", "--format", "{{index .RootFS.Layers 0}}", "gpubnb/workloads:1"]);
    let is_containerd = docker(&["info", "--format", "{{.DriverStatus}}"]).contains("containerd.snapshotter");
    assert!(is_containerd || !registry.sent().contains(&layers.trim().to_owned()), "{:?}", registry.sent());
}

/// A registry is a stranger's server: it can name any address as the place of its tokens or of its layers.
#[tokio::test]
async fn a_registry_leads_the_machine_to_no_private_address() {
    let canary = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = canary.local_addr().unwrap();
    let images = [("token", ImageKind::TokenFrom(address), 10), ("redirect", ImageKind::RedirectTo(address), 10)];
    let registry = Registry::start(&images).await.unwrap();
    let mut services = vec!["--approve-image".to_owned(), format!("{address}/direct:1")];
    services.extend(["token", "redirect"].iter().flat_map(|i| ["--approve-image".to_owned(), registry.name(i)]));
    let mut system = System::start(MarketSettings { services, ..MarketSettings::default() }).await.unwrap();
    start_worker(&mut system, &registry, &["--images", "any"]).await;
    for image in [registry.name("token"), registry.name("redirect"), format!("{address}/direct:1")] {
        let body = json!({ "image": image, "command": ["noop"], "name": "job", "budget_usd": "0.10" });
        let job = system.consumer.submit(&body).await.unwrap();
        let tried = |job: &Value| job["reason"].is_object();
        let job = system.consumer.wait_for(&job, Duration::from_secs(60), tried).await.unwrap();
        assert_eq!(
            (&job["reason"]["name"], &job["fault"]),
            (&json!("RegistryUnavailable"), &json!("nobody")),
            "{job:#}"
        );
        let expected = "the image cannot be fetched: 127.0.0.1 has no public address";
        assert!(job["detail"].as_str().unwrap().starts_with(expected), "{job:#}");
    }
    let connected = tokio::time::timeout(Duration::ZERO, canary.accept()).await;
    assert!(connected.is_err(), "the machine connected to a private address");
}

#[tokio::test]
async fn an_images_directory_is_the_working_directory_and_its_volume_takes_no_room_on_the_disk() {
    let registry = Registry::start(&[("volume", ImageKind::Volume, 10)]).await.unwrap();
    let mut system = start_market(&registry, &["volume"]).await;
    start_worker(&mut system, &registry, &[]).await;
    let body = json!({ "image": registry.name("volume"), "command": ["count", "--lines", "600"], "name": "volume",
        "budget_usd": "0.10" });
    let job = system.consumer.submit(&body).await.unwrap();
    // The event `Started` does not prove that the container exists, so the test waits for the container.
    let container = wait_for_container(&job).await;
    let format = "{{.Config.WorkingDir}} {{range .Mounts}}{{.Type}}:{{.Destination}} {{end}}";
    let found = docker(&["inspect", "--format", format, &container]);
    assert!(found.starts_with("/data ") && found.contains("bind:/data"), "{found}");
    assert!(!found.contains("volume:"), "{found}");
    system.consumer.post(&format!("/jobs/{job}/cancel"), &json!({})).await.unwrap();
    system.consumer.wait_until_settled(&job).await.unwrap();
}

/// The table in docs/jobs.md says what becomes of each setting of an image.
#[tokio::test]
async fn the_settings_of_a_hostile_image_reach_nothing_beyond_its_container() {
    let registry = Registry::start(&[("hostile", ImageKind::Hostile, 10)]).await.unwrap();
    let mut system = start_market(&registry, &["hostile"]).await;
    start_worker(&mut system, &registry, &[]).await;
    let body = json!({ "image": registry.name("hostile"), "command": ["count", "--lines", "600"], "name": "hostile",
        "budget_usd": "0.10" });
    let job = system.consumer.submit(&body).await.unwrap();
    let container = wait_for_container(&job).await;
    let found: Value = serde_json::from_str(&docker(&["inspect", &container])).unwrap();
    let (config, host) = (&found[0]["Config"], &found[0]["HostConfig"]);
    let user = config["User"].as_str().unwrap();
    assert!(!user.is_empty() && !user.starts_with("root") && !user.starts_with("0:"), "{user}");
    assert_eq!((&config["StopSignal"], &config["Healthcheck"]["Test"]), (&json!("SIGTERM"), &json!(["NONE"])));
    let labels = &config["Labels"];
    assert_eq!((&labels["traefik.enable"], &labels["gpubnb.gpus"]), (&json!(""), &json!("")));
    assert_eq!(labels["gpubnb.job"], json!(job));
    let variables: Vec<_> = config["Env"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    for expected in ["NVIDIA_VISIBLE_DEVICES=void", &format!("GPUBNB_JOB={job}"), "HOME=/scratch", "KEPT=1"] {
        assert!(variables.contains(&expected), "{expected}: {variables:?}");
    }
    assert!(!variables.contains(&"NVIDIA_VISIBLE_DEVICES=all") && !variables.contains(&"HOME=/"), "{variables:?}");
    assert_eq!((&host["PublishAllPorts"], &host["NetworkMode"]), (&json!(false), &json!("none")));
    let mounts = found[0]["Mounts"].as_array().unwrap();
    assert!(mounts.iter().all(|mount| mount["Type"] == "bind"), "{mounts:?}");
    system.consumer.post(&format!("/jobs/{job}/cancel"), &json!({})).await.unwrap();
    let settled = system.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!(settled["state"], "Cancelled", "{settled:#}");
}

#[tokio::test]
async fn an_image_with_a_file_where_a_directory_is_mounted_is_named_and_blames_no_machine() {
    let images = [("at-output", ImageKind::FileAtOutput, 10), ("at-volume", ImageKind::FileAtVolume, 10)];
    let registry = Registry::start(&images).await.unwrap();
    let mut system = start_market(&registry, &["at-output", "at-volume"]).await;
    start_worker(&mut system, &registry, &[]).await;
    for image in ["at-output", "at-volume"] {
        let job = run(&system, &registry, image).await;
        assert_eq!((&job["reason"]["name"], &job["fault"]), (&json!("BadImage"), &json!("consumer")), "{job:#}");
        assert_eq!(job["cost"], 0);
    }
    let machine = system.machine_view("attic").await.unwrap();
    assert_eq!((&machine["faults"], &machine["successes"]), (&json!({}), &json!(0)), "{machine:#}");
}

/// Runs a command of Docker's client, and returns its output.
fn docker(args: &[&str]) -> String {
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

#[tokio::test]
async fn a_tag_becomes_its_digest_before_money_is_held_and_a_wrong_one_is_refused() {
    let images = [("indexed", ImageKind::Indexed, 10), ("guarded", ImageKind::NeedsToken, 10)];
    let down = ("down", ImageKind::Unavailable(500), 10);
    let registry = Registry::start(&[images[0], images[1], down]).await.unwrap();
    let pinned = images.map(|(image, ..)| {
        let digest = registry.pinned_name(image).split('@').nth(1).unwrap().to_owned();
        format!("{}@{digest}", registry.name(image))
    });
    let services = pinned.iter().flat_map(|name| ["--approve-image".to_owned(), name.clone()]).collect();
    let ui = ["--private-registry".to_owned(), registry.url()].into();
    let mut system = System::start(MarketSettings { services, ui, ..MarketSettings::default() }).await.unwrap();
    start_worker(&mut system, &registry, &[]).await;
    let body = |image: &str| json!({ "image": image, "command": ["noop"], "budget_usd": "0.10", "max_attempts": 1 });

    let canary = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let private = format!("{}/tool:1", canary.local_addr().unwrap());
    let (invalid, away) = (StatusCode::UNPROCESSABLE_ENTITY, StatusCode::SERVICE_UNAVAILABLE);
    for (image, expected, why) in [
        (registry.name("missing"), invalid, "has no public image"),
        (registry.name("down"), away, "does not answer"),
        (private, invalid, "was not found"),
    ] {
        for path in ["/quote", "/jobs"] {
            let (status, refused) = system.consumer.request(Method::POST, path, Some(&body(&image))).await.unwrap();
            assert_eq!((status, &refused["field"]), (expected, &json!("image")), "{refused}");
            assert!(refused["detail"].as_str().unwrap().contains(why), "{image}: {refused}");
        }
    }
    assert_eq!(system.consumer.get("/wallet").await.unwrap()["balance"]["held"], 0);
    let connected = tokio::time::timeout(Duration::from_millis(100), canary.accept()).await;
    assert!(connected.is_err(), "the web server connected to a private address");

    for ((image, ..), pinned) in images.iter().zip(&pinned) {
        let quote = system.consumer.post("/quote", &body(&registry.name(image))).await.unwrap();
        assert_eq!(&quote["image"], pinned);
        let job = system.consumer.submit(&body(&registry.name(image))).await.unwrap();
        let settled = system.consumer.wait_until_settled(&job).await.unwrap();
        assert_eq!(
            (&settled["state"], &settled["spec"]["image"]),
            (&json!("Completed"), &json!(pinned)),
            "{settled:#}"
        );
    }
    let name = registry.name("indexed");
    let form = [("image", name.as_str()), ("budget_usd", "0.10"), ("time_seconds", "60")];
    let browser = system.consumer.browser_session();
    let card = browser.build_request(Method::POST, "/jobs/quote").form(&form).send().await.unwrap();
    let card = card.text().await.unwrap();
    assert!(card.contains("The job keeps") && card.contains("amd64"), "{card}");

    // The same submission once more is the same job, also if nobody remembers the digest and the registry is away.
    let mut again = body(&name);
    again["job"] = json!(JobId::generate().to_string());
    let job = system.consumer.submit(&again).await.unwrap();
    system.consumer.wait_until_settled(&job).await.unwrap();
    system.ui = None;
    drop(registry);
    system.start_ui().await.unwrap();
    assert_eq!(system.consumer.submit(&again).await.unwrap(), job);
    again["job"] = json!(JobId::generate().to_string());
    assert!(system.consumer.submit(&again).await.is_err());
}
