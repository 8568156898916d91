//! A consumer, a provider and an operator use the pages in a desktop window and a phone window, in light and dark
//! colours. Each page must be sound: no error in the browser's console, no serious finding of axe-core, and not wider
//! than the window. The last tests check the list of pages and all links.

use std::{
    collections::{BTreeSet, VecDeque},
    process::Command,
    time::Duration,
};

use gpubnb_tests::{
    api_client::ApiClient,
    browser::{Browser, console_errors},
    jobs::{noop_job, pin_to_machine, unplaceable},
    market::Market,
    pages::{CONSOLE, PAGES},
    process::Process,
    programs::binary,
    system::{MarketSettings, System},
};
use reqwest::Method;
use serde_json::json;

/// The windows: width and height in pixels, colour scheme, and a suffix for the names of the screenshots.
const WINDOWS: [(u32, u32, &str, &str); 4] = [
    (1280, 900, "light", ""),
    (1280, 900, "dark", "-dark"),
    (360, 740, "light", "-phone"),
    (360, 740, "dark", "-phone-dark"),
];

/// Signs up as `<name>@gpubnb.example`, which also signs in.
async fn sign_up(browser: &Browser, market: &Market, name: &str) {
    browser.visit(market, "/sign-up").await;
    browser.fill("input[name=email]", &format!("{name}@gpubnb.example")).await;
    browser.fill("input[name=password]", "correct horse battery").await;
    browser.click("main form button.primary").await;
    browser.wait_for(".who form button").await;
}

/// Adds $5 of play money on the page of the wallet.
async fn deposit(browser: &Browser, market: &Market) {
    browser.visit(market, "/wallet").await;
    browser.fill("form[action='/wallet/deposits'] input[name=amount]", "5").await;
    browser.click("form[action='/wallet/deposits'] button").await;
    browser.wait_for_text("#sums", "$5.00").await;
}

/// Finds a machine on the market, reads the quote, and submits a job.
async fn find_and_submit(browser: &Browser, market: &Market, suffix: &str) {
    browser.visit(market, "/market?text=attic&max_price=0.5").await;
    browser.wait_for_text("#matches", "1 of 2 machines").await;
    browser.save_screenshot(&format!("market{suffix}")).await;
    browser.click_live(".machine .button.primary").await;
    browser.wait_for("#quote dd b").await;
    browser.wait_for_text("#quote", "Attic").await;
    browser.wait_for_text("#quote", "Expected start").await;
    browser.wait_for_text("#quote", "now, after its image has been downloaded").await;
    browser.assert_sound("new job").await;
    browser.save_screenshot(&format!("new-job{suffix}")).await;
    browser.click(".submit button.primary").await;
}

/// Waits until the job is settled, and opens every tab of its page. Returns the path of the page.
async fn watch_job(browser: &Browser, suffix: &str) -> String {
    browser.wait_for("#state[data-state=Settled]").await;
    assert_eq!(browser.text("#state").await, "Completed");
    browser.wait_for("#log .line").await;
    browser.wait_for_text("#log", "epoch").await;
    browser.assert_sound("job").await;
    browser.save_screenshot(&format!("job{suffix}")).await;
    browser.click("label[for=tab-metrics]").await;
    browser.wait_for("#metrics .chart polyline").await;
    browser.save_screenshot(&format!("metrics{suffix}")).await;
    browser.click("label[for=tab-artifacts]").await;
    browser.wait_for("#artifacts figure img").await;
    browser.assert_sound("files").await;
    browser.save_screenshot(&format!("files{suffix}")).await;
    let file = "return fetch(document.querySelector('#artifacts td a').href).then((r) => r.status)";
    assert_eq!(browser.client.execute(file, vec![]).await.unwrap(), json!(200));
    browser.click("label[for=tab-receipt]").await;
    browser.wait_for("#receipt .sum").await;
    browser.assert_sound("receipt").await;
    browser.save_screenshot(&format!("receipt{suffix}")).await;
    browser.click("label[for=tab-events]").await;
    browser.wait_for_text("#trail", "JobSubmitted").await;
    browser.assert_sound("events").await;
    browser.client.current_url().await.unwrap().path().to_owned()
}

