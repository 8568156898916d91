//! Old versions of events can still be read. The tests make an archive with every version of every event. The archive's
//! reader, every read model, the services and the tools must read it.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use async_nats::HeaderMap;
use gpubnb_events::{Event, Recorded, Seq, message::header, subject};
use gpubnb_log::{
    RawMessage,
    archive::{ArchiveReader, ArchiveWriter},
};
use gpubnb_projector::fold::Models;
use gpubnb_store::Database;
use gpubnb_tests::programs::binary;
use serde_json::Value;

/// One message for each event fixture, in the order of the file names.
fn fixture_messages() -> Vec<RawMessage> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../events/fixtures");
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let name_of = |wire_name: &str| wire_name.split_once('.').map(|(name, _)| name.to_owned());
    let names: Vec<_> = Event::WIRE_NAMES.iter().map(|wire_name| name_of(wire_name)).collect();
    let events = files.iter().filter_map(|path| {
        let wire_name = path.file_stem()?.to_str()?.to_owned();
        // Other fixtures are messages that are no events, such as heartbeats.
        names.contains(&name_of(&wire_name)).then_some(())?;
        let payload = fs::read(path).unwrap();
        let event = Event::decode(&wire_name, &payload).unwrap();
        Some((subject::address(&event).subject, wire_name, payload))
    });
    let raws = (1..).zip(events).map(|(seq, (subject, wire_name, payload))| {
        let mut headers = HeaderMap::new();
        headers.insert(header::ID, wire_name.as_str());
        headers.insert(header::TYPE, wire_name.as_str());
        headers.insert(header::ACTOR, "platform");
        RawMessage { seq: Seq(seq), nanos: 1_000_000, subject, headers: Some(headers), payload: payload.into() }
    });
    raws.collect()
}

/// Parses the standard output of a command.
fn json_of(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {errors}"))
}

/// Writes an archive with these messages.
fn write_archive(raws: &[RawMessage], path: &Path) {
    let mut writer = ArchiveWriter::create(path, || false).unwrap();
    raws.iter().try_for_each(|raw| writer.write(raw)).unwrap();
    writer.finish(Vec::new()).unwrap();
}

#[test]
fn the_fixtures_have_older_versions_and_all_can_be_decoded() {
    let raws = fixture_messages();
    assert!(raws.iter().all(|raw| raw.decode().event().is_some()));
    assert!(raws.len() > Event::WIRE_NAMES.len(), "{} fixtures", raws.len());
}

#[test]
fn an_archive_of_every_version_is_read_without_changes() {
    let directory = tempfile::tempdir().unwrap();
    let raws = fixture_messages();
    write_archive(&raws, &directory.path().join("archive"));
    let reader = ArchiveReader::open(&directory.path().join("archive")).unwrap();
    let parts = reader.manifest.parts.iter();
    let read: Vec<RawMessage> = parts.flat_map(|part| reader.messages(part).unwrap().map(Result::unwrap)).collect();
    let leaves: Vec<_> = reader.leaves().unwrap().collect();
    assert_eq!(leaves, raws.iter().map(RawMessage::leaf).collect::<Vec<_>>());
    for (raw, leaf) in read.iter().zip(leaves) {
        assert_eq!((raw.decode().entry.err(), raw.leaf()), (None, leaf), "{raw:?}");
    }
    assert_eq!(read.len(), raws.len());
}

#[test]
fn an_archive_of_every_version_is_folded_by_every_read_model() {
    let directory = tempfile::tempdir().unwrap();
    let raws = fixture_messages();
    let read: Vec<Recorded> = raws.iter().map(RawMessage::decode).collect();
    let db = Database::open(&directory.path().join("models"), 8).unwrap();
    let mut models = Models::open(&db).unwrap();
    models.fold(&read).unwrap();
    for (name, checkpoint, stopped) in models.states() {
        assert_eq!((stopped, checkpoint), (None, Seq(raws.len() as u64)), "{name}");
    }
}

#[test]
fn an_archive_of_every_version_is_folded_by_the_services_and_the_audit() {
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("archive");
    let raws = fixture_messages();
    write_archive(&raws, &archive);
    let what_if = Command::new(binary("gpubnb-services").unwrap()).arg("what-if").arg(&archive).arg("--json").output();
    let what_if = json_of(&what_if.unwrap());
    assert!(what_if["settled"].as_u64() >= Some(1) && what_if["then"] == what_if["now"], "{what_if}");
    // The postings of the fixtures balance.
    let tool =
        Command::new(binary("gpubnb-projector").unwrap()).args(["audit", "--json", "--archive"]).arg(&archive).output();
    let audit = json_of(&tool.unwrap());
    assert_eq!((&audit["total"], audit["events"].as_u64()), (&Value::from(0), Some(raws.len() as u64)));
}
