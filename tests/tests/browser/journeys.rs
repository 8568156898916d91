//! A journey of each kind of person through the pages: at the width of a desk and of a phone, in light and in dark colours.
//! Each page on the way is sound: no error in the browser's console, nothing that axe-core finds serious, no dead link.

use std::{
    collections::{BTreeSet, VecDeque},
    process::Command,
    time::Duration,
};

use gpubnb_tests::{
    browser::{Browser, console},
    jobs::{noop, on_machine, that_nobody_takes},
    market::Market,
    pages::{CONSOLE, PAGES},
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

async fn sign_up(browser: &Browser, market: &Market, name: &str) {
    browser.visit(market, "/sign-up").await;
    browser.fill("input[name=email]", &format!("{name}@gpubnb.example")).await;
    browser.fill("input[name=password]", "correct horse battery").await;
    browser.click("main form button").await;
    browser.wait_for("form[action='/sign-in']").await;
    browser.fill("input[name=email]", &format!("{name}@gpubnb.example")).await;
    browser.fill("input[name=password]", "correct horse battery").await;
    browser.click("main form button").await;
    browser.wait_for(".who form button").await;
}

/// Adds play money on the page of the wallet.
async fn fund(browser: &Browser, market: &Market) {
    browser.visit(market, "/wallet").await;
    browser.fill("form[action='/wallet/deposits'] input[name=amount]", "5").await;
    browser.click("form[action='/wallet/deposits'] button").await;
    browser.says("#sums", "$5.00").await;
}

/// Finds a machine on the market, looks at the quote, and submits a job.
async fn find_and_submit(browser: &Browser, market: &Market, suffix: &str) {
    browser.visit(market, "/market?text=attic&max_price=0.5").await;
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
}

/// Watches the job to its settlement, and looks at every tab of its page. Returns the page's address.
async fn watch(browser: &Browser, suffix: &str) -> String {
    browser.wait_for("#state[data-state=Settled]").await;
    assert_eq!(browser.text("#state").await, "Completed");
    browser.wait_for("#log .line").await;
    browser.says("#log", "epoch").await;
    browser.is_sound("job").await;
    browser.picture(&format!("job{suffix}")).await;
    browser.click("label[for=tab-metrics]").await;
    browser.wait_for("#metrics .chart polyline").await;
    browser.picture(&format!("metrics{suffix}")).await;
    browser.click("label[for=tab-artifacts]").await;
    browser.wait_for("#artifacts figure img").await;
    browser.is_sound("files").await;
    browser.picture(&format!("files{suffix}")).await;
    let file = "return fetch(document.querySelector('#artifacts td a').href).then((r) => r.status)";
    assert_eq!(browser.client.execute(file, vec![]).await.unwrap(), json!(200));
    browser.click("label[for=tab-receipt]").await;
    browser.wait_for("#receipt .sum").await;
    browser.is_sound("receipt").await;
    browser.picture(&format!("receipt{suffix}")).await;
    browser.click("label[for=tab-events]").await;
    browser.says("#trail", "JobSubmitted").await;
    browser.is_sound("events").await;
    browser.client.current_url().await.unwrap().path().to_owned()
}

/// Looks at every page, and at two that find nothing.
async fn look_around(browser: &Browser, market: &Market, suffix: &str) {
    for (page, name) in PAGES {
        browser.visit(market, page).await;
        browser.picture(&format!("{name}{suffix}")).await;
    }
    for page in ["/jobs?text=nothing", "/market?text=nothing"] {
        browser.visit(market, page).await;
    }
    browser.visit(market, "/jobs").await;
    browser.says("#jobs-list", "Train a neural network").await;
    browser.visit(market, "/wallet").await;
    browser.says("#statement", "Settled").await;
}

async fn sign_out(browser: &Browser, market: &Market, page: &str) {
    browser.client.goto(&format!("{}{page}", market.url())).await.unwrap();
    browser.click(".who form button").await;
    browser.wait_for(".who a[href='/sign-in']").await;
}

#[tokio::test]
async fn a_consumer_signs_up_funds_finds_quotes_submits_watches_downloads_and_reads_the_receipt() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("Attic", &["--price", "0.36", "--region", "eu-west"]).await.unwrap();
    system.start_worker("Studio", &["--price", "0.9", "--simulate-gpus", "1"]).await.unwrap();
    let foreign = system.web.submit(&noop()).await.unwrap();
    let browser = Browser::open(&system).await;
    for (round, (width, height, scheme, suffix)) in WINDOWS.into_iter().enumerate() {
        browser.size(width, height).await;
        browser.scheme(scheme).await;
        browser.visit(&system, "/").await;
        sign_up(&browser, &system, &format!("consumer-{round}")).await;
        fund(&browser, &system).await;
        find_and_submit(&browser, &system, suffix).await;
        let job = watch(&browser, suffix).await;
        look_around(&browser, &system, suffix).await;
        // The page of another person's job says in words that there is no such job.
        browser.client.goto(&format!("{}/jobs/{foreign}", system.url())).await.unwrap();
        browser.says("main", "There is no such job").await;
        assert_eq!(console(&browser.client).await.len(), 1, "the browser itself logs the status 404");
        sign_out(&browser, &system, &job).await;
    }
    browser.close().await;
}

