//! Operators rely on a rebuild that nobody notices, and on a verification that names the row that was tampered with.

use std::time::Duration;

use gpubnb_model::{ledger::Ledger, merkle::Merkle};
use gpubnb_tests::{
    jobs::noop,
    models,
    system::{Options, System},
    web::Web,
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// The console's page, as an operator sees it.
async fn console(operator: &Web) -> String {
    let (status, page) = operator.bytes("/console").await.unwrap();
    assert_eq!(status, 200);
    String::from_utf8(page).unwrap()
}

/// Presses a button of the page.
async fn press(operator: &Web, path: &str) {
    let form = [("csrf", operator.csrf())];
    let answer = operator.ask(Method::POST, path).form(&form).send().await.unwrap();
    assert_eq!(answer.status(), 303, "{path}");
}

/// Waits until the page says something, and returns the page.
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
    let noop = noop();
    let first = system.web.submit(&noop).await.unwrap();
    let whole = system.web.settled(&first).await.unwrap();
    let models: Vec<_> = gpubnb_model::all().iter().map(|model| model.name()).collect();
    for model in &models {
        press(&operator, &format!("/console/rebuild/{model}")).await;
    }
    let load = async {
        let mut jobs = Vec::new();
        for _ in 0..40 {
            let submitted = system.web.post("/jobs", &noop).await.unwrap();
            let job = submitted["job"].as_str().unwrap().to_owned();
            // A job that was just submitted is known, whether the old or the new rows answer.
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
            if page.matches("rebuilt and swapped").count() == models.len() {
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
    // The rebuilt rows still answer after a restart, and are right.
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
        // The hashes of the folded events are changed, as if two events had changed places since, and one were another.
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
