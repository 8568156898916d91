//! The monitoring of a market. Every declared metric is measured, every server says that it is ready, and the dashboard
//! and the alerts name only declared metrics.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use gpubnb_runtime::metric::{self, Kind};
use gpubnb_tests::{
    system::{MarketSettings, System},
    wait::wait_until,
};
use serde_json::{Value, json};

/// The text of a file in `deploy/monitoring`.
fn monitoring_file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/monitoring").join(name)).unwrap()
}

/// The metrics of the market in an expression of Prometheus, by their declared names: without the suffixes that
/// Prometheus adds to the name of a histogram.
fn metrics_in(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter(|word| word.starts_with("gpubnb_"));
    let without_suffix =
        |word: &str| ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end).map(str::to_owned));
    names.map(|word| without_suffix(word).unwrap_or_else(|| word.to_owned())).collect()
}

/// The names of all metrics that the market's processes declare.
fn declared() -> BTreeSet<String> {
    metric::ALL.iter().map(|m| m.name.to_owned()).collect()
}

#[test]
fn metric_names_follow_the_conventions_and_alerts_and_dashboard_use_only_declared_metrics() {
    for m in metric::ALL {
        let ends_well = match m.kind {
            Kind::Counter => m.name.ends_with("_total"),
            Kind::Seconds => m.name.ends_with("_seconds"),
            Kind::Gauge => !m.name.ends_with("_total"),
        };
        assert!(ends_well && m.name.starts_with("gpubnb_") && m.help.ends_with('.'), "{}", m.name);
    }
    let alerts: Value = serde_yaml_ng::from_str(&monitoring_file("alerts.yml")).unwrap();
    let rules = alerts["groups"][0]["rules"].as_array().unwrap();
    for rule in rules {
        let expression = rule["expr"].as_str().unwrap();
        promql_parser::parser::parse(expression).unwrap_or_else(|e| panic!("{expression}: {e}"));
        let names = metrics_in(expression);
        // An alert names a metric of the market, or the metric `up`, which comes from Prometheus itself.
        let names_a_metric = !names.is_empty() || expression.contains("up{job=\"gpubnb\"}");
        assert!(names_a_metric && names.is_subset(&declared()), "{expression}");
        assert!(rule["annotations"]["remedy"].is_string() && rule["labels"]["severity"].is_string(), "{rule}");
    }
    for outage in ["absent(up", "absent(gpubnb_leader)"] {
        let reports_outage = |rule: &Value| rule["expr"].as_str().unwrap().contains(outage);
        assert!(rules.iter().any(reports_outage), "no alert reports that all processes are gone: {outage}");
    }
    let dashboard: Value = serde_json::from_str(&monitoring_file("grafana.json")).unwrap();
    let mut shown = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            // Grafana replaces its variable by a duration before it sends the expression to Prometheus.
            let sent = expression.replace("$__rate_interval", "1m");
            promql_parser::parser::parse(&sent).unwrap_or_else(|e| panic!("{expression}: {e}"));
            shown.extend(metrics_in(expression));
        }
    }
    assert_eq!(shown, declared(), "the dashboard shows all declared metrics, and no other");
    let scrape: Value = serde_yaml_ng::from_str(&monitoring_file("prometheus.yml")).unwrap();
    assert_eq!(scrape["rule_files"], json!(["alerts.yml"]));
}

/// The status and the body of the answer. `None` if there is no answer.
async fn get(address: &str) -> Option<(u16, String)> {
    let answer = reqwest::get(address).await.ok()?;
    Some((answer.status().as_u16(), answer.text().await.ok()?))
}

#[tokio::test]
async fn every_server_is_ready_and_every_declared_metric_is_measured() {
    let mut system = System::start(MarketSettings { has_monitoring: true, ..MarketSettings::default() }).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.consumer.submit(&json!({ "template": "noop" })).await.unwrap();
    system.consumer.wait_until_settled(&job).await.unwrap();
    let notifier = system.spawn_notifier(&["--monitor".to_owned(), "127.0.0.1:0".to_owned()]).unwrap();
    wait_until("the notifier is ready", async || notifier.has_printed("ready")).await;
    // A live page stays open, so that the metric of open streams is 1.
    let page = format!("{}/market/live", system.url());
    let _open_page = reqwest::get(&page).await.unwrap();
    let addresses = ["services-0", "projector", "ui", "notifier"].map(|name| {
        let log = system.process_log(name);
        let line =
            log.lines().find(|line| line.contains("monitoring listens")).unwrap_or_else(|| panic!("{name}: {log}"));
        let address = line.split("address=").nth(1).unwrap().trim();
        format!("http://{address}")
    });
    for address in &addresses {
        assert_eq!(get(&format!("{address}/healthz")).await.unwrap().0, 200);
        assert_eq!(get(&format!("{address}/readyz")).await.unwrap(), (200, "ready\n".to_owned()));
    }
    // The metric of conflicts appears only after two appends have competed, and here they need not.
    let wanted: BTreeSet<String> = declared().into_iter().filter(|name| name != metric::CONFLICTS).collect();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let mut text = String::new();
        for address in &addresses {
            text += &get(&format!("{address}/metrics")).await.unwrap().1;
        }
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let names = samples.map(|line| line.split(['{', ' ']).next().unwrap());
        let found: BTreeSet<String> = names.flat_map(metrics_in).collect();
        if wanted.is_subset(&found) && text.contains("gpubnb_http_open_streams 1") {
            assert!(text.contains("gpubnb_events_appended_total{event=\"Settled\"} 1"), "{text}");
            assert!(text.contains("gpubnb_model_stopped{model=\"ledger\"} 0"), "{text}");
            assert!(!text.contains(&job), "the job's id is a label: there would be a time series for each job");
            return;
        }
        let missing: Vec<_> = wanted.difference(&found).collect();
        assert!(Instant::now() < deadline, "never measured: {missing:?}\n{text}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
