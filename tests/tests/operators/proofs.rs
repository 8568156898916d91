//! Proofs that an event is in the log. A *head* is a signed hash of the log up to a sequence. A proof connects an event
//! with a head.

use std::{
    fs,
    process::{Command, Output},
};

use gpubnb_events::subject;
use gpubnb_log::stream;
use gpubnb_proof::SignedTreeHead;
use gpubnb_runtime::nats;
use gpubnb_tests::{
    api_client::ApiClient,
    jobs::noop_job,
    programs::binary,
    system::{MarketSettings, System},
};
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::archive::prove_last_event;

/// Starts a market, runs one job, and returns the proof of the job's settlement. The market is not shared, because the
/// test puts foreign heads into it.
async fn start_market_with_proof() -> (System, Value) {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.consumer.submit(&noop_job()).await.unwrap();
    system.consumer.wait_until_settled(&job).await.unwrap();
    let proof = prove_last_event(&system).await;
    (system, proof)
}

/// True if the standard output contains a text.
fn says(output: &Output, text: &str) -> bool {
    String::from_utf8_lossy(&output.stdout).contains(text)
}

#[tokio::test]
async fn proofs_of_real_events_are_valid_and_changed_proofs_and_foreign_heads_are_refused() {
    let (system, proof) = start_market_with_proof().await;
    let file = system.path().join("proof.json");
    let check = |proof: &Value, key: &str| {
        fs::write(&file, proof.to_string()).unwrap();
        system.run_operator_tool(&["check-proof", file.to_str().unwrap(), "--key", key]).unwrap()
    };
    let key = proof["head"]["key"].as_str().unwrap();
    let checked = check(&proof, key);
    assert!(checked.status.success() && says(&checked, "Settled.v1"), "{checked:?}");
    assert!(!check(&proof, "UNOBODY").status.success());
    let none = system.run_operator_tool(&["prove", "0"]).unwrap();
    assert!(String::from_utf8_lossy(&none.stderr).contains("There is no such event"), "{none:?}");
    // A person who may see the event gets the proof from the web server, and checks it with the client `gpubnb`.
    let page = format!("/events/{}/proof.json", proof["message"]["seq"]);
    let (status, own) = system.consumer.browser_session().bytes(&page).await.unwrap();
    assert_eq!(status, 200);
    fs::write(&file, own).unwrap();
    let somebody = ApiClient::sign_up(&system.url(), "somebody").await.unwrap();
    let client = |arguments: &[&str]| {
        let mut command = Command::new(binary("gpubnb").unwrap());
        command.env("XDG_CONFIG_HOME", system.path()).args(["--url", &system.url()]);
        command.args(arguments).output().unwrap()
    };
    let path = file.to_str().unwrap();
    // Nobody vouches for a proof without a key that the reader trusts. A login pins the keys that the market publishes.
    let unvouched = client(&["check-proof", path]);
    assert!(unvouched.status.code() == Some(3) && says(&unvouched, "nobody vouches"), "{unvouched:?}");
    let password = system.path().join("password");
    fs::write(&password, &somebody.password).unwrap();
    let login = client(&["login", &somebody.email, "--password-file", password.to_str().unwrap()]);
    assert!(login.status.success(), "{login:?}");
    let vouched = client(&["check-proof", path]);
    assert!(vouched.status.success() && says(&vouched, "Settled.v1"), "{vouched:?}");
    let other_key = KeyPair::new_user().public_key();
    assert_eq!(client(&["check-proof", path, "--key", &other_key]).status.code(), Some(1));
    assert_eq!(somebody.browser_session().bytes(&page).await.unwrap().0, 404);
    let mut changed = proof.clone();
    changed["message"]["payload"] =
        json!(changed["message"]["payload"].as_str().unwrap().replace("cost\":0", "cost\":-1"));
    if changed == proof {
        changed["message"]["nanos"] = json!(proof["message"]["nanos"].as_i64().unwrap() + 1);
    }
    assert!(!check(&changed, key).status.success());
    // A verification fails if the newest head covers more events than the log has, and if a foreign key signed it.
    let client = system.nats_args("projector").connect("projector", subject::PROJECTOR_INBOX).await.unwrap();
    let bucket = nats::jetstream(client).get_key_value(stream::CHECKPOINTS).await.unwrap();
    let verified = || {
        let output = system.run_operator_tool(&["verify", "--json"]).unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert!(verified().0, "{}", verified().1);
    let signer = KeyPair::new_user();
    for (size, why) in [(1_000_000, "the log ends before"), (1, "which is not believed")] {
        let foreign = SignedTreeHead::sign(size, &[0; 32], &signer).unwrap();
        bucket.put("latest", serde_json::to_vec(&foreign).unwrap().into()).await.unwrap();
        let (clean, report) = verified();
        assert!(!clean && report.contains(why), "{report}");
    }
    let mut larger = proof.clone();
    larger["head"]["size"] = json!(proof["head"]["size"].as_u64().unwrap() + 1);
    assert!(!check(&larger, key).status.success());
}