/// Makes a code for a machine, and runs the command that the page shows.
async fn connect_a_machine(browser: &Browser, market: &Market, name: &str) -> Process {
    browser.visit(market, "/provider").await;
    browser.says("main", "No machine yet").await;
    browser.click("form[action='/provider/enrollments'] button").await;
    browser.wait_for("#enroll").await;
    browser.is_sound("the command").await;
    let pasted = browser.text("#enroll").await;
    assert!(pasted.contains(&format!("--market {}", market.url())), "{pasted}");
    let worker = paste(market, &pasted, name);
    // The machine comes into the open page by itself.
    browser.client.goto(&format!("{}/provider", market.url())).await.unwrap();
    browser.says("#machines", name).await;
    browser.says("#machines", "Online").await;
    worker
}

/// Runs a job on a machine; returns the machine.
async fn earn(market: &Market, name: &str) -> String {
    let machines = market.web.get("/machines").await.unwrap();
    let mut rows = machines["rows"].as_array().unwrap().iter();
    let machine = rows.find(|m| m["offer"]["name"] == name).unwrap()["machine"].as_str().unwrap().to_owned();
    let body = json!({ "template": "train", "parameters": { "epochs": "2" } });
    let job = market.web.submit(&on_machine(body, &machine)).await.unwrap();
    market.web.settled(&job).await.unwrap();
    machine
}

/// Changes the machine: a price that is none, maintenance, and a pause.
async fn manage(browser: &Browser, market: &Market, machine: &str, suffix: &str) {
    browser.says("#machines", "100 % (1 attempt)").await;
    browser.is_sound("provider").await;
    browser.picture(&format!("machines{suffix}")).await;
    // The refusal stands beside the field, which keeps the text that was typed.
    browser.fill("#machines input[name=price]", "a lot").await;
    browser.click("#machines button[value=reprice]").await;
    browser.wait_for("#machines input[aria-invalid]").await;
    browser.is_accessible("a price that was refused").await;
    browser.forget_refusal("a price that was refused", "422").await;
    browser.visit(market, "/provider").await;
    browser.click_live("#machines button[value=maintain]").await;
    browser.says("#machines header .badge", "Maintenance").await;
    browser.click_live("#machines button[value=resume]").await;
    browser.says("#machines header .badge", "Online").await;
    browser.click_live("#machines button[value=pause]").await;
    browser.says("#machines", "Paused").await;
    browser.visit(market, &format!("/machines/{machine}")).await;
    browser.says("#record", "Completed").await;
    browser.picture(&format!("machine{suffix}")).await;
}

