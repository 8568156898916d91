//! A large file is uploaded in parts. An upload that was interrupted continues after the last complete part.

use std::time::Duration;

use futures_util::future::join_all;
use gpubnb_events::{Clock as _, CommandId, Lease, Millis, Seq, SystemClock, subject::UI_INBOX, transfer::PART_BYTES};
use gpubnb_log::stream::{ARTIFACTS, store_stream};
use gpubnb_runtime::{
    nats,
    permit::{Permit, PermitKey, Purpose},
};
use gpubnb_tests::{
    api_client::ApiClient,
    programs::free_port,
    system::{MarketSettings, System},
};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Pseudo-random bytes, so that no two parts are equal.
fn pseudo_random(bytes: u64) -> Vec<u8> {
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
async fn an_interrupted_upload_of_a_large_file_continues_after_the_last_complete_part() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job =
        json!({ "template": "count", "parameters": { "lines": "1000", "interval-ms": "100" }, "output_mib": 128 });
    let job = system.consumer.submit(&job).await.unwrap();
    let running =
        system.consumer.wait_for(&job, Duration::from_secs(30), |job| job["state"] == "Running").await.unwrap();
    let lease = Lease(Seq(running["attempts"][0]["lease"].as_u64().unwrap()));
    // The test uploads the file in place of the job's worker.
    let key = PermitKey::read(&system.path().join("keys/ui/transfer.key")).unwrap();
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
    let file = pseudo_random(PART_BYTES + (5 << 20));
    let (first, last) = file.split_at(usize::try_from(PART_BYTES).unwrap());
    assert_eq!(received().await, json!({ "complete": false, "parts": 0 }));
    assert_eq!(
        sent(put("?part=0").body("small")).await,
        StatusCode::UNPROCESSABLE_ENTITY,
        "too small for a part that is not the last one"
    );
    assert_eq!(sent(put("?part=1&last=true").body("small")).await, StatusCode::PRECONDITION_FAILED);
    assert_eq!(sent(put("?part=0").body(first.to_vec())).await, StatusCode::NO_CONTENT);
    assert_eq!(sent(put("?part=0").body(last[..8].to_vec())).await, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(received().await["parts"], json!(1));
    // The upload of the next part is interrupted, and the web server is restarted.
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
    assert_eq!(sent(put("").body("another")).await, StatusCode::CONFLICT, "a complete file cannot be changed");
    // The whole file is read back, and then a range across the boundary of its parts.
    let get = |sha256| {
        let path = "model.bin".to_owned();
        let permit = sign(Purpose::Artifact { job: job.parse().unwrap(), lease, path, sha256 });
        client.get(format!("{}/transfer/permit/{permit}", system.url()))
    };
    let whole = get(sha256(&file)).send().await.unwrap().bytes().await.unwrap();
    assert!(whole == file);
    let boundary = first.len() - 3..first.len() + 4;
    let range = format!("bytes={}-{}", boundary.start, boundary.end - 1);
    let part = get(sha256(&file)).header("range", range).send().await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes().await.unwrap(), &file[boundary]);
    assert_eq!(sent(get(sha256(b"another"))).await, StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn a_worker_finishes_a_large_upload_after_an_outage_of_the_web_server() {
    let services = ["--approve-image", "gpubnb/hostile:1"].map(str::to_owned).into();
    let mut system = System::start(MarketSettings { services, ..MarketSettings::default() }).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job =
        json!({ "image": "gpubnb/hostile:1", "command": ["large-file"], "output_mib": 128, "budget_usd": "0.10" });
    let job = system.consumer.submit(&job).await.unwrap();
    system.consumer.wait_for(&job, Duration::from_secs(30), |job| job["state"] == "Running").await.unwrap();
    let lease = system.path().join("attic/leases");
    let has_ended = || std::fs::read_dir(&lease).unwrap().flatten().any(|dir| dir.path().join("outbox.json").exists());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    // The web server must stop between the end of the job and the end of the upload, so the pause is short.
    while !has_ended() {
        assert!(tokio::time::Instant::now() < deadline, "{}", system.process_log("attic"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    system.ui = None;
    assert!(has_ended(), "the file was uploaded before the web server stopped");
    system.start_ui().await.unwrap();
    let settled = system.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!(settled["state"], "Completed", "{settled:#}");
    let listed = settled["outputs"].as_array().unwrap().iter().find(|file| file["path"] == "large.bin").unwrap();
    let (status, file) = system.consumer.bytes(&format!("/api/v1/jobs/{job}/artifacts/large.bin")).await.unwrap();
    let log = || format!("{}\n{}", system.process_log("attic"), system.process_log("ui"));
    assert_eq!((status, file.len() as u64), (StatusCode::OK, listed["bytes"].as_u64().unwrap()), "{}", log());
    assert_eq!(sha256(&file), listed["sha256"].as_str().unwrap());
    assert!(file.len() as u64 > 2 * PART_BYTES);
}

#[tokio::test]
async fn a_file_beyond_the_share_is_left_out_without_blame_or_bill_and_nobody_else_is_hit() {
    // An account may use a quarter of the store, its share: here 100 MiB.
    let services = ["--approve-image", "gpubnb/hostile:1", "--artifacts-mib", "400"];
    let services = services.map(str::to_owned).into();
    let mut system = System::start(MarketSettings { services, ..MarketSettings::default() }).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let other = ApiClient::sign_up(&system.url(), "other").await.unwrap();
    other.deposit("10").await.unwrap();
    let body =
        json!({ "image": "gpubnb/hostile:1", "command": ["large-file"], "output_mib": 128, "budget_usd": "0.10" });
    let first = system.consumer.submit(&body).await.unwrap();
    let first = system.consumer.wait_until_settled(&first).await.unwrap();
    assert_eq!(first["left_out"], json!([]), "{first:#}");
    // The second file does not fit into the account's share. The job completes all the same, and `left_out` names the
    // file.
    let second = system.consumer.submit(&body).await.unwrap();
    // The test waits long, because the worker hashes and sends a large file, and then waits 15 seconds for room.
    let is_settled = |job: &Value| job["settled"] == true;
    let second = system.consumer.wait_for(&second, Duration::from_secs(180), is_settled).await.unwrap();
    assert_eq!((&second["state"], &second["outputs"]), (&json!("Completed"), &json!([])), "{second:#}");
    assert_eq!(second["left_out"], json!([{ "reason": "StoreFull", "entries": 1, "example": "large.bin" }]));
    assert!(second["cost"].as_i64().unwrap() <= first["cost"].as_i64().unwrap() * 10, "the wait is not billed");
    // The share has room for the first part of the second file. But the store takes no part of a file that does not
    // fit as a whole, so it has only the first file (80 MiB).
    let js = nats::jetstream(system.nats_args("ui").connect("ui", UI_INBOX).await.unwrap());
    let stored = js.get_stream(store_stream(ARTIFACTS)).await.unwrap().cached_info().state.bytes;
    assert!(stored < 90 << 20, "{stored} bytes");
    let id = CommandId::generate();
    let put = |text: &'static str| other.build_request(Method::PUT, &format!("/api/v1/inputs/{id}")).body(text).send();
    // An id stands for one content. The same upload again is accepted, and another content under this id is refused.
    for (text, expected) in [("first", 201), ("first", 200), ("other", 409), ("longer", 409)] {
        assert_eq!(put(text).await.unwrap().status(), expected, "{text}");
    }
    // The same is true if two contents for one id arrive at the same time.
    let id = CommandId::generate();
    let send = |byte: u8| {
        let put = other.build_request(Method::PUT, &format!("/api/v1/inputs/{id}"));
        put.body(vec![byte; 4 << 20]).send()
    };
    let (one, two) = tokio::join!(send(1), send(2));
    let mut statuses = [one.unwrap().status().as_u16(), two.unwrap().status().as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409]);
    // Nobody else is hit: the file of another account has room.
    let third = other.submit(&body).await.unwrap();
    assert_eq!(other.wait_until_settled(&third).await.unwrap()["left_out"], json!([]));
}

/// Uploads a new input. Returns the status, and the title and the detail of a problem.
async fn upload(account: &ApiClient, mebibytes: usize) -> (StatusCode, String) {
    let path = format!("/api/v1/inputs/{}", CommandId::generate());
    let answer = account.build_request(Method::PUT, &path).body(vec![7_u8; mebibytes << 20]).send().await.unwrap();
    let status = answer.status();
    let body: Value = answer.json().await.unwrap();
    let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
    (status, format!("{} {}", text("title"), text("detail")))
}

#[tokio::test]
async fn no_account_takes_more_than_its_share_of_the_inputs_and_free_accounts_share_one() {
    // An account may use a quarter of the store, its share: here 16 MiB. All accounts without money share one
    // quarter.
    let services = ["--inputs-mib", "64"].map(str::to_owned).into();
    let system = System::start(MarketSettings { services, ..MarketSettings::default() }).await.unwrap();
    let sign_up = async |name: &str| ApiClient::sign_up(&system.url(), name).await.unwrap();
    let (free, other_free, rich) = (sign_up("free").await, sign_up("other-free").await, sign_up("rich").await);
    rich.deposit("10").await.unwrap();
    assert_eq!(upload(&free, 10).await.0, StatusCode::CREATED);
    let (status, problem) = upload(&other_free, 10).await;
    assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE);
    assert!(problem.starts_with("NoRoom The room for files of accounts without money is full"), "{problem}");
    assert_eq!(upload(&other_free, 5).await.0, StatusCode::CREATED, "the rest of that room");
    // An account with money has a share of its own.
    assert_eq!(upload(&rich, 10).await.0, StatusCode::CREATED);
    let (status, problem) = upload(&rich, 10).await;
    assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE);
    assert!(problem.starts_with("NoRoom Your files may take 16 MiB together"), "{problem}");
    // Only several accounts with money can fill the store together. The error is then `StoreFull`, not `NoRoom`.
    let mut uploads = Vec::new();
    for number in 0..4 {
        let account = sign_up(&format!("rich-{number}")).await;
        account.deposit("10").await.unwrap();
        uploads.push(upload(&account, 15).await);
    }
    let (last, before) = uploads.split_last().unwrap();
    assert!(before[..2].iter().all(|(status, _)| *status == StatusCode::CREATED), "{uploads:?}");
    assert!(last.1.starts_with("StoreFull"), "{uploads:?}");
}

#[tokio::test]
async fn two_web_servers_together_keep_the_shares_and_never_replace_a_file() {
    let services = ["--inputs-mib", "64"].map(str::to_owned).into();
    let system = System::start(MarketSettings { services, ..MarketSettings::default() }).await.unwrap();
    let port = free_port().unwrap();
    let _second_server = system.start_ui_at(port).await.unwrap();
    let at_second = |account: &ApiClient| {
        let mut account = account.clone();
        account.url = format!("http://127.0.0.1:{port}");
        account
    };
    let account = ApiClient::sign_up(&system.url(), "free").await.unwrap();
    let servers = [&account, &at_second(&account)];

    // The share has 16 MiB, so three of these files fit. An upload claims its room before its bytes arrive.
    let uploads = (0..8).map(|number| upload(servers[number % 2], 5));
    let statuses: Vec<_> = join_all(uploads).await.into_iter().map(|(status, _)| status).collect();
    let stored = statuses.iter().filter(|status| **status == StatusCode::CREATED).count();
    let refused = statuses.iter().filter(|status| **status == StatusCode::INSUFFICIENT_STORAGE).count();
    assert_eq!((stored, refused), (3, 5), "{statuses:?}");
    for server in servers {
        assert_eq!(upload(server, 5).await.0, StatusCode::INSUFFICIENT_STORAGE);
    }
    assert_eq!(upload(servers[1], 1).await.0, StatusCode::CREATED, "the rest of the share can be used at once");

    // One id never names two files.
    let rich = ApiClient::sign_up(&system.url(), "rich").await.unwrap();
    rich.deposit("10").await.unwrap();
    let servers = [&rich, &at_second(&rich)];
    let path = format!("/api/v1/inputs/{}", CommandId::generate());
    let put =
        |server: usize, byte: u8| servers[server].build_request(Method::PUT, &path).body(vec![byte; 1_000]).send();
    let answers = join_all([put(0, b'a'), put(1, b'b')]).await;
    let mut statuses: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().status().as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409]);
}
