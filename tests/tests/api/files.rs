//! The files of jobs outside of the broker: in a directory, and in a real server that speaks S3.

use std::path::Path;

use gpubnb_events::{CommandId, transfer::PART_BYTES};
use gpubnb_tests::system::{MarketSettings, System};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use reqwest::{Method, StatusCode, header::RANGE};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;

/// Starts an S3 server with the bucket `market`, and returns its address.
async fn s3_server(root: &Path) -> String {
    std::fs::create_dir_all(root.join("market")).unwrap();
    let mut service = S3ServiceBuilder::new(FileSystem::new(root).unwrap());
    service.set_auth(SimpleAuth::from_single("key", "secret"));
    let (service, listener) = (service.build(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                drop(Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    format!("http://{address}")
}

fn count_files(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { count_files(&path) } else { 1 }).sum()
}

/// Uploads an input, runs a job that gets the input, runs a job that leaves a large file, and downloads this file.
async fn try_files(address: String, environment: Vec<(String, String)>, stored_in: &Path) {
    let services = ["--approve-image", "gpubnb/hostile:1"].map(str::to_owned).into();
    let ui = vec!["--files".to_owned(), address];
    let settings = MarketSettings { services, ui, ui_environment: environment, ..MarketSettings::default() };
    let mut system = System::start(settings).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let input = CommandId::generate();
    // An id stands for one content. The same upload again is accepted, and another content under this id is refused.
    for (text, expected) in [("hello", 201), ("hello", 200), ("other", 409)] {
        let path = format!("/api/v1/inputs/{input}");
        let put = system.consumer.build_request(Method::PUT, &path).body(text);
        assert_eq!(put.send().await.unwrap().status(), expected, "{text}: {}", system.process_log("ui"));
    }
    let reading = json!({ "image": "gpubnb/hostile:1", "command": ["succeed"], "budget_usd": "0.10",
        "inputs": [{ "input": input, "path": "in.txt" }] });
    let writing =
        json!({ "image": "gpubnb/hostile:1", "command": ["large-file"], "output_mib": 128, "budget_usd": "0.10" });
    let reading = system.consumer.submit(&reading).await.unwrap();
    assert_eq!(system.consumer.wait_until_settled(&reading).await.unwrap()["state"], "Completed");
    let id = system.consumer.submit(&writing).await.unwrap();
    let settled = system.consumer.wait_until_settled(&id).await.unwrap();
    let listed = &settled["outputs"][0];
    let path = format!("/api/v1/jobs/{id}/artifacts/large.bin");
    let (status, file) = system.consumer.bytes(&path).await.unwrap();
    assert_eq!(status, StatusCode::OK, "{settled:#} {}", system.process_log("ui"));
    assert_eq!(data_encoding::HEXLOWER.encode(&Sha256::digest(&file)), listed["sha256"].as_str().unwrap());
    assert!(file.len() as u64 > 2 * PART_BYTES);
    let first = usize::try_from(PART_BYTES).unwrap() - 2;
    let range = format!("bytes={first}-{}", first + 3);
    let part = system.consumer.build_request(Method::GET, &path).header(RANGE, range).send().await.unwrap();
    assert_eq!(part.bytes().await.unwrap(), file[first..first + 4], "a range over two parts");
    assert!(count_files(stored_in) > 4, "the files are not in the broker");
}

#[tokio::test]
async fn the_files_of_jobs_can_be_in_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    try_files(format!("file://{}", directory.path().display()), Vec::new(), directory.path()).await;
}

#[tokio::test]
async fn the_files_of_jobs_can_be_in_a_store_that_speaks_s3() {
    let directory = tempfile::tempdir().unwrap();
    let endpoint = s3_server(directory.path()).await;
    let environment = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    try_files("s3://market/one".to_owned(), environment, directory.path()).await;
}

#[tokio::test]
async fn a_store_that_cannot_be_reached_keeps_the_web_server_from_starting_and_is_named() {
    let settings =
        MarketSettings { ui: vec!["--files".to_owned(), "ftp://a/b".to_owned()], ..MarketSettings::default() };
    let Err(e) = System::start(settings).await else { panic!("it starts") };
    assert!(format!("{e:#}").contains("ftp://a/b is no store of files"), "{e:#}");
}
