//! Several projectors: each has rows, rebuilds and verifications of its own, and who asks for them hears of one, not of
//! whichever happens to answer.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use gpubnb_events::{Clock as _, SystemClock, Timestamp};
use gpubnb_model::figures::MarketFigures;
use gpubnb_tests::{
    models,
    system::{Options, System},
    web::Web,
};
use serde_json::Value;

const OTHER: &str = "other-projector";

fn json(system: &System, args: &[&str]) -> (Option<i32>, Value) {
    let asked = system.tool(args).unwrap();
    let answer = serde_json::from_slice(&asked.stdout);
    (asked.status.code(), answer.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&asked.stderr))))
}

/// Who answers, sooner or later.
fn answering(system: &System, projectors: usize) -> BTreeSet<String> {
    let (mut found, deadline) = (BTreeSet::new(), Instant::now() + Duration::from_secs(60));
    while found.len() < projectors {
        assert!(Instant::now() < deadline, "{found:?}");
        found.insert(json(system, &["lag", "--json"]).1["projector"].as_str().unwrap().to_owned());
    }
    found
}

async fn told(operator: &Web) -> String {
    operator.get("/ops/platform").await.unwrap()["projector"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_each_projector_has_of_its_own_is_asked_of_one() {
    let mut system = System::start(Options::default()).await.unwrap();
    let operator = Web::operator(&system).await.unwrap();
    let first = answering(&system, 1).pop_first().unwrap();
    // The other's figures are changed behind the log.
    drop(system.another_projector(OTHER).await.unwrap());
    models::write(&models::open_in(&system, OTHER, &MarketFigures).unwrap(), b"x", Some(b"{}".to_vec())).unwrap();
    let beside = system.another_projector(OTHER).await.unwrap();
    let both = answering(&system, 2);
    let second = both.iter().find(|id| **id != first).unwrap();

    // Each verifies its own rows, and says so to whoever asked it.
    let (code, verified) = json(&system, &["verify", "--json", "--projector", second]);
    assert_eq!(code, Some(1), "{verified}");
    let models = verified["verification"]["models"].as_array().unwrap();
    let differing = models.iter().find(|m| m["name"] == "figures").unwrap();
    assert_eq!(differing["differing"], serde_json::json!(["x"]), "{verified}");
    let (code, verified) = json(&system, &["verify", "--json", "--projector", &first]);
    assert_eq!(code, Some(0), "{verified}");
    // Whichever it is, who asked hears of the verification that it began, and of none before.
    for _ in 0..6 {
        let before = SystemClock.now();
        let verified = json(&system, &["verify", "--json"]).1;
        let began: Timestamp = serde_json::from_value(verified["verification"]["began_at"].clone()).unwrap();
        assert!(began >= before, "{verified}");
    }
    let (code, rebuilt) = json(&system, &["rebuild", "figures", "--json", "--projector", second]);
    assert_eq!((code, &rebuilt["rebuild"]["failed"]), (Some(0), &Value::Null), "{rebuilt}");
    let (code, verified) = json(&system, &["verify", "--json", "--projector", second]);
    assert_eq!(code, Some(0), "{verified}");

    // The console stays with one as long as it is there, and then with the other.
    let settled = told(&operator).await;
    for _ in 0..10 {
        assert_eq!(told(&operator).await, settled);
    }
    if settled == first {
        system.projector.take().unwrap().kill();
    } else {
        beside.kill();
    }
    let left = told(&operator).await;
    assert!(left != settled && both.contains(&left));
    let gone = system.tool(&["lag", "--projector", &settled]).unwrap();
    assert_eq!(gone.status.code(), Some(1));
}
