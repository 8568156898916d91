//! Long commands of the operator's tool are interrupted with Ctrl-C. Each command stops soon and prints what to do
//! next. An interrupted export can be continued.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use gpubnb_tests::{
    market::Market,
    programs::binary,
    shared::{Plan, SharedMarket},
    system::MarketSettings,
};
use rustix::process::{Pid, Signal, kill_process};

/// A market with a long log: every command takes some time, and an archive has two files of events.
static SHARED: SharedMarket = SharedMarket::new(|| {
    Plan::with_settings(MarketSettings { is_fsync_off: true, snapshot_every: Some(0), ..MarketSettings::default() })
        .with_history(60_000)
});

/// The second file of events in an archive.
const SECOND_PART: &str = "events-000000050001.jsonl.gz";

/// Starts a command, sends SIGINT when the command has a handler for it, and returns the exit code and the messages.
fn start_and_interrupt(mut command: Command) -> (Option<i32>, String) {
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let has_handler = || {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim().to_owned();
        // The mask of caught signals has bit 0 for signal 1. SIGINT is signal 2.
        u64::from_str_radix(&caught, 16).unwrap_or(0) & 0b10 != 0
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !has_handler() {
        assert!(Instant::now() < deadline, "the command has no handler for the signal");
        std::thread::sleep(Duration::from_millis(2));
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Runs a command of the tool. Returns its exit code and its messages.
fn run(market: &Market, arguments: &[&str]) -> (Option<i32>, String) {
    let output = market.run_operator_tool(arguments).unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Exports the whole log into a new directory, and returns the path of the archive.
fn export(market: &Market, name: &str) -> PathBuf {
    let archive = market.path().join(name);
    let (code, messages) = run(market, &["export", archive.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{messages}");
    archive
}

/// Interrupts a command of the tool, and checks that its messages contain a text.
fn assert_interrupted(market: &Market, arguments: &[&str], expected: &str) {
    let mut command = market.operator_tool_command().unwrap();
    command.args(arguments);
    let (code, messages) = start_and_interrupt(command);
    assert!(code == Some(1) && messages.contains(expected), "{arguments:?}: {code:?} {messages}");
}

#[test]
fn commands_that_read_the_log_stop_when_they_are_interrupted() {
    let market = SHARED.open_with_first_consumer().unwrap();
    assert_interrupted(&market, &["audit"], "stopped");
    assert_interrupted(&market, &["show", "market", "--from-log"], "stopped");
    // The verification runs in the projector, and continues without the command.
    assert_interrupted(&market, &["verify"], "goes on in the projector");
}

#[test]
fn commands_that_read_an_archive_stop_when_they_are_interrupted() {
    let market = SHARED.open_with_first_consumer().unwrap();
    let archive = export(&market, "asked");
    let path = archive.to_str().unwrap();
    assert_interrupted(&market, &["verify", "--archive", path], "stopped");
    assert_interrupted(&market, &["audit", "--archive", path], "stopped");
    let mut what_if = Command::new(binary("gpubnb-services").unwrap());
    what_if.arg("what-if").arg(&archive);
    let (code, messages) = start_and_interrupt(what_if);
    assert!(code == Some(1) && messages.contains("stopped"), "{code:?} {messages}");
}

#[test]
fn an_export_does_not_overwrite_a_complete_archive() {
    let market = SHARED.open_with_first_consumer().unwrap();
    let archive = export(&market, "whole");
    let (code, messages) = run(&market, &["export", archive.to_str().unwrap()]);
    assert!(code == Some(1) && messages.contains("already holds a complete archive"), "{code:?} {messages}");
    // The exit code 3 says that the archive is consistent. Without `--key`, nobody vouches for it.
    assert_eq!(run(&market, &["verify", "--archive", archive.to_str().unwrap()]).0, Some(3));
}

#[test]
fn an_interrupted_export_is_not_a_valid_archive_until_it_is_continued() {
    let market = SHARED.open_with_first_consumer().unwrap();
    let cut = market.path().join("cut");
    let cut = cut.to_str().unwrap();
    assert_interrupted(&market, &["export", cut], "run the same command again to continue");
    assert_eq!(run(&market, &["verify", "--archive", cut]).0, Some(1));
    let (code, messages) = run(&market, &["export", cut]);
    assert_eq!(code, Some(0), "{messages}");
    assert_eq!(run(&market, &["verify", "--archive", cut]).0, Some(3));
}

#[test]
fn a_killed_export_continues_after_its_last_complete_file() {
    let market = SHARED.open_with_first_consumer().unwrap();
    let whole = export(&market, "unbroken");
    let killed = market.path().join("killed");
    let mut export = market.operator_tool_command().unwrap();
    let mut export = export.arg("export").arg(&killed).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !killed.join(SECOND_PART).exists() {
        assert!(Instant::now() < deadline && !killed.join("manifest.json").exists());
        std::thread::sleep(Duration::from_millis(5));
    }
    export.kill().unwrap();
    export.wait().unwrap();
    let (code, messages) = run(&market, &["export", killed.to_str().unwrap()]);
    assert!(code == Some(0) && messages.contains("continuing after event 50000"), "{code:?} {messages}");
    let leaves = |archive: &Path| std::fs::read(archive.join("leaves.bin")).unwrap();
    assert!(leaves(&killed) == leaves(&whole));
}

#[test]
fn an_unknown_option_ends_with_exit_code_2() {
    let market = SHARED.open_with_first_consumer().unwrap();
    assert_eq!(run(&market, &["verify", "--nonsense"]).0, Some(2));
}
