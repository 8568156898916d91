//! Long commands of the operator's tool that are interrupted: each stops soon, says what to do next, and an export goes on
//! where it was.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use gpubnb_tests::{
    market::Market,
    parts::binary,
    shared::{Plan, Shared},
    system::Options,
};
use rustix::process::{Pid, Signal, kill_process};

/// A log so long that every command takes a while, and that an archive of it has two parts.
static MARKET: Shared = Shared::new(|| {
    Plan::with(Options { unsynced: true, snapshot_every: Some(0), ..Options::default() }).history(60_000)
});

/// The first event of the second part of an archive.
const SECOND_PART: &str = "events-000000050001.jsonl.gz";

/// Starts a command, interrupts it as soon as it has a handler for the signal, and returns its exit code and its messages.
fn stopped(mut command: Command) -> (Option<i32>, String) {
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let listens = || {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim().to_owned();
        u64::from_str_radix(&caught, 16).unwrap_or(0) & 0b10 != 0
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while !listens() {
        assert!(Instant::now() < deadline, "the command has no handler for the signal");
        std::thread::sleep(Duration::from_millis(2));
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let told = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(told.elapsed() < Duration::from_secs(5), "the command went on for {:?}", told.elapsed());
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Runs a command of the tool. Returns its exit code and its messages.
fn run(market: &Market, arguments: &[&str]) -> (Option<i32>, String) {
    let output = market.tool(arguments).unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Exports the whole log into a directory of the test's own.
fn exported(market: &Market, name: &str) -> PathBuf {
    let archive = market.path().join(name);
    let (code, said) = run(market, &["export", archive.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{said}");
    archive
}

/// Interrupts a command of the tool, which then says what to do next.
fn interrupted(market: &Market, arguments: &[&str], says: &str) {
    let mut command = market.tool_command().unwrap();
    command.args(arguments);
    let (code, said) = stopped(command);
    assert!(code == Some(1) && said.contains(says), "{arguments:?}: {code:?} {said}");
}

#[test]
fn questions_to_the_log_stop_when_they_are_interrupted() {
    let market = MARKET.open_as_is().unwrap();
    interrupted(&market, &["audit"], "stopped");
    interrupted(&market, &["show", "market", "--from-log"], "stopped");
    // The projector verifies by itself, whoever waits for it.
    interrupted(&market, &["verify"], "goes on in the projector");
}

#[test]
fn questions_to_an_archive_stop_when_they_are_interrupted() {
    let market = MARKET.open_as_is().unwrap();
    let archive = exported(&market, "asked");
    let path = archive.to_str().unwrap();
    interrupted(&market, &["verify", "--archive", path], "stopped");
    interrupted(&market, &["audit", "--archive", path], "stopped");
    let mut what_if = Command::new(binary("gpubnb-services").unwrap());
    what_if.arg("what-if").arg(&archive);
    let (code, said) = stopped(what_if);
    assert!(code == Some(1) && said.contains("stopped"), "{code:?} {said}");
}

#[test]
fn a_whole_archive_is_not_written_over() {
    let market = MARKET.open_as_is().unwrap();
    let archive = exported(&market, "whole");
    let (code, said) = run(&market, &["export", archive.to_str().unwrap()]);
    assert!(code == Some(1) && said.contains("holds a whole archive"), "{code:?} {said}");
    assert_eq!(run(&market, &["verify", "--archive", archive.to_str().unwrap()]).0, Some(0));
}

#[test]
fn an_export_that_was_interrupted_is_no_archive_and_becomes_one() {
    let market = MARKET.open_as_is().unwrap();
    let cut = market.path().join("cut");
    let cut = cut.to_str().unwrap();
    interrupted(&market, &["export", cut], "run the same command again to continue");
    assert_eq!(run(&market, &["verify", "--archive", cut]).0, Some(1));
    let (code, said) = run(&market, &["export", cut]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(run(&market, &["verify", "--archive", cut]).0, Some(0));
}

#[test]
fn an_export_that_was_killed_goes_on_after_its_last_whole_part() {
    let market = MARKET.open_as_is().unwrap();
    let whole = exported(&market, "unbroken");
    let killed = market.path().join("killed");
    let mut export = market.tool_command().unwrap();
    let mut export = export.arg("export").arg(&killed).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !killed.join(SECOND_PART).exists() {
        assert!(Instant::now() < deadline && !killed.join("manifest.json").exists());
        std::thread::sleep(Duration::from_millis(5));
    }
    export.kill().unwrap();
    export.wait().unwrap();
    let (code, said) = run(&market, &["export", killed.to_str().unwrap()]);
    assert!(code == Some(0) && said.contains("continuing after event 50000"), "{code:?} {said}");
    let leaves = |archive: &Path| std::fs::read(archive.join("leaves.bin")).unwrap();
    assert!(leaves(&killed) == leaves(&whole));
}

#[test]
fn a_command_line_that_means_nothing_is_another_kind_of_failure() {
    let market = MARKET.open_as_is().unwrap();
    assert_eq!(run(&market, &["verify", "--nonsense"]).0, Some(2));
}
