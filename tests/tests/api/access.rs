//! The gate is the part of the web server that checks who may call an endpoint. This test calls every endpoint as every
//! kind of actor.

use std::{collections::BTreeSet, process::Command};

use gpubnb_events::{BatchId, JobId};
use gpubnb_tests::{
    api_client::ApiClient,
    programs::binary,
    system::{MarketSettings, System},
    wait::wait_until,
};
use reqwest::{Method, StatusCode};
use serde_json::json;

/// The gate's treatment of one actor at one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Treatment {
    /// The gate lets the request pass to its handler.
    Pass,
    /// The gate asks the actor to sign in.
    Login,
    /// The gate refuses the actor.
    Deny,
    /// The gate answers that there is no such page.
    Hide,
}

/// One treatment for each actor: stranger, another person, owner, token without the needed scope, token with all
/// scopes, deleted token, operator.
type Treatments = [Treatment; 7];

use Treatment::{Deny, Hide, Login, Pass};

/// The expected treatments for each kind of access. An endpoint demands one kind: see `ui/src/routes.rs`.
const GATE: [(&str, Treatments); 11] = [
    ("public", [Pass, Pass, Pass, Pass, Pass, Login, Pass]),
    ("proof", [Pass, Pass, Pass, Pass, Pass, Login, Pass]),
    ("authenticated", [Login, Pass, Pass, Pass, Pass, Login, Pass]),
    ("session", [Login, Pass, Pass, Deny, Deny, Login, Pass]),
    ("jobs:read", [Login, Pass, Pass, Deny, Pass, Login, Pass]),
    ("jobs:write", [Login, Pass, Pass, Deny, Pass, Login, Pass]),
    ("machines:write", [Login, Pass, Pass, Deny, Pass, Login, Pass]),
    ("wallet:read", [Login, Pass, Pass, Deny, Pass, Login, Pass]),
    ("webhooks:write", [Login, Pass, Pass, Deny, Pass, Login, Pass]),
    ("secrets:write", [Login, Pass, Pass, Deny, Pass, Login, Pass]),
    ("operator", [Login, Hide, Hide, Hide, Hide, Login, Pass]),
];

/// Every endpoint with the access that it demands, one per line: `GET /wallet session`. The test fails if the web
/// server has another endpoint.
const TABLE: &str = include_str!("access.table");

/// Endpoints that the test leaves out, because they would end the session of an actor.
const ENDS_A_SESSION: [&str; 2] = ["/sign-out", "/account/password"];

/// Endpoints whose handler needs a proof or a secret that the requests of this test do not have. So the answer is never
/// 2xx, although the gate lets everybody in.
const NEEDS_A_PROOF: [&str; 5] = ["/confirm/", "/reset/", "/transfer/permit/", "/transfer/", "/operator/"];

/// The endpoints that the web server lists.
fn routes() -> BTreeSet<String> {
    let output = Command::new(binary("gpubnb-ui").unwrap()).arg("routes").output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The parts of an answer that show the treatment.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// The body. Empty for an event stream, because such a stream has no end.
    pub(crate) text: String,
    location: String,
}

/// Sends a request to one endpoint.
pub(crate) async fn send(who: &ApiClient, method: &Method, path: &str) -> Answer {
    let mut request = who.build_request(method.clone(), path);
    if *method != Method::GET && path.starts_with("/api/") {
        request = request.json(&json!({}));
    }
    let response = request.send().await.unwrap();
    let location = response.headers().get("location").map_or("", |l| l.to_str().unwrap()).to_owned();
    let status = response.status();
    let is_stream = response.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream");
    let text = if is_stream { String::new() } else { response.text().await.unwrap_or_default() };
    Answer { status, text, location }
}

/// The treatment that an answer shows.
fn treatment(answer: &Answer, access: &str) -> Treatment {
    let text = &answer.text;
    match answer.status {
        // Without a proof, the handler answers 401. The gate's 401 says that the token is not known.
        StatusCode::UNAUTHORIZED if access == "proof" && !text.contains("The token is not known") => Pass,
        StatusCode::UNAUTHORIZED => Login,
        StatusCode::SEE_OTHER if answer.location.starts_with("/sign-in?next=") => Login,
        // Handlers answer with these two refusals after the gate has let the request pass.
        StatusCode::FORBIDDEN if access == "session" && text.contains("BadInvite") => Pass,
        StatusCode::FORBIDDEN if text.contains("This link has run out") => Pass,
        StatusCode::FORBIDDEN => Deny,
        _ if access == "operator" && text.contains("There is no such page") => Hide,
        _ => Pass,
    }
}

