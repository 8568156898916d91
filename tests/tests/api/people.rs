//! Sign-in and sign-out: sessions, passwords, forged forms, and guessed passwords.

use gpubnb_events::{CommandId, MachineId};
use gpubnb_tests::shared::{Plan, SharedMarket};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::access::send;

static MARKET: SharedMarket = SharedMarket::new(Plan::default);

#[tokio::test]
async fn a_form_with_the_csrf_token_of_another_session_is_refused() {
    let market = MARKET.open().await.unwrap();
    let (consumer, another) = (&market.consumer, market.new_consumer().await.unwrap());
    let post = |csrf: &str| {
        let form = [("csrf", csrf.to_owned()), ("id", CommandId::generate().to_string()), ("amount", "1".to_owned())];
        let request = reqwest::Client::new()
            .post(format!("{}/wallet/deposits", consumer.url))
            .header("cookie", consumer.cookie());
        request.form(&form).send()
    };
    assert_eq!(post("").await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(post(another.csrf()).await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(post(consumer.csrf()).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn signing_out_ends_one_session_and_no_other() {
    let market = MARKET.open().await.unwrap();
    let consumer = &market.consumer;
    // Each sign-in makes a new session, so a cookie that an attacker planted in the browser before is useless.
    let mut second_session = consumer.clone();
    second_session.sign_in().await.unwrap();
    assert_ne!(second_session.cookie(), consumer.cookie());
    let form = [("csrf", consumer.csrf().to_owned())];
    let out = consumer.browser_session().build_request(Method::POST, "/sign-out").form(&form).send().await.unwrap();
    assert_eq!(out.status(), StatusCode::SEE_OTHER);
    assert_eq!(send(&consumer.browser_session(), &Method::GET, "/wallet").await.status, StatusCode::SEE_OTHER);
    assert_eq!(send(&second_session.browser_session(), &Method::GET, "/wallet").await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_session_cookie_has_all_protective_flags() {
    let market = MARKET.open().await.unwrap();
    let form = [("email", &market.consumer.email), ("password", &market.consumer.password)];
    let signed_in =
        market.consumer.stranger().build_request(Method::POST, "/sign-in").form(&form).send().await.unwrap();
    let cookie = signed_in.headers()["set-cookie"].to_str().unwrap();
    for flag in ["__Host-", "Secure", "HttpOnly", "SameSite=", "Path=/"] {
        assert!(cookie.contains(flag), "{cookie}");
    }
}

#[tokio::test]
async fn a_changed_password_ends_the_other_sessions_and_all_tokens() {
    let market = MARKET.open().await.unwrap();
    let mut other = market.consumer.clone();
    other.sign_in().await.unwrap();
    let form = [
        ("csrf", market.consumer.csrf().to_owned()),
        ("old", market.consumer.password.clone()),
        ("new", "quite another password".to_owned()),
    ];
    let changed = market
        .consumer
        .browser_session()
        .build_request(Method::POST, "/account/password")
        .form(&form)
        .send()
        .await
        .unwrap();
    assert!(changed.status().is_redirection(), "{}", changed.status());
    let (token, _) = market.consumer.request(Method::GET, "/account", None).await.unwrap();
    assert_eq!(token, StatusCode::UNAUTHORIZED);
    let elsewhere = other.browser_session().build_request(Method::GET, "/wallet").send().await.unwrap();
    assert!(elsewhere.status().is_redirection());
    let here = market.consumer.browser_session().build_request(Method::GET, "/wallet").send().await.unwrap();
    assert_eq!(here.status(), StatusCode::OK);
}

/// A login with a password that is not the account's.
fn wrong_login(email: &str) -> Value {
    json!({ "email": email, "password": "not the one, surely", "label": "x", "scopes": ["jobs:read"] })
}

#[tokio::test]
async fn a_known_and_an_unknown_email_address_get_the_same_answers() {
    let market = MARKET.open().await.unwrap();
    let stranger = market.consumer.stranger();
    let unknown = format!("{}@gpubnb.example", CommandId::generate());
    let ask = async |path: &str, body: Value| stranger.request(Method::POST, path, Some(&body)).await.unwrap();
    let sign_up = |email: &str| json!({ "email": email, "password": "a long enough one" });
    assert_eq!(ask("/accounts", sign_up(&market.consumer.email)).await, ask("/accounts", sign_up(&unknown)).await);
    let nobody = format!("{}@gpubnb.example", CommandId::generate());
    let (known, unknown) =
        (ask("/login", wrong_login(&market.consumer.email)).await, ask("/login", wrong_login(&nobody)).await);
    assert_eq!(known, unknown);
    assert_eq!(known.0, StatusCode::UNAUTHORIZED);
    // The second sign-up of a known address did not change its password.
    let mut taken = wrong_login(&market.consumer.email);
    taken["password"] = json!("a long enough one");
    assert_eq!(ask("/login", taken).await.0, StatusCode::UNAUTHORIZED);
    let path = format!("/machines/{}/credential", MachineId::generate());
    assert_eq!(ask(&path, json!({ "nonce": "x", "signature": "x" })).await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn repeated_wrong_passwords_are_rate_limited() {
    let market = MARKET.open().await.unwrap();
    let stranger = market.consumer.stranger();
    let email = format!("{}@gpubnb.example", CommandId::generate());
    let mut last = StatusCode::OK;
    for _ in 0..8 {
        last = stranger.request(Method::POST, "/login", Some(&wrong_login(&email))).await.unwrap().0;
    }
    assert_eq!(last, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn strangers_who_guess_a_password_do_not_lock_the_person_out() {
    let market = MARKET.open().await.unwrap();
    let person = market.new_consumer().await.unwrap();
    let sign_in = async |password: &str, cookies: &str| {
        let form = [("email", person.email.as_str()), ("password", password)];
        let request = person.stranger().build_request(Method::POST, "/sign-in").form(&form);
        request.header("cookie", cookies).send().await.unwrap()
    };
    let signed_in = sign_in(&person.password, "").await;
    assert_eq!(signed_in.status(), StatusCode::SEE_OTHER);
    let cookies = signed_in.headers().get_all("set-cookie").iter().map(|cookie| cookie.to_str().unwrap().to_owned());
    let known = cookies.into_iter().find(|cookie| cookie.starts_with("__Host-gpubnb-known=")).unwrap();
    assert!(["Secure", "HttpOnly", "SameSite=Strict", "Path=/"].iter().all(|flag| known.contains(flag)), "{known}");
    let known = known.split(';').next().unwrap();
    // A sign-in with the right password does not count as a guess.
    for _ in 0..8 {
        assert_eq!(sign_in(&person.password, "").await.status(), StatusCode::SEE_OTHER);
    }
    // Somebody behind the same address tries wrong passwords until the address is refused. The person's own browser,
    // known by its cookie, is still served.
    let mut wrong = 0;
    while sign_in("not the password", "").await.status() != StatusCode::TOO_MANY_REQUESTS {
        wrong += 1;
        assert!(wrong < 20, "wrong passwords are limited");
    }
    assert_eq!(sign_in(&person.password, "").await.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(sign_in(&person.password, known).await.status(), StatusCode::SEE_OTHER, "the browser is known");
    // With a changed cookie, the browser does not count as known.
    let changed = format!("{}{}", &known[..known.len() - 1], if known.ends_with('0') { '1' } else { '0' });
    assert_eq!(sign_in(&person.password, &changed).await.status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn a_closed_account_is_gone_and_its_address_is_free_again() {
    let market = MARKET.open().await.unwrap();
    let leaving = market.new_consumer().await.unwrap();
    let close = async |password: &str, given_up: &str| {
        let form = [("csrf", leaving.csrf()), ("password", password), ("given_up", given_up)];
        let request = leaving.browser_session().build_request(Method::POST, "/account/close").form(&form);
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    };
    let available = leaving.get("/wallet").await.unwrap()["balance"]["available"].to_string();
    let refused = close("not the password", &available).await;
    assert!(refused.0 == StatusCode::UNPROCESSABLE_ENTITY && refused.1.contains("current password"), "{refused:?}");
    let refused = close(&leaving.password, "0").await;
    assert!(refused.0 == StatusCode::CONFLICT && refused.1.contains("Withdraw the money first"), "{refused:?}");
    assert_eq!(close(&leaving.password, &available).await.0, StatusCode::SEE_OTHER);
    // The session, the token and the password are destroyed.
    assert_eq!(send(&leaving.browser_session(), &Method::GET, "/wallet").await.status, StatusCode::SEE_OTHER);
    assert_eq!(leaving.request(Method::GET, "/account", None).await.unwrap().0, StatusCode::UNAUTHORIZED);
    assert!(leaving.clone().sign_in().await.is_err());
    // The same address and password open another account.
    let sign_up = [("email", &leaving.email), ("password", &leaving.password)];
    let request = leaving.stranger().build_request(Method::POST, "/sign-up").form(&sign_up);
    assert_eq!(request.send().await.unwrap().status(), StatusCode::SEE_OTHER);
    let mut again = leaving.clone();
    again.sign_in().await.unwrap();
    assert_ne!(again.cookie().split('.').next(), leaving.cookie().split('.').next(), "the account is another one");
}
