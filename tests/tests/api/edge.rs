//! The edge is the web server as the internet reaches it. The tests send hostile text, broken requests, slow requests
//! and too many requests, and connect over TLS.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use gpubnb_runtime::nats::NatsArgs;
use gpubnb_tests::{
    process::Process,
    programs::{binary, free_port, install_crypto_provider, nats_server},
    shared::{Plan, SharedMarket},
    system::{MarketSettings, System},
};
use reqwest::{Method, StatusCode};
use serde_json::json;

static MARKET: SharedMarket =
    SharedMarket::new(|| Plan::default().with_worker("attic", &["--region", "<img src=x onerror=y>"]));

#[tokio::test]
async fn html_in_the_text_of_others_is_escaped_on_every_page() {
    let market = MARKET.open().await.unwrap();
    let script = "<script>alert(1)</script>";
    let body = json!({ "template": "noop", "name": script, "budget_usd": "0.10" });
    let job = market.consumer.submit(&body).await.unwrap();
    market.consumer.wait_until_settled(&job).await.unwrap();
    for page in [
        "/market",
        "/jobs",
        &format!("/jobs/{job}"),
        &format!("/jobs?text={script}"),
        "/wallet",
        &format!("/sign-in?next={script}"),
    ] {
        let reader = if page.starts_with("/sign-in") { market.consumer.stranger() } else { market.consumer.clone() };
        let (status, html) = reader.bytes(page).await.unwrap();
        let html = String::from_utf8_lossy(&html).into_owned();
        assert!(status.is_success(), "{page} {status}");
        assert!(!html.contains("<script>alert") && !html.contains("<img src=x"), "{page}: {html}");
    }
}

#[tokio::test]
async fn broken_requests_get_a_client_error_and_never_a_500() {
    let market = MARKET.open().await.unwrap();
    let deep = format!("{}1{}", "[".repeat(20_000), "]".repeat(20_000));
    let long = "a".repeat(300 * 1024);
    let bodies: [(&str, Vec<u8>); 8] = [
        ("truncated", br#"{"template": "no"#.to_vec()),
        ("not UTF-8", b"{\"name\": \"\xff\xfe\"}".to_vec()),
        ("nested", deep.into_bytes()),
        ("oversized", format!("{{\"name\": \"{long}\"}}").into_bytes()),
        ("duplicate keys", br#"{"template": "noop", "template": "train"}"#.to_vec()),
        ("empty", Vec::new()),
        ("NUL", b"{\"name\": \"a\\u0000b\", \"template\": \"noop\", \"budget_usd\": \"1\"}".to_vec()),
        ("another type", b"3".to_vec()),
    ];
    for (fault, body) in bodies {
        let request =
            market.consumer.build_request(Method::POST, "/api/v1/jobs").header("content-type", "application/json");
        let response = request.body(body).send().await.unwrap();
        let status = response.status();
        assert!(status.is_client_error(), "{fault}: {status}");
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert_eq!(kind, "application/problem+json", "{fault}");
    }
    for path in [
        "/%ff",
        "/jobs/%00",
        "/jobs/..%2f..%2fetc",
        "/assets/..%2f/x",
        "/api/v1/jobs?limit=x",
        "/api/v1/jobs?limit=-1",
        "/transfer/permit/%0a",
        "/transfer/permit/upload.x.y.0.00",
        "/market?sort=%ff",
        "/machines/%e2%80%ae",
        "/sign-in?next=%0d%0aset-cookie:x=1",
        "/docs/../../x",
        "/api/v1/machines?cursor=x",
    ] {
        for header in ["x", "\u{ff}\u{fe}", &"h".repeat(4_000)] {
            let request =
                market.consumer.build_request(Method::GET, path).header("cookie", header).header("range", header);
            let response = request.header("last-event-id", header).header("x-forwarded-for", header).send().await;
            let status = response.unwrap().status();
            assert!(!status.is_server_error(), "{path}: {status}");
        }
    }
}

#[tokio::test]
async fn slow_clients_do_not_block_others_and_are_disconnected() {
    let market = MARKET.open().await.unwrap();
    let address = market.url().strip_prefix("http://").unwrap().to_owned();
    let mut slow: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(&address).unwrap()).collect();
    for client in &mut slow {
        client.write_all(b"POST /api/v1/login HTTP/1.1\r\nhost: x\r\n").unwrap();
    }
    assert_eq!(reqwest::get(format!("{}/healthz", market.url())).await.unwrap().status(), StatusCode::OK);
    let client = &mut slow[0];
    // A client that sends nothing is disconnected. Otherwise the read fails after this time.
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
}

#[tokio::test]
async fn a_client_over_the_rate_limit_is_told_when_to_retry() {
    let ui = ["--requests-per-second", "20"].map(str::to_owned).into();
    let system =
        System::start(MarketSettings { has_rate_limits: true, ui, ..MarketSettings::default() }).await.unwrap();
    let client = reqwest::Client::new();
    let mut refused = None;
    for _ in 0..400 {
        let response = client.get(format!("{}/api/v1/templates", system.url())).send().await.unwrap();
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            refused = Some(response);
            break;
        }
    }
    let refused = refused.expect("the rate limit refuses a client that never stops");
    let seconds: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=5).contains(&seconds));
}

