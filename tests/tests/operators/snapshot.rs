//! Services and read models start from snapshots, but never from one that somebody else signed or that was changed.

use std::fs;

use futures_util::TryStreamExt as _;
use gpubnb_events::subject;
use gpubnb_log::{
    snapshot::{SnapshotManifest, Snapshots},
    stream::SNAPSHOTS,
};
use gpubnb_runtime::nats;
use gpubnb_tests::{
    jobs::noop,
    process::Process,
    system::{Options, System},
    wait::until,
};
use nkeys::KeyPair;
use tokio::io::AsyncReadExt as _;

/// The names of all read models.
fn models() -> Vec<&'static str> {
    gpubnb_model::all().iter().map(|model| model.name()).collect()
}

/// Waits until a process has printed something.
async fn said(process: &Process, words: &str) {
    until(words, async || process.has_said(words)).await;
}

/// Loses the rows and the memory of all that fold, and starts them again.
async fn start_anew(system: &mut System) {
    for process in [system.projector.take(), system.services.pop()].into_iter().flatten() {
        drop(process);
    }
    fs::remove_dir_all(system.path().join("projector")).unwrap();
    system.start_services().await.unwrap();
    system.start_projector().await.unwrap();
}

async fn run_jobs(system: &System, count: usize) -> String {
    let mut last = String::new();
    for _ in 0..count {
        last = system.web.submit(&noop()).await.unwrap();
        system.web.settled(&last).await.unwrap();
    }
    last
}

/// Spoils all snapshots: one gets the signature of somebody else, and of all others a byte is changed. Returns their number.
async fn spoil_all(system: &System) -> usize {
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
async fn services_and_projector_begin_from_snapshots_and_believe_no_foreign_one() {
    let mut system = System::start(Options { snapshot_every: Some(10), ..Options::default() }).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = run_jobs(&system, 3).await;
    let projector = system.projector.as_ref().unwrap();
    for model in models() {
        said(projector, &format!("a snapshot was kept model=\"{model}\"")).await;
    }
    said(&system.services[0], "a snapshot was kept").await;
    let before = system.web.get(&format!("/jobs/{job}")).await.unwrap();

    start_anew(&mut system).await;
    let projector = system.projector.as_ref().unwrap();
    for model in models() {
        assert!(projector.has_said(&format!("begins from a snapshot model=\"{model}\"")), "{}", projector.last_words());
    }
    assert!(system.services[0].has_said("begins from a snapshot"), "{}", system.services[0].last_words());
    assert_eq!(system.web.get(&format!("/jobs/{job}")).await.unwrap(), before);
    // The market goes on, and every row is what the log says from its first event.
    run_jobs(&system, 1).await;
    let verified = system.tool(&["verify", "--json"]).unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));

    assert_eq!(spoil_all(&system).await, models().len() + 1, "one of each model, and one of the services");
    start_anew(&mut system).await;
    let (projector, services) = (system.projector.as_ref().unwrap(), &system.services[0]);
    for process in [projector, services] {
        let words = process.last_words();
        assert!(!words.contains("begins from a snapshot"), "{words}");
        assert!(words.contains("its content is not what was signed"), "{words}");
    }
    assert!(projector.has_said("signed by a foreign key"), "{}", projector.last_words());
    assert_eq!(system.web.get(&format!("/jobs/{job}")).await.unwrap(), before);
    run_jobs(&system, 1).await;
    let verified = system.tool(&["verify", "--json"]).unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}
