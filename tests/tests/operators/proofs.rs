//! The proof that an event is in the log, and the signed head that it hangs from.

use std::{fs, process::Command};

use gpubnb_events::subject;
use gpubnb_log::stream;
use gpubnb_proof::SignedTreeHead;
use gpubnb_runtime::nats;
use gpubnb_tests::{
    jobs::noop,
    parts::binary,
    system::{Options, System},
    web::Web,
};
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::archive::proof_of_the_last;

/// A market in which one job has run, and the proof of the job's settlement. The market is the test's own, because some
/// tests put a foreign head into it, and because every event of another test would ask for a newer head.
async fn signed_market() -> (System, Value) {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.web.submit(&noop()).await.unwrap();
    system.web.settled(&job).await.unwrap();
    let proof = proof_of_the_last(&system).await;
    (system, proof)
}

#[tokio::test]
async fn an_event_is_proven_to_be_in_the_log_and_a_changed_one_is_not() {
    let (system, proof) = signed_market().await;
    let file = system.path().join("proof.json");
    let check = |proof: &Value, key: &str| {
        fs::write(&file, proof.to_string()).unwrap();
        system.tool(&["check-proof", file.to_str().unwrap(), "--key", key]).unwrap()
    };
    let key = proof["head"]["key"].as_str().unwrap();
    let told = check(&proof, key);
    assert!(told.status.success() && String::from_utf8_lossy(&told.stdout).contains("Settled.v1"), "{told:?}");
    assert!(!check(&proof, "UNOBODY").status.success());
    let none = system.tool(&["prove", "0"]).unwrap();
    assert!(String::from_utf8_lossy(&none.stderr).contains("There is no such event"), "{none:?}");
    // Whoever may see the event gets the same proof from its page, and checks it alone.
    let page = format!("/events/{}/proof.json", proof["message"]["seq"]);
    let (status, own) = system.web.at_browser().bytes(&page).await.unwrap();
    assert_eq!(status, 200);
    fs::write(&file, own).unwrap();
    let client = Command::new(binary("gpubnb").unwrap()).arg("check-proof").arg(&file).output().unwrap();
    assert!(String::from_utf8_lossy(&client.stdout).contains("Settled.v1"), "{client:?}");
    let somebody = Web::join(&system.url(), "somebody").await.unwrap();
    assert_eq!(somebody.at_browser().bytes(&page).await.unwrap().0, 404);
    let mut other = proof.clone();
    other["message"]["payload"] = json!(other["message"]["payload"].as_str().unwrap().replace("cost\":0", "cost\":-1"));
    if other == proof {
        other["message"]["nanos"] = json!(proof["message"]["nanos"].as_i64().unwrap() + 1);
    }
    assert!(!check(&other, key).status.success());
    // A verification says of a head that is larger than the log that the log has lost its end, and believes no foreign key.
    let client = system.nats_args("projector").connect("projector", subject::PROJECTOR_INBOX).await.unwrap();
    let bucket = nats::jetstream(client).get_key_value(stream::CHECKPOINTS).await.unwrap();
    let verified = || {
        let output = system.tool(&["verify", "--json"]).unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert!(verified().0, "{}", verified().1);
    let signer = KeyPair::new_user();
    for (size, why) in [(1_000_000, "the log ends before"), (1, "which is not believed")] {
        let foreign = SignedTreeHead::sign(size, &[0; 32], &signer).unwrap();
        bucket.put("latest", serde_json::to_vec(&foreign).unwrap().into()).await.unwrap();
        let (clean, said) = verified();
        assert!(!clean && said.contains(why), "{said}");
    }
    let mut larger = proof.clone();
    larger["head"]["size"] = json!(proof["head"]["size"].as_u64().unwrap() + 1);
    assert!(!check(&larger, key).status.success());
}
