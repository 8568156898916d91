//! What was written long ago is folded today: every version of every event that was ever written, as an archive, through
//! every read model, through the world of the services, and through the tools that read archives.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use async_nats::HeaderMap;
use gpubnb_events::{Event, Recorded, Seq, message::header, subject};
use gpubnb_log::{
    Raw,
    archive::{ArchiveReader, ArchiveWriter},
};
use gpubnb_projector::fold::Models;
use gpubnb_store::Database;
use gpubnb_tests::parts::binary;
use serde_json::Value;

/// One message for each fixture of an event, in the order of their names.
fn written() -> Vec<Raw> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../events/fixtures");
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let events = files.iter().filter_map(|path| {
        let wire_name = path.file_stem()?.to_str()?.to_owned();
        let payload = fs::read(path).unwrap();
        let event = Event::decode(&wire_name, &payload).ok()?;
        Some((subject::address(&event).subject, wire_name, payload))
    });
    let raws = (1..).zip(events).map(|(seq, (subject, wire_name, payload))| {
        let mut headers = HeaderMap::new();
        headers.insert(header::ID, wire_name.as_str());
        headers.insert(header::TYPE, wire_name.as_str());
        headers.insert(header::ACTOR, "platform");
        Raw { seq: Seq(seq), nanos: 1_000_000, subject, headers: Some(headers), payload: payload.into() }
    });
    raws.collect()
}

fn json_of(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"))
}

#[test]
fn an_archive_of_every_version_is_folded_by_all_that_fold() {
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("archive");
    let raws = written();
    let versions = raws.iter().filter(|raw| raw.read().event().is_some()).count();
    assert!(versions == raws.len() && versions > Event::WIRE_NAMES.len(), "older versions are among them: {versions}");
    let mut writer = ArchiveWriter::create(&archive, || false).unwrap();
    raws.iter().try_for_each(|raw| writer.write(raw)).unwrap();
    writer.finish(Vec::new()).unwrap();

    let reader = ArchiveReader::open(&archive).unwrap();
    let read: Vec<Recorded> = reader.lines(&reader.manifest.parts[0]).unwrap().map(|raw| raw.unwrap().read()).collect();
    let db = Database::open(&directory.path().join("models"), 8).unwrap();
    let mut models = Models::open(&db).unwrap();
    models.fold(&read);
    for (name, checkpoint, stopped) in models.states() {
        assert_eq!((stopped, checkpoint), (None, Seq(raws.len() as u64)), "{name}");
    }
    // The world of the services folds it for a question; the ledger of these postings comes to nothing.
    let what_if = Command::new(binary("gpubnb-services").unwrap()).arg("what-if").arg(&archive).arg("--json").output();
    let what_if = json_of(&what_if.unwrap());
    assert!(what_if["settled"].as_u64() >= Some(1) && what_if["then"] == what_if["now"], "{what_if}");
    let tool =
        Command::new(binary("gpubnb-projector").unwrap()).args(["audit", "--json", "--archive"]).arg(&archive).output();
    let audit = json_of(&tool.unwrap());
    assert_eq!((&audit["total"], audit["events"].as_u64()), (&Value::from(0), Some(raws.len() as u64)));
}
