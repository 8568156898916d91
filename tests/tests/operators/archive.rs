//! Archives: the log is exported into files, which are verified and audited without a broker. `what-if` computes the
//! bills of an archive with other prices.
//!
//! A *head* is the projector's signature of the log up to a sequence. Heads protect the archive against forgery.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::Output,
};

use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use gpubnb_events::message::Hash;
use gpubnb_proof::MessageLine;
use gpubnb_tests::{
    market::Market,
    shared::{Plan, SharedMarket},
    wait::wait_until,
};
use serde_json::{Value, json};

/// A market in which one job has run. The tests must not add events, so they open it without a new consumer.
static MARKET: SharedMarket = SharedMarket::new(|| Plan::default().with_worker("attic", &[]).with_jobs(1));

/// Parses the standard output of a command.
pub(crate) fn json_of(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {errors}"))
}

/// The path of the only file with events in a small archive.
fn event_file(archive: &Path) -> PathBuf {
    let manifest: Value = serde_json::from_slice(&fs::read(archive.join("manifest.json")).unwrap()).unwrap();
    archive.join(manifest["parts"][0]["file"].as_str().unwrap())
}

/// Reads the lines of a compressed file.
fn read_lines(file: &Path) -> Vec<String> {
    let mut text = String::new();
    MultiGzDecoder::new(File::open(file).unwrap()).read_to_string(&mut text).unwrap();
    text.lines().map(ToOwned::to_owned).collect()
}

