//! Attacks by accounts and machines: a revoked machine that enrolls again, connections that send nothing, and requests
//! that would wait for ever.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Output},
    time::Duration,
};

use gpubnb_events::CommandId;
use gpubnb_tests::{
    api_client::ApiClient,
    machine_keys::MachineKeys,
    market::Market,
    programs::binary,
    shared::{Plan, SharedMarket},
    system::{MarketSettings, System},
    wait::wait_until,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

static MARKET: SharedMarket = SharedMarket::new(Plan::default);

/// Enrolls a machine with an enrollment code. `state` is the directory with the machine's keys; if it has none, the
/// worker's program makes new keys.
pub(crate) fn enroll(market: &Market, state: &str, code: &str) -> Output {
    Command::new(binary("gpubnb-provider").unwrap())
        .args(["enroll", code, "--market", &market.url(), "--state"])
        .arg(market.path().join(state))
        .output()
        .unwrap()
}

/// Makes a code with which a machine is enrolled for the account `owner`.
pub(crate) async fn new_code(owner: &ApiClient) -> String {
    owner.post("/enrollments", &json!({})).await.unwrap()["code"].as_str().unwrap().to_owned()
}

/// Enrolls a machine without a worker, and returns its keys.
pub(crate) async fn enroll_new_machine(market: &Market, owner: &ApiClient, state: &str) -> MachineKeys {
    let done = enroll(market, state, &new_code(owner).await);
    assert!(done.status.success(), "{done:?}");
    MachineKeys::read_from(&market.path().join(state)).unwrap()
}

/// Checks that an enrollment was refused with this error.
fn assert_refused(output: &Output, name: &str) {
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains(name), "{output:?}");
}

#[tokio::test]
async fn a_revoked_machine_needs_a_new_code_and_its_old_credential_stays_invalid() {
    let market = MARKET.open().await.unwrap();
    let first = new_code(&market.consumer).await;
    assert!(enroll(&market, "revoked", &first).status.success());
    let thief = MachineKeys::read_from(&market.path().join("revoked")).unwrap();
    let jwt = thief.renew(&market.consumer.stranger()).await.unwrap()["jwt"].as_str().unwrap().to_owned();
    let path = format!("/machines/{}/credential", thief.machine);
    let (status, _) = market.consumer.request(Method::DELETE, &path, None).await.unwrap();
    assert_eq!(status, StatusCode::NO_CONTENT);
    // A thief of the machine's directory may also have the code.
    assert_refused(&enroll(&market, "revoked", &first), "BadCode");
    assert!(enroll(&market, "revoked", &new_code(&market.consumer).await).status.success());
    // The broker rejects credentials that were issued in the second of the revocation or before.
    wait_until("the machine is accepted again", async || thief.renew_and_connect(&market).await.is_ok()).await;
    assert!(thief.connect(&market, &jwt).await.is_err());
}

#[tokio::test]
async fn a_banned_machine_is_not_enrolled_again() {
    let market = MARKET.open().await.unwrap();
    let banned = enroll_new_machine(&market, &market.consumer, "banned").await;
    let path = format!("/ops/machines/{}/credential", banned.machine);
    let (status, problem) = market.operator().unwrap().request(Method::DELETE, &path, None).await.unwrap();
    assert_eq!(status, StatusCode::NO_CONTENT, "{problem}");
    assert_refused(&enroll(&market, "banned", &new_code(&market.consumer).await), "Banned");
}

#[tokio::test]
async fn a_suspended_account_keeps_its_money_and_its_machines_get_no_credential() {
    let market = MARKET.open().await.unwrap();
    let (operator, suspended) = (market.operator().unwrap(), &market.consumer);
    let machine = enroll_new_machine(&market, suspended, "suspended").await;
    let account = format!("/ops/accounts/{}", suspended.account);
    let done = operator.post(&format!("{account}/suspension"), &json!({ "reason": "spam" })).await;
    done.unwrap();
    let why = machine.renew(&suspended.stranger()).await.unwrap_err().to_string();
    assert!(why.contains("suspended"), "{why}");
    // An operator may deposit money. The same deposit, sent twice, counts once.
    let deposit = json!({ "deposit": CommandId::generate(), "amount_usd": "5" });
    let mut seq = Value::Null;
    for _ in 0..2 {
        seq = operator.post(&format!("{account}/deposits"), &deposit).await.unwrap()["seq"].clone();
    }
    let wallet = suspended.get(&format!("/wallet?min_seq={seq}")).await.unwrap();
    assert_eq!(wallet["balance"]["available"], 105_000_000, "{wallet}");
    let payout = json!({ "payout": CommandId::generate(), "amount_usd": "1" });
    let (status, problem) =
        suspended.browser_session().request(Method::POST, "/wallet/payouts", Some(&payout)).await.unwrap();
    assert_eq!((status, &problem["title"]), (StatusCode::FORBIDDEN, &json!("Suspended")), "{problem}");
}

