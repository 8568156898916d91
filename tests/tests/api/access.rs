//! The gate: every endpoint is tried by every kind of actor.

use std::{collections::BTreeSet, process::Command};

use gpubnb_events::JobId;
use gpubnb_tests::{
    parts::binary,
    system::{Options, System},
    wait::until,
    web::Web,
};
use reqwest::{Method, StatusCode};
use serde_json::json;

/// The treatment of one actor at one endpoint: let in, asked who it is, refused, or told that there is no such page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    In,
    Who,
    No,
    Nothing,
}

/// One treatment for each of the [`Actors`], in their order.
type Row = [Met; 7];

use Met::{In, No, Nothing, Who};

/// The gate's treatment of each actor, by the kind of access that an endpoint says it demands.
const GATE: [(&str, Row); 9] = [
    ("public", [In, In, In, In, In, Who, In]),
    ("proof", [In, In, In, In, In, Who, In]),
    ("authenticated", [Who, In, In, In, In, Who, In]),
    ("session", [Who, In, In, No, No, Who, In]),
    ("jobs:read", [Who, In, In, No, In, Who, In]),
    ("jobs:write", [Who, In, In, No, In, Who, In]),
    ("machines:write", [Who, In, In, No, In, Who, In]),
    ("wallet:read", [Who, In, In, No, In, Who, In]),
    ("operator", [Who, Nothing, Nothing, Nothing, Nothing, Who, In]),
];

/// Every endpoint, and the access that it demands. One that is missing here fails the test.
const TABLE: &str = include_str!("access.table");

/// Endpoints that would end the session of an actor that other lines of the table need.
const ENDS_A_SESSION: [&str; 2] = ["/sign-out", "/account/password"];

/// Endpoints that answer 2xx to nobody here, although the gate lets everybody in: they want a proof or a secret that the
/// request of this test does not have.
const WANTS_A_PROOF: [&str; 3] = ["/transfer/permit/", "/transfer/", "/operator/"];

fn routes() -> BTreeSet<String> {
    let output = Command::new(binary("gpubnb-ui").unwrap()).arg("routes").output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The parts of an answer by which its treatment is told.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// Empty for a stream of events, which has no end.
    pub(crate) text: String,
    location: String,
}

/// Tries one endpoint.
pub(crate) async fn tried(who: &Web, method: &Method, path: &str) -> Answer {
    let mut request = who.ask(method.clone(), path);
    if *method != Method::GET && path.starts_with("/api/") {
        request = request.json(&json!({}));
    }
    let response = request.send().await.unwrap();
    let location = response.headers().get("location").map_or("", |l| l.to_str().unwrap()).to_owned();
    let status = response.status();
    let live = response.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream");
    let text = if live { String::new() } else { response.text().await.unwrap_or_default() };
    Answer { status, text, location }
}

/// The treatment that an answer shows.
fn met(answer: &Answer, access: &str) -> Met {
    let text = &answer.text;
    match answer.status {
        // The handler itself says that the proof in the request is missing; the gate says that a token is not known.
        StatusCode::UNAUTHORIZED if access == "proof" && !text.contains("The token is not known") => In,
        StatusCode::UNAUTHORIZED => Who,
        StatusCode::SEE_OTHER if answer.location.starts_with("/sign-in?next=") => Who,
        // These refusals come from handlers, after the gate.
        StatusCode::FORBIDDEN if access == "session" && text.contains("BadInvite") => In,
        StatusCode::FORBIDDEN if text.contains("This link has run out") => In,
        StatusCode::FORBIDDEN => No,
        _ if access == "operator" && text.contains("There is no such page") => Nothing,
        _ => In,
    }
}

/// A market with one of everything that an address can name; all of it belongs to the consumer.
struct Things {
    system: System,
    job: String,
    lease: String,
    machine: String,
    /// The sequence of the job's settlement.
    seq: String,
    /// The directory in the addresses of assets, which names their version.
    assets: String,
}

impl Things {
    async fn make() -> Self {
        let mut system = System::start(Options::default()).await.unwrap();
        system.enroll("attic", &system.web).await.unwrap();
        system.start_worker("attic", &[]).await.unwrap();
        let picture = json!({ "width": "160", "height": "90", "samples": "1" });
        let job = system.web.submit(&json!({ "template": "render", "parameters": picture })).await.unwrap();
        let settled = system.web.settled(&job).await.unwrap();
        let seq = settled["seq"].to_string();
        // A proof of an event exists once a head is signed after it.
        until("a signed head", async || system.tool(&["prove", &seq]).unwrap().status.success()).await;
        let (_, page) = system.web.stranger().bytes("/").await.unwrap();
        let page = String::from_utf8(page).unwrap();
        let assets = page.split("/assets/").nth(1).and_then(|rest| rest.split('/').next()).unwrap().to_owned();
        let machine = system.machine("attic").unwrap();
        Self { job, lease: settled["attempts"][0]["lease"].to_string(), machine, seq, assets, system }
    }

