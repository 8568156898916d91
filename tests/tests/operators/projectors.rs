//! Several projectors run at once. Each has its own rows, rebuilds and verifications. A command that starts a rebuild
//! or a verification gets the result of the projector that runs it.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use gpubnb_events::{Clock as _, SystemClock, Timestamp};
use gpubnb_model::figures::MarketFigures;
use gpubnb_tests::{
    api_client::ApiClient,
    models,
    system::{MarketSettings, System},
    wait::wait_until,
};
use serde_json::Value;

/// The directory with the rows of the second projector.
const SECOND_DIRECTORY: &str = "other-projector";

/// Runs the operator's tool. Returns its exit code and the JSON value that it prints.
fn tool_json(system: &System, args: &[&str]) -> (Option<i32>, Value) {
    let output = system.run_operator_tool(args).unwrap();
    let answer = serde_json::from_slice(&output.stdout);
    (output.status.code(), answer.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr))))
}

/// Repeats a command until `count` different projectors have answered, and returns their ids.
fn find_projectors(system: &System, count: usize) -> BTreeSet<String> {
    let (mut found, deadline) = (BTreeSet::new(), Instant::now() + Duration::from_secs(60));
    while found.len() < count {
        assert!(Instant::now() < deadline, "{found:?}");
        found.insert(tool_json(system, &["lag", "--json"]).1["projector"].as_str().unwrap().to_owned());
    }
    found
}

/// The id of the projector that answers the console.
async fn console_projector(operator: &ApiClient) -> String {
    operator.get("/ops/platform").await.unwrap()["projector"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_rebuild_or_verification_is_answered_by_the_projector_that_runs_it() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    let operator = ApiClient::sign_up_operator(&system).await.unwrap();
    let first = find_projectors(&system, 1).pop_first().unwrap();
    // A row of the second projector is changed, so that its verification fails.
    drop(system.start_projector_in(SECOND_DIRECTORY).await.unwrap());
    models::write_row(
        &models::open_table_in(&system, SECOND_DIRECTORY, &MarketFigures).unwrap(),
        b"x",
        Some(b"{}".to_vec()),
    )
    .unwrap();
    let second_process = system.start_projector_in(SECOND_DIRECTORY).await.unwrap();
    let both = find_projectors(&system, 2);
    let second = both.iter().find(|id| **id != first).unwrap();

    // Each projector verifies its own rows.
    let (code, verified) = tool_json(&system, &["verify", "--json", "--projector", second]);
    assert_eq!(code, Some(1), "{verified}");
    let models = verified["verification"]["models"].as_array().unwrap();
    let differing = models.iter().find(|m| m["name"] == "figures").unwrap();
    assert_eq!(differing["differing"], serde_json::json!(["x"]), "{verified}");
    let (code, verified) = tool_json(&system, &["verify", "--json", "--projector", &first]);
    assert_eq!(code, Some(0), "{verified}");
    // The answer is about the verification that this command started, and not about an earlier one.
    for _ in 0..6 {
        let before = SystemClock.now();
        let verified = tool_json(&system, &["verify", "--json"]).1;
        let began: Timestamp = serde_json::from_value(verified["verification"]["began_at"].clone()).unwrap();
        assert!(began >= before, "{verified}");
    }
    let (code, rebuilt) = tool_json(&system, &["rebuild", "figures", "--json", "--projector", second]);
    assert_eq!((code, &rebuilt["rebuild"]["failed"]), (Some(0), &Value::Null), "{rebuilt}");
    let (code, verified) = tool_json(&system, &["verify", "--json", "--projector", second]);
    assert_eq!(code, Some(0), "{verified}");

    // The console keeps asking the same projector. When that projector is killed, the console asks the other one.
    let chosen = console_projector(&operator).await;
    for _ in 0..10 {
        assert_eq!(console_projector(&operator).await, chosen);
    }
    if chosen == first {
        system.projector.take().unwrap().kill();
    } else {
        second_process.kill();
    }
    // A request that is on its way to the killed projector is lost, and its answer says to try again.
    let mut left = String::new();
    wait_until("the other projector answers", async || {
        let Ok(platform) = operator.get("/ops/platform").await else { return false };
        left = platform["projector"].as_str().unwrap().to_owned();
        true
    })
    .await;
    assert!(left != chosen && both.contains(&left));
    let gone = system.run_operator_tool(&["lag", "--projector", &chosen]).unwrap();
    assert_eq!(gone.status.code(), Some(1));
}
