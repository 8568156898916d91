//! A job's way to the internet, its *door*. A server of the test stands for the internet. The worker's option
//! `--egress-mirror` leads the names `files.example` and `other.example` to this server.

use std::{net::SocketAddr, time::Duration};

use gpubnb_tests::{
    system::{MarketSettings, System},
    wait::wait_until,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

/// A server that answers each request with a greeting, and keeps silent connections open.
async fn outside() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4_096];
                while let Ok(count @ 1..) = stream.read(&mut request).await {
                    if request[..count].starts_with(b"GET /endless") {
                        drop(stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await);
                        while stream.write_all(&[0; 8_192]).await.is_ok() {}
                        return;
                    }
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\nhello from outside";
                    drop(stream.write_all(answer).await);
                }
            });
        }
    });
    address
}

/// Starts a market with one machine whose owner allows these hosts.
async fn start_market(allowed: &str) -> System {
    let services = ["--approve-image", "gpubnb/hostile:1"].map(str::to_owned).into();
    let mut system = System::start(MarketSettings { services, ..MarketSettings::default() }).await.unwrap();
    start_worker(&mut system, allowed, outside().await).await;
    system
}

async fn start_worker(system: &mut System, allowed: &str, outside: SocketAddr) {
    let mirrors = format!("files.example={outside},other.example={outside}");
    system
        .start_worker("attic", &["--slots", "2", "--allow-egress", allowed, "--egress-mirror", &mirrors])
        .await
        .unwrap();
}

fn job(command: &str, egress: &Value) -> Value {
    json!({ "image": "gpubnb/hostile:1", "command": [command], "name": command, "time_seconds": 120, "memory_mib": 128,
        "budget_usd": "0.50", "max_attempts": 2, "egress": egress })
}

async fn log_of(system: &System, job: &str) -> String {
    let logs = system.consumer.get(&format!("/jobs/{job}/logs")).await.unwrap();
    let lines: Vec<_> = logs["rows"].as_array().unwrap().iter().map(|row| row["text"].as_str().unwrap()).collect();
    lines.join("\n")
}

#[tokio::test]
async fn a_job_reaches_the_hosts_it_asked_for_and_no_other_by_any_way() {
    let system = start_market("any").await;
    let body = job("door", &json!(["files.example", "127.0.0.1", "169.254.169.254", "localhost"]));
    let id = system.consumer.submit(&body).await.unwrap();
    let settled = system.consumer.wait_until_settled(&id).await.unwrap();
    let log = log_of(&system, &id).await;
    assert_eq!(settled["state"], "Completed", "{log}\n{}", system.process_log("attic"));
    assert!(log.contains("other.example: not allowed; add it to the hosts that the job may reach (egress)"), "{log}");
    assert!(log.contains("169.254.169.254 has no public address"), "{log}");
    let traffic = &settled["traffic"];
    assert_eq!(traffic["hosts"][0]["host"], "files.example", "{traffic}");
    assert!(traffic["hosts"][0]["received"].as_u64().unwrap() > 18, "{traffic}");
    assert!(traffic["refused"].as_u64().unwrap() > 20, "{traffic}");
    // The relay, the container that carried the job's connections, is removed.
    let machine = system.machine_id("attic").unwrap();
    let left = async || {
        let label = format!("label=gpubnb.relay={machine}");
        let listed = std::process::Command::new("docker").args(["ps", "--all", "--quiet", "--filter", &label]).output();
        listed.unwrap().stdout.is_empty()
    };
    wait_until("the removal of the relay", left).await;
}

#[tokio::test]
async fn an_owners_list_of_hosts_keeps_other_jobs_away_and_says_so() {
    let system = start_market("*.example").await;
    let refused = system.consumer.submit(&job("succeed", &json!(["pypi.org"]))).await.unwrap();
    let is_explained = |view: &Value| view["waiting"]["rejected"].to_string().contains("NoEgress");
    system.consumer.wait_for(&refused, Duration::from_secs(20), is_explained).await.unwrap();
    system.consumer.post(&format!("/jobs/{refused}/cancel"), &json!({})).await.unwrap();
    let id = system.consumer.submit(&job("succeed", &json!("files.example, other.example"))).await.unwrap();
    assert_eq!(system.consumer.wait_until_settled(&id).await.unwrap()["state"], "Completed");
    let wrong = system.consumer.post("/jobs", &job("succeed", &json!(["http://pypi.org"]))).await.unwrap_err();
    assert!(wrong.to_string().contains("egress"), "{wrong}");
}

#[tokio::test]
async fn a_restart_of_the_worker_that_breaks_a_jobs_connections_is_not_the_jobs_fault() {
    let services = ["--approve-image", "gpubnb/hostile:1"].map(str::to_owned).into();
    let mut system = System::start(MarketSettings { services, ..MarketSettings::default() }).await.unwrap();
    let outside = outside().await;
    start_worker(&mut system, "any", outside).await;
    let id = system.consumer.submit(&job("hold-tunnel", &json!("files.example"))).await.unwrap();
    let is_open = async || {
        let logs = system.consumer.get(&format!("/jobs/{id}/logs")).await;
        logs.is_ok_and(|logs| logs["rows"].to_string().contains("the tunnel is open"))
    };
    wait_until("the tunnel", is_open).await;
    system.workers.remove(0).kill();
    start_worker(&mut system, "any", outside).await;
    let ended = |job: &Value| job["attempts"][0]["ended"].is_string();
    let view = system.consumer.wait_for(&id, Duration::from_secs(60), ended).await.unwrap();
    assert_eq!((&view["attempts"][0]["ended"], &view["reason"]["name"]), (&json!("Requeued"), &json!("Interrupted")));
    // The next attempt gets a new door, and runs.
    let runs_again = |job: &Value| job["attempts"][1]["started_at"].is_string() || job["state"] == "Running";
    system.consumer.wait_for(&id, Duration::from_secs(60), runs_again).await.unwrap();
    system.consumer.post(&format!("/jobs/{id}/cancel"), &json!({})).await.unwrap();
    system.consumer.wait_until_settled(&id).await.unwrap();
}