    /// An address at which a reader finds something.
    fn read(&self, path: &str) -> String {
        let path = path.replace("{job}", &self.job).replace("{machine}", &self.machine).replace("{seq}", &self.seq);
        let path = path.replace("{*path}", "render.png").replace("{lease}", &self.lease);
        let path = path.replace("{version}", &self.assets).replace("{name}", "style.css");
        let query = match path.rsplit_once('/').map(|(_, last)| last) {
            Some("part") => format!("?lease={}&from=0", self.lease),
            Some("search") => "?text=render".to_owned(),
            Some("travel") => format!("?at={}", self.seq),
            _ => String::new(),
        };
        format!("{}{query}", path.replace("{secret}", "x").replace("{permit}", "x"))
    }
}

/// An address with ids of things that are not there, so that nothing is changed: the gate stands before them.
fn missing(path: &str) -> String {
    let id = JobId::generate().to_string();
    ["{job}", "{machine}", "{token}", "{session}", "{account}", "{payout}", "{input}"]
        .iter()
        .fold(path.to_owned(), |path, name| path.replace(name, &id))
        .replace("{*path}", "x")
        .replace("{lease}", "1")
        .replace("{model}", "x")
        .replace("{secret}", "x")
}

/// The kinds of actors.
struct Actors {
    stranger: Web,
    another: Web,
    owner: Web,
    /// The owner's tokens with one scope each: an endpoint is tried with the one that does not fit.
    narrow: [(&'static str, Web); 2],
    token: Web,
    lapsed: Web,
    operator: Web,
}

impl Actors {
    async fn of(system: &System) -> Self {
        let web = &system.web;
        let lapsed = web.new_token(&["jobs:read"]).await.unwrap();
        let browser = web.at_browser();
        for known in browser.get("/tokens").await.unwrap().as_array().unwrap() {
            if known["scopes"] == json!(["jobs:read"]) {
                let path = format!("/tokens/{}", known["id"].as_str().unwrap());
                let (status, _) = browser.request(Method::DELETE, &path, None).await.unwrap();
                assert!(status.is_success());
            }
        }
        let narrow = async |scope| (scope, web.with_token(&web.new_token(&[scope]).await.unwrap()));
        Self {
            stranger: web.stranger(),
            another: system.owner.at_browser(),
            owner: browser,
            narrow: [narrow("jobs:read").await, narrow("wallet:read").await],
            token: web.clone(),
            lapsed: web.with_token(&lapsed),
            operator: Web::operator(system).await.unwrap(),
        }
    }

    /// In the order of a [`Row`].
    fn at(&self, access: &str) -> [&Web; 7] {
        let wrong = self.narrow.iter().find(|(scope, _)| (*scope == "jobs:read") == (access == "wallet:read")).unwrap();
        [&self.stranger, &self.another, &self.owner, &wrong.1, &self.token, &self.lapsed, &self.operator]
    }
}

/// The parts of another person's job that operators see: its state and its events, but neither lines nor files.
const SEEN_BY_OPERATORS: [&str; 3] = ["/jobs/{job}", "/jobs/{job}/live", "/jobs/{job}/trail.jsonl"];

/// The status for an actor whom the gate lets in to read. The things that addresses name belong to the actors 2 to 4; for
/// another person they are not there.
fn expected_status(path: &str, actor: usize) -> StatusCode {
    let of_a_job = path.contains("{job}");
    let of_the_owner = path == "/api/v1/machines/{machine}/days";
    let there = match actor {
        0 | 1 => !of_a_job && !of_the_owner && !path.starts_with("/events/{seq}"),
        2..=4 => true,
        _ => !of_the_owner && (!of_a_job || SEEN_BY_OPERATORS.contains(&path)),
    };
    match path {
        // A person who is signed in is sent on.
        "/sign-in" if [1, 2, 6].contains(&actor) => StatusCode::SEE_OTHER,
        _ if there => StatusCode::OK,
        _ => StatusCode::NOT_FOUND,
    }
}

#[tokio::test]
async fn every_endpoint_lets_in_whom_it_says_and_nobody_else() {
    let table: BTreeSet<String> = TABLE.lines().map(str::to_owned).collect();
    assert_eq!(routes(), table, "an endpoint was added, removed or changed: say so in tests/tests/api/access.table");
    let things = Things::make().await;
    let actors = Actors::of(&things.system).await;
    let mut wrong = Vec::new();
    for line in table.iter().filter(|line| !ENDS_A_SESSION.iter().any(|end| line.contains(end))) {
        let [method, path, access] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let (_, expected) = GATE.iter().find(|(name, _)| *name == access).unwrap();
        let method: Method = method.parse().unwrap();
        let reads = method == Method::GET;
        let address = if reads { things.read(path) } else { missing(path) };
        for (actor, who) in actors.at(access).into_iter().enumerate() {
            let answer = tried(who, &method, &address).await;
            let (status, got) = (answer.status, met(&answer, access));
            // A disk of the test machine that is nearly full is no fault of the endpoint.
            let fails = status.is_server_error() && status != StatusCode::INSUFFICIENT_STORAGE;
            if fails || got != expected[actor] {
                wrong.push(format!("{line}: actor {actor} met {got:?}: {status} {}", answer.text));
            }
            let proven = !WANTS_A_PROOF.iter().any(|prefix| path.starts_with(prefix));
            if reads && expected[actor] == In && proven && status != expected_status(path, actor) {
                wrong.push(format!("{line}: actor {actor} reads {address}: {status} {}", answer.text));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
