//! A machine's credential cannot write to the stream MARKET: neither directly, nor through the rights of a service that
//! answers the machine (a confused deputy). MARKET is the stream with all events.

use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use gpubnb_events::{AccountId, Aggregate, JobId, MachineId, Seq, message::header, subject};
use gpubnb_log::{Log, stream};
use gpubnb_runtime::nats::jetstream;
use gpubnb_tests::{
    api_client::ApiClient,
    jobs::noop_job,
    machine_keys::MachineKeys,
    market::Market,
    shared::{Plan, SharedMarket},
    system::{MarketSettings, System},
    wait::wait_until,
};
use serde_json::json;

static MARKET: SharedMarket = SharedMarket::new(|| Plan::default().with_worker("attic", &[]));

/// An attacker with the credential of the machine `attic`.
struct Attack<'a> {
    market: &'a Market,
    /// The account for which the attacker forges an event.
    victim: ApiClient,
    stolen: MachineKeys,
    machine: MachineId,
    attacker: Client,
    log: Log,
}

/// Connects the attacker to the broker of a market.
async fn start_attack(market: &Market) -> Attack<'_> {
    let stolen = MachineKeys::read_from(&market.path().join("attic")).unwrap();
    let (machine, attacker) = (stolen.machine, stolen.renew_and_connect(market).await.unwrap());
    let client = market.nats_args("services").connect("append", subject::SERVICES_INBOX).await.unwrap();
    let log = Log::open(jetstream(client)).await.unwrap();
    let victim = ApiClient::sign_up(&market.url(), &JobId::generate().to_string()).await.unwrap();
    Attack { market, victim, stolen, machine, attacker, log }
}

/// The subject, the headers and the body of a forged deposit of $1,000.
fn forge_deposit(attack: &Attack<'_>) -> (String, HeaderMap, Bytes) {
    let account = &attack.victim.account;
    let mut headers = HeaderMap::new();
    headers.insert(header::ID, "forged");
    headers.insert(header::TYPE, "FundsDeposited.v1");
    headers.insert(header::ACTOR, "operator");
    let body = json!({ "account": account, "deposit": account, "amount": 1_000_000_000 });
    (format!("market.account.{account}.event"), headers, body.to_string().into())
}

/// Checks that the forged event is not in the log.
async fn assert_nothing_forged(attack: &Attack<'_>) {
    // When a later job is settled, the services have handled every earlier message.
    attack.attacker.flush().await.unwrap();
    let job = attack.market.consumer.submit(&noop_job()).await.unwrap();
    attack.market.consumer.wait_until_settled(&job).await.unwrap();
    let events = attack.log.load(Aggregate::Account(attack.victim.account.parse().unwrap())).await.unwrap();
    let names: Vec<_> = events.iter().map(|e| e.event().map_or("quarantined", gpubnb_events::Event::name)).collect();
    assert_eq!(names, ["AccountOpened"]);
}

#[tokio::test]
async fn a_machine_cannot_publish_to_the_log() {
    let market = MARKET.open().await.unwrap();
    let attack = start_attack(&market).await;
    let (subject, headers, body) = forge_deposit(&attack);
    attack.attacker.publish_with_headers(subject, headers, body).await.unwrap();
    assert_nothing_forged(&attack).await;
}

/// The state of the other streams: the name, the number of subjects and the last sequence.
async fn stream_states(attack: &Attack<'_>) -> Vec<(&'static str, u64, u64)> {
    let client = attack.market.nats_args("services").connect("bootstrap", subject::SERVICES_INBOX).await.unwrap();
    let js = jetstream(client);
    let mut states = Vec::new();
    for name in
        ["KV_CREDENTIALS", "KV_SESSIONS", "KV_ENROLLMENTS", "KV_JOBENV", "OBJ_ARTIFACTS", "OBJ_INPUTS", "KV_LEADERS"]
    {
        let state = js.get_stream(name).await.unwrap().cached_info().state.clone();
        // The replica of the services that leads renews its entry in KV_LEADERS all the time. So only the number of
        // subjects is compared there.
        let last = if name == "KV_LEADERS" { 0 } else { state.last_sequence };
        states.push((name, state.subjects_count, last));
    }
    states
}

