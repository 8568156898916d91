//! Nobody reads or moves what is not theirs: every endpoint is tried by every kind of actor.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeSet, process::Command};

use gpubnb_events::{CommandId, JobId, MachineId};
use gpubnb_tests::{
    parts::binary,
    system::{Options, System},
    web::Web,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// What each kind of actor meets at an endpoint: let in, asked who it is, refused, or told that there is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    In,
    Who,
    No,
    Nothing,
}

/// stranger, another consumer at a browser, the owner at a browser, the owner's token without a scope that fits, its
/// token with all scopes, a lapsed token, an operator at a browser.
type Row = [Met; 7];

use Met::{In, No, Nothing, Who};

/// What the gate does by the kind of access that an endpoint says it demands.
const GATE: [(&str, Row); 9] = [
    ("public", [In, In, In, In, In, Who, In]),
    ("proof", [In, In, In, In, In, Who, In]),
    ("known", [Who, In, In, In, In, Who, In]),
    ("person", [Who, In, In, No, No, Who, In]),
    ("jobs:read", [Who, In, In, No, In, Who, In]),
    ("jobs:write", [Who, In, In, No, In, Who, In]),
    ("machines:write", [Who, In, In, No, In, Who, In]),
    ("wallet:read", [Who, In, In, No, In, Who, In]),
    ("operator", [Who, Nothing, Nothing, Nothing, Nothing, Who, In]),
];

/// Every endpoint, and what it demands. One that is missing here fails the test.
const TABLE: &str = include_str!("access.table");