/// Asks for more than there is, and for less.
async fn ask_for_a_payout(browser: &Browser, market: &Market) {
    browser.visit(market, "/wallet").await;
    browser.fill("form[action='/wallet/payouts'] input[name=amount]", "1000000").await;
    browser.click("form[action='/wallet/payouts'] button").await;
    browser.wait_for("#payout-problem").await;
    browser.forget_refusal("a payout that was refused", "422").await;
    browser.visit(market, "/wallet").await;
    browser.says("#statement", "Settled").await;
    browser.fill("form[action='/wallet/payouts'] input[name=amount]", "0.00001").await;
    browser.click("form[action='/wallet/payouts'] button").await;
    browser.says("#statement", "PayoutRequested").await;
    browser.is_sound("wallet").await;
}

#[tokio::test]
async fn a_provider_signs_up_pastes_a_command_sees_the_machine_online_earns_pauses_and_asks_for_a_payout() {
    let system = System::start(Options::default()).await.unwrap();
    let browser = Browser::open(&system).await;
    for (round, (width, height, scheme, suffix)) in WINDOWS.into_iter().enumerate() {
        browser.size(width, height).await;
        browser.scheme(scheme).await;
        sign_up(&browser, &system, &format!("provider-{round}")).await;
        let name = format!("Garage {round}");
        let worker = connect_a_machine(&browser, &system, &name).await;
        let machine = earn(&system, &name).await;
        manage(&browser, &system, &machine, suffix).await;
        ask_for_a_payout(&browser, &system).await;
        drop(worker);
        sign_out(&browser, &system, "/provider").await;
    }
    browser.close().await;
}

/// Runs the command that the page shows as the owner of a machine would, and gives the machine a name.
fn paste(market: &Market, pasted: &str, name: &str) -> Process {
    let words: Vec<&str> = pasted.lines().next().unwrap().split_whitespace().collect();
    assert_eq!((words[0], words[1], words[3]), ("gpubnb-provider", "enroll", "--market"), "{pasted}");
    let data = market.path().join(name.replace(' ', "-"));
    let worker = |arguments: &[&str]| {
        let mut command = Command::new(binary("gpubnb-provider").unwrap());
        command.args(arguments).env("GPUBNB_STATE", &data);
        command
    };
    let enrolled = worker(&words[1..]).output().unwrap();
    assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
    let mut run = worker(&["run", "--name", name, "--price", "0.36"]);
    Process::start(&format!("worker-{name}"), &mut run, market.path()).unwrap()
}

/// Finds the job that waits, and the reason for which it waits.
async fn find_the_stuck_job(browser: &Browser, market: &Market, suffix: &str) {
    browser.visit(market, "/console").await;
    browser.says("#streams", "MARKET").await;
    browser.says("#stuck", "Nobody can").await;
    browser.says("#doctor", "checks of the broker").await;
    browser.says("#stuck", "no machine fits its limits").await;
    browser.picture(&format!("console-stuck{suffix}")).await;
    browser.click_live("#stuck a.button").await;
    browser.says("#then", "Queued").await;
}

/// Looks at every page of the console, and searches machines and events.
async fn look_at_the_console(browser: &Browser, market: &Market, (settled, waiting): (u64, &str), suffix: &str) {
    for (page, name) in CONSOLE {
        browser.visit(market, page).await;
        browser.picture(&format!("{name}{suffix}")).await;
    }
    browser.visit(market, "/console/fleet?text=nothing-like-it").await;
    browser.says("#fleet", "No such machine").await;
    browser.visit(market, "/console/fleet?text=attic").await;
    browser.says("#fleet", "Attic").await;
    browser.visit(market, "/console/ledger").await;
    browser.says("#balances", "It balances").await;
    browser.visit(market, &format!("/events/{settled}")).await;
    browser.visit_missing(market, "/console/nothing").await;
    browser.says("nav.who", "Account").await;
    browser.visit(market, "/console/events?event=Settled").await;
    browser.says("#events", "Settled").await;
    browser.visit(market, &format!("/console/events?kind=job&id={waiting}")).await;
    browser.says("#events", "JobSubmitted").await;
}

