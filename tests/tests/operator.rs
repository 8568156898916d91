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
    assert!(tool(&system, &["rebuild", "timeline"]).status.success());
    let unknown = tool(&system, &["rebuild", "nothing"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("There is no such model"));
    let verified = tool(&system, &["verify", "--json"]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let verified: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(verified["clean"], true, "{verified}");
}
