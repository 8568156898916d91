//! Monitoring of a market: metrics and readiness, and dashboards and alerts that name only metrics that exist.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use gpubnb_runtime::metric::{self, Kind};
use gpubnb_tests::system::{Options, System};
use serde_json::{Value, json};

fn deployed(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/monitoring").join(name)).unwrap()
}

/// Our metrics in an expression, by their declared names: without the suffixes that Prometheus adds to a histogram.
fn named(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("gpubnb_"));
    let plain =
        |word: &str| ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end).map(str::to_owned));
    ours.map(|word| plain(word).unwrap_or_else(|| word.to_owned())).collect()
}

fn declared() -> BTreeSet<String> {
    metric::ALL.iter().map(|m| m.name.to_owned()).collect()
}

#[test]
fn names_follow_the_conventions_and_dashboards_and_alerts_name_no_other() {
    for m in metric::ALL {
        let ends_well = match m.kind {
            Kind::Counter => m.name.ends_with("_total"),
            Kind::Seconds => m.name.ends_with("_seconds"),
            Kind::Gauge => !m.name.ends_with("_total"),
        };
        assert!(ends_well && m.name.starts_with("gpubnb_") && m.help.ends_with('.'), "{}", m.name);
    }
    let alerts: Value = serde_yaml_ng::from_str(&deployed("alerts.yml")).unwrap();
    let rules = alerts["groups"][0]["rules"].as_array().unwrap();
    for rule in rules {
        let expression = rule["expr"].as_str().unwrap();
        promql_parser::parser::parse(expression).unwrap_or_else(|e| panic!("{expression}: {e}"));
        let names = named(expression);
        // The metric `up` comes from Prometheus itself.
        let known = !names.is_empty() || expression.contains("up{job=\"gpubnb\"}");
        assert!(known && names.is_subset(&declared()), "{expression}");
        assert!(rule["annotations"]["remedy"].is_string() && rule["labels"]["severity"].is_string(), "{rule}");
    }
    for outage in ["absent(up", "absent(gpubnb_leader)"] {
        let told = |rule: &Value| rule["expr"].as_str().unwrap().contains(outage);
        assert!(rules.iter().any(told), "nobody is told when everything is gone: {outage}");
    }
    let dashboard: Value = serde_json::from_str(&deployed("grafana.json")).unwrap();
    let mut shown = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            // Grafana puts a time in the place of its variable.
            let asked = expression.replace("$__rate_interval", "1m");
            promql_parser::parser::parse(&asked).unwrap_or_else(|e| panic!("{expression}: {e}"));
            shown.extend(named(expression));
        }
    }
    assert_eq!(shown, declared(), "the dashboard shows all that is measured, and nothing else");
    let scrape: Value = serde_yaml_ng::from_str(&deployed("prometheus.yml")).unwrap();
    assert_eq!(scrape["rule_files"], json!(["alerts.yml"]));
}

async fn get(address: &str) -> Option<(u16, String)> {
    let answer = reqwest::get(address).await.ok()?;
    Some((answer.status().as_u16(), answer.text().await.ok()?))
}

#[tokio::test]
async fn every_service_says_that_it_is_ready_and_all_that_is_declared_is_measured() {
    let mut system = System::start(Options { monitored: true, ..Options::default() }).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.web.submit(&json!({ "template": "noop" })).await.unwrap();
    system.web.settled(&job).await.unwrap();
    // A live page stays open, so that its metric is measured.
    let page = format!("{}/market/live", system.url());
    let _open = reqwest::get(&page).await.unwrap();
    let addresses = ["services-0", "projector", "ui"].map(|name| {
        let log = system.log(name);
        let said = log.lines().find(|line| line.contains("watched at")).unwrap_or_else(|| panic!("{name}: {log}"));
        let address = said.split("address=").nth(1).unwrap().trim();
        format!("http://{address}")
    });
    for address in &addresses {
        assert_eq!(get(&format!("{address}/healthz")).await.unwrap().0, 200);
        assert_eq!(get(&format!("{address}/readyz")).await.unwrap(), (200, "ready\n".to_owned()));
    }
    let wanted: BTreeSet<String> = declared().into_iter().filter(|name| name != metric::CONFLICTS).collect();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let mut text = String::new();
        for address in &addresses {
            text += &get(&format!("{address}/metrics")).await.unwrap().1;
        }
        let values = text.lines().filter(|line| !line.starts_with('#'));
        let found: BTreeSet<String> = values.flat_map(|line| named(line.split(['{', ' ']).next().unwrap())).collect();
        if wanted.is_subset(&found) && text.contains("gpubnb_http_open_streams 1") {
            assert!(text.contains("gpubnb_events_appended_total{event=\"Settled\"} 1"), "{text}");
            assert!(text.contains("gpubnb_model_stopped{model=\"ledger\"} 0"), "{text}");
            assert!(!text.contains(&job), "no id is a label: there is no end of them");
            return;
        }
        let missing: Vec<_> = wanted.difference(&found).collect();
        assert!(Instant::now() < deadline, "never measured: {missing:?}\n{text}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
