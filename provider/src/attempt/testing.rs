//! Helpers for the tests of this folder: a stub of Docker with one container, and an attempt that uses the stub.

use std::{path::Path, sync::Arc, time::Duration};

use async_nats::ConnectOptions;
use bollard::{API_DEFAULT_VERSION, Docker};
use gpubnb_dialer::Dialer;
use gpubnb_door::Rate;
use gpubnb_events::{
    JobId, Lease, Millis, Seq,
    command::Grant,
    spec::{Egress, Hardware, JobSpec, Mebibytes},
    template,
};
use gpubnb_registry::Registries;
use gpubnb_runtime::{nats::machine_jetstream, rpc::Caller};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::{
    AttemptContext, CacheLimits, DatasetCache, DoorRules, ImageRules, Images, JobDisks, Tools, watch::wait_for_value,
};
use crate::{
    config::DiskQuota, identity::Identity, image_fetch::ImageFetcher, lease_table::LeaseTable, platform::Platform,
};

/// The grace that the owner has set. It differs from the grace of other stops.
pub(super) const RECLAIM_GRACE: Duration = Duration::from_secs(3);

/// A stub of Docker over HTTP. Its container runs until it is stopped, or until the test calls `exit`.
pub(super) struct StubDocker {
    pub(super) client: Docker,
    state: watch::Sender<StubContainer>,
}

#[derive(Debug, Clone, Default)]
struct StubContainer {
    exit_code: Option<i64>,
    out_of_memory: bool,
    /// The query of the request that stopped the container.
    stopped_by: Option<String>,
}

impl StubDocker {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("tcp://{}", listener.local_addr().unwrap());
        let client = Docker::connect_with_http(&address, 5, API_DEFAULT_VERSION).unwrap();
        let state = watch::Sender::new(StubContainer::default());
        let served = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, served.clone()));
            }
        });
        Self { client, state }
    }

    /// Ends the container with this exit code.
    pub(super) fn exit(&self, code: i64, out_of_memory: bool) {
        self.state.send_modify(|container| {
            container.exit_code = Some(code);
            container.out_of_memory = out_of_memory;
        });
    }

    /// The query of the request that stopped the container, such as `t=10` for a grace of 10 seconds; `None` if the
    /// container was not stopped.
    pub(super) fn stopped_by(&self) -> Option<String> {
        self.state.borrow().stopped_by.clone()
    }
}

/// Answers one request of Docker's API.
async fn serve(stream: TcpStream, state: watch::Sender<StubContainer>) {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    stream.read_line(&mut request).await.unwrap();
    let mut header = String::new();
    while stream.read_line(&mut header).await.unwrap() > 2 {
        header.clear();
    }
    let address = request.split(' ').nth(1).unwrap_or_default();
    let (path, query) = address.split_once('?').unwrap_or((address, ""));
    let (status, body) = if path.ends_with("/wait") {
        let code = wait_for_value(&mut state.subscribe(), |container| container.exit_code).await;
        (200, json!({ "StatusCode": code }).to_string())
    } else if path.ends_with("/stop") {
        state.send_modify(|container| {
            container.exit_code.get_or_insert(137);
            container.stopped_by = Some(query.to_owned());
        });
        (204, String::new())
    } else if path.ends_with("/events") || path.ends_with("/logs") {
        // Docker sent no signal, and the job wrote no log.
        (200, String::new())
    } else if path.ends_with("/json") {
        let container = state.borrow().clone();
        let now = gpubnb_events::Clock::now(&gpubnb_events::SystemClock).to_string();
        let state = json!({
            "Running": container.exit_code.is_none(), "OOMKilled": container.out_of_memory,
            "StartedAt": now, "FinishedAt": now,
        });
        (200, json!({ "Id": "stub", "State": state }).to_string())
    } else {
        (200, "OK".to_owned())
    };
    let head = format!("HTTP/1.1 {status} stub\r\ncontent-type: application/json\r\nconnection: close\r\n");
    let length = if status == 204 { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    stream.write_all(format!("{head}{length}\r\n{body}").as_bytes()).await.unwrap();
}

/// Takes an attempt in the lease table, and makes its directory below `state`. There is no broker.
pub(super) async fn attempt(state: &Path, docker: &StubDocker, leases: &Arc<LeaseTable>) -> AttemptContext {
    let client = ConnectOptions::new().retry_on_initial_connect().connect("127.0.0.1:1").await.unwrap();
    let identity = Arc::new(Identity::open(state).unwrap());
    let rules = ImageRules {
        registries: None,
        fetcher: ImageFetcher { registries: Registries { dialer: Dialer::default(), private: Vec::new() }, largest: 0 },
        cache: CacheLimits { bytes: 0, unused: Millis(0) },
    };
    // The call fails if a library has already installed a provider of cryptography. That provider is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    let tools = Tools {
        machine: identity.machine,
        docker: docker.client.clone(),
        images: Images::new(state, rules),
        js: machine_jetstream(client.clone()),
        platform: Platform::new(Caller::new(client), identity.machine),
        leases: Arc::clone(leases),
        attempts_dir: state.join("leases"),
        hardware: hardware(),
        runtime: None,
        cdi: false,
        max_log: 1 << 20,
        reclaim_grace: RECLAIM_GRACE,
        job_disks: JobDisks::new(state, (0, 0), DiskQuota::Poll),
        datasets: DatasetCache::new(state, state.join("leases"), 1 << 30),
        door_rules: DoorRules {
            hosts: Egress::default(),
            ports: Vec::new(),
            max_bytes: 0,
            rate: Arc::new(Rate::megabits(0)),
            dialer: Dialer::default(),
            relay_user: (0, 0),
        },
        http: reqwest::Client::builder().tls_certs_only([]).build().unwrap(),
        identity,
    };
    let (job, lease) = (JobId::generate(), Lease(Seq(7)));
    let desired = leases.take(job, lease).unwrap();
    let context = AttemptContext::new(Arc::new(tools), job, lease, desired);
    std::fs::create_dir_all(context.disk().output()).unwrap();
    context
}

fn hardware() -> Hardware {
    Hardware {
        cpu_model: "stub".to_owned(),
        cpu_cores: 1,
        memory: Mebibytes(1_024),
        disk: Mebibytes(1_024),
        gpus: Vec::new(),
        driver: None,
        cuda: None,
        simulated: false,
    }
}

/// A grant for a job of the first template, with these limits. `output` is its largest output.
pub(super) fn grant(time: Millis, budget: Option<Millis>, output: Mebibytes) -> Grant {
    let template = &template::OWN[0];
    let mut resources = template.resources.clone();
    (resources.output, resources.disk) = (output, Some(output));
    let spec = JobSpec::for_image("test", &template.image, Vec::new(), resources);
    Grant { spec, time, budget, started: false, upload: None, inputs: Vec::new(), datasets: Vec::new(), env: None }
}
