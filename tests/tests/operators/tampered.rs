//! Somebody with the broker's disk changes the log with care: each record's checksum is right again. Verification names the
//! event that was changed, the one that is missing, and those that have changed places; and a projector that folds the log
//! waits at the gap.

use std::fs;

use gpubnb_tests::{
    history,
    system::{Options, System},
};
use highway::{HighwayHash as _, HighwayHasher, Key};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A record of a block of nats-server's file store (`server/filestore.go`, `writeMsgRecord`): length, sequence, time, the
/// subject's length, subject, headers with their length before them, body, checksum; little endian.
struct Record {
    seq: u64,
    /// The bytes between sequence and checksum.
    rest: Vec<u8>,
    has_headers: bool,
}

const HEADERS: u32 = 1 << 31;
const FIXED: usize = 22;
const CHECKSUM: usize = 8;

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().unwrap()
}

impl Record {
    fn read_all(mut bytes: &[u8]) -> Vec<Self> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let word = u32::from_le_bytes(number(bytes, 0));
            let length = (word & !HEADERS) as usize;
            let seq = u64::from_le_bytes(number(bytes, 4));
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
        let key: [u8; 32] = Sha256::digest("MARKET-1").into();
        let key = [0, 8, 16, 24].map(|at| u64::from_le_bytes(number(&key, at)));
        let mut hasher = HighwayHasher::new(Key(key));
        // The checksum covers sequence and time, subject, headers and body, but not the lengths.
        let subject_end = FIXED - 12 + usize::from(u16::from_le_bytes(number(&self.rest, 8)));
        hasher.append(&seq);
        hasher.append(&self.rest[..8]);
        hasher.append(&self.rest[FIXED - 12..subject_end]);
        hasher.append(&self.rest[subject_end + if self.has_headers { 4 } else { 0 }..]);
        into.extend_from_slice(&hasher.finalize64().to_le_bytes());
    }
}

/// Changes the log while the broker is down.
async fn tamper(system: &mut System, change: impl FnOnce(&mut Vec<Record>)) {
    (system.projector, system.nats) = (None, None);
    let messages = system.stream_files("MARKET").unwrap().join("msgs");
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
    assert_eq!(write(&records), before, "this is how the broker writes a block");
    change(&mut records);
    fs::write(&block, write(&records)).unwrap();
    // Without its index the broker reads the blocks again.
    drop(fs::remove_file(messages.join("index.db")));
    system.start_nats().await.unwrap();
    system.start_projector().await.unwrap();
}

#[tokio::test]
async fn an_event_that_was_changed_lost_or_moved_on_the_brokers_disk_is_named() {
    let options = Options { snapshot_every: Some(0), ..Options::default() };
    let mut system = System::start(options).await.unwrap();
    (system.ui, system.services) = (None, Vec::new());
    let last = history::write(&system, 40).await.unwrap();
    let verify = |system: &System| {
        let output = system.tool(&["verify", "--json"]).unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), said["verification"]["violations"].as_array().unwrap().clone())
    };
    // Waits until all events are folded, and a head is signed after the last of them.
    let lag =
        |system: &System| serde_json::from_slice::<Value>(&system.tool(&["lag", "--json"]).unwrap().stdout).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !(lag(&system)["models"].as_array().unwrap().iter().all(|m| m["checkpoint"] == last.0)
        && system.tool(&["prove", &last.to_string()]).unwrap().status.success())
    {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(verify(&system), (Some(0), Vec::new()));

    let mut honest = Vec::new();
    tamper(&mut system, |records| {
        honest = records.iter().map(|record| (record.seq, record.rest.clone())).collect();
        // One bit of a digit of the tenth event's body.
        let body = &mut records[9].rest;
        let digit = body.iter().rposition(u8::is_ascii_digit).unwrap();
        body[digit] ^= 1;
        // Two events change places and keep the sequences of those places.
        let (seq, other) = (records[19].seq, records[20].seq);
        records.swap(19, 20);
        (records[19].seq, records[20].seq) = (seq, other);
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
    let others = |v: &&Value| ![10, 20, 21, 30].contains(&v["seq"].as_u64().unwrap());
    let others: Vec<_> =
        found.iter().filter(others).filter(|v| !v["what"].as_str().unwrap().contains("head")).collect();
    assert!(others.is_empty(), "nothing else was touched: {others:#?}");

    // With the honest records back, the log is clean again: nothing was folded over the gap.
    tamper(&mut system, |records| {
        let has_headers = true;
        *records = honest.into_iter().map(|(seq, rest)| Record { seq, rest, has_headers }).collect();
    })
    .await;
    assert_eq!(verify(&system), (Some(0), Vec::new()));
}
