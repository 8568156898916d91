//! A large file is put in parts, and an upload that broke off goes on after the last whole part.

use std::time::Duration;

use gpubnb_events::{Clock as _, Lease, Millis, Seq, SystemClock, transfer::PART_BYTES};
use gpubnb_runtime::permit::{Permit, Purpose, TransferKey};
use gpubnb_tests::system::{Options, System};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Bytes in which no part is like another.
fn noise(bytes: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_le_bytes()
    });
    words.take(usize::try_from(bytes / 8).unwrap()).flatten().collect()
}

fn sha256(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(bytes))
}

#[tokio::test]
async fn a_large_file_goes_on_where_it_broke_off() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job =
        json!({ "template": "count", "parameters": { "lines": "1000", "interval-ms": "100" }, "output_mib": 128 });
    let job = system.web.submit(&job).await.unwrap();
    let runs = system.web.wait_for(&job, Duration::from_secs(30), |job| job["state"] == "Running").await.unwrap();
    let lease = Lease(Seq(runs["attempts"][0]["lease"].as_u64().unwrap()));
    // From here on the test puts files as the job's worker would.
    let key = TransferKey::read(&system.path().join("keys/ui/transfer.key")).unwrap();
    let expires = SystemClock.now().plus(Millis(600_000));
    let sign = |purpose| key.sign(&Permit { purpose, expires }).unwrap();
    let permit = sign(Purpose::Upload { job: job.parse().unwrap(), lease, max_bytes: 128 << 20 });
    let client = Client::new();
    let url = format!("{}/transfer/{job}/{lease}/model.bin", system.url());
    let put = |query: &str| client.put(format!("{url}{query}")).bearer_auth(&permit);
    let sent = async |request: RequestBuilder| request.send().await.unwrap().status();
    let received = async || {
        let answer = client.get(&url).bearer_auth(&permit).send().await.unwrap();
        serde_json::from_slice::<Value>(&answer.bytes().await.unwrap()).unwrap()
    };
    let file = noise(PART_BYTES + (5 << 20));
    let (first, last) = file.split_at(usize::try_from(PART_BYTES).unwrap());
    assert_eq!(received().await, json!({ "complete": false, "parts": 0 }));
    assert_eq!(sent(put("?part=0").body("small")).await, StatusCode::UNPROCESSABLE_ENTITY, "too small for a first one");
    assert_eq!(sent(put("?part=1&last=true").body("small")).await, StatusCode::PRECONDITION_FAILED);
    assert_eq!(sent(put("?part=0").body(first.to_vec())).await, StatusCode::NO_CONTENT);
    assert_eq!(sent(put("?part=0").body(last[..8].to_vec())).await, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(received().await["parts"], json!(1));
    // The upload of the next part breaks off in the middle, and the edge is restarted besides.
    let half = reqwest::Body::wrap_stream(futures_util::stream::iter([
        Ok(last[..1 << 20].to_vec()),
        Err(std::io::Error::other("the cable")),
    ]));
    let broken = put("?part=1&last=true").header("content-length", last.len()).body(half).send().await;
    assert!(broken.is_err());
    system.ui = None;
    system.start_ui().await.unwrap();
    assert_eq!(received().await, json!({ "complete": false, "parts": 1 }));
    assert_eq!(sent(put("?part=1&last=true").body(last.to_vec())).await, StatusCode::NO_CONTENT);
    assert_eq!(received().await["complete"], json!(true));
    assert_eq!(sent(put("").body("another")).await, StatusCode::CONFLICT, "it does not change any more");
    // The file is read as it was put, as a whole and across the seam of its parts.
    let get = |sha256| {
        let path = "model.bin".to_owned();
        let permit = sign(Purpose::Artifact { job: job.parse().unwrap(), lease, path, sha256 });
        client.get(format!("{}/transfer/permit/{permit}", system.url()))
    };
    let whole = get(sha256(&file)).send().await.unwrap().bytes().await.unwrap();
    assert!(whole == file);
    let seam = first.len() - 3..first.len() + 4;
    let range = format!("bytes={}-{}", seam.start, seam.end - 1);
    let part = get(sha256(&file)).header("range", range).send().await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes().await.unwrap(), &file[seam]);
    assert_eq!(sent(get(sha256(b"another"))).await, StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn a_worker_puts_a_large_file_through_an_outage_of_the_edge() {
    let services = ["--approve-image", "gpubnb/hostile:1"].map(str::to_owned).into();
    let mut system = System::start(Options { services, ..Options::default() }).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job =
        json!({ "image": "gpubnb/hostile:1", "command": ["large-file"], "output_mib": 128, "budget_usd": "0.10" });
    let job = system.web.submit(&job).await.unwrap();
    system.web.wait_for(&job, Duration::from_secs(30), |job| job["state"] == "Running").await.unwrap();
    let lease = system.path().join("attic/leases");
    let ended = || std::fs::read_dir(&lease).unwrap().flatten().any(|dir| dir.path().join("outbox.json").exists());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    // The edge must go away between two steps that follow each other at once: hence so short a pause.
    while !ended() {
        assert!(tokio::time::Instant::now() < deadline, "{}", system.log("attic"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    system.ui = None;
    assert!(ended(), "the file was put before the edge went away");
    system.start_ui().await.unwrap();
    let settled = system.web.settled(&job).await.unwrap();
    assert_eq!(settled["state"], "Completed", "{settled:#}");
    let listed = settled["outputs"].as_array().unwrap().iter().find(|file| file["path"] == "large.bin").unwrap();
    let (status, file) = system.web.bytes(&format!("/api/v1/jobs/{job}/artifacts/large.bin")).await.unwrap();
    let log = || format!("{}\n{}", system.log("attic"), system.log("ui"));
    assert_eq!((status, file.len() as u64), (StatusCode::OK, listed["bytes"].as_u64().unwrap()), "{}", log());
    assert_eq!(sha256(&file), listed["sha256"].as_str().unwrap());
    assert!(file.len() as u64 > 2 * PART_BYTES);
}
