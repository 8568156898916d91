//! The operator's tool `gpubnb-projector`: it replays streams, shows the market at an earlier sequence, and measures,
//! rebuilds and verifies the read models.

use std::process::Output;

use gpubnb_events::subject::OPERATOR_INBOX;
use gpubnb_runtime::nats::{NatsArgs, jetstream};
use gpubnb_tests::{
    jobs::{counting_job, noop_job},
    market::Market,
    shared::{Plan, SharedMarket},
    system::{MarketSettings, System},
    wait::wait_until,
};
use serde_json::{Value, json};

static MARKET: SharedMarket = SharedMarket::new(|| Plan::default().with_worker("attic", &["--slots", "2"]));

/// Runs the tool.
fn tool(market: &Market, arguments: &[&str]) -> Output {
    market.run_operator_tool(arguments).unwrap()
}

/// Runs the tool, and parses the JSON value that it prints.
fn tool_json(market: &Market, arguments: &[&str]) -> Value {
    let output = tool(market, arguments);
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{arguments:?}: {e}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Parses each line of a successful command's output as JSON.
fn json_lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A market with a settled job that belongs to the test.
struct SettledJob {
    market: Market,
    job: String,
    /// The six events of the job, as the tool prints them.
    trail: Vec<Value>,
}

impl SettledJob {
    /// Runs a job and reads its events with the tool.
    async fn run() -> Self {
        let market = MARKET.open().await.unwrap();
        let job = market.consumer.submit(&noop_job()).await.unwrap();
        market.consumer.wait_until_settled(&job).await.unwrap();
        let mut trail = json_lines(&tool(&market, &["replay", "--job", &job, "--json"]));
        // A machine whose report takes longer than a second announces the exit first.
        trail.retain(|e| e["event"] != "Exited");
        let names: Vec<_> = trail.iter().map(|e| e["event"].as_str().unwrap()).collect();
        assert_eq!(names, ["JobSubmitted", "JobAssigned", "Accepted", "Started", "Completed", "Settled"]);
        Self { market, job, trail }
    }

    /// The sequence of an event. 0 is the first event of the job.
    fn seq(&self, event: usize) -> u64 {
        self.trail[event]["seq"].as_u64().unwrap()
    }
}

#[tokio::test]
async fn replay_filters_the_log_by_type_sequence_and_time() {
    let settled_job = SettledJob::run().await;
    let replay = |filter: &[&str]| json_lines(&tool(&settled_job.market, &[&["replay", "--json"], filter].concat()));
    assert_eq!(
        replay(&["--job", &settled_job.job, "--type", "JobAssigned", "--kind", "job"]),
        [settled_job.trail[1].clone()]
    );
    let first = settled_job.seq(0).to_string();
    assert_eq!(replay(&["--from", &first, "--to", &first]), [settled_job.trail[0].clone()]);
    let (from, to) =
        (settled_job.trail[1]["recorded_at"].as_str().unwrap(), settled_job.trail[3]["recorded_at"].as_str().unwrap());
    assert_eq!(replay(&["--job", &settled_job.job, "--from", from, "--to", to]), settled_job.trail[1..4]);
}

#[tokio::test]
async fn show_prints_a_job_as_it_was_after_an_earlier_event() {
    let settled_job = SettledJob::run().await;
    assert_eq!(tool_json(&settled_job.market, &["show", "job", &settled_job.job, "--json"])["row"]["settled"], true);
    let started = settled_job.seq(3).to_string();
    let then = tool_json(&settled_job.market, &["show", "job", &settled_job.job, "--at", &started, "--json"]);
    assert_eq!((&then["row"]["state"], &then["row"]["settled"]), (&json!("Running"), &json!(false)));
    assert_eq!(then["trail"].as_array().unwrap().len(), 4);
    // The fold of the log itself, without the read models, gives the same row.
    let folded =
        tool_json(&settled_job.market, &["show", "job", &settled_job.job, "--at", &started, "--json", "--from-log"]);
    assert_eq!(folded["row"], then["row"]);
}

#[tokio::test]
async fn show_prints_what_one_event_changed() {
    let settled_job = SettledJob::run().await;
    let (before, after) = ((settled_job.seq(5) - 1).to_string(), settled_job.seq(5).to_string());
    let changed =
        tool_json(&settled_job.market, &["show", "job", &settled_job.job, "--at", &before, "--with", &after, "--json"]);
    assert!(changed["changed"].as_array().unwrap().contains(&json!(["settled", "false", "true"])), "{changed:#}");
    for more in [&[][..], &["--from-log"]] {
        let at =
            |seq: &str| tool_json(&settled_job.market, &[&["show", "market", "--at", seq, "--json"], more].concat());
        let [then, now] = [at(&before), at(&after)];
        assert_eq!(
            (&then["row"]["seq"], &now["row"]["seq"]),
            (&json!(settled_job.seq(5) - 1), &json!(settled_job.seq(5)))
        );
        let settled = |market: &Value| market["row"]["figures"]["settled"].as_u64().unwrap();
        assert_eq!(settled(&then) + 1, settled(&now));
    }
}

#[tokio::test]
async fn replay_reads_the_streams_dispatch_output_and_telemetry() {
    let settled_job = SettledJob::run().await;
    let machine = settled_job.market.machine_id("attic").unwrap();
    // DISPATCH keeps the message of a job until the job ends. OUTPUT keeps the job's log lines.
    assert_eq!(
        json_lines(&tool(&settled_job.market, &["replay", "DISPATCH", "--id", &settled_job.job, "--json"])),
        Vec::<Value>::new()
    );
    let counted = settled_job.market.consumer.submit(&counting_job(3, 1)).await.unwrap();
    settled_job.market.consumer.wait_until_settled(&counted).await.unwrap();
    let printed =
        json_lines(&tool(&settled_job.market, &["replay", "OUTPUT", "--id", &counted, "--type", "LogLines", "--json"]));
    assert!(!printed.is_empty() && printed.iter().all(|p| p["body"]["lines"].is_array()), "{printed:?}");
    let beats = json_lines(&tool(&settled_job.market, &["replay", "TELEMETRY", "--id", &machine, "--json"]));
    assert!(!beats.is_empty() && beats.iter().all(|b| b["body"]["machine"] == json!(machine)), "{beats:?}");
    let nothing = tool(
        &settled_job.market,
        &["replay", "OUTPUT", "--from", "2020-01-01T00:00:00Z", "--to", "2020-01-02T00:00:00Z"],
    );
    assert!(nothing.status.success() && nothing.stdout.is_empty(), "{}", String::from_utf8_lossy(&nothing.stderr));
    let foreign = tool(&settled_job.market, &["replay", "KV_CREDENTIALS"]);
    assert!(String::from_utf8_lossy(&foreign.stderr).contains("is not one of"));
}

#[tokio::test]
async fn replay_and_show_refuse_wrong_filters_and_unknown_ids() {
    let SettledJob { market, job, trail } = SettledJob::run().await;
    for (filter, expected) in [
        (["--type", "Nonsense"], "there is no event"),
        (["--job", "bogus"], "is not an id"),
        (["--kind", "car"], "is not one of"),
        (["--from", "9999"], "before it begins"),
    ] {
        let refused = tool(&market, &[&["replay"], &filter[..]].concat());
        assert_eq!(refused.status.code(), Some(1), "{filter:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains(expected), "{filter:?}");
    }
    assert_eq!(json_lines(&tool(&market, &["replay", "--job", &job, "--type", "Settled.v1", "--json"])), trail[5..]);

    let account = tool(&market, &["show", "account", &market.consumer.account]);
    assert!(String::from_utf8_lossy(&account.stdout).contains("FundsDeposited"));
    let nobody = tool(&market, &["show", "job", "01900000-0000-7000-8000-00000000dead"]);
    assert!(!nobody.status.success());
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("there is no job"));
}

#[tokio::test]
async fn lag_rebuild_stuck_and_verify_work_from_the_command_line() {
    let market = SettledJob::run().await.market;
    let lag = tool_json(&market, &["lag", "--json"]);
    assert_eq!(lag["models"].as_array().unwrap().len(), gpubnb_model::all().len(), "{lag}");
    let rebuilt = tool_json(&market, &["rebuild", "timeline", "--json"]);
    assert_eq!((&rebuilt["model"], &rebuilt["rebuild"]["failed"]), (&json!("timeline"), &Value::Null));
    let stuck = tool(&market, &["stuck", "--json"]);
    assert!(stuck.status.success() && json_lines(&stuck) == [json!([])]);
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
async fn doctor_passes_on_a_new_market_and_names_each_wrong_setting() {
    let services = ["--inputs-mib", "64", "--artifacts-mib", "64", "--output-mib", "64"].map(str::to_owned).into();
    let mut system = System::start(MarketSettings { services, ..MarketSettings::default() }).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.consumer.submit(&noop_job()).await.unwrap();
    system.consumer.wait_until_settled(&job).await.unwrap();
    let conf = system.path().join("keys/nats.conf");
    // The bound of the free space is given, because the test cannot know how full its machine's disk is.
    let doctor_with = |min_free_gib: &str| {
        let conf = conf.to_str().unwrap();
        let output = tool(&system, &["doctor", "--nats-conf", conf, "--min-free-gib", min_free_gib, "--json"]);
        let checks: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let failed: Vec<_> = checks.into_iter().filter(|c| c["passed"] == false).collect();
        (output.status.success(), failed)
    };
    let doctor = || doctor_with("0");
    // The first head is signed some seconds after the start.
    wait_until("a signed head", async || doctor().1.iter().all(|c| c["id"] != "log.signed_head")).await;
    assert_eq!(doctor(), (true, Vec::new()));
    let (passed, failed) = doctor_with("1000000");
    assert_eq!((passed, failed.len(), &failed[0]["id"]), (false, 1, &json!("broker.free_room")), "{failed:?}");
    let text = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&conf, text.replace("sync_interval: always", "sync_interval: 2m")).unwrap();
    std::process::Command::new("chmod")
        .arg("644")
        .arg(system.path().join("keys/projector/operator.creds"))
        .status()
        .unwrap();
    let (passed, failed) = doctor();
    let ids: Vec<_> = failed.iter().map(|c| c["id"].as_str().unwrap()).collect();
    assert_eq!((passed, ids), (false, vec!["credentials.private", "broker.sync_interval"]));
    assert!(failed.iter().all(|c| c["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty())));
    // `lag` also measures the growth of the log.
    let lag: Value = serde_json::from_slice(&tool(&system, &["lag", "--json"]).stdout).unwrap();
    assert!(lag["growth"]["per_thousand"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn a_process_starts_while_any_of_its_brokers_answers() {
    let market = MARKET.open().await.unwrap();
    let real = market.nats_args("projector");
    // Nothing listens on port 1.
    for list in [format!("nats://127.0.0.1:1,{}", real.nats), format!("{}, nats://127.0.0.1:1", real.nats)] {
        let several = NatsArgs { nats: list, ..real.clone() };
        let client = several.connect("operator", OPERATOR_INBOX).await.unwrap();
        jetstream(client).get_stream("MARKET").await.unwrap();
    }
    let none = NatsArgs { nats: "nats://127.0.0.1:1,nats://127.0.0.1:2".to_owned(), ..real };
    assert!(none.connect("operator", OPERATOR_INBOX).await.is_err());
}
