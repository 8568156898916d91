//! Rebuilds and verifications of read models from the console. A rebuild never makes an answer wrong, and a
//! verification names every row that was changed.

use std::time::Duration;

use gpubnb_model::{ledger::Ledger, merkle::Merkle};
use gpubnb_tests::{
    api_client::ApiClient,
    jobs::noop_job,
    models,
    system::{MarketSettings, System},
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// The HTML of the console's page.
async fn console_page(operator: &ApiClient) -> String {
    let (status, page) = operator.bytes("/console").await.unwrap();
    assert_eq!(status, 200);
    String::from_utf8(page).unwrap()
}

/// Submits the form of a button on the console's page.
async fn press(operator: &ApiClient, path: &str) {
    let form = [("csrf", operator.csrf())];
    let answer = operator.build_request(Method::POST, path).form(&form).send().await.unwrap();
    assert_eq!(answer.status(), 303, "{path}");
}

/// Waits until the console's page contains a text, and returns the page.
async fn wait_for_text(operator: &ApiClient, text: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let page = console_page(operator).await;
        if page.contains(text) {
            return page;
        }
        assert!(Instant::now() < deadline, "{text:?} is not on the page: {page}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn answers_stay_right_while_all_models_are_rebuilt_and_verified_under_load() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("attic", &["--slots", "2"]).await.unwrap();
    let operator = ApiClient::sign_up_operator(&system).await.unwrap();
    let noop = noop_job();
    let first = system.consumer.submit(&noop).await.unwrap();
    let whole = system.consumer.wait_until_settled(&first).await.unwrap();
    let models: Vec<_> = gpubnb_model::all().iter().map(|model| model.name()).collect();
    for model in &models {
        press(&operator, &format!("/console/rebuild/{model}")).await;
    }
    let load = async {
        let mut jobs = Vec::new();
        for _ in 0..40 {
            let submitted = system.consumer.post("/jobs", &noop).await.unwrap();
            let job = submitted["job"].as_str().unwrap().to_owned();
            // A new job is found, whether the answer comes from the old or from the rebuilt rows.
            let known = system.consumer.get(&format!("/jobs/{job}?min_seq={}", submitted["seq"])).await.unwrap();
            assert_eq!(known["job"], job.as_str());
            assert_eq!(system.consumer.get(&format!("/jobs/{first}")).await.unwrap(), whole);
            jobs.push(job);
        }
        jobs
    };
    let swapped = async {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let page = console_page(&operator).await;
            if page.matches("rebuilt and swapped").count() == models.len() {
                return;
            }
            assert!(Instant::now() < deadline, "not all models are rebuilt: {page}");
            sleep(Duration::from_millis(50)).await;
        }
    };
    let (jobs, ()) = tokio::join!(load, swapped);
    press(&operator, "/console/verify").await;
    wait_for_text(&operator, "data-clean=\"true\"").await;
    for job in &jobs {
        system.consumer.wait_until_settled(job).await.unwrap();
    }
    // After a restart the projector uses the rebuilt rows, and they are right.
    system.projector = None;
    system.start_projector().await.unwrap();
    assert_eq!(system.consumer.get(&format!("/jobs/{first}")).await.unwrap(), whole);
    press(&operator, "/console/verify").await;
    wait_for_text(&operator, "data-clean=\"true\"").await;
}

#[tokio::test]
async fn a_verification_names_a_changed_row_and_a_rebuild_repairs_it() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    let operator = ApiClient::sign_up_operator(&system).await.unwrap();
    let honest = system.consumer.get("/wallet").await.unwrap()["balance"]["available"].clone();
    system.projector = None;
    {
        let tree = models::open_table(&system, &Ledger).unwrap();
        let (key, row) = tree.scan_prefix(b"b").next().unwrap().unwrap();
        let mut row: Value = serde_json::from_slice(&row).unwrap();
        row["available"] = json!(1_000_000_000_000_i64);
        models::write_row(&tree, &key, Some(serde_json::to_vec(&row).unwrap())).unwrap();
        drop(tree);
        // The hashes of three events are changed: those of events 1 and 2 are swapped, and that of event 3 is wrong.
        let tree = models::open_table(&system, &Merkle).unwrap();
        let (key, leaves) = tree.scan_prefix(b"l").next().unwrap().unwrap();
        let mut leaves = leaves.to_vec();
        let (first, second) = leaves.split_at_mut(32);
        first.swap_with_slice(&mut second[..32]);
        leaves[2 * 32] ^= 1;
        models::write_row(&tree, &key, Some(leaves)).unwrap();
    }
    system.start_projector().await.unwrap();
    assert_ne!(system.consumer.get("/wallet").await.unwrap()["balance"]["available"], honest);
    press(&operator, "/console/verify").await;
    let page = wait_for_text(&operator, "data-clean=\"false\"").await;
    assert!(page.contains("<td>ledger</td>") && page.contains("<code>b\\x"), "the row is named: {page}");
    for (event, what) in [(1, "where event 2 was"), (2, "where event 1 was"), (3, "is not what it was")] {
        let named = page.lines().any(|line| line.contains(&format!(">{event}</a>")) && line.contains(what));
        assert!(named, "event {event} {what}: {page}");
    }
    for model in ["ledger", "merkle"] {
        press(&operator, &format!("/console/rebuild/{model}")).await;
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while console_page(&operator).await.matches("rebuilt and swapped").count() < 2 {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(system.consumer.get("/wallet").await.unwrap()["balance"]["available"], honest);
    press(&operator, "/console/verify").await;
    wait_for_text(&operator, "data-clean=\"true\"").await;
}
