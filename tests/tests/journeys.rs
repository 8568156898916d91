//! A journey of each kind of person through the pages, in real Chromium: at the width of a desk and of a phone, in
//! light and dark. Each page on the way is sound: no error in the console, nothing seriously hard to use, no dead link.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeSet, VecDeque},
    process::Command,
    time::Duration,
};

use gpubnb_tests::{
    browser::{Browser, console},
    parts::binary,
    process::Process,
    system::{Options, System},
    web::Web,
};
use reqwest::Method;
use serde_json::json;

/// A window: its width and height, the colours, and a name for its pictures.
const WINDOWS: [(u32, u32, &str, &str); 4] = [
    (1280, 900, "light", ""),
    (1280, 900, "dark", "-dark"),
    (360, 740, "light", "-phone"),
    (360, 740, "dark", "-phone-dark"),
];

async fn sign_up(browser: &Browser, system: &System, name: &str) {
    browser.visit(system, "/sign-up").await;
    browser.fill("input[name=email]", &format!("{name}@gpubnb.example")).await;
    browser.fill("input[name=password]", "correct horse battery").await;
    browser.click("main form button").await;
    browser.wait_for("form[action='/sign-in']").await;
    browser.fill("input[name=email]", &format!("{name}@gpubnb.example")).await;
    browser.fill("input[name=password]", "correct horse battery").await;
    browser.click("main form button").await;
    browser.wait_for(".who form button").await;
}

#[tokio::test]
async fn a_consumer_signs_up_funds_finds_quotes_submits_watches_downloads_and_reads_the_receipt() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("Attic", &["--price", "0.36", "--region", "eu-west"]).await.unwrap();
    system.start_worker("Studio", &["--price", "0.9", "--simulate-gpus", "1"]).await.unwrap();
    let browser = Browser::open(&system).await;
    for (round, (width, height, scheme, suffix)) in WINDOWS.into_iter().enumerate() {
        browser.size(width, height).await;
        browser.scheme(scheme).await;
        browser.visit(&system, "/").await;
        browser.picture(&format!("landing{suffix}")).await;
        sign_up(&browser, &system, &format!("consumer-{round}")).await;
        browser.visit(&system, "/wallet").await;
        browser.fill("form[action='/wallet/deposits'] input[name=amount]", "5").await;
        browser.click("form[action='/wallet/deposits'] button").await;
        browser.says("#sums", "$5.00").await;

        browser.visit(&system, "/market?text=attic&max_price=0.5").await;
        browser.says("#matches", "1 of 2 machines").await;
        browser.picture(&format!("market{suffix}")).await;
        browser.click_live(".machine .button.primary").await;
        browser.wait_for("#quote dd b").await;
        browser.says("#quote", "Attic").await;
        browser.says("#quote", "Expected start").await;
        browser.says("#quote", "now, after its image has been downloaded").await;
        browser.is_sound("new job").await;
        browser.picture(&format!("new-job{suffix}")).await;
        browser.click(".submit button.primary").await;

        browser.wait_for("#state[data-state=Settled]").await;
        browser.wait_for("#log .line").await;
        browser.is_sound("job").await;
        browser.picture(&format!("job{suffix}")).await;
        browser.click("label[for=tab-metrics]").await;
        browser.wait_for("#metrics .chart polyline").await;
        browser.picture(&format!("metrics{suffix}")).await;
        browser.click("label[for=tab-artifacts]").await;
        browser.wait_for("#artifacts figure img").await;
        browser.is_sound("files").await;
        let job = browser.client.current_url().await.unwrap().path().to_owned();
        let file = "return fetch(document.querySelector('#artifacts td a').href).then((r) => r.status)";
        assert_eq!(browser.client.execute(file, vec![]).await.unwrap(), json!(200));
        browser.click("label[for=tab-receipt]").await;
        browser.wait_for("#receipt .sum").await;
        browser.is_sound("receipt").await;
        browser.click("label[for=tab-events]").await;
        browser.says("#trail", "JobSubmitted").await;
        browser.is_sound("events").await;

        browser.visit(&system, "/jobs").await;
        browser.says("#jobs-list", "Train a neural network").await;
        browser.picture(&format!("jobs{suffix}")).await;
        browser.visit(&system, "/wallet").await;
        browser.says("#statement", "Settled").await;
        browser.picture(&format!("wallet{suffix}")).await;
        for page in ["/account", "/docs", "/styleguide", "/jobs?text=nothing", "/market?text=nothing", "/sign-in"] {
            browser.visit(&system, page).await;
        }
        browser.picture(&format!("sign-in{suffix}")).await;
        // What is another's, or not there, is said in words.
        let stranger = system.web.submit(&json!({ "template": "noop" })).await.unwrap();
        browser.client.goto(&format!("{}/jobs/{stranger}", system.url())).await.unwrap();
        browser.says("main", "There is no such job").await;
        assert_eq!(console(&browser.client).await.len(), 1, "that it is not there, the browser says too");
        browser.client.goto(&format!("{}{job}", system.url())).await.unwrap();
        browser.click(".who form button").await;
        browser.wait_for(".who a[href='/sign-in']").await;
    }
    browser.close().await;
}