/// Visits every page, and two searches without a result.
async fn visit_all_pages(browser: &Browser, market: &Market, suffix: &str) {
    for (page, name) in PAGES {
        browser.visit(market, page).await;
        browser.save_screenshot(&format!("{name}{suffix}")).await;
        // A page fits other windows, too: a common phone, and a wide screen.
        let other = if suffix.contains("phone") { (390, 844) } else { (1600, 900) };
        browser.set_viewport(other.0, other.1).await;
        browser.assert_fits_window(page).await;
        browser.devtools("Emulation.clearDeviceMetricsOverride", json!({})).await;
    }
    for page in ["/jobs?text=nothing", "/market?text=nothing"] {
        browser.visit(market, page).await;
    }
    browser.visit(market, "/jobs").await;
    browser.wait_for_text("#jobs-list", "Train a neural network").await;
    browser.visit(market, "/wallet").await;
    browser.wait_for_text("#statement", "Job settled").await;
}

/// Signs out on a page.
async fn sign_out(browser: &Browser, market: &Market, page: &str) {
    browser.client.goto(&format!("{}{page}", market.url())).await.unwrap();
    browser.click(".menu summary").await;
    browser.click(".who form button").await;
    browser.wait_for(".who a[href='/sign-in']").await;
}

#[tokio::test]
async fn a_consumer_signs_up_deposits_money_submits_a_job_and_reads_its_receipt() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("Attic", &["--price", "0.36", "--region", "eu-west"]).await.unwrap();
    system.start_worker("Studio", &["--price", "0.9", "--simulate-gpus", "1"]).await.unwrap();
    let foreign = system.consumer.submit(&noop_job()).await.unwrap();
    let browser = Browser::open(&system).await;
    for (round, (width, height, scheme, suffix)) in WINDOWS.into_iter().enumerate() {
        browser.set_window_size(width, height).await;
        browser.set_colour_scheme(scheme).await;
        browser.visit(&system, "/").await;
        sign_up(&browser, &system, &format!("consumer-{round}")).await;
        deposit(&browser, &system).await;
        find_and_submit(&browser, &system, suffix).await;
        let job = watch_job(&browser, suffix).await;
        visit_all_pages(&browser, &system, suffix).await;
        // The page of another person's job says in words that there is no such job.
        browser.client.goto(&format!("{}/jobs/{foreign}", system.url())).await.unwrap();
        browser.wait_for_text("main", "There is no such job").await;
        assert_eq!(console_errors(&browser.client).await.len(), 1, "the browser itself logs the status 404");
        sign_out(&browser, &system, &job).await;
    }
    browser.close().await;
}

/// Makes an enrollment code, and runs the command that the page shows. Returns the worker.
async fn connect_machine(browser: &Browser, market: &Market, name: &str) -> Process {
    browser.visit(market, "/provider").await;
    browser.wait_for_text("main", "No machine yet").await;
    browser.click("form[action='/provider/enrollments'] button").await;
    browser.wait_for("#enroll").await;
    browser.assert_sound("the command").await;
    let command = browser.text("#enroll").await;
    assert!(command.contains(&format!("--market {}", market.url())), "{command}");
    let worker = run_shown_command(market, &command, name);
    // The open page shows without a reload how far the machine has come, and a reload keeps the code.
    browser.wait_for_text("#arrival", name).await;
    browser.wait_for_text("#arrival", "See your listing").await;
    browser.visit(market, "/provider/add").await;
    assert_eq!(browser.text("#enroll").await, command);
    browser.client.goto(&format!("{}/provider", market.url())).await.unwrap();
    browser.wait_for_text("#machines", name).await;
    browser.wait_for_text("#machines", "Online").await;
    worker
}

/// Runs a job on the machine with this name. Returns the machine's id.
async fn run_job_on(market: &Market, name: &str) -> String {
    let machines = market.consumer.get("/machines").await.unwrap();
    let mut rows = machines["rows"].as_array().unwrap().iter();
    let machine = rows.find(|m| m["offer"]["name"] == name).unwrap()["machine"].as_str().unwrap().to_owned();
    let body = json!({ "template": "train", "parameters": { "epochs": "2" } });
    let job = market.consumer.submit(&pin_to_machine(body, &machine)).await.unwrap();
    market.consumer.wait_until_settled(&job).await.unwrap();
    machine
}

