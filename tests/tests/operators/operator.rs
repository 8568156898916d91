//! The operator's tool reads the streams, looks back, and measures, rebuilds and verifies the read models.

use std::process::Output;

use gpubnb_tests::{
    jobs::{counting, noop},
    market::Market,
    shared::{Plan, Shared},
    system::{Options, System},
    wait::until,
};
use serde_json::{Value, json};

static MARKET: Shared = Shared::new(|| Plan::default().worker("attic", &["--slots", "2"]));

fn tool(market: &Market, arguments: &[&str]) -> Output {
    market.tool(arguments).unwrap()
}

/// The one JSON value that a command prints.
fn value(market: &Market, arguments: &[&str]) -> Value {
    let output = tool(market, arguments);
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{arguments:?}: {e}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A market in which a job of the test's own has been settled.
struct Settled {
    market: Market,
    job: String,
    /// The six events of the job.
    trail: Vec<Value>,
}

impl Settled {
    async fn job() -> Self {
        let market = MARKET.open().await.unwrap();
        let job = market.web.submit(&noop()).await.unwrap();
        market.web.settled(&job).await.unwrap();
        let trail = lines(&tool(&market, &["replay", "--job", &job, "--json"]));
        let names: Vec<_> = trail.iter().map(|e| e["event"].as_str().unwrap()).collect();
        assert_eq!(names, ["JobSubmitted", "JobAssigned", "Accepted", "Started", "Completed", "Settled"]);
        Self { market, job, trail }
    }

    /// The sequence of one of the events.
    fn seq(&self, event: usize) -> u64 {
        self.trail[event]["seq"].as_u64().unwrap()
    }
}

#[tokio::test]
async fn the_log_is_replayed_by_type_sequence_and_time() {
    let s = Settled::job().await;
    let replay = |filter: &[&str]| lines(&tool(&s.market, &[&["replay", "--json"], filter].concat()));
    assert_eq!(replay(&["--job", &s.job, "--type", "JobAssigned", "--kind", "job"]), [s.trail[1].clone()]);
    let first = s.seq(0).to_string();
    assert_eq!(replay(&["--from", &first, "--to", &first]), [s.trail[0].clone()]);
    let (from, to) = (s.trail[1]["recorded_at"].as_str().unwrap(), s.trail[3]["recorded_at"].as_str().unwrap());
    assert_eq!(replay(&["--job", &s.job, "--from", from, "--to", to]), s.trail[1..4]);
}

#[tokio::test]
async fn a_job_is_shown_as_it_was_after_any_event() {
    let s = Settled::job().await;
    assert_eq!(value(&s.market, &["show", "job", &s.job, "--json"])["row"]["settled"], true);
    let started = s.seq(3).to_string();
    let then = value(&s.market, &["show", "job", &s.job, "--at", &started, "--json"]);
    assert_eq!((&then["row"]["state"], &then["row"]["settled"]), (&json!("Running"), &json!(false)));
    assert_eq!(then["trail"].as_array().unwrap().len(), 4);
    // Folded from the log alone it is the same.
    let folded = value(&s.market, &["show", "job", &s.job, "--at", &started, "--json", "--from-log"]);
    assert_eq!(folded["row"], then["row"]);
}

#[tokio::test]
async fn the_change_by_one_event_is_shown() {
    let s = Settled::job().await;
    let (before, after) = ((s.seq(5) - 1).to_string(), s.seq(5).to_string());
    let changed = value(&s.market, &["show", "job", &s.job, "--at", &before, "--with", &after, "--json"]);
    assert!(changed["changed"].as_array().unwrap().contains(&json!(["settled", "false", "true"])), "{changed:#}");
    for more in [&[][..], &["--from-log"]] {
        let at = |seq: &str| value(&s.market, &[&["show", "market", "--at", seq, "--json"], more].concat());
        let [then, now] = [at(&before), at(&after)];
        assert_eq!((&then["row"]["seq"], &now["row"]["seq"]), (&json!(s.seq(5) - 1), &json!(s.seq(5))));
        let settled = |market: &Value| market["row"]["figures"]["settled"].as_u64().unwrap();
        assert_eq!(settled(&then) + 1, settled(&now));
    }
}

#[tokio::test]
async fn the_streams_beside_the_log_are_replayed() {
    let s = Settled::job().await;
    let machine = s.market.machine("attic").unwrap();
    // A job message is gone once the job has ended; the lines of a job are kept.
    assert_eq!(lines(&tool(&s.market, &["replay", "DISPATCH", "--id", &s.job, "--json"])), Vec::<Value>::new());
    let counted = s.market.web.submit(&counting(3, 1)).await.unwrap();
    s.market.web.settled(&counted).await.unwrap();
    let printed = lines(&tool(&s.market, &["replay", "OUTPUT", "--id", &counted, "--type", "LogLines", "--json"]));
    assert!(!printed.is_empty() && printed.iter().all(|p| p["body"]["lines"].is_array()), "{printed:?}");
    let beats = lines(&tool(&s.market, &["replay", "TELEMETRY", "--id", &machine, "--json"]));
    assert!(!beats.is_empty() && beats.iter().all(|b| b["body"]["machine"] == json!(machine)), "{beats:?}");
    let nothing =
        tool(&s.market, &["replay", "OUTPUT", "--from", "2020-01-01T00:00:00Z", "--to", "2020-01-02T00:00:00Z"]);
    assert!(nothing.status.success() && nothing.stdout.is_empty(), "{}", String::from_utf8_lossy(&nothing.stderr));
    let foreign = tool(&s.market, &["replay", "KV_CREDENTIALS"]);
    assert!(String::from_utf8_lossy(&foreign.stderr).contains("is not one of"));
}

#[tokio::test]
async fn a_filter_that_nothing_can_pass_is_refused() {
    let Settled { market, job, trail } = Settled::job().await;
    for (slip, says) in [
        (["--type", "Nonsense"], "there is no event"),
        (["--job", "bogus"], "is not an id"),
        (["--kind", "car"], "is not one of"),
        (["--from", "9999"], "before it begins"),
    ] {
        let refused = tool(&market, &[&["replay"], &slip[..]].concat());
        assert_eq!(refused.status.code(), Some(1), "{slip:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains(says), "{slip:?}");
    }
    assert_eq!(lines(&tool(&market, &["replay", "--job", &job, "--type", "Settled.v1", "--json"])), trail[5..]);

    let account = tool(&market, &["show", "account", &market.web.account]);
    assert!(String::from_utf8_lossy(&account.stdout).contains("FundsDeposited"));
    let nobody = tool(&market, &["show", "job", "01900000-0000-7000-8000-00000000dead"]);
    assert!(!nobody.status.success());
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("there is no job"));
}

#[tokio::test]
async fn read_models_are_measured_rebuilt_and_verified_from_the_command_line() {
    let market = Settled::job().await.market;
    let lag = value(&market, &["lag", "--json"]);
    assert_eq!(lag["models"].as_array().unwrap().len(), gpubnb_model::all().len(), "{lag}");
    let rebuilt = value(&market, &["rebuild", "timeline", "--json"]);
    assert_eq!((&rebuilt["model"], &rebuilt["rebuild"]["failed"]), (&json!("timeline"), &Value::Null));
    let stuck = tool(&market, &["stuck", "--json"]);
    assert!(stuck.status.success() && lines(&stuck) == [json!([])]);
    assert_eq!(stuck.status.code(), Some(0));
    let unknown = tool(&market, &["rebuild", "nothing"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("There is no such model"));
    let verified = tool(&market, &["verify", "--json"]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let verified: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(verified["clean"], true, "{verified}");
}

#[tokio::test]
async fn the_doctor_finds_nothing_in_a_market_of_ours_and_names_what_is_changed() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.web.submit(&noop()).await.unwrap();
    system.web.settled(&job).await.unwrap();
    let conf = system.path().join("keys/nats.conf");
    let doctor = || {
        let output = tool(&system, &["doctor", "--nats-conf", conf.to_str().unwrap(), "--json"]);
        let checks: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let bad: Vec<_> = checks.into_iter().filter(|c| c["passed"] == false).collect();
        (output.status.success(), bad)
    };
    // The first head is signed some seconds after the start.
    until("a signed head", async || doctor().1.iter().all(|c| c["id"] != "log.signed_head")).await;
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
    // The growth of the log is measured.
    let lag: Value = serde_json::from_slice(&tool(&system, &["lag", "--json"]).stdout).unwrap();
    assert!(lag["growth"]["per_thousand"].as_u64().unwrap() > 0);
}