/// Looks at the job and at the market as they were just before the job was settled.
async fn travel_in_time(browser: &Browser, market: &Market, (done, seq): (&str, u64), suffix: &str) {
    let before = seq - 1;
    browser.visit(market, &format!("/console/travel?kind=job&id={done}&seq={before}&with={seq}")).await;
    browser.says("#then", "Completed").await;
    browser.says("#then", "settled\tfalse\ttrue").await;
    browser.visit(market, &format!("/console/travel?seq={before}&with={seq}")).await;
    browser.says("#then", "Jobs settled\t0\t1").await;
    browser.says("#total", "$0.00").await;
    browser.picture(&format!("time-travel{suffix}")).await;
    browser.click("a[rel=next]").await;
    browser.says("#then", "Jobs settled\t1\t1").await;
}

async fn rebuild_and_verify(browser: &Browser, market: &Market, suffix: &str) {
    browser.client.goto(&format!("{}/console", market.url())).await.unwrap();
    browser.click_live("form[action='/console/rebuild/jobs'] button").await;
    browser.says("#models", "rebuilt and swapped").await;
    browser.click_live("form[action='/console/verify'] button").await;
    browser.wait_for("#verdict").await;
    browser.says("#verdict", "Clean").await;
    browser.is_sound("console").await;
    browser.picture(&format!("console-verified{suffix}")).await;
}

#[tokio::test]
async fn an_operator_finds_a_stuck_job_travels_in_time_rebuilds_and_verifies() {
    // A job that waits counts as stuck after a second.
    let projector = ["--stuck-after", "1"].map(str::to_owned).to_vec();
    let mut system = System::start(Options { projector, ..Options::default() }).await.unwrap();
    system.start_worker("Attic", &["--price", "0.36"]).await.unwrap();
    let done = system.web.submit(&noop()).await.unwrap();
    let seq = system.web.settled(&done).await.unwrap()["seq"].as_u64().unwrap();
    let waiting = that_nobody_takes(json!({ "template": "noop", "name": "Nobody can" }), "0.01");
    let waiting = system.web.submit(&waiting).await.unwrap();
    let operator = Web::operator(&system).await.unwrap();
    let browser = Browser::open(&system).await;
    browser.sign_in(&system, &operator).await;
    for (width, height, scheme, suffix) in WINDOWS {
        browser.size(width, height).await;
        browser.scheme(scheme).await;
        find_the_stuck_job(&browser, &system, suffix).await;
        look_at_the_console(&browser, &system, (seq, &waiting), suffix).await;
        travel_in_time(&browser, &system, (&done, seq), suffix).await;
        rebuild_and_verify(&browser, &system, suffix).await;
        // Operators see the jobs of others, and the reason for which a job waits.
        browser.visit(&system, &format!("/jobs/{waiting}")).await;
        browser.says("#summary", "Waiting because").await;
    }
    // For others there is no such page.
    let (status, _) = system.web.bytes("/console").await.unwrap();
    assert_eq!(status, 404);
    browser.close().await;
}

/// Endings of addresses that are no page: streams, files, and documents for programs.
const NO_PAGES: [&str; 5] = ["/live", "/healthz", ".json", ".csv", "/routes"];

#[test]
fn the_lists_of_pages_are_complete() {
    let output = Command::new(binary("gpubnb-ui").unwrap()).arg("routes").output().unwrap();
    let routes = String::from_utf8(output.stdout).unwrap();
    let addresses = routes.lines().filter_map(|line| line.strip_prefix("GET ")?.split(' ').next());
    let page =
        |path: &&str| !path.starts_with("/api/") && !path.contains('{') && !NO_PAGES.iter().any(|e| path.ends_with(e));
    let listed: BTreeSet<&str> = PAGES.iter().chain(&CONSOLE).map(|(path, _)| *path).collect();
    assert_eq!(addresses.filter(page).collect::<BTreeSet<_>>(), listed, "see tests/src/pages.rs");
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

/// The links of a page that lead to other pages of the market.
fn links(page: &str) -> Vec<String> {
    let places = ["href=\"/", "src=\"/"].into_iter().flat_map(|mark| page.split(mark).skip(1));
    let links = places.filter_map(|rest| rest.split('"').next()).map(|link| {
        let link = link.split('#').next().unwrap_or_default().replace("&amp;", "&");
        format!("/{link}")
    });
    links.collect()
}