/// A market with one of each thing that an address can name. All things belong to the consumer.
struct Things {
    system: System,
    job: String,
    dataset: String,
    batch: String,
    lease: String,
    machine: String,
    /// The sequence of the job's settlement.
    seq: String,
    /// The directory in the addresses of assets, which names their version.
    assets: String,
}

impl Things {
    /// Starts the market, runs one job, and waits until its settlement can be proven.
    async fn make() -> Self {
        let mut system = System::start(MarketSettings::default()).await.unwrap();
        system.enroll("attic", &system.consumer).await.unwrap();
        system.start_worker("attic", &[]).await.unwrap();
        let picture = json!({ "width": "160", "height": "90", "samples": "1" });
        let job = system.consumer.submit(&json!({ "template": "render", "parameters": picture })).await.unwrap();
        let settled = system.consumer.wait_until_settled(&job).await.unwrap();
        let seq = settled["seq"].to_string();
        // A proof of the event exists only after a later head of the log is signed.
        wait_until("a signed head", async || system.run_operator_tool(&["prove", &seq]).unwrap().status.success())
            .await;
        let (_, page) = system.consumer.stranger().bytes("/").await.unwrap();
        let page = String::from_utf8(page).unwrap();
        let assets = page.split("/assets/").nth(1).and_then(|rest| rest.split('/').next()).unwrap().to_owned();
        let machine = system.machine_id("attic").unwrap();
        let dataset = system.consumer.push_dataset("a.txt", "a").await.unwrap();
        let batch = json!({ "job": { "template": "noop" }, "array": "0" });
        let batch = system.consumer.post("/batches", &batch).await.unwrap();
        let batch = batch["batch"].as_str().unwrap().to_owned();
        Self { job, dataset, batch, lease: settled["attempts"][0]["lease"].to_string(), machine, seq, assets, system }
    }

    /// Fills the parameters of an address with existing things.
    fn with_existing_ids(&self, path: &str) -> String {
        let path = path.replace("{job}", &self.job).replace("{machine}", &self.machine).replace("{seq}", &self.seq);
        let path = path.replace("{dataset}", &self.dataset).replace("{batch}", &self.batch);
        let path = path.replace("{*path}", "render.png").replace("{lease}", &self.lease);
        let path = path.replace("{version}", &self.assets).replace("{name}", "style.css");
        let path = path.replace("{account}", &self.system.consumer.account).replace("{guide}", "consumer");
        let query = match path.rsplit_once('/').map(|(_, last)| last) {
            Some("part") => format!("?lease={}&from=0", self.lease),
            Some("search") => "?text=render".to_owned(),
            Some("travel") => format!("?at={}", self.seq),
            _ => String::new(),
        };
        format!("{}{query}", path.replace("{secret}", "x").replace("{permit}", "x"))
    }
}

/// Fills the parameters of an address with ids of things that do not exist, so that the request changes nothing. The
/// gate decides before the handler looks for the thing.
fn with_missing_ids(path: &str) -> String {
    let id = JobId::generate().to_string();
    ["{job}", "{machine}", "{token}", "{session}", "{account}", "{payout}", "{input}"]
        .iter()
        .fold(path.to_owned(), |path, name| path.replace(name, &id))
        .replace("{*path}", "x")
        .replace("{dataset}", &"0".repeat(64))
        .replace("{batch}", &BatchId::generate().to_string())
        .replace("{lease}", "1")
        .replace("{model}", "x")
        .replace("{secret}", "x")
}

