//! The house rules that a compiler does not know: who may use whom, and what may not enter a room.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use gpubnb_tests::parts::root;

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut open = vec![root().join(folder)];
    let mut found = Vec::new();
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "{folder} has sources");
    found
}

fn nowhere(folder: &str, forbidden: &[&str], why: &str) {
    for (path, text) in sources(folder) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let hit = forbidden.iter().find(|word| code.contains(*word));
            assert!(hit.is_none(), "{}:{} uses {}: {why}", path.display(), number + 1, hit.unwrap_or(&""));
        }
    }
}

#[test]
fn the_domain_is_pure() {
    let forbidden = [
        "tokio",
        "async_nats",
        "async fn",
        ".await",
        "std::fs",
        "std::net",
        "std::env",
        "std::process",
        "Instant",
        "SystemClock",
        "rand::",
        "reqwest",
        "f64",
        "f32",
    ];
    nowhere("services/src/domain", &forbidden, "the domain knows no I/O, clock, randomness or floating point");
}

#[test]
fn models_are_functions_of_rows_and_events() {
    let forbidden = ["tokio", "async_nats", "SystemClock", "Instant", "rand::", "f64", "f32"];
    nowhere("projector/src/model", &forbidden, "a projection must come back byte for byte");
}

#[test]
fn crates_use_only_what_the_house_allows() {
    let crates = ["events", "services", "projector", "provider", "ui", "cli", "workloads"];
    let may = |of: &str| match of {
        "events" | "workloads" => vec![],
        "ui" => vec!["events", "projector"],
        _ => vec!["events"],
    };
    for of in crates {
        let manifest = fs::read_to_string(root().join(of).join("Cargo.toml")).unwrap();
        let dependencies = manifest.split("[dev-dependencies]").next().unwrap_or_default();
        for other in crates.into_iter().filter(|other| *other != of && !may(of).contains(other)) {
            assert!(!dependencies.contains(&format!("gpubnb-{other}")), "{of} must not use {other}");
        }
    }
    // Of the projector, the face knows the questions and the answers only.
    for (path, text) in sources("ui/src") {
        for line in text.lines().filter(|line| line.contains("gpubnb_projector::")) {
            let allowed = ["gpubnb_projector::client", "gpubnb_projector::view", "gpubnb_projector::{"];
            assert!(allowed.iter().any(|a| line.contains(a)), "{}: {line}", path.display());
        }
    }
}

#[test]
fn subjects_are_built_in_one_file() {
    for crate_name in ["events", "services", "projector", "provider", "ui", "cli"] {
        for (path, text) in sources(&format!("{crate_name}/src")) {
            if path.ends_with("events/src/subject.rs") {
                continue;
            }
            for line in text.split("#[cfg(test)]").next().unwrap_or_default().lines() {
                let code = line.split("//").next().unwrap_or_default();
                if code.contains(".html\"") {
                    continue;
                }
                for root in [
                    "\"market.",
                    "\"dispatch.",
                    "\"telemetry.",
                    "\"output.",
                    "\"cmd.",
                    "\"query.",
                    "\"notice.",
                    "\"_INBOX",
                ] {
                    assert!(!code.contains(root), "{}: {line}", path.display());
                }
            }
        }
    }
}

#[test]
fn rooms_stay_small_and_every_file_says_what_it_is_for() {
    for folder in ["events", "services", "projector", "provider", "ui", "cli", "workloads", "tests"] {
        for (path, text) in sources(&format!("{folder}/src")) {
            assert!(text.starts_with("//!"), "{} has no first line that says what it is for", path.display());
            let lines = text.split("#[cfg(test)]").next().unwrap_or_default().lines().count();
            assert!(lines <= 500, "{} has {lines} lines", path.display());
            long_functions(&path, &text);
        }
        assert!(root().join(folder).join("Cargo.toml").is_file());
    }
}

fn long_functions(path: &Path, text: &str) {
    let mut begun: Option<(usize, usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let trimmed = line.trim_start();
        if begun.is_none() && (trimmed.starts_with("fn ") || trimmed.contains(" fn ")) && trimmed.ends_with('{') {
            begun = Some((number, indent, trimmed.to_owned()));
        }
        if let Some((first, depth, name)) = &begun
            && line.starts_with(&format!("{}}}", " ".repeat(*depth)))
            && indent == *depth
        {
            assert!(number - first <= 75, "{}: {name} has {} lines", path.display(), number - first);
            begun = None;
        }
    }
}
