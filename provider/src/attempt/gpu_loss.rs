//! Tests of GPU loss: from the fake NVML, through the watch over the GPUs, to the outcome that the market is told.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use gpubnb_events::{
    JobId, Lease, Millis, Seq, command::Outcome, event::Reason, spec::Mebibytes, telemetry::GpuTrouble,
};
use serde_json::{Value, json};

use super::{
    end::{End, StopCause},
    prepare::Origin,
    run,
    testing::{StubDocker, attempt, grant},
    watch::RunSignals,
};
use crate::{
    desired_state::{DesiredState, StopReason},
    gpu::Gpus,
    heartbeat::check_gpus,
    lease_table::LeaseTable,
};

/// The variable that names the file from which the fake NVML answers.
const FAKE_NVML: &str = "GPUBNB_FAKE_NVML";

/// The GPUs of a machine, read by the fake NVML, which Cargo builds beside this test.
fn probe() -> Gpus {
    Gpus::probe(0, Some(&env::current_exe().unwrap().with_file_name("libgpubnb_fake_nvml.so")))
}

/// Sets the answers of the fake NVML: a GPU for each trouble, which is empty for a GPU that works.
fn set(file: &Path, troubles: &[&str], ecc: u64) {
    let gpu = |(index, trouble): (usize, &&str)| -> Value {
        json!({
            "uuid": format!("GPU-{index}"), "name": "NVIDIA Fake", "total_mib": 81_920, "ecc": ecc, "trouble": trouble,
        })
    };
    let gpus: Vec<_> = troubles.iter().enumerate().map(gpu).collect();
    fs::write(file, json!({ "driver": "1", "gpus": gpus }).to_string()).unwrap();
}

/// Runs a test of this file again in a process of its own, with the fake NVML answering from a file: the library takes
/// the file's name from the environment, and only a new process can safely be given another environment. Returns the
/// file in the new process, and `None` in the old one.
fn with_fake_nvml(test: &str) -> Option<PathBuf> {
    if let Some(file) = env::var_os(FAKE_NVML) {
        return Some(file.into());
    }
    let dir = tempfile::tempdir().unwrap();
    let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture"])
        .env(FAKE_NVML, dir.path().join("nvml.json"))
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.contains("1 passed"), "{name} did not run: {printed}");
    None
}

#[tokio::test]
async fn an_attempt_whose_gpu_is_lost_is_stopped_and_told_as_gpu_lost() {
    let Some(file) = with_fake_nvml("an_attempt_whose_gpu_is_lost_is_stopped_and_told_as_gpu_lost") else { return };
    set(&file, &["", ""], 0);
    let gpus = probe();
    let uuids: Vec<String> = gpus.list().into_iter().map(|gpu| gpu.uuid).collect();
    assert_eq!(uuids, ["GPU-0", "GPU-1"]);
    let (state, docker) = (tempfile::tempdir().unwrap(), StubDocker::start().await);
    let leases = Arc::new(LeaseTable::new(2));
    let context = attempt(state.path(), &docker, &leases).await;
    leases.gpus.allocate(context.lease, &uuids, 1).unwrap();
    let other = leases.take(JobId::generate(), Lease(Seq(8))).unwrap();
    leases.gpus.allocate(Lease(Seq(8)), &uuids, 1).unwrap();

    let signals = RunSignals::running();
    let grant = grant(Millis(60_000), None, Mebibytes(1));
    let running = run::until_end(&context, &grant, Origin::ThisRun, &signals);
    let loss = async {
        assert!(check_gpus(&gpus, &leases).iter().all(|reading| reading.trouble.is_none()));
        tokio::task::yield_now().await;
        assert_eq!(docker.stopped_by(), None, "a GPU that works stops nothing");
        set(&file, &["lost", ""], 0);
        assert_eq!(check_gpus(&gpus, &leases)[0].trouble, Some(GpuTrouble::Lost));
    };
    let (end, ()) = tokio::join!(running, loss);
    let cause = StopCause::Requested(StopReason::GpuLost);
    assert!(matches!(end, End::Stopped { cause: found, .. } if found == cause), "{end:?}");
    assert_eq!(end.outcome(|| false), Outcome::Failed { reason: Reason::GpuLost, detail: String::new() });
    assert_eq!(docker.stopped_by().as_deref(), Some("t=10"), "the container was stopped");
    assert_eq!(*other.borrow(), DesiredState::Run, "the other GPU works, and its attempt runs on");
}

#[test]
fn each_trouble_that_a_job_cannot_go_on_with_stops_the_holder_alone() {
    let Some(file) = with_fake_nvml("each_trouble_that_a_job_cannot_go_on_with_stops_the_holder_alone") else { return };
    for (text, trouble) in
        [("lost", GpuTrouble::Lost), ("reset", GpuTrouble::ResetRequired), ("driver", GpuTrouble::Driver)]
    {
        set(&file, &["", ""], 0);
        let (gpus, leases) = (probe(), LeaseTable::new(2));
        let desired = [0_u64, 1].map(|n| {
            let desired = leases.take(JobId::generate(), Lease(Seq(n))).unwrap();
            leases.gpus.allocate(Lease(Seq(n)), &[format!("GPU-{n}")], 1).unwrap();
            desired
        });
        set(&file, &["", text], 0);
        assert_eq!(check_gpus(&gpus, &leases)[1].trouble, Some(trouble));
        assert_eq!(*desired[0].borrow(), DesiredState::Run);
        assert_eq!(*desired[1].borrow(), DesiredState::Stop(StopReason::GpuLost), "{text}");
    }
}

#[test]
fn memory_errors_are_reported_and_stop_nothing() {
    let Some(file) = with_fake_nvml("memory_errors_are_reported_and_stop_nothing") else { return };
    set(&file, &[""], 3);
    let (gpus, leases) = (probe(), LeaseTable::new(1));
    let desired = leases.take(JobId::generate(), Lease(Seq(1))).unwrap();
    leases.gpus.allocate(Lease(Seq(1)), &["GPU-0".to_owned()], 1).unwrap();
    assert_eq!(check_gpus(&gpus, &leases)[0].trouble, None, "errors from before the start do not count");
    set(&file, &[""], 4);
    assert_eq!(check_gpus(&gpus, &leases)[0].trouble, Some(GpuTrouble::Ecc));
    assert_eq!(*desired.borrow(), DesiredState::Run);
}
