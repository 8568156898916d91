//! A machine's credential cannot reach the stream MARKET: not by itself, and not through the rights of a service that
//! answers it.

use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use gpubnb_events::{AccountId, Aggregate, JobId, MachineId, Seq, message::header, subject};
use gpubnb_log::{Log, stream};
use gpubnb_runtime::nats::jetstream;
use gpubnb_tests::{
    jobs::noop,
    machine::Stolen,
    market::Market,
    shared::{Plan, Shared},
    system::{Options, System},
    wait::until,
    web::Web,
};
use serde_json::json;

static MARKET: Shared = Shared::new(|| Plan::default().worker("attic", &[]));

struct Attack<'a> {
    market: &'a Market,
    /// The account whose money the attacker would like to have.
    victim: Web,
    stolen: Stolen,
    machine: MachineId,
    attacker: Client,
    log: Log,
}

/// A connection with the credential of a market's machine.
async fn attack(market: &Market) -> Attack<'_> {
    let stolen = Stolen::from(&market.path().join("attic")).unwrap();
    let (machine, attacker) = (stolen.machine, stolen.enter(market).await.unwrap());
    let client = market.nats_args("services").connect("append", subject::SERVICES_INBOX).await.unwrap();
    let log = Log::open(jetstream(client)).await.unwrap();
    let victim = Web::join(&market.url(), &JobId::generate().to_string()).await.unwrap();
    Attack { market, victim, stolen, machine, attacker, log }
}

/// An event that would be money, if it got into the log.
fn forged(a: &Attack<'_>) -> (String, HeaderMap, Bytes) {
    let account = &a.victim.account;
    let mut headers = HeaderMap::new();
    headers.insert(header::ID, "forged");
    headers.insert(header::TYPE, "FundsDeposited.v1");
    headers.insert(header::ACTOR, "operator");
    let body = json!({ "account": account, "deposit": account, "amount": 1_000_000_000 });
    (format!("market.account.{account}.event"), headers, body.to_string().into())
}

async fn nothing_was_forged(a: &Attack<'_>) {
    // Every message before has been dealt with once a later job is settled.
    a.attacker.flush().await.unwrap();
    let job = a.market.web.submit(&noop()).await.unwrap();
    a.market.web.settled(&job).await.unwrap();
    let events = a.log.load(Aggregate::Account(a.victim.account.parse().unwrap())).await.unwrap();
    let names: Vec<_> = events.iter().map(|e| e.event().map_or("quarantined", gpubnb_events::Event::name)).collect();
    assert_eq!(names, ["AccountOpened"]);
}

#[tokio::test]
async fn a_machine_cannot_publish_to_the_log() {
    let market = MARKET.open().await.unwrap();
    let a = attack(&market).await;
    let (subject, headers, body) = forged(&a);
    a.attacker.publish_with_headers(subject, headers, body).await.unwrap();
    nothing_was_forged(&a).await;
}

/// The state of the broker's streams: for each of them its number of subjects and its last sequence.
async fn kept(a: &Attack<'_>) -> Vec<(&'static str, u64, u64)> {
    let client = a.market.nats_args("services").connect("bootstrap", subject::SERVICES_INBOX).await.unwrap();
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

#[tokio::test]
async fn the_answer_to_a_machine_goes_to_no_subject_but_its_own_inbox() {
    // The market is the test's own, so that nobody else writes to the streams meanwhile.
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let a = attack(&system).await;
    let (market, headers, body) = forged(&a);
    let (before, first) = (kept(&a).await, a.log.last_seq().await.unwrap());
    let (job, consumer) = (JobId::generate(), stream::machine_consumer(a.machine));
    // Every subject that a machine may publish to, and every place where an answer would do harm.
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
        format!("$KV.CREDENTIALS.account.{}", a.victim.account),
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
    // Every event in the log was written by the services: a forged one would not be readable.
    let last = a.log.last_seq().await.unwrap();
    let mut log = a.log.follow(first.next());
    let mut seen = first;
    while seen < last {
        for recorded in log.next_batch().await {
            assert!(recorded.entry.is_ok(), "{recorded:?}");
            seen = recorded.seq;
        }
    }
    // A request whose answer goes into its own inbox is answered.
    let own = a.attacker.request(subject::machine_command(a.machine, "sync"), Bytes::from_static(b"{\"leases\":[]}"));
    assert!(own.await.unwrap().payload.starts_with(b"{\"Ok\""));
}

#[tokio::test]
async fn a_machine_cannot_change_streams_nor_read_what_is_not_its_own() {
    let market = MARKET.open().await.unwrap();
    let a = attack(&market).await;
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
        a.attacker.publish(subject, Bytes::from_static(b"{\"seq\":1}")).await.unwrap();
        let violation = format!("Permissions Violation for Publish to \"{subject}\"");
        until(&violation, async || a.stolen.refused().iter().any(|error| error.contains(&violation))).await;
    }
    assert!(a.log.last_seq().await.unwrap() > Seq::ZERO);
}
