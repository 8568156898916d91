//! The page of a job stays usable with a log of half a million lines.

use gpubnb_events::{
    Clock as _, JobId, Lease, Seq, SystemClock,
    output::{LogLine, LogLines, LogStream},
    subject::{self, OutputKind},
};
use gpubnb_tests::{
    browser::Browser,
    jobs::noop_job,
    system::{MarketSettings, System},
};
use reqwest::Method;

/// Number of lines in the log.
const LINES: u64 = 500_000;
/// Number of lines in one message.
const CHUNK: u64 = 250;

#[tokio::test]
async fn a_log_of_half_a_million_lines_opens_at_its_end_and_has_links_and_search() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.consumer.submit(&noop_job()).await.unwrap();
    let settled = system.consumer.wait_until_settled(&job).await.unwrap();
    let lease = Lease(Seq(settled["attempts"][0]["lease"].as_u64().unwrap()));
    // Open pages that do not read their stream, as on a sleeping computer.
    let mut unread_pages = Vec::new();
    for _ in 0..20 {
        let page = system.consumer.browser_session().build_request(Method::GET, &format!("/jobs/{job}/live"));
        unread_pages.push(page.send().await.unwrap().error_for_status().unwrap());
    }
    let web_server = system.ui.as_ref().unwrap().pid();
    let before = resident_memory(web_server);
    publish_log(&system, job.parse().unwrap(), lease).await;
    // The log is about 40 MiB. For a page that does not read, the broker sends at most a window of about 6 MiB. So
    // each of the 20 pages may cost at most 10 MiB.
    let used = resident_memory(web_server).saturating_sub(before);
    assert!(used < 20 * 10, "pages that do not read used {used} MiB");
    drop(unread_pages);

    let browser = Browser::open(&system).await;
    browser.sign_in(&system, &system.consumer).await;
    browser.visit(&system, &format!("/jobs/{job}")).await;
    browser.wait_for_text("#log", "the last line").await;
    let shown = browser.client.execute("return document.querySelectorAll('#log .line').length", vec![]).await.unwrap();
    assert!((1..=5_000).contains(&shown.as_u64().unwrap()), "{shown}");
    // A link opens the log at a line, and a button loads the earlier lines.
    browser.client.execute(&format!("location.hash = 'L{lease}-123456'"), vec![]).await.unwrap();
    browser.wait_for_text("#log .target", "line 123456").await;
    browser.click_live("#log-earlier").await;
    browser.wait_for_text("#log", "line 122900").await;
    // The search covers the whole log. A result links to its line, which is shown in its colours.
    browser.fill("#log-find", "needle").await;
    browser.click("#log-search button").await;
    browser.wait_for_text("#log-found", "a needle at 250123").await;
    browser.click_live("#log-found .no").await;
    browser.wait_for_text("#log .target", "a needle at 250123").await;
    browser.wait_for("#log .target .c1.b").await;
    browser.assert_sound("a long log").await;
    browser.save_screenshot("log").await;
    browser.close().await;
}

/// The resident memory of a process, MiB.
fn resident_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1_024
}

/// Publishes the log lines of a job with the credential of the services.
async fn publish_log(system: &System, job: JobId, lease: Lease) {
    let machine = system.machine_id("attic").unwrap().parse().unwrap();
    let client = system.nats_args("services").connect("output", subject::SERVICES_INBOX).await.unwrap();
    let js = async_nats::jetstream::new(client.clone());
    let address = subject::output(machine, job, OutputKind::Log);
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
            cut: 0,
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
