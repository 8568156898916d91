//! The log as files: exported, verified without a broker, audited; and an event that is proven to be in it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use gpubnb_events::subject;
use gpubnb_log::stream;
use gpubnb_proof::SignedTreeHead;
use gpubnb_runtime::nats;
use gpubnb_tests::{
    parts::binary,
    system::{Options, System},
    web::Web,
};
use nkeys::KeyPair;
use serde_json::{Value, json};

fn json_of(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"))
}

/// The one file of events in a small archive.
fn events(archive: &Path) -> PathBuf {
    let manifest: Value = serde_json::from_slice(&fs::read(archive.join("manifest.json")).unwrap()).unwrap();
    archive.join(manifest["parts"][0]["file"].as_str().unwrap())
}

fn read(file: &Path) -> Vec<String> {
    let mut text = String::new();
    MultiGzDecoder::new(File::open(file).unwrap()).read_to_string(&mut text).unwrap();
    text.lines().map(ToOwned::to_owned).collect()
}

/// A copy of an archive whose lines were changed by somebody who knows it well: its file's hash is right again.
fn changed(archive: &Path, name: &str, change: impl FnOnce(&mut Vec<String>)) -> PathBuf {
    let copy = archive.with_file_name(name);
    fs::create_dir(&copy).unwrap();
    for file in fs::read_dir(archive).unwrap().map(|f| f.unwrap()) {
        fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let file = events(&copy);
    let mut lines = read(&file);
    change(&mut lines);
    let mut compressed = GzEncoder::new(File::create(&file).unwrap(), Compression::fast());
    compressed.write_all((lines.join("\n") + "\n").as_bytes()).unwrap();
    compressed.finish().unwrap();
    let manifest = copy.join("manifest.json");
    let mut whole: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    whole["parts"][0]["sha256"] = json!(gpubnb_log::archive::sha256(&file).unwrap());
    fs::write(&manifest, whole.to_string()).unwrap();
    copy
}

/// A market in which a job has run, and whose head was signed after it; and the proof of its first event.
async fn signed_market() -> (System, Value) {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.web.submit(&json!({ "template": "noop" })).await.unwrap();
    system.web.settled(&job).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let last = json_of(&system.tool(&["lag", "--json"]).unwrap())["last"].to_string();
    loop {
        let proof = system.tool(&["prove", &last]).unwrap();
        if proof.status.success() {
            return (system, json_of(&proof));
        }
        assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&proof.stderr));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn an_archive_is_verified_and_what_was_changed_in_it_is_named() {
    let (system, _) = signed_market().await;
    let archive = system.path().join("archive");
    let manifest = json_of(&system.tool(&["export", archive.to_str().unwrap(), "--json"]).unwrap());
    assert_eq!(manifest["heads"].as_array().unwrap().len(), 1, "{manifest}");
    let verify = |archive: &Path| {
        let output = system.tool(&["verify", "--archive", archive.to_str().unwrap(), "--json"]).unwrap();
        (output.status.success(), json_of(&output))
    };
    let (clean, said) = verify(&archive);
    assert!(clean && said["heads"] == 1 && said["vouched"] == manifest["last"], "{said}");
    let violations = |archive: &Path| {
        let (clean, said) = verify(archive);
        assert!(!clean, "{said}");
        let violations = said["violations"].as_array().unwrap().clone();
        violations.iter().map(|v| (v["seq"].as_u64().unwrap(), v["what"].to_string())).collect::<Vec<_>>()
    };

    // One bit of the body of the third event: a digit of a time in it, or a letter of an id.
    let flipped = violations(&changed(&archive, "flipped", |lines| {
        let mut line: Value = serde_json::from_str(&lines[2]).unwrap();
        let mut bytes = line["payload"].as_str().unwrap().to_owned().into_bytes();
        let digit = bytes.iter().rposition(u8::is_ascii_digit).unwrap();
        bytes[digit] ^= 1;
        line["payload"] = json!(String::from_utf8(bytes).unwrap());
        lines[2] = line.to_string();
    }));
    assert!(flipped.iter().any(|(seq, what)| *seq == 3 && what.contains("was changed")), "{flipped:?}");
    let missing = violations(&changed(&archive, "missing", |lines| drop(lines.remove(4))));
    assert!(missing.iter().any(|(seq, what)| *seq == 5 && what.contains("is missing")), "{missing:?}");
    // Two events change places, and their sequences with them.
    let swapped = violations(&changed(&archive, "swapped", |lines| {
        let mut two: Vec<Value> = lines[2..4].iter().map(|l| serde_json::from_str(l).unwrap()).collect();
        (two[0]["seq"], two[1]["seq"]) = (json!(4), json!(3));
        (lines[2], lines[3]) = (two[1].to_string(), two[0].to_string());
    }));
    for (seq, other) in [(3, "event 4"), (4, "event 3")] {
        let found = |(at, what): &(u64, String)| *at == seq && what.contains("changed places") && what.contains(other);
        assert!(swapped.iter().any(found), "{swapped:?}");
    }
    // Whoever changes the leaves with the events has still no key for the head.
    let forged = changed(&archive, "forged", |_| {});
    let mut leaves = fs::read(forged.join("leaves.bin")).unwrap();
    leaves[0] ^= 1;
    fs::write(forged.join("leaves.bin"), leaves).unwrap();
    let forged = violations(&forged);
    assert!(forged.iter().any(|(_, what)| what.contains("whose head was signed")), "{forged:?}");

    // Cut short by somebody who knows how: the head that was signed tells of more.
    let cut = changed(&archive, "cut", |lines| drop(lines.pop()));
    let mut leaves = fs::read(cut.join("leaves.bin")).unwrap();
    leaves.truncate(leaves.len() - 32);
    fs::write(cut.join("leaves.bin"), leaves).unwrap();
    let rewrite = |archive: &Path, change: &dyn Fn(&mut Value)| {
        let file = archive.join("manifest.json");
        let mut whole: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        change(&mut whole);
        fs::write(&file, whole.to_string()).unwrap();
    };
    let last = manifest["last"].as_u64().unwrap() - 1;
    rewrite(&cut, &|m| (m["last"], m["parts"][0]["last"]) = (json!(last), json!(last)));
    assert!(violations(&cut).iter().any(|(_, what)| what.contains("the archive ends before")));
    // Without heads nothing vouches for it: who names a key is told so.
    let bare = changed(&archive, "bare", |_| {});
    rewrite(&bare, &|m| m["heads"] = json!([]));
    let key = manifest["heads"][0]["key"].as_str().unwrap();
    let with_key = |archive: &Path| {
        let arguments = ["verify", "--archive", archive.to_str().unwrap(), "--key", key];
        system.tool(&arguments).unwrap().status.success()
    };
    assert!(with_key(&archive) && !with_key(&bare));
    let bent = archive.with_file_name("flipped");
    let refused = system.services_tool(&["what-if", bent.to_str().unwrap()]).unwrap();
    assert!(
        !refused.status.success()
            && String::from_utf8_lossy(&refused.stderr).contains("event 3 is not what was exported")
    );
    // Nothing changed is nothing different; half the price is half the bill, and half of that the fee's.
    let what_if = |more: &[&str]| {
        let whole: Vec<&str> = ["what-if", archive.to_str().unwrap(), "--json"].iter().chain(more).copied().collect();
        json_of(&system.services_tool(&whole).unwrap())
    };
    let same = what_if(&[]);
    assert_eq!((&same["now"], &same["settled"], &same["moved"]), (&same["then"], &json!(1), &json!(0)));
    let half = what_if(&["--price", "50", "--fee", "5000", "--placement", "fastest"]);
    let [then, now] = ["then", "now"].map(|when| half[when]["cost"].as_i64().unwrap());
    assert!(now == then / 2 || now == then / 2 + 1, "{half}");
    assert_eq!(half["now"]["fee"], now / 2);

    let audit = system.tool(&["audit", "--archive", archive.to_str().unwrap(), "--json"]).unwrap();
    let (live, audit) = (json_of(&system.tool(&["audit", "--json"]).unwrap()), json_of(&audit));
    assert_eq!((&audit, &audit["settled"], &audit["total"]), (&live, &json!(1), &json!(0)));
    let first = json_of(&system.tool(&["audit", "--at", "1", "--json"]).unwrap());
    assert_eq!((&first["at"], &first["settled"]), (&json!(1), &json!(0)));
    let before = json_of(&system.tool(&["audit", "--at", "2020-01-01T00:00:00Z", "--json"]).unwrap());
    assert_eq!(before["events"], 0);
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
    // Who may see the event has the same proof from its page, and needs nobody to check it.
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
    // A head of more than the log has: it has lost its end, says a verification; and so it does of a foreign key.
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
