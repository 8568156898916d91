//! Images that are pulled for jobs, from a registry of the test's own.

use gpubnb_tests::{
    registry::{Kind, Registry},
    system::{Options, System},
};
use serde_json::{Value, json};

/// A market that approves the registry's images.
async fn market(registry: &Registry, images: &[&str]) -> System {
    let approved = images.iter().flat_map(|image| ["--approve-image".to_owned(), registry.name(image)]);
    System::start(Options { services: approved.collect(), ..Options::default() }).await.unwrap()
}

async fn submit(system: &System, registry: &Registry, image: &str) -> String {
    let body = json!({ "image": registry.name(image), "command": ["noop"], "name": image, "budget_usd": "0.10",
        "max_attempts": 1 });
    system.web.submit(&body).await.unwrap()
}

async fn ended(system: &System, registry: &Registry, image: &str) -> Value {
    let job = submit(system, registry, image).await;
    system.web.settled(&job).await.unwrap()
}

#[tokio::test]
async fn an_image_is_pulled_with_its_progress_shown_and_gone_when_another_needs_the_room() {
    let registry = Registry::start(&[("first", Kind::Slow, 6 << 20), ("second", Kind::Plain, 10)]).await.unwrap();
    let mut system = market(&registry, &["first", "second"]).await;
    system.start_worker("attic", &["--image-cache-gib", "0"]).await.unwrap();
    let job = submit(&system, &registry, "first").await;
    let settled = system.web.settled(&job).await.unwrap();
    assert_eq!(settled["state"], "Completed", "{settled:#}");
    // The stream keeps every message about the progress; the job's page shows the last one.
    let replayed = system.tool(&["replay", "OUTPUT", "--id", &job, "--type", "Progress", "--json"]).unwrap();
    let replayed = String::from_utf8(replayed.stdout).unwrap();
    assert!(replayed.contains("\"pulling the image: "), "{replayed}");
    assert!(settled["progress"]["message"].as_str().unwrap().contains("the image"), "{settled:#}");
    assert!(registry.is_here("first"), "it is kept for the next job");
    // The worker is started anew, and still knows which images it pulled.
    system.workers.clear();
    system.start_worker("attic", &["--image-cache-gib", "0"]).await.unwrap();
    assert_eq!(ended(&system, &registry, "second").await["state"], "Completed");
    assert!(!registry.is_here("first") && registry.is_here("second"));
}

#[tokio::test]
async fn an_image_that_cannot_be_used_is_named_and_costs_nothing() {
    let images = [("huge", Kind::Huge, 4 << 20), ("lying", Kind::Lying, 10), ("fine", Kind::Plain, 10)];
    let registry = Registry::start(&images).await.unwrap();
    let mut system = market(&registry, &["huge", "lying", "none", "fine"]).await;
    system.start_worker("attic", &[]).await.unwrap();
    for (image, why) in [("huge", "30 GiB"), ("lying", "verification failed"), ("none", "manifest")] {
        let job = ended(&system, &registry, image).await;
        assert_eq!((&job["reason"]["name"], &job["fault"]), (&json!("BadImage"), &json!("consumer")), "{job:#}");
        assert!(job["detail"].as_str().unwrap().contains(why), "{job:#}");
        assert_eq!(job["cost"], 0);
    }
    assert_eq!(ended(&system, &registry, "fine").await["state"], "Completed");
    // An owner may allow the images of templates alone.
    system.workers.clear();
    system.start_worker("attic", &["--images", "templates"]).await.unwrap();
    let job = ended(&system, &registry, "fine").await;
    assert_eq!(job["reason"]["name"], "BadImage");
    assert!(job["detail"].as_str().unwrap().contains("does not allow"), "{job:#}");
}
