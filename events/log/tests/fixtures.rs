//! Every version of every event must stay readable for ever. The folder `fixtures` has one file for each wire name
//! (name and version) of an event or another message.
//!
//! A new event gets a new fixture. An existing fixture never changes. `tests/tests/house/versions.rs` makes an archive
//! of all fixtures.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeSet, fs, path::Path};

use gpubnb_events::{Event, MachineId, event::Speed, ledger, output, subject, telemetry};

fn fixtures() -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    let mut found: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect();
    found.sort();
    found
}

/// Parses a message of TELEMETRY or OUTPUT and serialises it again; `None` for an event.
fn reserialise_message(wire_name: &str, bytes: &[u8]) -> Option<serde_json::Value> {
    fn reserialise<T: serde::Serialize + serde::de::DeserializeOwned>(bytes: &[u8]) -> serde_json::Value {
        serde_json::to_value(serde_json::from_slice::<T>(bytes).unwrap()).unwrap()
    }
    Some(match wire_name {
        telemetry::HEARTBEAT => reserialise::<telemetry::Heartbeat>(bytes),
        output::PROGRESS => reserialise::<output::Progress>(bytes),
        output::LOG_LINES => reserialise::<output::LogLines>(bytes),
        output::JOB_METRICS => reserialise::<output::JobMetrics>(bytes),
        _ => return None,
    })
}

#[test]
fn every_fixture_survives_parsing_and_serialising() {
    for (wire_name, bytes) in fixtures() {
        if let Some(serialised) = reserialise_message(&wire_name, &bytes) {
            assert_eq!(serialised, serde_json::from_slice::<serde_json::Value>(&bytes).unwrap(), "{wire_name}");
            continue;
        }
        let event = Event::decode(&wire_name, &bytes).unwrap_or_else(|e| panic!("{wire_name}: {e}"));
        let serialised: serde_json::Value = serde_json::to_value(&event).unwrap();
        let fixture: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        if event.wire_name() == wire_name {
            assert_eq!(serialised, fixture, "{wire_name}");
        } else {
            // A fixture of an older version is read as the same event, and none of its fields is lost.
            assert_eq!(event.name(), wire_name.split('.').next().unwrap());
            for (field, value) in fixture.as_object().unwrap() {
                assert_eq!(&serialised[field], value, "{wire_name}: {field}");
            }
        }
        let sum: gpubnb_events::MicroUsd = ledger::postings(&event).iter().map(|p| p.amount).sum();
        assert_eq!(sum, gpubnb_events::MicroUsd::ZERO, "{wire_name}");
        let address = subject::address(&event);
        let root = address.guard.trim_end_matches('>');
        assert!(address.subject.starts_with(root), "{wire_name}: the guard covers the subject");
    }
}

#[test]
fn every_wire_name_has_a_fixture() {
    let names: BTreeSet<String> = fixtures().into_iter().map(|(name, _)| name).collect();
    let written = [telemetry::HEARTBEAT, output::PROGRESS, output::LOG_LINES, output::JOB_METRICS];
    let written: BTreeSet<String> = Event::WIRE_NAMES.iter().chain(&written).map(|name| (*name).to_owned()).collect();
    assert!(written.is_subset(&names), "without a fixture: {:?}", written.difference(&names).collect::<Vec<_>>());
}

#[test]
fn the_speed_of_an_old_self_test_comes_from_its_checks() {
    let machine = MachineId::generate();
    let checks = serde_json::json!([
        { "id": "cpu.matmul", "actual": "812", "required": "", "unit": "MFLOPS a core", "passed": true },
    ]);
    let old = serde_json::json!({ "machine": machine, "checks": checks });
    let Event::MachineTested(event) = Event::decode("MachineTested.v1", old.to_string().as_bytes()).unwrap() else {
        panic!("another event");
    };
    assert_eq!((event.machine, event.speed), (machine, Speed { core: Some(812), ..Speed::default() }));
}

#[test]
fn decoding_an_unknown_type_or_a_wrong_payload_fails() {
    assert!(Event::decode("JobSubmitted.v0", b"{}").unwrap_err().to_string().contains("unknown event type"));
    assert!(Event::decode("Accepted.v1", b"{}").unwrap_err().to_string().contains("Accepted.v1"));
    assert!(Event::decode("Accepted.v1", b"{\"job\":\"*\",\"lease\":1}").is_err());
}
