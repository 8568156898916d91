//! A machine's credential cannot reach MARKET: not by itself, and not through another's rights.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use gpubnb_events::{AccountId, Aggregate, JobId, MachineId, Seq, message::header, subject};
use gpubnb_log::{Log, stream};
use gpubnb_runtime::nats::jetstream;
use gpubnb_tests::{
    machine::Stolen,
    system::{Options, System},
};
use serde_json::json;

struct Attack {
    system: System,
    machine: MachineId,
    attacker: Client,
    log: Log,
}

/// A market with one worker, and a connection that has the credential of its machine.
async fn attack() -> Attack {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let stolen = Stolen::from(&system.path().join("attic")).unwrap();
    let (machine, attacker) = (stolen.machine, stolen.enter(&system).await.unwrap());
    let client = system.nats_args("services").connect("append", subject::SERVICES_INBOX).await.unwrap();
    let log = Log::open(jetstream(client)).await.unwrap();
    Attack { system, machine, attacker, log }
}

/// A message that would be money, if it got into the log.
fn forged(a: &Attack) -> (String, HeaderMap, Bytes) {
    let account = &a.system.owner.account;
    let mut headers = HeaderMap::new();
    headers.insert(header::ID, "forged");
    headers.insert(header::TYPE, "FundsDeposited.v1");
    headers.insert(header::ACTOR, "operator");
    let body = json!({ "account": account, "deposit": account, "amount": 1_000_000_000 });
    (format!("market.account.{account}.event"), headers, body.to_string().into())
}

async fn nothing_was_forged(a: &Attack) {
    // Whatever was sent has been dealt with once a later request is answered.
    a.attacker.flush().await.unwrap();
    let job = a.system.web.submit(&json!({ "template": "noop" })).await.unwrap();
    a.system.web.settled(&job).await.unwrap();
    let events = a.log.load(Aggregate::Account(a.system.owner.account.parse().unwrap())).await.unwrap();
    let names: Vec<_> = events.iter().map(|e| e.event().map_or("quarantined", gpubnb_events::Event::name)).collect();
    assert_eq!(names, ["AccountOpened"]);
}

#[tokio::test]
async fn a_machine_cannot_publish_to_the_log() {
    let a = attack().await;
    let (subject, headers, body) = forged(&a);
    a.attacker.publish_with_headers(subject, headers, body).await.unwrap();
    nothing_was_forged(&a).await;
}

/// What the broker keeps: for each stream, how many subjects it knows and its last sequence.
async fn kept(a: &Attack) -> Vec<(&'static str, u64, u64)> {
    let client = a.system.nats_args("services").connect("bootstrap", subject::SERVICES_INBOX).await.unwrap();
    let js = jetstream(client);
    let mut kept = Vec::new();
    for name in
        ["KV_CREDENTIALS", "KV_SESSIONS", "KV_ENROLLMENTS", "KV_JOBENV", "OBJ_ARTIFACTS", "OBJ_INPUTS", "KV_LEADERS"]
    {
        let state = js.get_stream(name).await.unwrap().cached_info().state.clone();
        // A leader renews its lease all the time; that nobody else writes there shows in the number of keys.
        let last = if name == "KV_LEADERS" { 0 } else { state.last_sequence };
        kept.push((name, state.subjects_count, last));
    }
    kept
}

/// All that a machine may say, and where it would like the answers.
#[tokio::test]
async fn no_answer_goes_where_a_machine_would_like_it_to() {
    let a = attack().await;
    let (market, headers, body) = forged(&a);
    let (before, first) = (kept(&a).await, a.log.last_seq().await.unwrap());
    let (job, consumer) = (JobId::generate(), stream::machine_consumer(a.machine));
    let mut says: Vec<String> = ["accept", "decline", "start", "report", "list", "wish", "tested", "sync"]
        .map(|verb| subject::machine_command(a.machine, verb))
        .to_vec();
    says.push(subject::heartbeat(a.machine));
    says.push(subject::output(a.machine, job, subject::OutputKind::Log));
    says.push(format!("{}.CONSUMER.INFO.DISPATCH.{consumer}", subject::MACHINE_API));
    says.push(format!("{}.CONSUMER.MSG.NEXT.DISPATCH.{consumer}", subject::MACHINE_API));
    says.push(format!("$JS.ACK.DISPATCH.{consumer}.1.1.1.1.0"));
    let nobody = AccountId::generate();
    let places = [
        market,
        format!("market.account.{nobody}.event"),
        format!("market.job.{job}.assigned.{}", a.machine),
        format!("$KV.CREDENTIALS.account.{}", a.system.owner.account),
        "$KV.SESSIONS.x".to_owned(),
        format!("$KV.ENROLLMENTS.machine.{nobody}"),
        format!("$KV.JOBENV.{job}"),
        "$KV.LEADERS.evil".to_owned(),
        "$O.ARTIFACTS.M.x".to_owned(),
        "$JS.API.STREAM.PURGE.OUTPUT".to_owned(),
        format!("cmd.machine.{nobody}.sync"),
    ];
    for said in &says {
        for place in &places {
            let (headers, body) = (headers.clone(), body.clone());
            a.attacker.publish_with_reply_and_headers(said.clone(), place.clone(), headers, body).await.unwrap();
        }
    }
    nothing_was_forged(&a).await;
    assert_eq!(kept(&a).await, before);
    // Nothing came into the log but what the services wrote.
    let last = a.log.last_seq().await.unwrap();
    let mut log = a.log.follow(first.next());
    let mut seen = first;
    while seen < last {
        for recorded in log.next_batch().await {
            assert!(recorded.entry.is_ok(), "{recorded:?}");
            seen = recorded.seq;
        }
    }
    // Into its own inbox, it is answered.
    let own = a.attacker.request(subject::machine_command(a.machine, "sync"), Bytes::from_static(b"{\"leases\":[]}"));
    assert!(own.await.unwrap().payload.starts_with(b"{\"Ok\""));
}

#[tokio::test]
async fn a_machine_cannot_change_streams_nor_read_what_is_not_its_own() {
    let a = attack().await;
    let quick = |subject: String, body: &'static [u8]| {
        let request =
            async_nats::Request::new().payload(Bytes::from_static(body)).timeout(Some(Duration::from_millis(300)));
        a.attacker.send_request(subject, request)
    };
    for subject in [
        "$JS.API.STREAM.PURGE.DISPATCH",
        "$JS.API.STREAM.DELETE.OUTPUT",
        "$JS.API.STREAM.UPDATE.MARKET",
        "$JS.API.STREAM.INFO.MARKET",
        "$JS.API.DIRECT.GET.MARKET",
        "$JS.API.STREAM.MSG.GET.MARKET",
        "$JS.API.CONSUMER.CREATE.MARKET",
        "cmd.account.deposit",
        "cmd.job.cancel",
        "query.jobs",
    ] {
        assert!(quick(subject.to_owned(), b"{\"seq\":1}").await.is_err(), "{subject}");
    }
    assert!(a.log.last_seq().await.unwrap() > Seq::ZERO);
}