#[tokio::test]
async fn a_provider_signs_up_pastes_a_command_sees_the_machine_online_earns_pauses_and_asks_for_a_payout() {
    let system = System::start(Options::default()).await.unwrap();
    let browser = Browser::open(&system).await;
    for (round, (width, height, scheme, suffix)) in WINDOWS.into_iter().enumerate() {
        browser.size(width, height).await;
        browser.scheme(scheme).await;
        sign_up(&browser, &system, &format!("provider-{round}")).await;
        browser.visit(&system, "/provider").await;
        browser.says("main", "No machine yet").await;
        browser.click("form[action='/provider/enrollments'] button").await;
        browser.wait_for("#enroll").await;
        browser.is_sound("the command").await;
        let pasted = browser.text("#enroll").await;
        let name = format!("Garage {round}");
        let worker = paste(&system, &pasted, &name);
        browser.client.goto(&format!("{}/provider", system.url())).await.unwrap();
        // It comes into the open page by itself.
        browser.says("#machines", &name).await;
        browser.says("#machines", "Online").await;

        let machines = system.web.get("/machines").await.unwrap();
        let machine =
            machines["rows"].as_array().unwrap().iter().find(|m| m["offer"]["name"] == name.as_str()).unwrap();
        let machine = machine["machine"].as_str().unwrap().to_owned();
        let body = json!({ "template": "train", "machine": machine, "parameters": { "epochs": "2" } });
        let job = system.web.submit(&body).await.unwrap();
        system.web.settled(&job).await.unwrap();
        browser.says("#machines", "100 % of 1").await;
        browser.is_sound("provider").await;
        browser.picture(&format!("provider{suffix}")).await;
        // A price that is none is said beside its field, with what was typed.
        browser.fill("#machines input[name=price]", "a lot").await;
        browser.click("#machines button[value=reprice]").await;
        browser.wait_for("#machines input[aria-invalid]").await;
        browser.is_accessible("a price that was refused").await;
        browser.forget_refusal("a price that was refused", "422").await;
        browser.visit(&system, "/provider").await;
        browser.click_live("#machines button[value=maintain]").await;
        browser.says("#machines header .badge", "Maintenance").await;
        browser.click_live("#machines button[value=resume]").await;
        browser.says("#machines header .badge", "Online").await;
        browser.click_live("#machines button[value=pause]").await;
        browser.says("#machines", "Paused").await;
        browser.visit(&system, &format!("/machines/{machine}")).await;
        browser.says("#record", "Completed").await;
        browser.picture(&format!("machine{suffix}")).await;

        browser.visit(&system, "/wallet").await;
        browser.fill("form[action='/wallet/payouts'] input[name=amount]", "1000000").await;
        browser.click("form[action='/wallet/payouts'] button").await;
        browser.wait_for("#payout-problem").await;
        browser.forget_refusal("a payout that was refused", "422").await;
        browser.visit(&system, "/wallet").await;
        browser.says("#statement", "Settled").await;
        browser.fill("form[action='/wallet/payouts'] input[name=amount]", "0.00001").await;
        browser.click("form[action='/wallet/payouts'] button").await;
        browser.says("#statement", "PayoutRequested").await;
        browser.is_sound("wallet").await;
        drop(worker);
        browser.client.goto(&format!("{}/provider", system.url())).await.unwrap();
        browser.click(".who form button").await;
        browser.wait_for(".who a[href='/sign-in']").await;
    }
    browser.close().await;
}

/// Runs what the page says is to be pasted on the machine, with a name of its own.
fn paste(system: &System, pasted: &str, name: &str) -> Process {
    let words: Vec<&str> = pasted.lines().next().unwrap().split_whitespace().collect();
    assert_eq!((words[0], words[1], words[3]), ("gpubnb-provider", "enroll", "--market"), "{pasted}");
    let data = system.path().join(name.replace(' ', "-"));
    let worker = |arguments: &[&str]| {
        let mut command = Command::new(binary("gpubnb-provider").unwrap());
        command.args(arguments).env("GPUBNB_STATE", &data);
        command
    };
    let enrolled = worker(&words[1..]).output().unwrap();
    assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
    let mut run = worker(&["run", "--name", name, "--price", "0.36"]);
    Process::start(&format!("worker-{name}"), &mut run, system.path()).unwrap()
}