/// Manages the machine on the page: tries an invalid price, and starts maintenance and a pause.
async fn manage_machine(browser: &Browser, market: &Market, machine: &str, suffix: &str) {
    browser.wait_for_text("#machines", "100 % (1 attempt)").await;
    browser.assert_sound("provider").await;
    browser.save_screenshot(&format!("machines{suffix}")).await;
    // The page shows the refusal at the field of the price.
    browser.click("#machines details[id^=settings] summary").await;
    browser.fill("#machines input[name=price]", "a lot").await;
    browser.click("#machines button[value=configure]").await;
    browser.wait_for("#machines input[aria-invalid]").await;
    browser.assert_accessible("a price that was refused").await;
    browser.assert_console_has_only_status("a price that was refused", "422").await;
    browser.visit(market, "/provider").await;
    browser.click_live("#machines button[value=maintain]").await;
    browser.wait_for_text("#machines header .badge", "Maintenance").await;
    browser.click_live("#machines button[value=resume]").await;
    browser.wait_for_text("#machines header .badge", "Online").await;
    browser.click_live("#machines button[value=pause]").await;
    browser.wait_for_text("#machines", "Paused").await;
    browser.visit(market, &format!("/machines/{machine}")).await;
    browser.wait_for_text("#record", "Completed").await;
    browser.save_screenshot(&format!("machine{suffix}")).await;
}

/// Requests a payout above the balance, which is refused, and a small one.
async fn request_payouts(browser: &Browser, market: &Market) {
    browser.visit(market, "/wallet").await;
    browser.fill("form[action='/wallet/payouts'] input[name=amount]", "1000000").await;
    browser.click("form[action='/wallet/payouts'] button").await;
    browser.wait_for("#payout-problem").await;
    browser.assert_console_has_only_status("a payout that was refused", "422").await;
    browser.visit(market, "/wallet").await;
    browser.wait_for_text("#statement", "Earned from a job").await;
    browser.fill("form[action='/wallet/payouts'] input[name=amount]", "0.00001").await;
    browser.click("form[action='/wallet/payouts'] button").await;
    browser.wait_for_text("#statement", "Payout asked for").await;
    browser.assert_sound("wallet").await;
}

#[tokio::test]
async fn a_provider_signs_up_connects_a_machine_manages_it_and_requests_a_payout() {
    let system = System::start(MarketSettings::default()).await.unwrap();
    let browser = Browser::open(&system).await;
    for (round, (width, height, scheme, suffix)) in WINDOWS.into_iter().enumerate() {
        browser.set_window_size(width, height).await;
        browser.set_colour_scheme(scheme).await;
        sign_up(&browser, &system, &format!("provider-{round}")).await;
        let name = format!("Garage {round}");
        let worker = connect_machine(&browser, &system, &name).await;
        let machine = run_job_on(&system, &name).await;
        manage_machine(&browser, &system, &machine, suffix).await;
        request_payouts(&browser, &system).await;
        use_page_of_worker(&browser, &system, &name, suffix).await;
        drop(worker);
        sign_out(&browser, &system, "/provider").await;
    }
    browser.close().await;
}

/// Opens the page of the worker on the machine, takes the machine back and gives it to the market again.
async fn use_page_of_worker(browser: &Browser, market: &Market, name: &str, suffix: &str) {
    let directory = name.replace(' ', "-");
    assert!(market.run_worker_command(&directory, &["resume"]).unwrap().0);
    let (ok, text) = market.run_worker_command(&directory, &["open", "--print"]).unwrap();
    assert!(ok, "{text}");
    browser.client.goto(text.lines().next().unwrap()).await.unwrap();
    browser.wait_for_text("#now", "This machine takes jobs; no job runs now.").await;
    browser.assert_sound("the page of the worker").await;
    browser.save_screenshot(&format!("worker{suffix}")).await;
    browser.click_live("button[value=take_back]").await;
    browser.wait_for_text("#now", "its owner took it back").await;
    browser.assert_sound("the page of a worker that was taken back").await;
    browser.click_live("form[action=resume] button").await;
    browser.wait_for_text("#now", "This machine takes jobs").await;
}

