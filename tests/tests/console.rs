//! What operators lean on: a rebuild that nobody notices, and a verification that names what was tampered with. And a log of
//! half a million lines, which stays usable.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use gpubnb_events::{
    Clock as _, JobId, Lease, Seq, SystemClock,
    output::{LogLine, LogLines, LogStream},
    subject::{self, OutputKind},
};
use gpubnb_model::{ledger::Ledger, merkle::Merkle};
use gpubnb_tests::{
    browser::Browser,
    machine::Stolen,
    models,
    system::{Options, System},
    web::Web,
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// The operator's page of the console.
async fn console(operator: &Web) -> String {
    let (status, page) = operator.bytes("/console").await.unwrap();
    assert_eq!(status, 200);
    String::from_utf8(page).unwrap()
}

/// Presses a button of it.
async fn press(operator: &Web, path: &str) {
    let form = [("csrf", operator.csrf())];
    let answer = operator.ask(Method::POST, path).form(&form).send().await.unwrap();
    assert_eq!(answer.status(), 303, "{path}");
}

async fn until(operator: &Web, words: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let page = console(operator).await;
        if page.contains(words) {
            return page;
        }
        assert!(Instant::now() < deadline, "{words:?} is not there: {page}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn models_are_rebuilt_and_verified_under_load_and_no_answer_is_wrong_meanwhile() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &["--slots", "2"]).await.unwrap();
    let operator = Web::operator(&system).await.unwrap();
    let noop = json!({ "template": "noop" });
    let first = system.web.submit(&noop).await.unwrap();
    let whole = system.web.settled(&first).await.unwrap();
    for model in ["jobs", "machines", "timeline", "ledger", "figures", "merkle"] {
        press(&operator, &format!("/console/rebuild/{model}")).await;
    }
    let load = async {
        let mut jobs = Vec::new();
        for _ in 0..40 {
            let submitted = system.web.post("/jobs", &noop).await.unwrap();
            let job = submitted["job"].as_str().unwrap().to_owned();
            // What was just done is known, whichever tree answers.
            let known = system.web.get(&format!("/jobs/{job}?min_seq={}", submitted["seq"])).await.unwrap();
            assert_eq!(known["job"], job.as_str());
            assert_eq!(system.web.get(&format!("/jobs/{first}")).await.unwrap(), whole);
            jobs.push(job);
        }
        jobs
    };
    let swapped = async {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let page = console(&operator).await;
            if page.matches("rebuilt and swapped").count() == 6 {
                return;
            }
            assert!(Instant::now() < deadline, "not all are swapped: {page}");
            sleep(Duration::from_millis(50)).await;
        }
    };
    let (jobs, ()) = tokio::join!(load, swapped);
    press(&operator, "/console/verify").await;
    until(&operator, "data-clean=\"true\"").await;
    for job in &jobs {
        system.web.settled(job).await.unwrap();
    }
    // What was swapped in still answers after a restart, and is right.
    system.projector = None;
    system.start_projector().await.unwrap();
    assert_eq!(system.web.get(&format!("/jobs/{first}")).await.unwrap(), whole);
    press(&operator, "/console/verify").await;
    until(&operator, "data-clean=\"true\"").await;
}

#[tokio::test]
async fn a_row_that_was_changed_behind_the_log_is_named_and_a_rebuild_mends_it() {
    let mut system = System::start(Options::default()).await.unwrap();
    let operator = Web::operator(&system).await.unwrap();
    let honest = system.web.get("/wallet").await.unwrap()["balance"]["available"].clone();
    system.projector = None;
    {
        let tree = models::open(&system, &Ledger).unwrap();
        let (key, row) = tree.scan_prefix(b"b").next().unwrap().unwrap();
        let mut row: Value = serde_json::from_slice(&row).unwrap();
        row["available"] = json!(1_000_000_000_000_i64);
        models::write(&tree, &key, Some(serde_json::to_vec(&row).unwrap())).unwrap();
        drop(tree);
        // What the log says now is not what was folded: two events have changed places since, and one was changed.
        let tree = models::open(&system, &Merkle).unwrap();
        let (key, leaves) = tree.scan_prefix(b"l").next().unwrap().unwrap();
        let mut leaves = leaves.to_vec();
        let (first, second) = leaves.split_at_mut(32);
        first.swap_with_slice(&mut second[..32]);
        leaves[2 * 32] ^= 1;
        models::write(&tree, &key, Some(leaves)).unwrap();
    }
    system.start_projector().await.unwrap();
    assert_ne!(system.web.get("/wallet").await.unwrap()["balance"]["available"], honest);
    press(&operator, "/console/verify").await;
    let page = until(&operator, "data-clean=\"false\"").await;
    assert!(page.contains("<td>ledger</td>") && page.contains("<code>b\\x"), "the row is named: {page}");
    for (event, what) in [(1, "where event 2 was"), (2, "where event 1 was"), (3, "is not what it was")] {
        let named = page.lines().any(|line| line.contains(&format!(">{event}</a>")) && line.contains(what));
        assert!(named, "event {event} {what}: {page}");
    }
    for model in ["ledger", "merkle"] {
        press(&operator, &format!("/console/rebuild/{model}")).await;
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while console(&operator).await.matches("rebuilt and swapped").count() < 2 {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(system.web.get("/wallet").await.unwrap()["balance"]["available"], honest);
    press(&operator, "/console/verify").await;
    until(&operator, "data-clean=\"true\"").await;
}

const LINES: u64 = 500_000;
const CHUNK: u64 = 250;

#[tokio::test]
async fn a_log_of_half_a_million_lines_is_opened_at_its_end_searched_and_linked_into() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.web.submit(&json!({ "template": "noop" })).await.unwrap();
    let settled = system.web.settled(&job).await.unwrap();
    let lease = Lease(Seq(settled["attempts"][0]["lease"].as_u64().unwrap()));
    // Pages that are open and do not read, as a slow line or a sleeping machine would not.
    let mut silent = Vec::new();
    for _ in 0..20 {
        let page = system.web.at_browser().ask(Method::GET, &format!("/jobs/{job}/live"));
        silent.push(page.send().await.unwrap().error_for_status().unwrap());
    }
    let web_server = system.ui.as_ref().unwrap().pid();
    let before = resident(web_server);
    say(&system, job.parse().unwrap(), lease).await;
    // Each of them would have it all, some forty mebibytes. The broker sends no more than its window for one who does not
    // read, some six, however long the log becomes.
    let took = resident(web_server).saturating_sub(before);
    assert!(took < 20 * 10, "pages that do not read took {took} MiB");
    drop(silent);

    let browser = Browser::open(&system).await;
    browser.sign_in(&system, &system.web).await;
    browser.visit(&system, &format!("/jobs/{job}")).await;
    browser.says("#log", "the last line").await;
    let shown = browser.client.execute("return document.querySelectorAll('#log .line').length", vec![]).await.unwrap();
    assert!((1..=5_000).contains(&shown.as_u64().unwrap()), "{shown}");
    // A link to any line, and what stands before it.
    browser.client.execute(&format!("location.hash = 'L{lease}-123456'"), vec![]).await.unwrap();
    browser.says("#log .target", "line 123456").await;
    browser.click_live("#log-earlier").await;
    browser.says("#log", "line 122900").await;
    // All of it is searched, and what is found leads to its place. Its colours are seen.
    browser.fill("#log-find", "needle").await;
    browser.click("#log-search button").await;
    browser.says("#log-found", "a needle at 250123").await;
    browser.click_live("#log-found .no").await;
    browser.says("#log .target", "a needle at 250123").await;
    browser.wait_for("#log .target .c1.b").await;
    browser.is_sound("a long log").await;
    browser.picture("log").await;
    browser.close().await;
}

/// Memory of a process, MiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1_024
}

/// Says lines in the name of the machine that had the job, with its own credential.
async fn say(system: &System, job: JobId, lease: Lease) {
    let machine = Stolen::from(&system.path().join("attic")).unwrap();
    let client = machine.enter(system).await.unwrap();
    let js = async_nats::jetstream::new(client.clone());
    let address = subject::output(machine.machine, job, OutputKind::Log);
    let at = SystemClock.now();
    let mut acks = Vec::new();
    for first_line in (0..LINES).step_by(usize::try_from(CHUNK).unwrap()) {
        let line = |number| LogLine {
            stream: LogStream::Stdout,
            at,
            text: match number {
                250_123 => "a \u{1b}[1;31mneedle\u{1b}[0m at 250123".to_owned(),
                n if n + 1 == LINES => "the last line".to_owned(),
                n => format!("line {n}"),
            },
        };
        let chunk = LogLines { lease, first_line, lines: (first_line..first_line + CHUNK).map(line).collect() };
        let body = serde_json::to_vec(&chunk).unwrap();
        acks.push(js.publish(address.clone(), body.into()).await.unwrap());
        if acks.len() >= 100 {
            for ack in acks.drain(..) {
                ack.await.unwrap();
            }
        }
    }
    for ack in acks {
        ack.await.unwrap();
    }
}
