//! The whole loop on real parts: a machine is listed, a job is submitted, runs in Docker, is settled.
#![allow(missing_docs)]

use gpubnb_tests::system::{Options, System};
use serde_json::json;

#[tokio::test]
async fn a_job_goes_round_the_whole_loop() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &["--price", "0.36"]).await.unwrap();
    let job = system
        .web
        .submit(&json!({ "template": "render", "parameters": { "width": "160", "height": "90", "samples": "4" } }))
        .await
        .unwrap();
    let settled = system.web.settled(&job).await.unwrap();
    assert_eq!(settled["state"], "Completed", "{settled:#}");
    let receipt = system.web.get(&format!("/jobs/{job}/receipt")).await.unwrap();
    let sum: i64 = receipt["postings"].as_array().unwrap().iter().map(|p| p["amount"].as_i64().unwrap()).sum();
    assert_eq!(sum, 0, "{receipt:#}");
    let events = system.web.get(&format!("/jobs/{job}/events")).await.unwrap();
    let names: Vec<_> = events["rows"].as_array().unwrap().iter().map(|e| e["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["JobSubmitted", "JobAssigned", "Accepted", "Started", "Completed", "Settled"]);
    let files = system.web.get(&format!("/jobs/{job}/artifacts")).await.unwrap();
    assert_eq!(files[0]["path"], "render.png", "{files:#}");
    let (status, picture) = system.web.bytes(&format!("/jobs/{job}/artifacts/render.png")).await.unwrap();
    assert!(status.is_success() && picture.starts_with(b"\x89PNG"));
    assert_eq!(picture.len() as u64, files[0]["bytes"].as_u64().unwrap());
    let logs = system.web.get(&format!("/jobs/{job}/logs")).await.unwrap();
    assert!(!logs["rows"].as_array().unwrap().is_empty(), "{logs:#}");
}
