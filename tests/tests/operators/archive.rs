//! The log as an archive of files: exported, verified without a broker, audited, and asked what would have been.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::Output,
};

use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use gpubnb_tests::{
    market::Market,
    shared::{Plan, Shared},
    wait::until,
};
use serde_json::{Value, json};

/// A market in which one job has run, and whose head was signed after that job. Nothing else may happen in it, so these
/// tests open it without a consumer of their own.
static MARKET: Shared = Shared::new(|| Plan::default().worker("attic", &[]).jobs(1));

pub(crate) fn json_of(output: &Output) -> Value {
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

/// Waits until a head was signed after the last event, and returns the proof of that event.
pub(crate) async fn proof_of_the_last(market: &Market) -> Value {
    let last = json_of(&market.tool(&["lag", "--json"]).unwrap())["last"].to_string();
    let mut proof = Value::Null;
    until("a head that was signed after the last event", async || {
        let output = market.tool(&["prove", &last]).unwrap();
        let done = output.status.success();
        if done {
            proof = json_of(&output);
        }
        done
    })
    .await;
    proof
}

/// The archive of a test, exported into a directory of its own.
struct Archive {
    market: Market,
    path: PathBuf,
    manifest: Value,
}

impl Archive {
    async fn export(name: &str) -> Self {
        let market = MARKET.open_as_is().unwrap();
        proof_of_the_last(&market).await;
        let directory = market.path().join(name);
        fs::create_dir(&directory).unwrap();
        let path = directory.join("archive");
        let manifest = json_of(&market.tool(&["export", path.to_str().unwrap(), "--json"]).unwrap());
        Self { market, path, manifest }
    }

    fn verify(&self, archive: &Path) -> (bool, Value) {
        let output = self.market.tool(&["verify", "--archive", archive.to_str().unwrap(), "--json"]).unwrap();
        (output.status.success(), json_of(&output))
    }

    /// The violations that a verification finds in a changed copy, each with its sequence.
    fn violations(&self, archive: &Path) -> Vec<(u64, String)> {
        let (clean, said) = self.verify(archive);
        assert!(!clean, "{said}");
        let violations = said["violations"].as_array().unwrap().clone();
        violations.iter().map(|v| (v["seq"].as_u64().unwrap(), v["what"].to_string())).collect()
    }
}

/// Changes the manifest of an archive.
fn rewrite(archive: &Path, change: impl FnOnce(&mut Value)) {
    let file = archive.join("manifest.json");
    let mut whole: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    change(&mut whole);
    fs::write(&file, whole.to_string()).unwrap();
}

/// Changes one bit of the body of the third event: of a digit of a time in it, or of an id.
fn flip(lines: &mut [String]) {
    let mut line: Value = serde_json::from_str(&lines[2]).unwrap();
    let mut bytes = line["payload"].as_str().unwrap().to_owned().into_bytes();
    let digit = bytes.iter().rposition(u8::is_ascii_digit).unwrap();
    bytes[digit] ^= 1;
    line["payload"] = json!(String::from_utf8(bytes).unwrap());
    lines[2] = line.to_string();
}

#[tokio::test]
async fn an_archive_is_clean_as_it_was_exported() {
    let archive = Archive::export("clean").await;
    assert_eq!(archive.manifest["heads"].as_array().unwrap().len(), 1, "{}", archive.manifest);
    let (clean, said) = archive.verify(&archive.path);
    assert!(clean && said["heads"] == 1 && said["vouched"] == archive.manifest["last"], "{said}");
}

#[tokio::test]
async fn an_event_that_was_changed_or_is_missing_or_has_changed_places_is_named() {
    let archive = Archive::export("changed").await;
    let flipped = archive.violations(&changed(&archive.path, "flipped", |lines| flip(lines)));
    assert!(flipped.iter().any(|(seq, what)| *seq == 3 && what.contains("was changed")), "{flipped:?}");
    let missing = archive.violations(&changed(&archive.path, "missing", |lines| drop(lines.remove(4))));
    assert!(missing.iter().any(|(seq, what)| *seq == 5 && what.contains("is missing")), "{missing:?}");
    // Two events change places, and their sequences with them.
    let swapped = archive.violations(&changed(&archive.path, "swapped", |lines| {
        let mut two: Vec<Value> = lines[2..4].iter().map(|l| serde_json::from_str(l).unwrap()).collect();
        (two[0]["seq"], two[1]["seq"]) = (json!(4), json!(3));
        (lines[2], lines[3]) = (two[1].to_string(), two[0].to_string());
    }));
    for (seq, other) in [(3, "event 4"), (4, "event 3")] {
        let found = |(at, what): &(u64, String)| *at == seq && what.contains("changed places") && what.contains(other);
        assert!(swapped.iter().any(found), "{swapped:?}");
    }
}

#[tokio::test]
async fn an_archive_that_was_forged_as_a_whole_differs_from_its_signed_head() {
    let archive = Archive::export("forgery").await;
    // Whoever changes the leaves together with the events still has no key for the head.
    let forged = changed(&archive.path, "forged", |_| {});
    let mut leaves = fs::read(forged.join("leaves.bin")).unwrap();
    leaves[0] ^= 1;
    fs::write(forged.join("leaves.bin"), leaves).unwrap();
    let forged = archive.violations(&forged);
    assert!(forged.iter().any(|(_, what)| what.contains("whose head was signed")), "{forged:?}");
    // An archive that was cut short with care is shorter than its signed head says.
    let cut = changed(&archive.path, "cut", |lines| drop(lines.pop()));
    let mut leaves = fs::read(cut.join("leaves.bin")).unwrap();
    leaves.truncate(leaves.len() - 32);
    fs::write(cut.join("leaves.bin"), leaves).unwrap();
    let last = archive.manifest["last"].as_u64().unwrap() - 1;
    rewrite(&cut, |m| (m["last"], m["parts"][0]["last"]) = (json!(last), json!(last)));
    assert!(archive.violations(&cut).iter().any(|(_, what)| what.contains("the archive ends before")));
}

#[tokio::test]
async fn an_archive_without_signed_heads_is_vouched_for_by_no_key() {
    let archive = Archive::export("headless").await;
    let bare = changed(&archive.path, "bare", |_| {});
    rewrite(&bare, |m| m["heads"] = json!([]));
    let key = archive.manifest["heads"][0]["key"].as_str().unwrap();
    let with_key = |path: &Path| {
        let arguments = ["verify", "--archive", path.to_str().unwrap(), "--key", key];
        archive.market.tool(&arguments).unwrap().status.success()
    };
    assert!(with_key(&archive.path) && !with_key(&bare));
}

#[tokio::test]
async fn an_archive_answers_what_other_prices_would_have_meant() {
    let archive = Archive::export("what-if").await;
    let bent = changed(&archive.path, "flipped", |lines| flip(lines));
    let refused = archive.market.services_tool(&["what-if", bent.to_str().unwrap()]).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("event 3 is not what was exported"), "{said}");
    let what_if = |more: &[&str]| {
        let path = archive.path.to_str().unwrap();
        let whole: Vec<&str> = ["what-if", path, "--json"].iter().chain(more).copied().collect();
        json_of(&archive.market.services_tool(&whole).unwrap())
    };
    // With nothing changed the outcome is the same; half the price is half the bill, and half of that goes to the fee.
    let same = what_if(&[]);
    assert_eq!((&same["now"], &same["settled"], &same["moved"]), (&same["then"], &json!(1), &json!(0)));
    let half = what_if(&["--price", "50", "--fee", "5000", "--placement", "fastest"]);
    let [then, now] = ["then", "now"].map(|when| half[when]["cost"].as_i64().unwrap());
    assert!(now == then / 2 || now == then / 2 + 1, "{half}");
    assert_eq!(half["now"]["fee"], now / 2);
}

#[tokio::test]
async fn the_audit_of_an_archive_is_that_of_the_log_and_looks_back() {
    let archive = Archive::export("audit").await;
    let audit =
        |arguments: &[&str]| json_of(&archive.market.tool(&[&["audit", "--json"], arguments].concat()).unwrap());
    let (live, filed) = (audit(&[]), audit(&["--archive", archive.path.to_str().unwrap()]));
    assert_eq!((&filed, &filed["settled"], &filed["total"]), (&live, &json!(1), &json!(0)));
    let first = audit(&["--at", "1"]);
    assert_eq!((&first["at"], &first["settled"]), (&json!(1), &json!(0)));
    assert_eq!(audit(&["--at", "2020-01-01T00:00:00Z"])["events"], 0);
}
