//! The rules of the source that the compiler does not check: which crate may use which other crate, and how long files
//! and functions may be. The tests read the answers of Cargo and every source file of the repository.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use gpubnb_tests::programs::root;

/// The crates of this workspace that each crate may use, as in ARCHITECTURE.md. For example, `log` may use `events`.
/// The crate `tests` may use all crates.
const MAY_USE: [(&str, &[&str]); 20] = [
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
    ("dialer", &[]),
    ("registry", &["dialer", "events"]),
    ("door", &["dialer", "events"]),
    ("relay", &[]),
    ("provider", &["dialer", "door", "events", "log", "registry", "runtime"]),
    ("notifier", &["dialer", "events", "log", "query", "runtime"]),
    ("files", &["events", "log"]),
    ("ui", &["dialer", "events", "files", "log", "query", "registry", "runtime"]),
    ("cli", &["events", "proof"]),
];
/// Foreign crates that must not be among the direct or indirect dependencies of a crate.
const MUST_NOT_BUILD: [(&str, &[&str]); 3] = [
    ("domain", &["async-nats", "tokio", "opentelemetry", "clap", "rand", "reqwest", "sled"]),
    ("cli", &["async-nats", "opentelemetry", "metrics", "tracing-subscriber", "sled"]),
    ("ui", &["sled", "lz4_flex", "tikv-jemallocator"]),
];
/// Largest number of lines in a file, without its unit tests.
const LONGEST_FILE: usize = 500;
/// Largest number of lines in a function.
const LONGEST_FUNCTION: usize = 70;
/// Largest number of characters in a line.
const LONGEST_LINE: usize = 120;

/// Runs Cargo, and returns its standard output.
fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(arguments).arg("--offline").current_dir(root()).output().unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn each_crate_uses_only_the_crates_that_the_table_allows() {
    let metadata: serde_json::Value =
        serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1"])).unwrap();
    let short_name = |name: &serde_json::Value| name.as_str().unwrap().strip_prefix("gpubnb-").map(ToOwned::to_owned);
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let dependencies = package["dependencies"].as_array().unwrap().iter().filter(|d| d["kind"].is_null());
        uses.insert(
            short_name(&package["name"]).unwrap(),
            dependencies.filter_map(|d| short_name(&d["name"])).collect(),
        );
    }
    for independent in ["workloads", "hostile", "fake-nvml"] {
        assert_eq!(uses.remove(independent), Some(BTreeSet::new()), "{independent} uses no crate of this workspace");
    }
    assert!(uses.remove("tests").is_some());
    let may: BTreeMap<_, BTreeSet<_>> =
        MAY_USE.iter().map(|(name, may)| ((*name).to_owned(), may.iter().map(|m| (*m).to_owned()).collect())).collect();
    for (name, uses) in &uses {
        let may = may.get(name).unwrap_or_else(|| panic!("{name} is not in the table MAY_USE"));
        let wrong: Vec<_> = uses.difference(may).collect();
        assert!(wrong.is_empty(), "{name} must not use {wrong:?}");
    }
    assert!(may.keys().all(|name| uses.contains_key(name)), "the table names a crate that does not exist");
}

#[test]
fn the_client_the_domain_and_the_web_server_build_without_forbidden_crates() {
    for (name, forbidden) in MUST_NOT_BUILD {
        let package = format!("gpubnb-{name}");
        let tree = cargo(&["tree", "--locked", "--package", &package, "--edges", "normal", "--prefix", "none"]);
        let built: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        assert!(built.contains("gpubnb-events"), "{tree}");
        for foreign_crate in forbidden {
            assert!(!built.contains(foreign_crate), "{name} must build without {foreign_crate}");
        }
    }
}

/// The path and the text of every source file of the workspace.
fn sources() -> Vec<(PathBuf, String)> {
    let folders = ["events", "services", "projector", "provider", "notifier", "ui", "cli", "workloads", "tests"];
    let mut to_visit: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut found = Vec::new();
    while let Some(directory) = to_visit.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("node_modules") && !path.ends_with("target") {
                to_visit.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.len() > 200, "only {} source files were found", found.len());
    found
}

