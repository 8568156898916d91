//! Signing in and out: sessions, passwords, forged forms, and guessing.

use gpubnb_events::{CommandId, MachineId};
use gpubnb_tests::shared::{Plan, Shared};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::access::tried;

static MARKET: Shared = Shared::new(Plan::default);

#[tokio::test]
async fn a_form_of_another_session_is_refused() {
    let market = MARKET.open().await.unwrap();
    let (web, another) = (&market.web, market.newcomer().await.unwrap());
    let post = |csrf: &str| {
        let form = [("csrf", csrf.to_owned()), ("id", CommandId::generate().to_string()), ("amount", "1".to_owned())];
        let request =
            reqwest::Client::new().post(format!("{}/wallet/deposits", web.url)).header("cookie", web.cookie());
        request.form(&form).send()
    };
    assert_eq!(post("").await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(post(another.csrf()).await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(post(web.csrf()).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn signing_out_ends_one_session_and_no_other() {
    let market = MARKET.open().await.unwrap();
    let web = &market.web;
    // Signing in again is another session, so a cookie that was planted in the browser before is of no use.
    let mut again = web.clone();
    again.sign_in().await.unwrap();
    assert_ne!(again.cookie(), web.cookie());
    let form = [("csrf", web.csrf().to_owned())];
    let out = web.at_browser().ask(Method::POST, "/sign-out").form(&form).send().await.unwrap();
    assert_eq!(out.status(), StatusCode::SEE_OTHER);
    assert_eq!(tried(&web.at_browser(), &Method::GET, "/wallet").await.status, StatusCode::SEE_OTHER);
    assert_eq!(tried(&again.at_browser(), &Method::GET, "/wallet").await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_cookie_of_a_session_is_guarded_by_the_browser() {
    let market = MARKET.open().await.unwrap();
    let form = [("email", &market.web.email), ("password", &market.web.password)];
    let signed_in = market.web.stranger().ask(Method::POST, "/sign-in").form(&form).send().await.unwrap();
    let cookie = signed_in.headers()["set-cookie"].to_str().unwrap();
    for flag in ["__Host-", "Secure", "HttpOnly", "SameSite=", "Path=/"] {
        assert!(cookie.contains(flag), "{cookie}");
    }
}

#[tokio::test]
async fn a_changed_password_ends_what_was_made_with_the_old_one() {
    let market = MARKET.open().await.unwrap();
    let mut other = market.web.clone();
    other.sign_in().await.unwrap();
    let form = [
        ("csrf", market.web.csrf().to_owned()),
        ("old", market.web.password.clone()),
        ("new", "quite another password".to_owned()),
    ];
    let changed = market.web.at_browser().ask(Method::POST, "/account/password").form(&form).send().await.unwrap();
    assert!(changed.status().is_redirection(), "{}", changed.status());
    let (token, _) = market.web.request(Method::GET, "/account", None).await.unwrap();
    assert_eq!(token, StatusCode::UNAUTHORIZED);
    let elsewhere = other.at_browser().ask(Method::GET, "/wallet").send().await.unwrap();
    assert!(elsewhere.status().is_redirection());
    let here = market.web.at_browser().ask(Method::GET, "/wallet").send().await.unwrap();
    assert_eq!(here.status(), StatusCode::OK);
}

/// A login with a password that is not the account's.
fn guess(email: &str) -> Value {
    json!({ "email": email, "password": "not the one, surely", "label": "x", "scopes": ["jobs:read"] })
}

#[tokio::test]
async fn a_known_and_an_unknown_address_get_the_same_answers() {
    let market = MARKET.open().await.unwrap();
    let stranger = market.web.stranger();
    let unknown = format!("{}@gpubnb.example", CommandId::generate());
    let ask = async |path: &str, body: Value| stranger.request(Method::POST, path, Some(&body)).await.unwrap();
    let sign_up = |email: &str| json!({ "email": email, "password": "a long enough one" });
    assert_eq!(ask("/accounts", sign_up(&market.web.email)).await, ask("/accounts", sign_up(&unknown)).await);
    let nobody = format!("{}@gpubnb.example", CommandId::generate());
    let (known, unknown) = (ask("/login", guess(&market.web.email)).await, ask("/login", guess(&nobody)).await);
    assert_eq!(known, unknown);
    assert_eq!(known.0, StatusCode::UNAUTHORIZED);
    // The second sign-up of a known address did not change its password.
    let taken =
        json!({ "email": market.web.email, "password": "a long enough one", "label": "x", "scopes": ["jobs:read"] });
    assert_eq!(ask("/login", taken).await.0, StatusCode::UNAUTHORIZED);
    let path = format!("/machines/{}/credential", MachineId::generate());
    assert_eq!(ask(&path, json!({ "nonce": "x", "signature": "x" })).await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn guessing_passwords_slows_down() {
    let market = MARKET.open().await.unwrap();
    let stranger = market.web.stranger();
    let email = format!("{}@gpubnb.example", CommandId::generate());
    let mut last = StatusCode::OK;
    for _ in 0..8 {
        last = stranger.request(Method::POST, "/login", Some(&guess(&email))).await.unwrap().0;
    }
    assert_eq!(last, StatusCode::TOO_MANY_REQUESTS);
}
