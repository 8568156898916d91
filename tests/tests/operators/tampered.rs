//! An attacker changes the log on the broker's disk and corrects the checksums. A verification names each event that
//! was changed, removed or swapped, and a projector that folds the log waits at the gap.

use std::fs;

use gpubnb_tests::{
    history,
    system::{MarketSettings, System},
};
use highway::{HighwayHash as _, HighwayHasher, Key};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A record of a block of nats-server's file store (`server/filestore.go`, `writeMsgRecord`): length, sequence, time,
/// the subject's length, subject, headers with their length before them, body, checksum; little endian.
struct Record {
    seq: u64,
    /// The bytes between sequence and checksum.
    rest: Vec<u8>,
    has_headers: bool,
}

/// The bit of the length that marks a record with headers.
const HEADERS: u32 = 1 << 31;
/// Length of the fields before the subject, bytes.
const FIXED: usize = 22;
/// Length of the checksum, bytes.
const CHECKSUM: usize = 8;

/// `N` bytes from the position `at`, for a `from_le_bytes` function.
fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().unwrap()
}

impl Record {
    /// Parses all records of a block.
    fn read_all(mut bytes: &[u8]) -> Vec<Self> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let word = u32::from_le_bytes(bytes_at(bytes, 0));
            let length = (word & !HEADERS) as usize;
            let seq = u64::from_le_bytes(bytes_at(bytes, 4));
            let rest = bytes[12..length - CHECKSUM].to_vec();
            records.push(Self { seq, rest, has_headers: word & HEADERS != 0 });
            bytes = &bytes[length..];
        }
        records
    }

    /// Writes the record as the broker writes it into the first block of MARKET.
    fn write(&self, into: &mut Vec<u8>) {
        let length = u32::try_from(12 + self.rest.len() + CHECKSUM).unwrap();
        let seq = self.seq.to_le_bytes();
        into.extend_from_slice(&(length | if self.has_headers { HEADERS } else { 0 }).to_le_bytes());
        into.extend_from_slice(&seq);
        into.extend_from_slice(&self.rest);
        // nats-server derives the key of the checksum from the stream's name and the number of the block.
        let key: [u8; 32] = Sha256::digest("MARKET-1").into();
        let key = [0, 8, 16, 24].map(|at| u64::from_le_bytes(bytes_at(&key, at)));
        let mut hasher = HighwayHasher::new(Key(key));
        // The checksum covers the sequence, the time, the subject, the headers and the body, but not the lengths.
        let subject_end = FIXED - 12 + usize::from(u16::from_le_bytes(bytes_at(&self.rest, 8)));
        hasher.append(&seq);
        hasher.append(&self.rest[..8]);
        hasher.append(&self.rest[FIXED - 12..subject_end]);
        hasher.append(&self.rest[subject_end + if self.has_headers { 4 } else { 0 }..]);
        into.extend_from_slice(&hasher.finalize64().to_le_bytes());
    }
}

/// Stops the broker, changes the records of the log, and starts broker and projector again.
async fn change_log(system: &mut System, change: impl FnOnce(&mut Vec<Record>)) {
    (system.projector, system.nats) = (None, None);
    let messages = system.stream_directory("MARKET").unwrap().join("msgs");
    let block = messages.join("1.blk");
    let before = fs::read(&block).unwrap();
    let mut records = Record::read_all(&before);
    let write = |records: &[Record]| {
        let mut bytes = Vec::new();
        for record in records {
            record.write(&mut bytes);
        }
        bytes
    };
    assert_eq!(write(&records), before, "the test does not write blocks as the broker does");
    change(&mut records);
    fs::write(&block, write(&records)).unwrap();
    // Without the index file the broker reads all blocks when it starts.
    drop(fs::remove_file(messages.join("index.db")));
    system.start_nats().await.unwrap();
    system.start_projector().await.unwrap();
}

#[tokio::test]
async fn a_verification_names_events_changed_removed_or_swapped_on_the_brokers_disk() {
    let options = MarketSettings { snapshot_every: Some(0), ..MarketSettings::default() };
    let mut system = System::start(options).await.unwrap();
    (system.ui, system.services) = (None, Vec::new());
    let last = history::write(&system, 40).await.unwrap();
    let verify = |system: &System| {
        let output = system.run_operator_tool(&["verify", "--json"]).unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), report["verification"]["violations"].as_array().unwrap().clone())
    };
    // Waits until all events are folded, and a head is signed after the last of them.
    let lag = |system: &System| {
        serde_json::from_slice::<Value>(&system.run_operator_tool(&["lag", "--json"]).unwrap().stdout).unwrap()
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !(lag(&system)["models"].as_array().unwrap().iter().all(|m| m["checkpoint"] == last.0)
        && system.run_operator_tool(&["prove", &last.to_string()]).unwrap().status.success())
    {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(verify(&system), (Some(0), Vec::new()));

    let mut honest = Vec::new();
    change_log(&mut system, |records| {
        honest = records.iter().map(|record| (record.seq, record.rest.clone())).collect();
        // One bit of the tenth event's body is changed.
        let body = &mut records[9].rest;
        let digit = body.iter().rposition(u8::is_ascii_digit).unwrap();
        body[digit] ^= 1;
        // The events 20 and 21 are swapped, and each gets the sequence of its new place.
        let (seq, other) = (records[19].seq, records[20].seq);
        records.swap(19, 20);
        (records[19].seq, records[20].seq) = (seq, other);
        // The event 30 is removed.
        records.remove(29);
    })
    .await;
    let (code, found) = verify(&system);
    assert_eq!(code, Some(1));
    for (seq, what) in [
        (10, "is not what it was"),
        (20, "where event 21 was"),
        (21, "where event 20 was"),
        (30, "has this event no more"),
    ] {
        let named = |v: &Value| v["seq"] == seq && v["what"].as_str().unwrap().contains(what);
        assert!(found.iter().any(named), "event {seq} {what}: {found:#?}");
    }
    let is_untouched = |v: &&Value| ![10, 20, 21, 30].contains(&v["seq"].as_u64().unwrap());
    let others: Vec<_> =
        found.iter().filter(is_untouched).filter(|v| !v["what"].as_str().unwrap().contains("head")).collect();
    assert!(others.is_empty(), "untouched events are named: {others:#?}");

    // The original records are restored. The log is clean again, because the projector has folded nothing after the
    // gap.
    change_log(&mut system, |records| {
        let has_headers = true;
        *records = honest.into_iter().map(|(seq, rest)| Record { seq, rest, has_headers }).collect();
    })
    .await;
    assert_eq!(verify(&system), (Some(0), Vec::new()));
}