fn routes() -> BTreeSet<String> {
    let output = Command::new(binary("gpubnb-ui").unwrap()).arg("routes").output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn met(status: StatusCode, location: &str) -> Met {
    match status {
        StatusCode::UNAUTHORIZED => Who,
        StatusCode::SEE_OTHER if location.starts_with("/sign-in?next=") => Who,
        StatusCode::FORBIDDEN => No,
        _ => In,
    }
}

/// Tries one endpoint; the answer's status, its name, and where it leads.
async fn tried(who: &Web, method: &Method, path: &str) -> (StatusCode, String, String) {
    let mut request = who.ask(method.clone(), path);
    if *method != Method::GET && path.starts_with("/api/") {
        request = request.json(&json!({}));
    }
    let response = request.send().await.unwrap();
    let location = response.headers().get("location").map_or("", |l| l.to_str().unwrap()).to_owned();
    let status = response.status();
    let live = response.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream");
    let text = if live { String::new() } else { response.text().await.unwrap_or_default() };
    (status, text, location)
}

/// An address with ids of things that are not there in it: the gate stands before them.
fn filled(path: &str) -> String {
    let id = JobId::generate().to_string();
    ["{job}", "{machine}", "{token}", "{session}", "{account}", "{payout}", "{input}"]
        .iter()
        .fold(path.to_owned(), |path, name| path.replace(name, &id))
        .replace("{*path}", "x")
        .replace("{lease}", "1")
        .replace("{version}", "x")
        .replace("{name}", "style.css")
        .replace("{secret}", "x")
        .replace("{permit}", "x")
}

#[tokio::test]
async fn every_endpoint_lets_in_whom_it_says_and_nobody_else() {
    let table: BTreeSet<String> = TABLE.lines().map(str::to_owned).collect();
    assert_eq!(routes(), table, "an endpoint was added, removed or changed: say so in tests/access.table");
    let system = System::start(Options::default()).await.unwrap();
    let operator = Web::operator(&system).await.unwrap();
    let lapsed = {
        let token = system.web.new_token(&["jobs:read"]).await.unwrap();
        let browser = system.web.at_browser();
        for known in browser.get("/tokens").await.unwrap().as_array().unwrap() {
            if known["scopes"] == json!(["jobs:read"]) {
                let path = format!("/tokens/{}", known["id"].as_str().unwrap());
                browser.request(Method::DELETE, &path, None).await.unwrap();
            }
        }
        system.web.with_token(&token)
    };
    let wrong_scope = |access: &str| if access == "wallet:read" { "jobs:read" } else { "wallet:read" };
    let mut wrong = std::collections::BTreeMap::new();
    for scope in ["jobs:read", "wallet:read"] {
        wrong.insert(scope, system.web.with_token(&system.web.new_token(&[scope]).await.unwrap()));
    }
    for line in table.iter().filter(|line| !line.contains("/sign-out") && !line.contains("/account/password")) {
        let [method, path, access] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let (_, expected) = GATE.iter().find(|(name, _)| *name == access).unwrap();
        let method: Method = method.parse().unwrap();
        let path = filled(path);
        let actors = [
            &system.web.stranger(),
            &system.owner.at_browser(),
            &system.web.at_browser(),
            &wrong[wrong_scope(access)],
            &system.web,
            &lapsed,
            &operator,
        ];
        for (index, who) in actors.into_iter().enumerate() {
            let (status, text, location) = tried(who, &method, &path).await;
            assert!(
                status.as_u16() < 500 || status == StatusCode::INSUFFICIENT_STORAGE,
                "{line} {index}: {status} {text}"
            );
            let got = match met(status, &location) {
                In if access == "operator" && text.contains("There is no such page") => Nothing,
                // The proof in the request is missing, and says so itself.
                Who if access == "proof" && !text.contains("The token is not known") => In,
                No if access == "person" && text.contains("BadInvite") => In,
                No if text.contains("This link has run out") => In,
                got => got,
            };
            assert_eq!(got, expected[index], "{line}: actor {index} got {status} {text}");
        }
    }
}

#[tokio::test]
async fn what_belongs_to_another_looks_as_if_it_were_not_there() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system
        .web
        .submit(&json!({ "template": "render", "parameters": { "width": "160", "height": "90", "samples": "1" } }))
        .await
        .unwrap();
    system.web.settled(&job).await.unwrap();
    for path in
        ["", "/events", "/events/stream", "/logs", "/logs/stream", "/receipt", "/artifacts", "/artifacts/render.png"]
    {
        let (own, ..) = tried(&system.web, &Method::GET, &format!("/api/v1/jobs/{job}{path}")).await;
        assert_eq!(own, StatusCode::OK, "{path}");
        let (foreign, text, _) = tried(&system.owner, &Method::GET, &format!("/api/v1/jobs/{job}{path}")).await;
        assert_eq!(foreign, StatusCode::NOT_FOUND, "{path} {text}");
    }
    for page in [format!("/jobs/{job}"), format!("/jobs/{job}/live"), format!("/jobs/{job}/log.txt")] {
        assert_eq!(tried(&system.web.at_browser(), &Method::GET, &page).await.0, StatusCode::OK, "{page}");
        assert_eq!(tried(&system.owner.at_browser(), &Method::GET, &page).await.0, StatusCode::NOT_FOUND, "{page}");
    }
    let cancel = tried(&system.owner, &Method::POST, &format!("/api/v1/jobs/{job}/cancel")).await;
    assert_eq!(cancel.0, StatusCode::NOT_FOUND, "{}", cancel.1);
    let body = json!({ "path": "render.png" });
    let link = system.owner.request(Method::POST, &format!("/jobs/{job}/links"), Some(&body)).await.unwrap();
    assert_eq!(link.0, StatusCode::NOT_FOUND, "{}", link.1);
    // Nor can another's token or session be ended.
    let (mine, theirs) = (system.web.at_browser(), system.owner.at_browser());
    let token = mine.get("/tokens").await.unwrap()[0]["id"].as_str().unwrap().to_owned();
    let ended = theirs.request(Method::DELETE, &format!("/tokens/{token}"), None).await.unwrap();
    assert_eq!(ended.0, StatusCode::NOT_FOUND, "{}", ended.1);
    // Another's machine can neither be changed nor revoked.
    let machine = system.machine("attic").unwrap();
    let wish =
        system.web.request(Method::POST, &format!("/machines/{machine}/wish"), Some(&json!("pause"))).await.unwrap();
    assert_eq!(wish.0, StatusCode::FORBIDDEN, "{}", wish.1);
    let revoke = system.web.request(Method::DELETE, &format!("/machines/{machine}/credential"), None).await.unwrap();
    assert_eq!(revoke.0, StatusCode::NOT_FOUND, "{}", revoke.1);
    // A link is for whoever has it, and for one file.
    let link = system.web.post(&format!("/jobs/{job}/links"), &json!({ "path": "render.png" })).await.unwrap();
    let path = link["path"].as_str().unwrap();
    let (status, picture) = system.web.stranger().bytes(path).await.unwrap();
    assert!(status.is_success() && picture.starts_with(b"\x89PNG"));
    let (status, _) = system.web.stranger().bytes(&path.replacen("artifact", "upload", 1)).await.unwrap();
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let part = system.web.ask(Method::GET, path).header("range", "bytes=1-3").send().await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes().await.unwrap().as_ref(), b"PNG");
}