/// A market whose broker and web server speak TLS. The test makes a certificate authority for them.
struct Tls {
    dir: tempfile::TempDir,
    broker: u16,
    edge: u16,
}

impl Tls {
    /// The path of a file of the market.
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes the authority's certificate, the server's certificate, and the keys and the configuration of the broker.
    fn make() -> Self {
        let tls = Self { dir: tempfile::tempdir().unwrap(), broker: free_port().unwrap(), edge: free_port().unwrap() };
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority_cert = authority.self_signed(&authority_key).unwrap();
        let issuer = rcgen::Issuer::new(authority, authority_key);
        let server_key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let server = rcgen::CertificateParams::new(names).unwrap().signed_by(&server_key, &issuer).unwrap();
        fs::write(tls.path("ca.pem"), authority_cert.pem()).unwrap();
        fs::write(tls.path("cert.pem"), server.pem()).unwrap();
        fs::write(tls.path("key.pem"), server_key.serialize_pem()).unwrap();
        let made = Command::new(binary("gpubnb-services").unwrap())
            .args(["bootstrap", "--listen", &format!("127.0.0.1:{}", tls.broker), "--dir"])
            .arg(tls.path("keys"))
            .arg("--store")
            .arg(tls.path("store"))
            .arg("--tls-cert")
            .arg(tls.path("cert.pem"))
            .arg("--tls-key")
            .arg(tls.path("key.pem"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        tls
    }

    /// A command that runs the program `gpubnb-<name>`, which trusts the authority.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(binary(&format!("gpubnb-{name}")).unwrap());
        command.env("GPUBNB_NATS_URL", format!("tls://localhost:{}", self.broker));
        command.env("GPUBNB_NATS_CA", self.path("ca.pem")).env("GPUBNB_NATS_CREDS", self.path("keys").join(name));
        command
    }

    /// Starts a process and waits until it is ready. Starts it again if it ends because another process is not ready
    /// yet.
    async fn start(&self, name: &str, command: &mut Command) -> Process {
        for _ in 0..40 {
            let mut process = Process::start(name, command, self.dir.path()).unwrap();
            for _ in 0..100 {
                if process.has_printed("ready") {
                    return process;
                }
                if process.check_running().is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        panic!("{name} did not start");
    }

    /// Starts the broker, the services, the projector and the web server.
    async fn run(&self) -> [Process; 4] {
        let mut nats = Command::new(nats_server().unwrap());
        let nats = Process::start("nats", nats.arg("-c").arg(self.path("keys/nats.conf")), self.dir.path()).unwrap();
        let services = self.start("services", self.command("services").args(["run", "--provision"])).await;
        let mut projector = self.command("projector");
        let projector = self.start("projector", projector.args(["run", "--data"]).arg(self.path("models"))).await;
        let mut ui = self.command("ui");
        ui.args(["run", "--listen", &format!("127.0.0.1:{}", self.edge), "--tls-cert"]).arg(self.path("cert.pem"));
        let ui = self.start("ui", ui.arg("--tls-key").arg(self.path("key.pem"))).await;
        [nats, services, projector, ui]
    }
}

#[tokio::test]
async fn broker_and_edge_accept_only_clients_that_trust_their_authority() {
    install_crypto_provider();
    let tls = Tls::make();
    let _processes = tls.run().await;
    let trusting = reqwest::Certificate::from_pem(&fs::read(tls.path("ca.pem")).unwrap()).unwrap();
    let client = reqwest::Client::builder().tls_certs_merge([trusting]).build().unwrap();
    let url = format!("https://localhost:{}", tls.edge);
    let page = client.get(format!("{url}/market")).send().await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    assert!(page.headers().contains_key("strict-transport-security"));
    assert!(reqwest::Client::new().get(&url).send().await.is_err(), "others do not trust this authority");
    // A client that does not trust the authority cannot connect to the broker.
    let nats = format!("tls://localhost:{}", tls.broker);
    let untrusting = NatsArgs { nats, nats_creds: tls.path("keys/ui"), nats_ca: None };
    assert!(untrusting.connect("ui", "_INBOX.ui").await.is_err());
    let enrolled = Command::new(binary("gpubnb-provider").unwrap())
        .args(["enroll", "no-such-code", "--market", &url, "--state"])
        .arg(tls.path("machine"))
        .arg("--market-ca")
        .arg(tls.path("ca.pem"))
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&enrolled.stderr).contains("BadCode"), "{enrolled:?}");
}
