//! What goes wrong while a long log is folded: a rebuild that is killed on its way, a model that stops at an event, and
//! commands that are told to stop.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use gpubnb_model::figures::MarketFigures;
use gpubnb_tests::{
    history, models,
    parts::binary,
    system::{Options, System},
    web::Web,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A market with so long a log that every way through it takes a while; nothing decides in it any more.
async fn long_market(events: u64) -> (System, Web) {
    let options = Options { unsynced: true, snapshot_every: Some(0), ..Options::default() };
    let mut system = System::start(options).await.unwrap();
    let operator = Web::operator(&system).await.unwrap();
    system.services.clear();
    history::write(&system, events).await.unwrap();
    (system, operator)
}

async fn model(operator: &Web, name: &str) -> anyhow::Result<Value> {
    let platform = operator.get("/ops/platform").await?;
    let found = platform["models"].as_array().and_then(|models| models.iter().find(|m| m["name"] == name));
    found.cloned().with_context(|| format!("{name} is not in {platform}"))
}

/// Asks until it is so. A projector that was killed a moment ago does not answer.
async fn until(operator: &Web, name: &str, so: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let state = model(operator, name).await;
        let state = match state {
            Ok(state) if so(&state) => return state,
            state => format!("{state:?}"),
        };
        assert!(Instant::now() < deadline, "{state}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_rebuild_that_is_killed_goes_on_from_where_it_was() {
    let (mut system, operator) = long_market(30_000).await;
    let last = system.tool(&["lag", "--json"]).unwrap();
    let last = serde_json::from_slice::<Value>(&last.stdout).unwrap()["last"].clone();
    until(&operator, "jobs", |m| m["checkpoint"] == last).await;
    operator.post("/ops/models/jobs/rebuild", &json!({})).await.unwrap();
    let twice = operator.post("/ops/models/jobs/rebuild", &json!({})).await.unwrap_err();
    assert!(twice.to_string().contains("One runs already"), "{twice}");
    let mut went_on = 0;
    for share in [0.2, 0.5, 0.7] {
        let far = |m: &Value| {
            let (at, of) = (m["rebuild"]["progress"]["at"].as_f64(), last.as_f64().unwrap());
            at.is_some_and(|at| at > share * of) || m["rebuild"]["swapped_at"].is_string()
        };
        if until(&operator, "jobs", far).await["rebuild"]["swapped_at"].is_string() {
            break;
        }
        system.projector.take().unwrap().kill();
        system.start_projector().await.unwrap();
        went_on += usize::from(system.projector.as_ref().unwrap().has_said("a rebuild goes on"));
    }
    assert!(went_on > 0, "not one went on: {}", system.log("projector"));
    let swapped = until(&operator, "jobs", |m| m["rebuild"]["swapped_at"].is_string()).await;
    assert_eq!((&swapped["stopped"], &swapped["rebuild"]["failed"]), (&Value::Null, &Value::Null));
    let verified = system.tool(&["verify", "--json"]).unwrap();
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
}

#[tokio::test]
async fn a_model_that_cannot_take_an_event_in_stops_there_and_goes_on_once_it_is_mended() {
    let mut system = System::start(Options::default()).await.unwrap();
    let operator = Web::operator(&system).await.unwrap();
    let row = |system: &System, write: Option<Vec<u8>>| {
        let table = models::open(system, &MarketFigures).unwrap();
        let before = table.get("f").unwrap().map(|row| row.to_vec());
        models::write(&table, b"f", write).unwrap();
        before
    };
    system.projector = None;
    let good = row(&system, Some(b"no figures".to_vec()));
    system.start_projector().await.unwrap();
    let submitted = system.web.post("/jobs", &json!({ "template": "noop", "budget_usd": "0.10" })).await.unwrap();
    let seq = submitted["seq"].as_u64().unwrap();
    let stopped = until(&operator, "figures", |m| m["stopped"].is_string()).await;
    assert!(stopped["stopped"].as_str().unwrap().contains(&format!("at sequence {seq}")), "{stopped}");
    let checkpoint = stopped["checkpoint"].as_u64().unwrap();
    assert!(checkpoint < seq, "it has not gone past it: {stopped}");
    // The others go on, and every answer but its own is there.
    until(&operator, "jobs", |m| m["checkpoint"].as_u64() >= Some(seq) && m["stopped"].is_null()).await;
    let job = submitted["job"].as_str().unwrap();
    assert_eq!(system.web.get(&format!("/jobs/{job}?min_seq={seq}")).await.unwrap()["job"], job);
    let metrics = system.tool(&["lag"]).unwrap();
    assert!(String::from_utf8_lossy(&metrics.stdout).contains(&format!("at sequence {seq}")));

    system.projector = None;
    row(&system, good);
    system.start_projector().await.unwrap();
    until(&operator, "figures", |m| m["checkpoint"].as_u64() >= Some(seq) && m["stopped"].is_null()).await;
    let verified = system.tool(&["verify", "--json"]).unwrap();
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
}

/// Starts a command, tells it to stop as soon as it listens, and returns its exit code and what it said.
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
        assert!(Instant::now() < deadline, "it never listened");
        std::thread::sleep(Duration::from_millis(2));
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let told = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(told.elapsed() < Duration::from_secs(5), "it went on for {:?}", told.elapsed());
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn commands_that_are_told_to_stop_do_and_say_what_to_do_next() {
    // More than one part of an archive.
    let (system, _) = long_market(60_000).await;
    let archive = system.path().join("archive");
    let whole = system.tool(&["export", archive.to_str().unwrap()]).unwrap();
    assert_eq!(whole.status.code(), Some(0), "{}", String::from_utf8_lossy(&whole.stderr));
    let again = system.tool(&["export", archive.to_str().unwrap()]).unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("holds a whole archive"));
    let verified = system.tool(&["verify", "--archive", archive.to_str().unwrap()]).unwrap();
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
    let cut = system.path().join("cut");
    let words = |words: &[&str], path: &Path| {
        words.iter().map(ToString::to_string).chain([path.display().to_string()]).collect::<Vec<_>>()
    };
    let plain = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    for (arguments, says) in [
        (words(&["verify", "--archive"], &archive), "stopped"),
        (words(&["audit", "--archive"], &archive), "stopped"),
        (words(&["export"], &cut), "run the same command again to continue"),
        (plain(&["audit"]), "stopped"),
        (plain(&["show", "market", "--from-log"]), "stopped"),
        (plain(&["verify"]), "goes on in the projector"),
    ] {
        let mut command = system.tool_command().unwrap();
        command.args(&arguments);
        let (code, said) = stopped(command);
        assert!(code == Some(1) && said.contains(says), "{arguments:?}: {code:?} {said}");
    }
    let mut what_if = Command::new(binary("gpubnb-services").unwrap());
    what_if.arg("what-if").arg(&archive);
    let (code, said) = stopped(what_if);
    assert!(code == Some(1) && said.contains("stopped"), "{code:?} {said}");
    // What was cut off is none, and becomes one.
    let none = system.tool(&["verify", "--archive", cut.to_str().unwrap()]).unwrap();
    assert_eq!(none.status.code(), Some(1));
    let went_on = system.tool(&["export", cut.to_str().unwrap()]).unwrap();
    assert_eq!(went_on.status.code(), Some(0), "{}", String::from_utf8_lossy(&went_on.stderr));
    // Killed after its first part, it goes on after that.
    let killed = system.path().join("killed");
    let mut export = system.tool_command().unwrap();
    let mut export = export.arg("export").arg(&killed).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !killed.join("events-000000050001.jsonl.gz").exists() {
        assert!(Instant::now() < deadline && !killed.join("manifest.json").exists());
        std::thread::sleep(Duration::from_millis(5));
    }
    export.kill().unwrap();
    export.wait().unwrap();
    let went_on = system.tool(&["export", killed.to_str().unwrap()]).unwrap();
    assert_eq!(went_on.status.code(), Some(0), "{}", String::from_utf8_lossy(&went_on.stderr));
    assert!(String::from_utf8_lossy(&went_on.stderr).contains("continuing after event 50000"));
    let read = |directory: &Path, file: &str| std::fs::read(directory.join(file)).unwrap();
    assert_eq!(read(&killed, "leaves.bin"), read(&archive, "leaves.bin"));
    // A command line that means nothing is another kind of failure.
    assert_eq!(system.tool(&["verify", "--nonsense"]).unwrap().status.code(), Some(2));
}
