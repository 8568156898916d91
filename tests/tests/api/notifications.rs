//! Notifications: webhooks and e-mail about events, a confirmed address, and a forgotten password. The SMTP server is
//! aiosmtpd.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use data_encoding::BASE64;
use gpubnb_events::{CommandId, notification::NotificationKind};
use gpubnb_tests::{
    api_client::ApiClient,
    jobs,
    process::Process,
    programs::{free_port, program},
    system::{MarketSettings, System},
    wait::wait_until,
};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::Sha256;

/// A request that a webhook got: its headers and its body.
type Got = (HeaderMap, Vec<u8>);

/// A program with a webhook: it answers with each status once, then with 200.
#[derive(Clone, Default)]
struct Receiver {
    answers: Arc<Mutex<Vec<StatusCode>>>,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Receiver {
    async fn start() -> (Self, u16) {
        let receiver = Self::default();
        let routes = Router::new().route("/hook", post(take)).with_state(receiver.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (receiver, port)
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }
}

async fn take(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> StatusCode {
    receiver.got.lock().unwrap().push((headers, body.to_vec()));
    receiver.answers.lock().unwrap().pop().unwrap_or(StatusCode::OK)
}

/// Sends a form of a page in the name of a person, and returns the page that answers.
async fn send_form(person: &ApiClient, path: &str, fields: &[(&str, &str)]) -> String {
    let fields: Vec<_> = fields.iter().copied().chain([("csrf", person.csrf())]).collect();
    let answer = person.browser_session().build_request(Method::POST, path).form(&fields).send().await.unwrap();
    let status = answer.status();
    let place = answer.headers().get("location").map(|place| place.to_str().unwrap().to_owned());
    assert!(status.is_success() || status.is_redirection(), "{path}: {status}");
    place.unwrap_or(answer.text().await.unwrap())
}

/// Fills in the form of a page as a browser does: with the page's own hidden fields, and no other.
async fn fill_in(person: &ApiClient, path: &str, fields: &[(&str, &str)]) -> String {
    let text = page(person, path).await;
    let form = text.split("<main").nth(1).unwrap().split("<form").nth(1).unwrap().split("</form>").next().unwrap();
    let csrf = form.split("name=\"csrf\" value=\"").nth(1).map(|rest| rest.split('"').next().unwrap());
    let fields: Vec<_> = fields.iter().copied().chain(csrf.map(|csrf| ("csrf", csrf))).collect();
    let answer = person.browser_session().build_request(Method::POST, path).form(&fields).send().await.unwrap();
    let status = answer.status();
    assert!(status.is_success() || status.is_redirection(), "{path}: {status}");
    let place = answer.headers().get("location").map(|place| place.to_str().unwrap().to_owned());
    place.unwrap_or(answer.text().await.unwrap())
}

async fn page(person: &ApiClient, path: &str) -> String {
    person.browser_session().build_request(Method::GET, path).send().await.unwrap().text().await.unwrap()
}

/// Submits a job that no machine takes, and cancels it.
async fn cancel_a_job(consumer: &ApiClient) -> String {
    let job = consumer.submit(&jobs::unplaceable(jobs::noop_job(), "0.10")).await.unwrap();
    consumer.post(&format!("/jobs/{job}/cancel"), &json!({})).await.unwrap();
    consumer.wait_until_settled(&job).await.unwrap();
    job
}

/// A market whose webhooks may be at this host and port.
fn settings(allowed: &str) -> MarketSettings {
    MarketSettings { ui: vec!["--webhook-host".to_owned(), allowed.to_owned()], ..MarketSettings::default() }
}

fn start_notifier(system: &System, arguments: &[&str]) -> Process {
    let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    system.spawn_notifier(&arguments).unwrap()
}

async fn wait_until_ready(notifier: &Process) {
    wait_until("the notifier is ready", async || notifier.has_printed("ready")).await;
}

fn header<'a>((headers, _): &'a Got, name: &str) -> &'a str {
    headers[name].to_str().unwrap()
}

#[tokio::test]
async fn a_webhook_is_told_once_signed_and_again_after_a_failure() {
    let (receiver, port) = Receiver::start().await;
    let allowed = format!("127.0.0.1:{port}");
    let system = System::start(settings(&allowed)).await.unwrap();
    let consumer = &system.consumer;
    let notifier = start_notifier(&system, &["--webhook-host", &allowed, "--url", "https://market.example"]);
    wait_until_ready(&notifier).await;

    let url = format!("http://{allowed}/hook");
    let added = send_form(consumer, "/account/webhooks", &[("url", &url), ("kind", "job.cancelled")]).await;
    let secret = added.split("whsec_").nth(1).unwrap().split('<').next().unwrap().to_owned();
    assert!(!page(consumer, "/account/notifications").await.contains(&secret), "the secret is shown again");
    // A webhook at a private address that the operator did not allow is never reached.
    let (unreached, private) = Receiver::start().await;
    let url = format!("https://127.0.0.1:{private}/hook");
    send_form(consumer, "/account/webhooks", &[("url", &url), ("kind", "job.cancelled")]).await;

    receiver.answers.lock().unwrap().push(StatusCode::SERVICE_UNAVAILABLE);
    let job = cancel_a_job(consumer).await;
    wait_until("the webhook is told again after its failure", async || receiver.got().len() == 2).await;
    let got = receiver.got();
    assert_eq!(header(&got[0], "webhook-id"), header(&got[1], "webhook-id"));
    for request @ (_, body) in &got {
        let seconds = header(request, "webhook-timestamp");
        let mut mac = Hmac::<Sha256>::new_from_slice(&BASE64.decode(secret.as_bytes()).unwrap()).unwrap();
        mac.update(format!("{}.{seconds}.{}", header(request, "webhook-id"), String::from_utf8_lossy(body)).as_bytes());
        let expected = format!("v1,{}", BASE64.encode(&mac.finalize().into_bytes()));
        assert_eq!(header(request, "webhook-signature"), expected);
        let told: Value = serde_json::from_slice(body).unwrap();
        assert_eq!((&told["type"], &told["data"]["job"]), (&json!("job.cancelled"), &json!(job)));
        assert_eq!(told["url"], format!("https://market.example/jobs/{job}"));
    }
    wait_until("both tries and the private address are on the page", async || {
        let page = page(consumer, "/account/notifications").await;
        ["the host answered 503", "arrived", "the host has no public address"].iter().all(|text| page.contains(text))
    })
    .await;

    // A new start of the notifier tells nothing again: the next request is about the next job.
    drop(notifier);
    let notifier = start_notifier(&system, &["--webhook-host", &allowed]);
    let next = cancel_a_job(consumer).await;
    wait_until("the webhook is told of the next job", async || receiver.got().len() >= 3).await;
    let told: Value = serde_json::from_slice(&receiver.got()[2].1).unwrap();
    assert_eq!(told["data"]["job"], json!(next));

    let id = page(consumer, "/account/notifications").await;
    let id = id.split("/account/webhooks/").nth(1).unwrap().split('/').next().unwrap().to_owned();
    send_form(consumer, &format!("/account/webhooks/{id}/test"), &[]).await;
    wait_until("the webhook gets a test", async || receiver.got().len() == 4).await;
    assert!(String::from_utf8_lossy(&receiver.got()[3].1).contains("\"type\":\"test\""));
    assert!(unreached.got().is_empty());
    drop(notifier);
}

#[tokio::test]
async fn webhooks_are_added_tested_and_removed_from_the_command_line() {
    let (receiver, port) = Receiver::start().await;
    let allowed = format!("127.0.0.1:{port}");
    let system = System::start(settings(&allowed)).await.unwrap();
    let person = &system.consumer;
    let run = |arguments: &[&str]| {
        let output = person.run_client(&[&["webhooks"], arguments].concat(), "").unwrap();
        let (text, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        (output.status.success(), if output.status.success() { text } else { errors })
    };
    let notifier = start_notifier(&system, &["--webhook-host", &allowed]);
    wait_until_ready(&notifier).await;

    let (_, refused) = run(&["add", "http://127.0.0.1:1/hook"]);
    assert!(refused.contains("The address begins with https://"), "{refused}");
    let (added, lines) = run(&["add", &format!("http://{allowed}/hook"), "--kind", "job.cancelled"]);
    assert!(added, "{lines}");
    let [id, secret] = lines.lines().collect::<Vec<_>>().try_into().unwrap();
    assert!(secret.starts_with("whsec_"));
    let (_, listed) = run(&["list"]);
    assert!(listed.contains(id) && listed.contains("job.cancelled") && !listed.contains(secret), "{listed}");

    assert!(run(&["test", id]).0);
    wait_until("the webhook gets a test", async || receiver.got().len() == 1).await;
    let (_, refused) = run(&["test", id]);
    assert!(refused.contains("A test was sent just now"), "{refused}");
    wait_until("the delivery is listed", async || {
        let (_, tries) = run(&["deliveries"]);
        tries.lines().any(|line| line.contains(id) && line.ends_with("delivered"))
    })
    .await;
    assert!(run(&["remove", id]).0);
    assert!(run(&["remove", id]).1.contains("There is no such webhook"));
    assert!(!run(&["list"]).1.contains(id));
    drop(notifier);
}

#[tokio::test]
async fn each_kind_of_news_is_told_once() {
    let (receiver, port) = Receiver::start().await;
    let allowed = format!("127.0.0.1:{port}");
    let services = ["--suspect-after", "5", "--lost-after", "15"].map(str::to_owned).into();
    let mut system = System::start(MarketSettings { services, ..settings(&allowed) }).await.unwrap();
    let owner = system.machine_owner.clone();
    let operator = ApiClient::sign_up_operator(&system).await.unwrap();
    let notifier = start_notifier(&system, &["--webhook-host", &allowed]);
    wait_until_ready(&notifier).await;
    let all = NotificationKind::choices().map(|kind| ("kind", kind.name()));
    let url = format!("http://{allowed}/hook");
    send_form(&owner, "/account/webhooks", &all.chain([("url", url.as_str())]).collect::<Vec<_>>()).await;

    system.start_worker("attic", &[]).await.unwrap();
    owner.deposit("20").await.unwrap();
    let job = owner.submit(&jobs::noop_job()).await.unwrap();
    owner.wait_until_settled(&job).await.unwrap();
    // The last payout leaves less than the limit of $1, and the payout of one cent after it is no more news.
    let closings = [("5", json!(null)), ("6", json!("no such bank")), ("14.50", json!(null)), ("0.01", json!(null))];
    for (amount, failure) in closings {
        let payout = CommandId::generate().to_string();
        let body = json!({ "payout": payout, "amount_usd": amount });
        owner.browser_session().post("/wallet/payouts", &body).await.unwrap();
        let path = format!("/ops/accounts/{}/payouts/{payout}", owner.account);
        operator.post(&path, &json!({ "failed": failure })).await.unwrap();
    }
    for worker in system.workers.drain(..) {
        worker.kill();
    }
    let kinds = || -> Vec<String> {
        let kind =
            |(_, body): &Got| serde_json::from_slice::<Value>(body).unwrap()["type"].as_str().unwrap().to_owned();
        let mut kinds: Vec<_> = receiver.got().iter().map(kind).collect();
        kinds.sort();
        kinds
    };
    wait_until("the lost machine is told", async || kinds().iter().any(|kind| kind == "machine.lost")).await;
    let expected =
        ["balance.low", "job.completed", "machine.lost", "payout.failed", "payout.paid", "payout.paid", "payout.paid"];
    wait_until("everything is told", async || kinds().len() >= expected.len()).await;
    assert_eq!(kinds(), expected);
    drop(notifier);
}

/// The e-mails that the SMTP server has taken.
fn mails(directory: &Path) -> Vec<String> {
    let files = fs::read_dir(directory.join("new")).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = files.map(|file| file.path()).collect();
    files.sort();
    // Long lines are broken with `=` (quoted-printable).
    files.iter().map(|file| fs::read_to_string(file).unwrap().replace("=\n", "").replace("=3D", "=")).collect()
}

/// Waits for an e-mail to `to` with this subject, and returns it.
async fn wait_for_mail(directory: &Path, to: &str, subject: &str) -> String {
    let find = || {
        let (to, subject) = (format!("To: {to}"), format!("Subject: {subject}"));
        mails(directory).into_iter().find(|mail| mail.contains(&to) && mail.contains(&subject))
    };
    wait_until(&format!("an e-mail `{subject}`"), async || find().is_some()).await;
    find().unwrap()
}

fn link(mail: &str, path: &str) -> String {
    let start = format!("https://market.example{path}");
    let rest = mail.split(&start).nth(1).unwrap_or_else(|| panic!("no link {start} in {mail}"));
    format!("{path}{}", rest.split_whitespace().next().unwrap())
}

#[tokio::test]
async fn an_address_is_confirmed_told_and_gets_a_link_for_a_forgotten_password() {
    let (receiver, own_port) = Receiver::start().await;
    let allowed = format!("127.0.0.1:{own_port}");
    let system = System::start(settings(&allowed)).await.unwrap();
    let port = free_port().unwrap();
    let directory = system.path().join("mails");
    let remedy = "run deploy/setup.sh --tests";
    let mut command = Command::new(program("GPUBNB_AIOSMTPD", "aiosmtpd", remedy).unwrap());
    command.args(["--nosetuid", "--listen", &format!("127.0.0.1:{port}"), "--class", "aiosmtpd.handlers.Mailbox"]);
    let server = Process::start("smtp", command.arg(&directory), system.path()).unwrap();
    let from = "GPUbnb <no-reply@market.example>";
    let smtp = format!("smtp://127.0.0.1:{port}");
    let arguments =
        ["--smtp", &smtp, "--mail-from", from, "--url", "https://market.example", "--webhook-host", &allowed];
    let notifier = start_notifier(&system, &arguments);
    wait_until_ready(&notifier).await;

    let mut person = ApiClient::sign_up(&system.url(), &CommandId::generate().to_string()).await.unwrap();
    let mail = wait_for_mail(&directory, &person.email, "Confirm your e-mail address").await;
    let confirm = link(&mail, "/confirm/");
    let kinds = [("has_mail", "1"), ("kind", "job.cancelled"), ("low_balance", "1")];
    send_form(&person, "/account/notifications", &kinds).await;
    person.deposit("10").await.unwrap();
    let url = format!("http://{allowed}/hook");
    send_form(&person, "/account/webhooks", &[("url", &url), ("kind", "job.cancelled")]).await;
    // Nobody has confirmed the address yet, so no e-mail is sent. The webhook shows that the notifier knows of the job.
    let before = cancel_a_job(&person).await;
    wait_until("the webhook is told of the first job", async || receiver.got().len() == 1).await;
    // Opening the link alone confirms nothing: programs that check e-mail open links.
    page(&person, &confirm).await;
    assert!(page(&person, "/account/notifications").await.contains("Nothing is sent before you confirm"));
    fill_in(&person, &confirm, &[]).await;
    let job = cancel_a_job(&person).await;
    let told = wait_for_mail(&directory, &person.email, "Job ").await;
    assert!(told.contains(&format!("https://market.example/jobs/{job}")), "{told}");
    assert!(!told.contains(&before), "{told}");

    // The answer is the same for an address with an account and for another.
    let stranger = person.stranger();
    let known = fill_in(&stranger, "/forgot", &[("email", &person.email)]).await;
    let unknown = fill_in(&stranger, "/forgot", &[("email", "nobody@host.example")]).await;
    assert_eq!(known, unknown);
    let mail = wait_for_mail(&directory, &person.email, "Choose a new password").await;
    let reset = link(&mail, "/reset/");
    let old = person.clone();
    person.password = "another long phrase".to_owned();
    assert_eq!(fill_in(&stranger, &reset, &[("password", &person.password)]).await, "/sign-in?reset=1");
    assert!(!mails(&directory).iter().any(|mail| mail.contains("nobody@host.example")));
    // The old session and the old password have ended, and the link works once.
    let wallet = old.browser_session().build_request(Method::GET, "/wallet").send().await.unwrap();
    assert!(wallet.status().is_redirection());
    assert!(old.clone().sign_in().await.is_err());
    person.sign_in().await.unwrap();
    let again = stranger.build_request(Method::POST, &reset).form(&[("password", "a third long phrase")]);
    assert_eq!(again.send().await.unwrap().status(), StatusCode::NOT_FOUND);
    wait_for_mail(&directory, &person.email, "Your password was changed").await;
    // Whoever had the account before is told nothing more.
    assert!(!page(&person, "/account/notifications").await.contains("/account/webhooks/"));
    drop((notifier, server));
}
