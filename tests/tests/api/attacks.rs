//! Attempts of somebody with a foothold: a revoked machine that comes back, connections that say nothing, questions that
//! would wait for ever.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Output},
    time::{Duration, Instant},
};

use gpubnb_events::CommandId;
use gpubnb_tests::{
    machine::Stolen,
    market::Market,
    parts::binary,
    shared::{Plan, Shared},
    system::{Options, System},
    wait::until,
    web::Web,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

static MARKET: Shared = Shared::new(Plan::default);

/// Enrolls the machine whose keys stand, or are to stand, in a directory of the market.
pub(crate) fn enroll(market: &Market, state: &str, code: &str) -> Output {
    Command::new(binary("gpubnb-provider").unwrap())
        .args(["enroll", code, "--market", &market.url(), "--state"])
        .arg(market.path().join(state))
        .output()
        .unwrap()
}

/// A code with which an owner enrolls a machine.
pub(crate) async fn code(owner: &Web) -> String {
    owner.post("/enrollments", &json!({})).await.unwrap()["code"].as_str().unwrap().to_owned()
}

/// A machine that was enrolled at the market, and has no worker.
pub(crate) async fn enrolled(market: &Market, owner: &Web, state: &str) -> Stolen {
    let done = enroll(market, state, &code(owner).await);
    assert!(done.status.success(), "{done:?}");
    Stolen::from(&market.path().join(state)).unwrap()
}

fn refused(output: &Output, name: &str) {
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains(name), "{output:?}");
}

#[tokio::test]
async fn a_revoked_machine_needs_a_new_code_and_its_old_credential_stays_dead() {
    let market = MARKET.open().await.unwrap();
    let first = code(&market.web).await;
    assert!(enroll(&market, "revoked", &first).status.success());
    let thief = Stolen::from(&market.path().join("revoked")).unwrap();
    let jwt = thief.renew(&market.web.stranger()).await.unwrap()["jwt"].as_str().unwrap().to_owned();
    let path = format!("/machines/{}/credential", thief.machine);
    let (status, _) = market.web.request(Method::DELETE, &path, None).await.unwrap();
    assert_eq!(status, StatusCode::NO_CONTENT);
    // Whoever has the machine's directory may have its code as well.
    refused(&enroll(&market, "revoked", &first), "BadCode");
    assert!(enroll(&market, "revoked", &code(&market.web).await).status.success());
    // The broker knows the time of a revocation to the second: only a credential of a later second is good.
    until("the machine is back", async || thief.enter(&market).await.is_ok()).await;
    assert!(thief.connect(&market, &jwt).await.is_err());
}

#[tokio::test]
async fn a_banned_machine_is_not_enrolled_again() {
    let market = MARKET.open().await.unwrap();
    let banned = enrolled(&market, &market.web, "banned").await;
    let path = format!("/ops/machines/{}/credential", banned.machine);
    let (status, problem) = market.operator().unwrap().request(Method::DELETE, &path, None).await.unwrap();
    assert_eq!(status, StatusCode::NO_CONTENT, "{problem}");
    refused(&enroll(&market, "banned", &code(&market.web).await), "Banned");
}

#[tokio::test]
async fn a_suspended_account_keeps_its_money_and_its_machines_get_no_credential() {
    let market = MARKET.open().await.unwrap();
    let (operator, suspended) = (market.operator().unwrap(), &market.web);
    let machine = enrolled(&market, suspended, "suspended").await;
    let account = format!("/ops/accounts/{}", suspended.account);
    let done = operator.post(&format!("{account}/suspension"), &json!({ "reason": "spam" })).await;
    done.unwrap();
    let why = machine.renew(&suspended.stranger()).await.unwrap_err().to_string();
    assert!(why.contains("suspended"), "{why}");
    // An operator may add to its money; the same deposit, given twice, counts once.
    let deposit = json!({ "deposit": CommandId::generate(), "amount_usd": "5" });
    for _ in 0..2 {
        operator.post(&format!("{account}/deposits"), &deposit).await.unwrap();
    }
    let wallet = suspended.get("/wallet").await.unwrap();
    assert_eq!(wallet["balance"]["available"], 105_000_000, "{wallet}");
    let payout = json!({ "payout": CommandId::generate(), "amount_usd": "1" });
    let (status, problem) =
        suspended.at_browser().request(Method::POST, "/wallet/payouts", Some(&payout)).await.unwrap();
    assert_eq!((status, &problem["title"]), (StatusCode::FORBIDDEN, &json!("Suspended")), "{problem}");
}

#[tokio::test]
async fn the_log_names_the_operator_who_acted() {
    let market = MARKET.open().await.unwrap();
    let operator = market.operator().unwrap();
    let path = format!("/ops/accounts/{}/suspension", market.web.account);
    operator.post(&path, &json!({ "reason": "spam" })).await.unwrap();
    let client = market.nats_args("services").connect("append", gpubnb_events::subject::SERVICES_INBOX).await.unwrap();
    let log = gpubnb_log::Log::open(gpubnb_runtime::nats::jetstream(client)).await.unwrap();
    let account = gpubnb_events::Aggregate::Account(market.web.account.parse().unwrap());
    let last = log.load(account).await.unwrap().pop().unwrap();
    let me = operator.get("/account").await.unwrap()["account"].as_str().unwrap().to_owned();
    assert_eq!(last.envelope().unwrap().actor.to_string(), format!("operator:{me}"));
}

#[tokio::test]
async fn an_account_has_so_many_unused_codes_and_no_more() {
    let market = MARKET.open().await.unwrap();
    for _ in 0..10 {
        code(&market.web).await;
    }
    let (status, problem) = market.web.request(Method::POST, "/enrollments", Some(&json!({}))).await.unwrap();
    assert_eq!((status, &problem["title"]), (StatusCode::CONFLICT, &json!("TooManyCodes")));
    code(&market.newcomer().await.unwrap()).await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let market = MARKET.open().await.unwrap();
    let address = market.url().strip_prefix("http://").unwrap().to_owned();
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
async fn a_question_about_a_sequence_that_never_comes_is_refused() {
    let market = MARKET.open().await.unwrap();
    let began = Instant::now();
    let (status, problem) =
        market.web.stranger().request(Method::GET, "/machines?min_seq=18446744073709551615", None).await.unwrap();
    assert_eq!((status, &problem["title"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("NoSuchSequence")));
    assert!(began.elapsed() < Duration::from_secs(2), "the refusal took {:?}", began.elapsed());
}

#[tokio::test]
async fn one_address_has_so_many_live_pages_and_a_closed_one_makes_room() {
    let system = System::start(Options::default()).await.unwrap();
    let live = async || system.web.stranger().ask(Method::GET, "/market/live").send().await.unwrap();
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
    until("a place for another live page", async || live().await.status() == StatusCode::OK).await;
}

#[tokio::test]
async fn an_answer_that_is_known_already_is_not_sent_again() {
    let market = MARKET.open().await.unwrap();
    let ask = || market.web.stranger().ask(Method::GET, "/api/v1/templates");
    let first = ask().send().await.unwrap();
    let version = first.headers()["etag"].to_str().unwrap().to_owned();
    let templates: Value = first.json().await.unwrap();
    assert!(templates.as_array().is_some_and(|all| !all.is_empty()));
    let again = ask().header("if-none-match", &version).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(again.headers()["etag"].to_str().unwrap(), version);
    let other = ask().header("if-none-match", "\"other\"").send().await.unwrap();
    assert_eq!(other.status(), StatusCode::OK);
}