#[tokio::test]
async fn a_form_of_another_session_is_refused_and_a_session_can_be_ended() {
    let system = System::start(Options::default()).await.unwrap();
    let web = &system.web;
    let post = |csrf: &str| {
        let form = [("csrf", csrf.to_owned()), ("id", CommandId::generate().to_string()), ("amount", "1".to_owned())];
        let request =
            reqwest::Client::new().post(format!("{}/wallet/deposits", web.url)).header("cookie", web.cookie());
        request.form(&form).send()
    };
    assert_eq!(post("").await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(post(system.owner.csrf()).await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(post(web.csrf()).await.unwrap().status(), StatusCode::OK);
    // Signing in again is another session, and what was planted in the browser before is of no use.
    let mut again = web.clone();
    again.sign_in().await.unwrap();
    assert_ne!(again.cookie(), web.cookie());
    let form = [("csrf", web.csrf().to_owned())];
    let out = web.at_browser().ask(Method::POST, "/sign-out").form(&form).send().await.unwrap();
    assert_eq!(out.status(), StatusCode::SEE_OTHER);
    assert_eq!(tried(&web.at_browser(), &Method::GET, "/wallet").await.0, StatusCode::SEE_OTHER);
    assert_eq!(tried(&again.at_browser(), &Method::GET, "/wallet").await.0, StatusCode::OK);
    let form = [("email", &web.email), ("password", &web.password)];
    let signed_in = web.stranger().ask(Method::POST, "/sign-in").form(&form).send().await.unwrap();
    let cookie = signed_in.headers()["set-cookie"].to_str().unwrap();
    for flag in ["__Host-", "Secure", "HttpOnly", "SameSite=", "Path=/"] {
        assert!(cookie.contains(flag), "{cookie}");
    }
}

#[tokio::test]
async fn a_known_and_an_unknown_address_get_the_same_answers_and_guessing_slows_down() {
    let system = System::start(Options::default()).await.unwrap();
    let stranger = system.web.stranger();
    let sign_up = |email: &str| json!({ "email": email, "password": "a long enough one" });
    let known = stranger.request(Method::POST, "/accounts", Some(&sign_up(&system.web.email))).await.unwrap();
    let unknown = stranger.request(Method::POST, "/accounts", Some(&sign_up("new@gpubnb.example"))).await.unwrap();
    assert_eq!(known, unknown);
    let login = |email: &str| json!({ "email": email, "password": "not the one, surely", "label": "x", "scopes": ["jobs:read"] });
    let mut seen: Vec<(StatusCode, Value)> = Vec::new();
    for email in [system.owner.email.as_str(), "nobody@gpubnb.example"] {
        let answer = stranger.request(Method::POST, "/login", Some(&login(email))).await.unwrap();
        seen.push(answer);
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0].0, StatusCode::UNAUTHORIZED);
    let mut last = seen[0].0;
    for _ in 0..6 {
        last = stranger.request(Method::POST, "/login", Some(&login("nobody@gpubnb.example"))).await.unwrap().0;
    }
    assert_eq!(last, StatusCode::TOO_MANY_REQUESTS);
    // The password did not change hands: the first owner's still works.
    let taken =
        json!({ "email": system.web.email, "password": "a long enough one", "label": "x", "scopes": ["jobs:read"] });
    assert_eq!(stranger.request(Method::POST, "/login", Some(&taken)).await.unwrap().0, StatusCode::UNAUTHORIZED);
    let machine = MachineId::generate();
    let (status, _) = stranger
        .request(
            Method::POST,
            &format!("/machines/{machine}/credential"),
            Some(&json!({ "nonce": "x", "signature": "x" })),
        )
        .await
        .unwrap();
    assert_eq!(status, StatusCode::FORBIDDEN);
}
