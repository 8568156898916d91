//! A log of half a million lines stays usable.

use gpubnb_events::{
    Clock as _, JobId, Lease, Seq, SystemClock,
    output::{LogLine, LogLines, LogStream},
    subject::{self, OutputKind},
};
use gpubnb_tests::{
    browser::Browser,
    jobs::noop,
    machine::Stolen,
    system::{Options, System},
};
use reqwest::Method;

const LINES: u64 = 500_000;
const CHUNK: u64 = 250;

#[tokio::test]
async fn a_log_of_half_a_million_lines_is_opened_at_its_end_searched_and_linked_into() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.web.submit(&noop()).await.unwrap();
    let settled = system.web.settled(&job).await.unwrap();
    let lease = Lease(Seq(settled["attempts"][0]["lease"].as_u64().unwrap()));
    // Pages that are open and do not read, like those behind a slow line or on a sleeping machine.
    let mut silent = Vec::new();
    for _ in 0..20 {
        let page = system.web.at_browser().ask(Method::GET, &format!("/jobs/{job}/live"));
        silent.push(page.send().await.unwrap().error_for_status().unwrap());
    }
    let web_server = system.ui.as_ref().unwrap().pid();
    let before = resident(web_server);
    print(&system, job.parse().unwrap(), lease).await;
    // The whole log takes some forty mebibytes. To a page that does not read, the broker sends its window of some six,
    // however long the log becomes.
    let took = resident(web_server).saturating_sub(before);
    assert!(took < 20 * 10, "pages that do not read took {took} MiB");
    drop(silent);

    let browser = Browser::open(&system).await;
    browser.sign_in(&system, &system.web).await;
    browser.visit(&system, &format!("/jobs/{job}")).await;
    browser.says("#log", "the last line").await;
    let shown = browser.client.execute("return document.querySelectorAll('#log .line').length", vec![]).await.unwrap();
    assert!((1..=5_000).contains(&shown.as_u64().unwrap()), "{shown}");
    // A link leads to any line, and a button to the lines before it.
    browser.client.execute(&format!("location.hash = 'L{lease}-123456'"), vec![]).await.unwrap();
    browser.says("#log .target", "line 123456").await;
    browser.click_live("#log-earlier").await;
    browser.says("#log", "line 122900").await;
    // The whole log is searched; what is found leads to its place, where the line has its colours.
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

/// Publishes lines of the job in the name of its machine, with the credential of that machine.
async fn print(system: &System, job: JobId, lease: Lease) {
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
