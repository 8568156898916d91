//! The operator's tool: it reads the streams, and looks back.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Output;

use gpubnb_tests::system::{Options, System};
use serde_json::{Value, json};

fn tool(system: &System, arguments: &[&str]) -> Output {
    system.tool(arguments).unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn the_log_is_replayed_filtered_and_looked_at_as_it_was() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.web.submit(&json!({ "template": "noop" })).await.unwrap();
    system.web.settled(&job).await.unwrap();

    let trail = lines(&tool(&system, &["replay", "--job", &job, "--json"]));
    let names: Vec<_> = trail.iter().map(|e| e["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["JobSubmitted", "JobAssigned", "Accepted", "Started", "Completed", "Settled"]);
    let assigned = lines(&tool(&system, &["replay", "--type", "JobAssigned", "--kind", "job", "--json"]));
    assert_eq!(assigned, [trail[1].clone()]);
    let first = trail[0]["seq"].to_string();
    assert_eq!(lines(&tool(&system, &["replay", "--from", &first, "--to", &first, "--json"])), [trail[0].clone()]);

    let now = tool(&system, &["show", "job", &job, "--json"]);
    let now: Value = serde_json::from_slice(&now.stdout).unwrap();
    assert_eq!(now["row"]["settled"], true);
    let started = trail[3]["seq"].to_string();
    let then = tool(&system, &["show", "job", &job, "--at", &started, "--json"]);
    let then: Value = serde_json::from_slice(&then.stdout).unwrap();
    assert_eq!((&then["row"]["state"], &then["row"]["settled"]), (&json!("Running"), &json!(false)));
    assert_eq!(then["trail"].as_array().unwrap().len(), 4);

    // Folded from the log alone it is the same; and what one event changed is told.
    let folded = tool(&system, &["show", "job", &job, "--at", &started, "--json", "--from-log"]);
    let folded: Value = serde_json::from_slice(&folded.stdout).unwrap();
    assert_eq!(folded["row"], then["row"]);
    let settled = trail[5]["seq"].as_u64().unwrap();
    let (before, after) = ((settled - 1).to_string(), settled.to_string());
    let changed = tool(&system, &["show", "job", &job, "--at", &before, "--with", &after, "--json"]);
    let changed: Value = serde_json::from_slice(&changed.stdout).unwrap();
    assert!(changed["changed"].as_array().unwrap().contains(&json!(["settled", "false", "true"])), "{changed:#}");
    for more in [&[][..], &["--from-log"]] {
        let market = [&["show", "market", "--at", &before, "--json"], more].concat();
        let market: Value = serde_json::from_slice(&tool(&system, &market).stdout).unwrap();
        assert_eq!((&market["row"]["figures"]["settled"], &market["row"]["seq"]), (&json!(0), &json!(settled - 1)));
    }

    // A range of time, and the other streams.
    let (from, to) = (trail[1]["recorded_at"].as_str().unwrap(), trail[3]["recorded_at"].as_str().unwrap());
    assert_eq!(lines(&tool(&system, &["replay", "--job", &job, "--from", from, "--to", to, "--json"])), trail[1..4]);
    // A job message is gone once it is worked off; what a job printed is kept.
    assert_eq!(lines(&tool(&system, &["replay", "DISPATCH", "--json"])), Vec::<Value>::new());
    let counting = json!({ "template": "count", "parameters": { "lines": "3", "interval-ms": "1" } });
    let counted = system.web.submit(&counting).await.unwrap();
    system.web.settled(&counted).await.unwrap();
    let printed = lines(&tool(&system, &["replay", "OUTPUT", "--id", &counted, "--type", "LogLines", "--json"]));
    assert!(!printed.is_empty() && printed.iter().all(|p| p["body"]["lines"].is_array()), "{printed:?}");
    let machine = system.machine("attic").unwrap();
    let beats = lines(&tool(&system, &["replay", "TELEMETRY", "--id", &machine, "--json"]));
    assert!(!beats.is_empty() && beats.iter().all(|b| b["body"]["machine"] == json!(machine)), "{beats:?}");
    let nothing =
        tool(&system, &["replay", "OUTPUT", "--from", "2020-01-01T00:00:00Z", "--to", "2020-01-02T00:00:00Z"]);
    assert!(nothing.status.success() && nothing.stdout.is_empty(), "{}", String::from_utf8_lossy(&nothing.stderr));
    let foreign = tool(&system, &["replay", "KV_CREDENTIALS"]);
    assert!(String::from_utf8_lossy(&foreign.stderr).contains("is not one of"));

    // A filter that nothing can pass is refused, not obeyed.
    for (slip, says) in [
        (["--type", "Nonsense"], "there is no event"),
        (["--job", "bogus"], "is not an id"),
        (["--kind", "car"], "is not one of"),
        (["--from", "9999"], "before it begins"),
    ] {
        let refused = tool(&system, &[&["replay"], &slip[..]].concat());
        assert_eq!(refused.status.code(), Some(1), "{slip:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains(says), "{slip:?}");
    }
    assert_eq!(lines(&tool(&system, &["replay", "--job", &job, "--type", "Settled.v1", "--json"])), trail[5..]);

    let account = tool(&system, &["show", "account", &system.web.account]);
    assert!(String::from_utf8_lossy(&account.stdout).contains("FundsDeposited"));
    let nobody = tool(&system, &["show", "job", "01900000-0000-7000-8000-00000000dead"]);
    assert!(!nobody.status.success());
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("there is no job"));
}

#[tokio::test]
async fn read_models_are_measured_rebuilt_and_verified_from_the_command_line() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.web.submit(&json!({ "template": "noop" })).await.unwrap();
    system.web.settled(&job).await.unwrap();
    let lag = tool(&system, &["lag", "--json"]);
    let lag: Value = serde_json::from_slice(&lag.stdout).unwrap();
    assert_eq!(lag["models"].as_array().unwrap().len(), 6, "{lag}");
    let rebuilt: Value = serde_json::from_slice(&tool(&system, &["rebuild", "timeline", "--json"]).stdout).unwrap();
    assert_eq!((&rebuilt["model"], &rebuilt["rebuild"]["failed"]), (&json!("timeline"), &Value::Null));
    let stuck = tool(&system, &["stuck", "--json"]);
    assert!(stuck.status.success() && lines(&stuck) == [json!([])]);
    assert_eq!(stuck.status.code(), Some(0));
    let unknown = tool(&system, &["rebuild", "nothing"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("There is no such model"));
    let verified = tool(&system, &["verify", "--json"]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let verified: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(verified["clean"], true, "{verified}");
}

#[tokio::test]
async fn the_doctor_finds_nothing_in_a_market_of_ours_and_names_what_is_changed() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.web.submit(&json!({ "template": "noop" })).await.unwrap();
    system.web.settled(&job).await.unwrap();
    let conf = system.path().join("keys/nats.conf");
    let doctor = || {
        let output = tool(&system, &["doctor", "--nats-conf", conf.to_str().unwrap(), "--json"]);
        let checks: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let bad: Vec<_> = checks.into_iter().filter(|c| c["passed"] == false).collect();
        (output.status.success(), bad)
    };
    // Its head is signed some seconds after it began.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while doctor().1.iter().any(|c| c["id"] == "log.signed_head") {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert_eq!(doctor(), (true, Vec::new()));
    let text = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&conf, text.replace("sync_interval: always", "sync_interval: 2m")).unwrap();
    std::process::Command::new("chmod")
        .arg("644")
        .arg(system.path().join("keys/projector/operator.creds"))
        .status()
        .unwrap();
    let (fine, bad) = doctor();
    let ids: Vec<_> = bad.iter().map(|c| c["id"].as_str().unwrap()).collect();
    assert_eq!((fine, ids), (false, vec!["credentials.private", "broker.sync_interval"]));
    assert!(bad.iter().all(|c| c["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty())));
    // What the log grows by is told.
    let lag: Value = serde_json::from_slice(&tool(&system, &["lag", "--json"]).stdout).unwrap();
    assert!(lag["growth"]["per_thousand"].as_u64().unwrap() > 0);
}