/// One client for each kind of actor.
struct Actors {
    stranger: ApiClient,
    /// Another person, at a browser.
    another: ApiClient,
    /// The owner of the things, at a browser.
    owner: ApiClient,
    /// Tokens of the owner with one scope each.
    narrow: [(&'static str, ApiClient); 2],
    /// The owner's token with all scopes.
    token: ApiClient,
    /// A token of the owner that was deleted.
    deleted: ApiClient,
    operator: ApiClient,
}

impl Actors {
    /// Makes the clients for the market of `Things`.
    async fn new(system: &System) -> Self {
        let consumer = &system.consumer;
        let deleted = consumer.new_token(&["jobs:read"]).await.unwrap();
        let browser = consumer.browser_session();
        for known in browser.get("/tokens").await.unwrap().as_array().unwrap() {
            if known["scopes"] == json!(["jobs:read"]) {
                let path = format!("/tokens/{}", known["id"].as_str().unwrap());
                let (status, _) = browser.request(Method::DELETE, &path, None).await.unwrap();
                assert!(status.is_success());
            }
        }
        let narrow = async |scope| (scope, consumer.with_token(&consumer.new_token(&[scope]).await.unwrap()));
        Self {
            stranger: consumer.stranger(),
            another: system.machine_owner.browser_session(),
            owner: browser,
            narrow: [narrow("jobs:read").await, narrow("wallet:read").await],
            token: consumer.clone(),
            deleted: consumer.with_token(&deleted),
            operator: ApiClient::sign_up_operator(system).await.unwrap(),
        }
    }

    /// The actors in the order of [`Treatments`]. The narrow token is the one that lacks the scope `access`.
    fn for_access(&self, access: &str) -> [&ApiClient; 7] {
        let wrong = self.narrow.iter().find(|(scope, _)| (*scope == "jobs:read") == (access == "wallet:read")).unwrap();
        [&self.stranger, &self.another, &self.owner, &wrong.1, &self.token, &self.deleted, &self.operator]
    }
}

/// The pages of another person's job or batch that operators see: its state and its events. They see neither its log
/// nor its files.
const SEEN_BY_OPERATORS: [&str; 5] =
    ["/jobs/{job}", "/jobs/{job}/live", "/jobs/{job}/trail.jsonl", "/batches/{batch}", "/batches/{batch}/live"];

/// The status of a GET request that the gate lets pass. The things belong to the actors 2 to 4 (counted from 0).
/// To other actors they look as if they did not exist.
fn expected_status(path: &str, actor: usize) -> StatusCode {
    let is_of_consumer = ["{job}", "{dataset}", "{batch}"].iter().any(|thing| path.contains(thing));
    let is_of_owner = path == "/api/v1/machines/{machine}/days";
    let is_visible = match actor {
        0 | 1 => !is_of_consumer && !is_of_owner && !path.starts_with("/events/{seq}"),
        2..=4 => true,
        _ => !is_of_owner && (!is_of_consumer || SEEN_BY_OPERATORS.contains(&path)),
    };
    match path {
        // The pages redirect a person who is signed in already.
        "/sign-in" | "/sign-up" if [1, 2, 6].contains(&actor) => StatusCode::SEE_OTHER,
        _ if is_visible => StatusCode::OK,
        _ => StatusCode::NOT_FOUND,
    }
}

#[tokio::test]
async fn every_endpoint_admits_exactly_the_actors_of_its_access() {
    let table: BTreeSet<String> = TABLE.lines().map(str::to_owned).collect();
    assert_eq!(routes(), table, "an endpoint was added, removed or changed: say so in tests/tests/api/access.table");
    let things = Things::make().await;
    let actors = Actors::new(&things.system).await;
    let mut wrong = Vec::new();
    for line in table.iter().filter(|line| !ENDS_A_SESSION.iter().any(|end| line.contains(end))) {
        let [method, path, access] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let (_, expected) = GATE.iter().find(|(name, _)| *name == access).unwrap();
        let method: Method = method.parse().unwrap();
        let is_read = method == Method::GET;
        let address = if is_read { things.with_existing_ids(path) } else { with_missing_ids(path) };
        for (actor, who) in actors.for_access(access).into_iter().enumerate() {
            let answer = send(who, &method, &address).await;
            let (status, got) = (answer.status, treatment(&answer, access));
            // The status 507 means that the disk of this computer is nearly full, so the endpoint is not at fault.
            let is_failure = status.is_server_error() && status != StatusCode::INSUFFICIENT_STORAGE;
            if is_failure || got != expected[actor] {
                wrong.push(format!("{line}: actor {actor} got {got:?}: {status} {}", answer.text));
            }
            let has_proof = !NEEDS_A_PROOF.iter().any(|prefix| path.starts_with(prefix));
            if is_read && expected[actor] == Pass && has_proof && status != expected_status(path, actor) {
                wrong.push(format!("{line}: actor {actor} reads {address}: {status} {}", answer.text));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
