//! Services and read models start from snapshots, but never from a snapshot that is changed or signed by a foreign key.

use std::fs;

use futures_util::TryStreamExt as _;
use gpubnb_events::subject;
use gpubnb_log::{
    snapshot::{SnapshotManifest, Snapshots},
    stream::SNAPSHOTS,
};
use gpubnb_runtime::nats;
use gpubnb_tests::{
    jobs::noop_job,
    process::Process,
    system::{MarketSettings, System},
    wait::wait_until,
};
use nkeys::KeyPair;
use tokio::io::AsyncReadExt as _;

/// The names of all read models.
fn model_names() -> Vec<&'static str> {
    gpubnb_model::all().iter().map(|model| model.name()).collect()
}

/// Waits until a process has printed a text.
async fn wait_until_printed(process: &Process, text: &str) {
    wait_until(text, async || process.has_printed(text)).await;
}

/// Stops projector and services, deletes the projector's rows, and starts both again.
async fn restart_without_rows(system: &mut System) {
    for process in [system.projector.take(), system.services.pop()].into_iter().flatten() {
        drop(process);
    }
    fs::remove_dir_all(system.path().join("projector")).unwrap();
    system.start_services().await.unwrap();
    system.start_projector().await.unwrap();
}

/// Runs jobs one after the other, and returns the id of the last job.
async fn run_jobs(system: &System, count: usize) -> String {
    let mut last = String::new();
    for _ in 0..count {
        last = system.consumer.submit(&noop_job()).await.unwrap();
        system.consumer.wait_until_settled(&last).await.unwrap();
    }
    last
}

/// Damages all snapshots: the model `jobs` gets a foreign signature, and in every other snapshot one byte is changed.
/// Returns the number of snapshots.
async fn damage_snapshots(system: &System) -> usize {
    let client = system.nats_args("projector").connect("projector", subject::PROJECTOR_INBOX).await.unwrap();
    let js = nats::jetstream(client);
    let store = js.get_object_store(SNAPSHOTS).await.unwrap();
    let snapshots = Snapshots::open(&js).await.unwrap();
    let objects: Vec<_> = store.list().await.unwrap().try_collect().await.unwrap();
    for object in &objects {
        let mut manifest: SnapshotManifest = serde_json::from_str(&object.metadata["manifest"]).unwrap();
        let mut content = Vec::new();
        store.get(&object.name).await.unwrap().read_to_end(&mut content).await.unwrap();
        if manifest.id.name == "model-jobs" {
            let SnapshotManifest { id, bytes, sha256, .. } = manifest;
            manifest = SnapshotManifest::sign(id, bytes, sha256, &KeyPair::new_user()).unwrap();
        } else {
            *content.last_mut().unwrap() ^= 1;
        }
        snapshots.put(&manifest, &mut content.as_slice()).await.unwrap();
    }
    objects.len()
}

#[tokio::test]
async fn services_and_projector_start_from_snapshots_and_ignore_damaged_and_foreign_ones() {
    let mut system =
        System::start(MarketSettings { snapshot_every: Some(10), ..MarketSettings::default() }).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = run_jobs(&system, 3).await;
    let projector = system.projector.as_ref().unwrap();
    for model in model_names() {
        wait_until_printed(projector, &format!("a snapshot was kept model=\"{model}\"")).await;
    }
    wait_until_printed(&system.services[0], "a snapshot was kept").await;
    let before = system.consumer.get(&format!("/jobs/{job}")).await.unwrap();

    restart_without_rows(&mut system).await;
    let projector = system.projector.as_ref().unwrap();
    for model in model_names() {
        assert!(
            projector.has_printed(&format!("begins from a snapshot model=\"{model}\"")),
            "{}",
            projector.last_lines()
        );
    }
    assert!(system.services[0].has_printed("begins from a snapshot"), "{}", system.services[0].last_lines());
    assert_eq!(system.consumer.get(&format!("/jobs/{job}")).await.unwrap(), before);
    // The market continues, and a verification against the whole log finds no difference.
    run_jobs(&system, 1).await;
    let verified = system.run_operator_tool(&["verify", "--json"]).unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));

    assert_eq!(
        damage_snapshots(&system).await,
        model_names().len() + 1,
        "one snapshot of each model, and one of the services"
    );
    restart_without_rows(&mut system).await;
    let (projector, services) = (system.projector.as_ref().unwrap(), &system.services[0]);
    for process in [projector, services] {
        let last_lines = process.last_lines();
        assert!(!process.has_printed("begins from a snapshot"), "{last_lines}");
        assert!(process.has_printed("its content is not what was signed"), "{last_lines}");
    }
    assert!(projector.has_printed("signed by a foreign key"), "{}", projector.last_lines());
    assert_eq!(system.consumer.get(&format!("/jobs/{job}")).await.unwrap(), before);
    run_jobs(&system, 1).await;
    let verified = system.run_operator_tool(&["verify", "--json"]).unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}
