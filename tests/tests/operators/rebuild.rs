//! Failures while the log is folded: a rebuild that is killed on its way, and a model that stops at an event.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use gpubnb_model::figures::MarketFigures;
use gpubnb_tests::{
    history, models,
    system::{Options, System},
    web::Web,
};
use serde_json::{Value, json};

/// A market with a log that takes a while to fold. Its services are stopped.
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

/// Waits until the state of a model fulfils a condition. A projector that was killed a moment ago does not answer.
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
    // The other models go on, and answer.
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