#[tokio::test]
async fn the_answer_to_a_machine_goes_to_no_subject_but_its_own_inbox() {
    // The test has its own market, so that nobody else writes to the streams.
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let attack = start_attack(&system).await;
    let (market, headers, body) = forge_deposit(&attack);
    let (before, first) = (stream_states(&attack).await, attack.log.last_seq().await.unwrap());
    let (job, consumer) = (JobId::generate(), stream::machine_consumer(attack.machine));
    // Every subject to which a machine may publish.
    let mut subjects: Vec<String> =
        ["accept", "decline", "start", "report", "list", "wish", "tested", "output", "sync"]
            .map(|verb| subject::machine_command(attack.machine, verb))
            .to_vec();
    subjects.push(subject::heartbeat(attack.machine));
    subjects.push(format!("{}.CONSUMER.INFO.DISPATCH.{consumer}", subject::MACHINE_API));
    subjects.push(format!("{}.CONSUMER.MSG.NEXT.DISPATCH.{consumer}", subject::MACHINE_API));
    subjects.push(format!("$JS.ACK.DISPATCH.{consumer}.1.1.1.1.0"));
    let nobody = AccountId::generate();
    // Subjects where an answer would do harm.
    let reply_subjects = [
        market,
        format!("market.account.{nobody}.event"),
        format!("market.job.{job}.assigned.{}", attack.machine),
        format!("$KV.CREDENTIALS.account.{}", attack.victim.account),
        "$KV.SESSIONS.x".to_owned(),
        format!("$KV.ENROLLMENTS.machine.{nobody}"),
        format!("$KV.JOBENV.{job}"),
        "$KV.LEADERS.evil".to_owned(),
        "$O.ARTIFACTS.M.x".to_owned(),
        "$JS.API.STREAM.PURGE.OUTPUT".to_owned(),
        format!("cmd.machine.{nobody}.sync"),
    ];
    for subject in &subjects {
        for reply in &reply_subjects {
            let (headers, body) = (headers.clone(), body.clone());
            attack
                .attacker
                .publish_with_reply_and_headers(subject.clone(), reply.clone(), headers, body)
                .await
                .unwrap();
        }
    }
    assert_nothing_forged(&attack).await;
    assert_eq!(stream_states(&attack).await, before);
    // Every new message in the log is a valid event. An answer of the services that landed in the log would not be
    // one.
    let last = attack.log.last_seq().await.unwrap();
    let mut log = attack.log.follow(first.next());
    let mut seen = first;
    while seen < last {
        for recorded in log.next_batch().await {
            assert!(recorded.entry.is_ok(), "{recorded:?}");
            seen = recorded.seq;
        }
    }
    // The services answer a request whose reply subject is the machine's own inbox.
    let own = attack
        .attacker
        .request(subject::machine_command(attack.machine, "sync"), Bytes::from_static(b"{\"leases\":[]}"));
    assert!(own.await.unwrap().payload.starts_with(b"{\"Ok\""));
}

#[tokio::test]
async fn a_machine_can_neither_change_streams_nor_read_the_log() {
    let market = MARKET.open().await.unwrap();
    let attack = start_attack(&market).await;
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
        attack.attacker.publish(subject, Bytes::from_static(b"{\"seq\":1}")).await.unwrap();
        let violation = format!("Permissions Violation for Publish to \"{subject}\"");
        wait_until(&violation, async || attack.stolen.broker_errors().iter().any(|error| error.contains(&violation)))
            .await;
    }
    assert!(attack.log.last_seq().await.unwrap() > Seq::ZERO);
}
