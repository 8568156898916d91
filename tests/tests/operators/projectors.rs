//! Several projectors: each has its own rows, rebuilds and verifications. Whoever begins one of these hears about that one,
//! whichever projector happens to answer.

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

/// The projectors that answer; asks until there are so many.
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
    // The figures of the second projector are changed behind the log.
    drop(system.another_projector(OTHER).await.unwrap());
    models::write(&models::open_in(&system, OTHER, &MarketFigures).unwrap(), b"x", Some(b"{}".to_vec())).unwrap();
    let beside = system.another_projector(OTHER).await.unwrap();
    let both = answering(&system, 2);
    let second = both.iter().find(|id| **id != first).unwrap();

    // Each projector verifies its own rows.
    let (code, verified) = json(&system, &["verify", "--json", "--projector", second]);
    assert_eq!(code, Some(1), "{verified}");
    let models = verified["verification"]["models"].as_array().unwrap();
    let differing = models.iter().find(|m| m["name"] == "figures").unwrap();
    assert_eq!(differing["differing"], serde_json::json!(["x"]), "{verified}");
    let (code, verified) = json(&system, &["verify", "--json", "--projector", &first]);
    assert_eq!(code, Some(0), "{verified}");
    // Whichever projector answers, the answer is about the verification that this request began, and none before.
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

    // The console asks one projector as long as that projector answers, and then the other.
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