#[tokio::test]
async fn the_log_names_the_operator_who_acted() {
    let market = MARKET.open().await.unwrap();
    let operator = market.operator().unwrap();
    let path = format!("/ops/accounts/{}/suspension", market.consumer.account);
    operator.post(&path, &json!({ "reason": "spam" })).await.unwrap();
    let client = market.nats_args("services").connect("append", gpubnb_events::subject::SERVICES_INBOX).await.unwrap();
    let log = gpubnb_log::Log::open(gpubnb_runtime::nats::jetstream(client)).await.unwrap();
    let account = gpubnb_events::Aggregate::Account(market.consumer.account.parse().unwrap());
    let last = log.load(account).await.unwrap().pop().unwrap();
    let me = operator.get("/account").await.unwrap()["account"].as_str().unwrap().to_owned();
    assert_eq!(last.envelope().unwrap().actor.to_string(), format!("operator:{me}"));
}

#[tokio::test]
async fn an_account_can_have_ten_unused_codes_and_no_more() {
    let market = MARKET.open().await.unwrap();
    // The account asks for 14 codes at once.
    let body = json!({});
    let asked = (0..14).map(|_| market.consumer.request(Method::POST, "/enrollments", Some(&body)));
    let answers = futures_util::future::join_all(asked).await.into_iter().map(Result::unwrap).collect::<Vec<_>>();
    let (granted, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|(status, _)| status.is_success());
    assert_eq!((granted.len(), refused.len()), (10, 4), "{answers:?}");
    for (status, problem) in refused {
        assert_eq!((*status, &problem["title"]), (StatusCode::CONFLICT, &json!("TooManyCodes")));
    }
    new_code(&market.new_consumer().await.unwrap()).await;
}

#[tokio::test]
async fn a_connection_that_sends_no_request_is_closed() {
    let market = MARKET.open().await.unwrap();
    let address = market.url().strip_prefix("http://").unwrap().to_owned();
    // One client sends nothing, and the other sends only the opening bytes of HTTP/2.
    let silent = TcpStream::connect(&address).unwrap();
    let mut preface = TcpStream::connect(&address).unwrap();
    preface.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    let closed = tokio::task::spawn_blocking(move || {
        for mut client in [silent, preface] {
            client.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap();
        }
    });
    closed.await.unwrap();
}

#[tokio::test]
async fn a_request_that_waits_for_an_impossible_sequence_is_refused_at_once() {
    let market = MARKET.open().await.unwrap();
    // A request that waits is answered with 503 when its time is over.
    let (status, problem) =
        market.consumer.stranger().request(Method::GET, "/machines?min_seq=18446744073709551615", None).await.unwrap();
    assert_eq!((status, &problem["title"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("NoSuchSequence")));
}

#[tokio::test]
async fn an_address_can_open_32_live_pages_and_another_one_after_closing_them() {
    let system = System::start(MarketSettings::default()).await.unwrap();
    let live = async || system.consumer.stranger().build_request(Method::GET, "/market/live").send().await.unwrap();
    let mut open = Vec::new();
    let refused = loop {
        let page = live().await;
        if page.status() != StatusCode::OK {
            break page.status();
        }
        open.push(page);
        assert!(open.len() < 100);
    };
    assert_eq!((refused, open.len()), (StatusCode::TOO_MANY_REQUESTS, 32));
    drop(open);
    wait_until("another live page can be opened", async || live().await.status() == StatusCode::OK).await;
}

#[tokio::test]
async fn an_answer_with_a_known_etag_is_not_sent_again() {
    let market = MARKET.open().await.unwrap();
    let ask = || market.consumer.stranger().build_request(Method::GET, "/api/v1/templates");
    let first = ask().send().await.unwrap();
    let version = first.headers()["etag"].to_str().unwrap().to_owned();
    let templates: Value = first.json().await.unwrap();
    assert!(templates.as_array().is_some_and(|all| !all.is_empty()));
    let repeated = ask().header("if-none-match", &version).send().await.unwrap();
    assert_eq!(repeated.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(repeated.headers()["etag"].to_str().unwrap(), version);
    let other = ask().header("if-none-match", "\"other\"").send().await.unwrap();
    assert_eq!(other.status(), StatusCode::OK);
}