/// Copies an archive, and changes the lines of its events. The hash of the file in the manifest is corrected, as a
/// careful forger would do.
fn changed_copy(archive: &Path, name: &str, change: impl FnOnce(&mut Vec<String>)) -> PathBuf {
    let copy = archive.with_file_name(name);
    fs::create_dir(&copy).unwrap();
    for file in fs::read_dir(archive).unwrap().map(|f| f.unwrap()) {
        fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let file = event_file(&copy);
    let mut lines = read_lines(&file);
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

/// Waits until a head is signed after the last event, and returns the proof of that event.
pub(crate) async fn prove_last_event(market: &Market) -> Value {
    let last = json_of(&market.run_operator_tool(&["lag", "--json"]).unwrap())["last"].to_string();
    let mut proof = Value::Null;
    wait_until("a head that was signed after the last event", async || {
        let output = market.run_operator_tool(&["prove", &last]).unwrap();
        let is_proven = output.status.success();
        if is_proven {
            proof = json_of(&output);
        }
        is_proven
    })
    .await;
    proof
}

/// An archive that one test has exported.
struct Archive {
    market: Market,
    path: PathBuf,
    manifest: Value,
}

impl Archive {
    /// Exports the log into a new directory after a head is signed.
    async fn export(name: &str) -> Self {
        let market = MARKET.open_with_first_consumer().unwrap();
        prove_last_event(&market).await;
        let directory = market.path().join(name);
        fs::create_dir(&directory).unwrap();
        let path = directory.join("archive");
        let manifest = json_of(&market.run_operator_tool(&["export", path.to_str().unwrap(), "--json"]).unwrap());
        Self { market, path, manifest }
    }

    /// Verifies an archive without a key. Returns true if it is clean, and the report.
    fn verify(&self, archive: &Path) -> (bool, Value) {
        let output =
            self.market.run_operator_tool(&["verify", "--archive", archive.to_str().unwrap(), "--json"]).unwrap();
        let report = json_of(&output);
        let is_clean = report["clean"] == true;
        // Without a key that the reader trusts, nobody vouches for the archive. So the exit code of a clean archive
        // is 3.
        assert_eq!(output.status.code(), Some(if is_clean { 3 } else { 1 }), "{report}");
        (is_clean, report)
    }

    /// Verifies an archive with the key of its first head. Returns the exit code and the messages.
    fn verify_with_key(&self, archive: &Path) -> (Option<i32>, String) {
        let key = self.manifest["heads"][0]["key"].as_str().unwrap();
        let arguments = ["verify", "--archive", archive.to_str().unwrap(), "--key", key];
        let output = self.market.run_operator_tool(&arguments).unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Verifies a changed copy, which must fail. Returns the sequence and the text of each violation.
    fn violations(&self, archive: &Path) -> Vec<(u64, String)> {
        let (is_clean, report) = self.verify(archive);
        assert!(!is_clean, "{report}");
        let violations = report["violations"].as_array().unwrap().clone();
        violations.iter().map(|v| (v["seq"].as_u64().unwrap(), v["what"].to_string())).collect()
    }
}

/// Changes the manifest of an archive.
fn change_manifest(archive: &Path, change: impl FnOnce(&mut Value)) {
    let file = archive.join("manifest.json");
    let mut whole: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    change(&mut whole);
    fs::write(&file, whole.to_string()).unwrap();
}

/// Changes one bit of the last digit in the body of the third event.
fn flip_bit(lines: &mut [String]) {
    let mut line: Value = serde_json::from_str(&lines[2]).unwrap();
    let mut bytes = line["payload"].as_str().unwrap().to_owned().into_bytes();
    let digit = bytes.iter().rposition(u8::is_ascii_digit).unwrap();
    bytes[digit] ^= 1;
    line["payload"] = json!(String::from_utf8(bytes).unwrap());
    lines[2] = line.to_string();
}

#[tokio::test]
async fn an_exported_archive_is_clean_and_has_one_signed_head() {
    let archive = Archive::export("clean").await;
    assert_eq!(archive.manifest["heads"].as_array().unwrap().len(), 1, "{}", archive.manifest);
    let (is_clean, report) = archive.verify(&archive.path);
    assert!(is_clean && report["heads"] == 1 && report["vouched"] == archive.manifest["last"], "{report}");
}

#[tokio::test]
async fn a_verification_names_changed_missing_and_swapped_events() {
    let archive = Archive::export("changed").await;
    let flipped = archive.violations(&changed_copy(&archive.path, "flipped", |lines| flip_bit(lines)));
    assert!(flipped.iter().any(|(seq, what)| *seq == 3 && what.contains("was changed")), "{flipped:?}");
    let missing = archive.violations(&changed_copy(&archive.path, "missing", |lines| drop(lines.remove(4))));
    assert!(missing.iter().any(|(seq, what)| *seq == 5 && what.contains("is missing")), "{missing:?}");
    // Two events are swapped, and each gets the sequence of its new place.
    let swapped = archive.violations(&changed_copy(&archive.path, "swapped", |lines| {
        let mut two: Vec<Value> = lines[2..4].iter().map(|l| serde_json::from_str(l).unwrap()).collect();
        (two[0]["seq"], two[1]["seq"]) = (json!(4), json!(3));
        (lines[2], lines[3]) = (two[1].to_string(), two[0].to_string());
    }));
    for (seq, other) in [(3, "event 4"), (4, "event 3")] {
        let is_named =
            |(at, what): &(u64, String)| *at == seq && what.contains("changed places") && what.contains(other);
        assert!(swapped.iter().any(is_named), "{swapped:?}");
    }
}

#[tokio::test]
async fn a_forged_archive_does_not_match_its_signed_head() {
    let archive = Archive::export("forgery").await;
    // A forger can also change the hashes of the events in `leaves.bin`, but has no key for the head.
    let forged = changed_copy(&archive.path, "forged", |_| {});
    let mut leaves = fs::read(forged.join("leaves.bin")).unwrap();
    leaves[0] ^= 1;
    fs::write(forged.join("leaves.bin"), leaves).unwrap();
    let forged = archive.violations(&forged);
    assert!(forged.iter().any(|(_, what)| what.contains("whose head was signed")), "{forged:?}");
    // A forger removes the last event everywhere. The signed head still covers that event.
    let cut = changed_copy(&archive.path, "cut", |lines| drop(lines.pop()));
    let mut leaves = fs::read(cut.join("leaves.bin")).unwrap();
    leaves.truncate(leaves.len() - 32);
    fs::write(cut.join("leaves.bin"), leaves).unwrap();
    let last = archive.manifest["last"].as_u64().unwrap() - 1;
    change_manifest(&cut, |m| (m["last"], m["parts"][0]["last"]) = (json!(last), json!(last)));
    assert!(archive.violations(&cut).iter().any(|(_, what)| what.contains("the archive ends before")));
}

#[tokio::test]
async fn an_archive_without_heads_fails_a_verification_with_a_key() {
    let archive = Archive::export("headless").await;
    let bare = changed_copy(&archive.path, "bare", |_| {});
    change_manifest(&bare, |m| m["heads"] = json!([]));
    assert!(archive.verify(&bare).0, "without a key, the archive is consistent");
    assert_eq!(archive.verify_with_key(&archive.path).0, Some(0));
    assert_eq!(archive.verify_with_key(&bare).0, Some(1));
}

#[tokio::test]
async fn nobody_vouches_for_money_that_was_invented_after_the_last_head() {
    let archive = Archive::export("invented").await;
    let last = archive.manifest["last"].as_u64().unwrap() + 1;
    let mut leaf = Hash::default();
    let forged = changed_copy(&archive.path, "with-a-deposit", |lines| {
        let deposit = lines.iter().find(|line| line.contains("Deposited.v1")).unwrap();
        let mut deposit: Value = serde_json::from_str(deposit).unwrap();
        deposit["seq"] = json!(last);
        leaf = serde_json::from_value::<MessageLine>(deposit.clone()).unwrap().decode().unwrap().leaf;
        lines.push(deposit.to_string());
    });
    let leaves = [fs::read(forged.join("leaves.bin")).unwrap(), leaf.to_vec()].concat();
    fs::write(forged.join("leaves.bin"), leaves).unwrap();
    // The manifest does not even say that there is one more event.
    let (code, messages) = archive.verify_with_key(&forged);
    assert!(code == Some(1) && messages.contains("comes after the last event"), "{messages}");
    change_manifest(&forged, |m| (m["last"], m["parts"][0]["last"]) = (json!(last), json!(last)));
    let (code, messages) = archive.verify_with_key(&forged);
    assert!(
        code == Some(3) && messages.contains(&format!("nobody vouches for the events from {last} on")),
        "{messages}"
    );
}

#[tokio::test]
async fn what_if_computes_the_bills_of_an_archive_with_other_prices_and_fees() {
    let archive = Archive::export("what-if").await;
    let damaged = changed_copy(&archive.path, "flipped", |lines| flip_bit(lines));
    let refused = archive.market.run_services_tool(&["what-if", damaged.to_str().unwrap()]).unwrap();
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && message.contains("event 3 is not what was exported"), "{message}");
    let what_if = |more: &[&str]| {
        let path = archive.path.to_str().unwrap();
        let whole: Vec<&str> = ["what-if", path, "--json"].iter().chain(more).copied().collect();
        json_of(&archive.market.run_services_tool(&whole).unwrap())
    };
    // Without changes the bills are the same. Half the price (`--price` is in percent) gives half the bill, and the
    // fee of 50 % (`--fee` is in ten-thousandths) is half of that bill.
    let same = what_if(&[]);
    assert_eq!((&same["now"], &same["settled"], &same["moved"]), (&same["then"], &json!(1), &json!(0)));
    let half = what_if(&["--price", "50", "--fee", "5000", "--placement", "fastest"]);
    let [then, now] = ["then", "now"].map(|when| half[when]["cost"].as_i64().unwrap());
    assert!(now == then / 2 || now == then / 2 + 1, "{half}");
    assert_eq!(half["now"]["fee"], now / 2);
}

#[tokio::test]
async fn the_audit_of_an_archive_equals_that_of_the_log_and_works_at_earlier_sequences() {
    let archive = Archive::export("audit").await;
    let audit = |arguments: &[&str]| {
        json_of(&archive.market.run_operator_tool(&[&["audit", "--json"], arguments].concat()).unwrap())
    };
    let (live, filed) = (audit(&[]), audit(&["--archive", archive.path.to_str().unwrap()]));
    assert_eq!((&filed, &filed["settled"], &filed["total"]), (&live, &json!(1), &json!(0)));
    let first = audit(&["--at", "1"]);
    assert_eq!((&first["at"], &first["settled"]), (&json!(1), &json!(0)));
    assert_eq!(audit(&["--at", "2020-01-01T00:00:00Z"])["events"], 0);
}