/// Runs the enrollment command that the page shows, without `sudo`, and starts the worker of a machine with this name.
fn run_shown_command(market: &Market, shown: &str, name: &str) -> Process {
    let words: Vec<&str> = shown.lines().next().unwrap().split_whitespace().skip(1).collect();
    assert_eq!((words[0], words[1], words[3]), ("gpubnb-provider", "enroll", "--market"), "{shown}");
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

/// Finds the stuck job on the console, with the reason why it waits.
async fn find_stuck_job(browser: &Browser, market: &Market, suffix: &str) {
    browser.visit(market, "/console").await;
    browser.wait_for_text("#streams", "MARKET").await;
    browser.wait_for_text("#stuck", "Nobody can").await;
    browser.wait_for_text("#doctor", "checks of the broker").await;
    browser.wait_for_text("#stuck", "no machine fits its limits").await;
    browser.save_screenshot(&format!("console-stuck{suffix}")).await;
    browser.click_live("#stuck a.button").await;
    browser.wait_for_text("#then", "Queued").await;
}

/// Visits every page of the console, and searches machines and events.
async fn visit_console(browser: &Browser, market: &Market, (settled, waiting): (u64, &str), suffix: &str) {
    for (page, name) in CONSOLE {
        browser.visit(market, page).await;
        browser.save_screenshot(&format!("{name}{suffix}")).await;
    }
    browser.visit(market, "/console/fleet?text=nothing-like-it").await;
    browser.wait_for_text("#fleet", "No such machine").await;
    browser.visit(market, "/console/fleet?text=attic").await;
    browser.wait_for_text("#fleet", "Attic").await;
    browser.visit(market, "/console/ledger").await;
    browser.wait_for_text("#balances", "It balances").await;
    browser.visit(market, &format!("/events/{settled}")).await;
    browser.visit_missing(market, "/console/nothing").await;
    browser.wait_for_text("nav.who", "Account").await;
    browser.visit(market, "/console/events?event=Settled").await;
    browser.wait_for_text("#events", "Settled").await;
    browser.visit(market, &format!("/console/events?kind=job&id={waiting}")).await;
    browser.wait_for_text("#events", "JobSubmitted").await;
}

/// Shows the job and the market as they were just before the job was settled.
async fn travel_in_time(browser: &Browser, market: &Market, (job, seq): (&str, u64), suffix: &str) {
    let before = seq - 1;
    browser.visit(market, &format!("/console/travel?kind=job&id={job}&seq={before}&with={seq}")).await;
    browser.wait_for_text("#then", "Completed").await;
    browser.wait_for_text("#then", "settled\tfalse\ttrue").await;
    browser.visit(market, &format!("/console/travel?seq={before}&with={seq}")).await;
    browser.wait_for_text("#then", "Jobs settled\t0\t1").await;
    browser.wait_for_text("#total", "$0.00").await;
    browser.save_screenshot(&format!("time-travel{suffix}")).await;
    browser.click("a[rel=next]").await;
    browser.wait_for_text("#then", "Jobs settled\t1\t1").await;
}

/// Rebuilds a read model and verifies all of them, with the buttons of the console.
async fn rebuild_and_verify(browser: &Browser, market: &Market, suffix: &str) {
    browser.client.goto(&format!("{}/console", market.url())).await.unwrap();
    browser.click_live("form[action='/console/rebuild/jobs'] button").await;
    browser.wait_for_text("#models", "rebuilt and swapped").await;
    browser.click_live("form[action='/console/verify'] button").await;
    browser.wait_for("#verdict").await;
    browser.wait_for_text("#verdict", "Clean").await;
    browser.assert_sound("console").await;
    browser.save_screenshot(&format!("console-verified{suffix}")).await;
}

#[tokio::test]
async fn an_operator_finds_a_stuck_job_travels_in_time_rebuilds_and_verifies() {
    // A waiting job counts as stuck after one second.
    let projector = ["--stuck-after", "1"].map(str::to_owned).to_vec();
    let mut system = System::start(MarketSettings { projector, ..MarketSettings::default() }).await.unwrap();
    system.start_worker("Attic", &["--price", "0.36"]).await.unwrap();
    let done = system.consumer.submit(&noop_job()).await.unwrap();
    let seq = system.consumer.wait_until_settled(&done).await.unwrap()["seq"].as_u64().unwrap();
    let waiting = unplaceable(json!({ "template": "noop", "name": "Nobody can" }), "0.01");
    let waiting = system.consumer.submit(&waiting).await.unwrap();
    let operator = ApiClient::sign_up_operator(&system).await.unwrap();
    let browser = Browser::open(&system).await;
    browser.sign_in(&system, &operator).await;
    for (width, height, scheme, suffix) in WINDOWS {
        browser.set_window_size(width, height).await;
        browser.set_colour_scheme(scheme).await;
        find_stuck_job(&browser, &system, suffix).await;
        visit_console(&browser, &system, (seq, &waiting), suffix).await;
        travel_in_time(&browser, &system, (&done, seq), suffix).await;
        rebuild_and_verify(&browser, &system, suffix).await;
        // An operator can open another person's job and read why it waits.
        browser.visit(&system, &format!("/jobs/{waiting}")).await;
        browser.wait_for_text("#summary", "Waiting because").await;
    }
    // For other people the console does not exist.
    let (status, _) = system.consumer.bytes("/console").await.unwrap();
    assert_eq!(status, 404);
    browser.close().await;
}

/// Endings of addresses that are not pages: event streams, files, and documents for programs.
const NOT_PAGES: [&str; 10] = [
    "/live",
    "/balance",
    "/passkey",
    "/healthz",
    ".json",
    ".jsonl",
    ".csv",
    "/routes",
    "/install.sh",
    "/gpubnb-provider",
];

#[test]
fn the_lists_of_pages_match_the_web_servers_routes() {
    let output = Command::new(binary("gpubnb-ui").unwrap()).arg("routes").output().unwrap();
    let routes = String::from_utf8(output.stdout).unwrap();
    let addresses = routes.lines().filter_map(|line| line.strip_prefix("GET ")?.split(' ').next());
    let page =
        |path: &&str| !path.starts_with("/api/") && !path.contains('{') && !NOT_PAGES.iter().any(|e| path.ends_with(e));
    let listed: BTreeSet<&str> = PAGES.iter().chain(&CONSOLE).map(|(path, _)| *path).collect();
    assert_eq!(addresses.filter(page).collect::<BTreeSet<_>>(), listed, "see tests/src/pages.rs");
}

#[tokio::test]
async fn every_link_leads_to_an_existing_page() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("Attic", &["--price", "0.36"]).await.unwrap();
    let job = system
        .machine_owner
        .deposit("10")
        .await
        .and(system.machine_owner.submit(&json!({ "template": "train" })).await)
        .unwrap();
    system.machine_owner.wait_until_settled(&job).await.unwrap();
    let operator = ApiClient::sign_up_operator(&system).await.unwrap();
    let mut seen = BTreeSet::new();
    for who in [&system.machine_owner, &operator, &system.machine_owner.stranger()] {
        let mut to_visit =
            VecDeque::from(["/".to_owned(), "/jobs".to_owned(), "/console".to_owned(), format!("/jobs/{job}")]);
        let mut visited = BTreeSet::new();
        while let Some(path) = to_visit.pop_front() {
            assert!(visited.len() < 600, "the links lead to ever new addresses: {visited:?}");
            if !visited.insert(path.clone()) {
                continue;
            }
            let answer = who
                .browser_session()
                .build_request(Method::GET, &path)
                .timeout(Duration::from_secs(20))
                .send()
                .await
                .unwrap();
            let status = answer.status();
            let is_hidden = path.starts_with("/console") && status.as_u16() == 404;
            assert!(status.is_success() || status.is_redirection() || is_hidden, "{path}: {status}");
            let is_page =
                answer.headers().get("content-type").is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
            if is_page && status.is_success() {
                to_visit.extend(links(&answer.text().await.unwrap()));
            }
        }
        seen.extend(visited);
    }
    assert!(seen.len() > 40, "{seen:?}");
}

/// The links of a page that lead to other pages of the market.
fn links(page: &str) -> Vec<String> {
    let after_marks = ["href=\"/", "src=\"/"].into_iter().flat_map(|mark| page.split(mark).skip(1));
    let links = after_marks.filter_map(|rest| rest.split('"').next()).map(|link| {
        let link = link.split('#').next().unwrap_or_default().replace("&amp;", "&");
        format!("/{link}")
    });
    links.collect()
}
