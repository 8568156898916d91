//! A machine's credential cannot reach MARKET: not by itself, and not through another's rights.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures_util::StreamExt;
use gpubnb_events::{Aggregate, Log, MachineId, Seq, log::header, nats::jetstream, stream, subject};
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

#[tokio::test]
async fn a_service_does_not_answer_into_the_log() {
    let a = attack().await;
    let (market, headers, body) = forged(&a);
    for verb in ["accept", "report", "list", "sync"] {
        let to = subject::machine_command(a.machine, verb);
        a.attacker.publish_with_reply_and_headers(to, market.clone(), headers.clone(), body.clone()).await.unwrap();
    }
    nothing_was_forged(&a).await;
}

#[tokio::test]
async fn an_answer_never_goes_into_another_machines_inbox() {
    let a = attack().await;
    let other = MachineId::generate();
    let inbox = format!("{}.x", subject::machine_inbox(other));
    let mut heard = a.attacker.subscribe(inbox.clone()).await.unwrap();
    a.attacker.flush().await.unwrap();
    let body = Bytes::from_static(b"{\"leases\":[]}");
    a.attacker.publish_with_reply(subject::machine_command(a.machine, "sync"), inbox, body.clone()).await.unwrap();
    nothing_was_forged(&a).await;
    assert!(tokio::time::timeout(Duration::from_millis(200), heard.next()).await.is_err());
    // With its own inbox, the very same request is answered.
    let own = a.attacker.request(subject::machine_command(a.machine, "sync"), body).await.unwrap();
    assert!(own.payload.starts_with(b"{\"Ok\""));
}

#[tokio::test]
async fn pulling_with_a_foreign_reply_puts_nothing_into_the_log_that_anybody_believes() {
    let a = attack().await;
    let (market, ..) = forged(&a);
    let next = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", stream::DISPATCH, stream::machine_consumer(a.machine));
    let before = a.system.web.get("/wallet").await.unwrap()["balance"].clone();
    a.attacker.publish_with_reply(next, market, Bytes::from_static(b"{\"batch\":10}")).await.unwrap();
    a.attacker.flush().await.unwrap();
    // The worker may lose this one message to the thief; the market sees that nobody accepted and goes on.
    a.system.web.submit(&json!({ "template": "noop" })).await.unwrap();
    // The accounts that were aimed at can still be written to, whatever stands in their subject now.
    let done = a.system.web.deposit("1").await.unwrap();
    let path = format!("/wallet?min_seq={}", done["seq"]);
    let after = a.system.web.get(&path).await.unwrap()["balance"].clone();
    assert_eq!(after["spent"], before["spent"]);
    let recorded = a.log.load(Aggregate::Account(a.system.owner.account.parse().unwrap())).await.unwrap();
    assert!(recorded.iter().all(|r| r.event().is_none_or(|e| e.name() == "AccountOpened")));
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
