//! The house rules that the compiler does not know: which crate may use which, and how large a room may be.
//!
//! A wrong import inside these rules does not compile. What stands here is read from Cargo's own answers and from every
//! source file of the repository.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use gpubnb_tests::parts::root;

/// The crates of ours that each crate may use, as ARCHITECTURE.md draws them. Those of `tests/` may use all of them.
const MAY_USE: [(&str, &[&str]); 14] = [
    ("events", &[]),
    ("proof", &["events"]),
    ("runtime", &["events"]),
    ("log", &["events", "proof", "runtime"]),
    ("domain", &["events"]),
    ("services", &["domain", "events", "log", "runtime"]),
    ("store", &["events"]),
    ("query", &["events", "proof", "runtime"]),
    ("model", &["events", "proof", "query", "store"]),
    ("projector", &["events", "log", "model", "proof", "query", "runtime", "store"]),
    ("operator", &["events", "log", "model", "projector", "proof", "query", "runtime", "store"]),
    ("provider", &["events", "log", "runtime"]),
    ("ui", &["events", "log", "query", "runtime"]),
    ("cli", &["events", "proof"]),
];
/// Crates of others that must not be built for one of ours, however many steps away they are.
const MUST_NOT_BUILD: [(&str, &[&str]); 3] = [
    ("domain", &["async-nats", "tokio", "opentelemetry", "clap", "rand", "reqwest", "sled"]),
    ("cli", &["async-nats", "opentelemetry", "metrics", "tracing-subscriber", "sled"]),
    ("ui", &["sled", "lz4_flex", "tikv-jemallocator"]),
];
const LONGEST_FILE: usize = 500;
const LONGEST_FUNCTION: usize = 70;

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(arguments).arg("--offline").current_dir(root()).output().unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn each_crate_uses_only_those_that_the_house_allows() {
    let metadata: serde_json::Value =
        serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1"])).unwrap();
    let own = |name: &serde_json::Value| name.as_str().unwrap().strip_prefix("gpubnb-").map(ToOwned::to_owned);
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let dependencies = package["dependencies"].as_array().unwrap().iter().filter(|d| d["kind"].is_null());
        uses.insert(own(&package["name"]).unwrap(), dependencies.filter_map(|d| own(&d["name"])).collect());
    }
    for apart in ["workloads", "hostile", "fake-nvml"] {
        assert_eq!(uses.remove(apart), Some(BTreeSet::new()), "{apart} uses nothing of ours");
    }
    assert!(uses.remove("tests").is_some());
    let may: BTreeMap<_, BTreeSet<_>> =
        MAY_USE.iter().map(|(of, may)| ((*of).to_owned(), may.iter().map(|m| (*m).to_owned()).collect())).collect();
    for (of, uses) in &uses {
        let may = may.get(of).unwrap_or_else(|| panic!("{of} is not in the table of who may use whom"));
        let wrong: Vec<_> = uses.difference(may).collect();
        assert!(wrong.is_empty(), "{of} must not use {wrong:?}");
    }
    assert!(may.keys().all(|of| uses.contains_key(of)), "the table names a crate that is not there");
}

#[test]
fn the_client_the_domain_and_the_web_server_build_without_what_they_do_not_need() {
    for (of, forbidden) in MUST_NOT_BUILD {
        let package = format!("gpubnb-{of}");
        let tree = cargo(&["tree", "--locked", "--package", &package, "--edges", "normal", "--prefix", "none"]);
        let built: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        assert!(built.contains("gpubnb-events"), "{tree}");
        for name in forbidden {
            assert!(!built.contains(name), "{of} must build without {name}");
        }
    }
}

/// Every source file of ours.
fn sources() -> Vec<(PathBuf, String)> {
    let folders = ["events", "services", "projector", "provider", "ui", "cli", "workloads", "tests"];
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut found = Vec::new();
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("node_modules") && !path.ends_with("target") {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.len() > 200, "only {} source files were found", found.len());
    found
}

/// The lines before the tests of a file.
fn shipped(text: &str) -> impl Iterator<Item = &str> {
    text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"))
}

#[test]
fn subjects_are_built_in_one_file() {
    const ROOTS: [&str; 8] =
        ["\"market.", "\"dispatch.", "\"telemetry.", "\"output.", "\"cmd.", "\"query.", "\"notice.", "\"_INBOX"];
    for (path, text) in sources() {
        let tests = path.components().any(|part| part.as_os_str() == "tests");
        if tests || path.ends_with("events/src/subject.rs") {
            continue;
        }
        for line in shipped(&text) {
            let code = line.split("//").next().unwrap_or_default();
            let hit = ROOTS.iter().find(|root| code.contains(*root) && !code.contains(".html\""));
            assert!(hit.is_none(), "{}: {line}", path.display());
        }
    }
}

#[test]
fn rooms_stay_small_and_every_file_says_what_it_is_for() {
    for (path, text) in sources() {
        assert!(text.starts_with("//!"), "{} has no first line that says what it is for", path.display());
        let lines = shipped(&text).count();
        assert!(lines <= LONGEST_FILE, "{} has {lines} lines", path.display());
        for (name, length) in functions(&path, &text) {
            assert!(length <= LONGEST_FUNCTION, "{}: {name} has {length} lines", path.display());
        }
    }
}

/// The functions of a formatted file with their lengths in lines: from `fn` to the first line after it that closes a
/// brace at the same depth.
fn functions(path: &Path, text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let depth = |line: &str| line.len() - line.trim_start().len();
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let words: Vec<&str> = line.split_whitespace().take_while(|word| !word.starts_with("//")).collect();
        let begins = words.iter().position(|word| *word == "fn").filter(|at| {
            let before = &words[..*at];
            before.iter().all(|w| {
                w.starts_with("pub") || ["async", "const", "unsafe", "extern", "\"C\"", "in", "super)"].contains(w)
            })
        });
        let Some(at) = begins else { continue };
        let within = lines[first..].iter().enumerate();
        let mut rest = within.filter(|(_, l)| depth(l) == depth(line) && !l.trim().is_empty());
        let end =
            rest.find(|(n, l)| l.trim_start().starts_with('}') || l.ends_with(';') || *n == 0 && l.ends_with('}'));
        let (length, _) = end.unwrap_or_else(|| panic!("{}: {line} has no end", path.display()));
        found.push((words.get(at + 1).copied().unwrap_or_default().to_owned(), length + 1));
    }
    found
}

#[test]
fn a_long_function_is_found_however_its_signature_is_broken() {
    let body = "    x;\n".repeat(80);
    let one = format!("fn a() {{\n{body}}}\n");
    let many = format!("pub(crate) async fn b(\n    x: u8,\n) -> u8\nwhere\n    u8: Copy,\n{{\n{body}}}\n");
    let lengths = |text: &str| functions(Path::new("x.rs"), text).into_iter().map(|(_, n)| n).collect::<Vec<_>>();
    assert_eq!((lengths(&one), lengths(&many)), (vec![82], vec![87]));
    assert_eq!(lengths("trait T {\n    fn c(&self);\n    fn d() {}\n}\n"), [1, 1]);
}