#[tokio::test]
async fn an_operator_finds_a_stuck_job_travels_in_time_rebuilds_and_verifies() {
    // So that a job is stuck soon.
    let projector = ["--stuck-after", "1"].map(str::to_owned).to_vec();
    let mut system = System::start(Options { projector, ..Options::default() }).await.unwrap();
    system.start_worker("Attic", &["--price", "0.36"]).await.unwrap();
    let done = system.web.submit(&json!({ "template": "noop" })).await.unwrap();
    let settled = system.web.settled(&done).await.unwrap();
    let waiting = system
        .web
        .submit(&json!({ "template": "noop", "name": "Nobody can", "gpu_model": "H999", "budget_usd": "0.01" }))
        .await
        .unwrap();
    let operator = Web::operator(&system).await.unwrap();
    let browser = Browser::open(&system).await;
    browser.sign_in(&system, &operator).await;
    for (width, height, scheme, suffix) in WINDOWS {
        browser.size(width, height).await;
        browser.scheme(scheme).await;
        browser.visit(&system, "/console").await;
        browser.says("#streams", "MARKET").await;
        browser.says("#stuck", "Nobody can").await;
        browser.says("#doctor", "checks of the broker").await;
        browser.says("#stuck", "no machine fits its limits").await;
        browser.picture(&format!("console-stuck{suffix}")).await;
        browser.click_live("#stuck a.button").await;
        browser.says("#then", "Queued").await;
        // Every machine, and every account: those in trouble, and that it comes to nothing.
        browser.visit(&system, "/console/fleet?text=nothing-like-it").await;
        browser.says("#fleet", "No such machine").await;
        browser.visit(&system, "/console/fleet?text=attic").await;
        browser.says("#fleet", "Attic").await;
        browser.picture(&format!("console-fleet{suffix}")).await;
        browser.visit(&system, "/console/ledger").await;
        browser.says("#balances", "It balances").await;
        browser.picture(&format!("console-ledger{suffix}")).await;
        browser.visit(&system, &format!("/events/{}", settled["seq"])).await;
        browser.visit_missing(&system, "/console/nothing").await;
        browser.says("nav.who", "Account").await;

        // The whole log, and one kind of event in it; a new one comes in by itself.
        browser.visit(&system, "/console/events?event=Settled").await;
        browser.says("#events", "Settled").await;
        browser.visit(&system, &format!("/console/events?kind=job&id={waiting}")).await;
        browser.says("#events", "JobSubmitted").await;
        browser.picture(&format!("console-events{suffix}")).await;

        // As it was: before its bill was made, the job was completed, and its hold was held.
        let seq = settled["seq"].as_u64().unwrap();
        browser.visit(&system, &format!("/console/travel?kind=job&id={done}&seq={}&with={seq}", seq - 1)).await;
        browser.says("#then", "Completed").await;
        browser.says("#then", "settled\tfalse\ttrue").await;
        browser.visit(&system, &format!("/console/travel?seq={}&with={seq}", seq - 1)).await;
        browser.says("#then", "Jobs settled\t0\t1").await;
        browser.says("#total", "$0.00").await;
        browser.picture(&format!("time-travel{suffix}")).await;
        browser.click("a[rel=next]").await;
        browser.says("#then", "Jobs settled\t1\t1").await;

        browser.client.goto(&format!("{}/console", system.url())).await.unwrap();
        browser.click_live("form[action='/console/rebuild/jobs'] button").await;
        browser.says("#models", "rebuilt and swapped").await;
        browser.click_live("form[action='/console/verify'] button").await;
        browser.wait_for("#verdict").await;
        browser.says("#verdict", "Clean").await;
        browser.is_sound("console").await;
        browser.picture(&format!("console{suffix}")).await;
        // Another's job is there for an operator, and why it waits.
        browser.visit(&system, &format!("/jobs/{waiting}")).await;
        browser.says("#summary", "Waiting because").await;
    }
    // For others there is no such page.
    let (status, _) = system.web.bytes("/console").await.unwrap();
    assert_eq!(status, 404);
    browser.close().await;
}

#[tokio::test]
async fn no_link_is_dead() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("Attic", &["--price", "0.36"]).await.unwrap();
    let job = system.owner.deposit("10").await.and(system.owner.submit(&json!({ "template": "train" })).await).unwrap();
    system.owner.settled(&job).await.unwrap();
    let operator = Web::operator(&system).await.unwrap();
    let mut seen = BTreeSet::new();
    for who in [&system.owner, &operator, &system.owner.stranger()] {
        let mut open =
            VecDeque::from(["/".to_owned(), "/jobs".to_owned(), "/console".to_owned(), format!("/jobs/{job}")]);
        let mut own = BTreeSet::new();
        while let Some(path) = open.pop_front() {
            assert!(own.len() < 600, "so many links have no end: {own:?}");
            if !own.insert(path.clone()) {
                continue;
            }
            let answer =
                who.at_browser().ask(Method::GET, &path).timeout(Duration::from_secs(20)).send().await.unwrap();
            let status = answer.status();
            let hidden = path.starts_with("/console") && status.as_u16() == 404;
            assert!(status.is_success() || status.is_redirection() || hidden, "{path}: {status}");
            let page =
                answer.headers().get("content-type").is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
            if page && status.is_success() {
                open.extend(links(&answer.text().await.unwrap()));
            }
        }
        seen.extend(own);
    }
    assert!(seen.len() > 40, "{seen:?}");
}

/// The links of a page that lead to pages here.
fn links(page: &str) -> Vec<String> {
    let places = ["href=\"/", "src=\"/"].into_iter().flat_map(|mark| page.split(mark).skip(1));
    let links = places.filter_map(|rest| rest.split('"').next()).map(|link| {
        let link = link.split('#').next().unwrap_or_default().replace("&amp;", "&");
        format!("/{link}")
    });
    links.collect()
}