/// The lines of a file without its unit tests, which are at the end.
fn lines_before_tests(text: &str) -> impl Iterator<Item = &str> {
    text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"))
}

#[test]
fn subjects_of_the_broker_are_built_only_in_subject_rs() {
    const ROOTS: [&str; 10] = [
        "\"market.",
        "\"delivery.",
        "\"delivered.",
        "\"dispatch.",
        "\"telemetry.",
        "\"output.",
        "\"cmd.",
        "\"query.",
        "\"notice.",
        "\"_INBOX",
    ];
    for (path, text) in sources() {
        let is_test = path.components().any(|part| part.as_os_str() == "tests");
        if is_test || path.ends_with("events/src/subject.rs") {
            continue;
        }
        for line in lines_before_tests(&text) {
            let code = line.split("//").next().unwrap_or_default();
            let is_file = code.contains(".html\"") || code.contains(".js\"");
            let hit = ROOTS.iter().find(|root| code.contains(*root) && !is_file);
            assert!(hit.is_none(), "{}: {line}", path.display());
        }
    }
}

#[test]
fn no_line_is_longer_than_a_screen() {
    let is_long = |line: &str| line.chars().count() > LONGEST_LINE;
    let of_file = |(path, text): &(PathBuf, String)| {
        let lines = text.lines().enumerate().filter(|(_, line)| is_long(line));
        lines.map(|(index, _)| format!("{}:{}", path.display(), index + 1)).collect::<Vec<_>>()
    };
    let long: Vec<_> = sources().iter().flat_map(of_file).collect();
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn every_file_and_function_is_short_and_every_file_has_a_module_comment() {
    for (path, text) in sources() {
        assert!(text.starts_with("//!"), "{} does not begin with a module comment", path.display());
        let lines = lines_before_tests(&text).count();
        assert!(lines <= LONGEST_FILE, "{} has {lines} lines", path.display());
        for (name, length) in functions(&path, &text) {
            assert!(length <= LONGEST_FUNCTION, "{}: {name} has {length} lines", path.display());
        }
    }
}

/// The name and the length in lines of each function in a formatted file. A function ends at the first closing brace
/// with the indentation of its `fn` line.
fn functions(path: &Path, text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let indentation = |line: &str| line.len() - line.trim_start().len();
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
        let mut rest = within.filter(|(_, l)| indentation(l) == indentation(line) && !l.trim().is_empty());
        let end =
            rest.find(|(n, l)| l.trim_start().starts_with('}') || l.ends_with(';') || *n == 0 && l.ends_with('}'));
        let (length, _) = end.unwrap_or_else(|| panic!("{}: {line} has no end", path.display()));
        found.push((words.get(at + 1).copied().unwrap_or_default().to_owned(), length + 1));
    }
    found
}

#[test]
fn a_function_is_measured_whether_its_signature_has_one_line_or_many() {
    let body = "    x;\n".repeat(80);
    let one = format!("fn a() {{\n{body}}}\n");
    let many = format!("pub(crate) async fn b(\n    x: u8,\n) -> u8\nwhere\n    u8: Copy,\n{{\n{body}}}\n");
    let lengths = |text: &str| functions(Path::new("x.rs"), text).into_iter().map(|(_, n)| n).collect::<Vec<_>>();
    assert_eq!((lengths(&one), lengths(&many)), (vec![82], vec![87]));
    assert_eq!(lengths("trait T {\n    fn c(&self);\n    fn d() {}\n}\n"), [1, 1]);
}

/// A file that Docker does not send to the builder is missing there, and the tests of Compose build nothing.
#[test]
fn docker_gets_every_folder_that_the_build_reads() {
    let ignored = fs::read_to_string(root().join(".dockerignore")).unwrap();
    let sent: BTreeSet<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = [")).unwrap();
    let folders = members.split('"').skip(1).step_by(2).filter_map(|member| member.split('/').next());
    let others = ["docs", "CHANGELOG.md", "Cargo.lock", ".cargo", "deploy/gpubnb-provider.service"];
    for folder in folders.chain(others) {
        assert!(sent.contains(folder), ".dockerignore keeps {folder} from the builder");
    }
}
