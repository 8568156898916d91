//! Tests of GPU loss. A fake NVML (NVIDIA's management library) reports the trouble; the tests check that the attempt
//! is stopped, and its outcome.

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
    end::{AttemptEnd, StopCause},
    job_disk::Fullness,
    prepare::ContainerOrigin,
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

/// The environment variable with the path of the file that contains the answers of the fake NVML.
const FAKE_NVML: &str = "GPUBNB_FAKE_NVML";

/// Finds the GPUs through the fake NVML. Cargo builds its library into the directory of this test.
fn probe() -> Gpus {
    Gpus::probe(0, Some(&env::current_exe().unwrap().with_file_name("libgpubnb_fake_nvml.so")))
}

/// Writes the answers of the fake NVML: one GPU per trouble. An empty trouble means that the GPU works. `ecc` is the
/// count of memory errors.
fn write_answers(file: &Path, troubles: &[&str], ecc: u64) {
    let gpu = |(index, trouble): (usize, &&str)| -> Value {
        json!({
            "uuid": format!("GPU-{index}"), "name": "NVIDIA Fake", "total_mib": 81_920, "ecc": ecc, "trouble": trouble,
        })
    };
    let gpus: Vec<_> = troubles.iter().enumerate().map(gpu).collect();
    fs::write(file, json!({ "driver": "1", "gpus": gpus }).to_string()).unwrap();
}

/// Runs the test with this name a second time, in a child process whose environment has the path of the fake NVML's
/// answers. Setting an environment variable is safe only for a new process. Returns the path in the child process, and
/// `None` in the parent.
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
async fn an_attempt_whose_gpu_is_lost_is_stopped_and_fails_as_gpu_lost() {
    let Some(file) = with_fake_nvml("an_attempt_whose_gpu_is_lost_is_stopped_and_fails_as_gpu_lost") else { return };
    write_answers(&file, &["", ""], 0);
    let gpus = probe();
    let uuids: Vec<String> = gpus.list().into_iter().map(|gpu| gpu.uuid).collect();
    assert_eq!(uuids, ["GPU-0", "GPU-1"]);
    let (state, docker) = (tempfile::tempdir().unwrap(), StubDocker::start().await);
    let leases = Arc::new(LeaseTable::new(2));
    let context = attempt(state.path(), &docker, &leases).await;
    leases.gpus.allocate(context.lease, &uuids, 1).unwrap();
    let other = leases.take(JobId::generate(), Lease(Seq(8))).unwrap();
    leases.gpus.allocate(Lease(Seq(8)), &uuids, 1).unwrap();

    let signals = RunSignals::running(true);
    let grant = grant(Millis(60_000), None, Mebibytes(1));
    let running = run::wait_for_end(&context, &grant, ContainerOrigin::ThisRun, &signals);
    let loss = async {
        assert!(check_gpus(&gpus, &leases).iter().all(|reading| reading.trouble.is_none()));
        tokio::task::yield_now().await;
        assert_eq!(docker.stopped_by(), None, "a GPU that works stops no attempt");
        write_answers(&file, &["lost", ""], 0);
        assert_eq!(check_gpus(&gpus, &leases)[0].trouble, Some(GpuTrouble::Lost));
    };
    let (end, ()) = tokio::join!(running, loss);
    let cause = StopCause::Requested(StopReason::GpuLost);
    assert!(matches!(end, AttemptEnd::Stopped { cause: found, .. } if found == cause), "{end:?}");
    assert_eq!(end.outcome(|| Fullness::NotFull), Outcome::Failed { reason: Reason::GpuLost, detail: String::new() });
    assert_eq!(docker.stopped_by().as_deref(), Some("t=10"), "the container was stopped");
    assert_eq!(*other.borrow(), DesiredState::Run, "the other GPU works, and its attempt goes on");
}

#[test]
fn each_fatal_trouble_of_a_gpu_stops_only_its_holder() {
    let Some(file) = with_fake_nvml("each_fatal_trouble_of_a_gpu_stops_only_its_holder") else { return };
    for (text, trouble) in
        [("lost", GpuTrouble::Lost), ("reset", GpuTrouble::ResetRequired), ("driver", GpuTrouble::Driver)]
    {
        write_answers(&file, &["", ""], 0);
        let (gpus, leases) = (probe(), LeaseTable::new(2));
        let desired = [0_u64, 1].map(|n| {
            let desired = leases.take(JobId::generate(), Lease(Seq(n))).unwrap();
            leases.gpus.allocate(Lease(Seq(n)), &[format!("GPU-{n}")], 1).unwrap();
            desired
        });
        write_answers(&file, &["", text], 0);
        if trouble == GpuTrouble::Driver {
            // One error of the driver, or two in a row, prove nothing.
            for _ in 0..2 {
                assert_eq!(check_gpus(&gpus, &leases)[1].trouble, None);
                assert_eq!(*desired[1].borrow(), DesiredState::Run);
            }
        }
        assert_eq!(check_gpus(&gpus, &leases)[1].trouble, Some(trouble));
        assert_eq!(*desired[0].borrow(), DesiredState::Run);
        assert_eq!(*desired[1].borrow(), DesiredState::Stop(StopReason::GpuLost), "{text}");
    }
}

#[test]
fn memory_errors_are_reported_and_stop_no_attempt() {
    let Some(file) = with_fake_nvml("memory_errors_are_reported_and_stop_no_attempt") else { return };
    write_answers(&file, &[""], 3);
    let (gpus, leases) = (probe(), LeaseTable::new(1));
    let desired = leases.take(JobId::generate(), Lease(Seq(1))).unwrap();
    leases.gpus.allocate(Lease(Seq(1)), &["GPU-0".to_owned()], 1).unwrap();
    assert_eq!(check_gpus(&gpus, &leases)[0].trouble, None, "errors before the start do not count");
    write_answers(&file, &[""], 4);
    assert_eq!(check_gpus(&gpus, &leases)[0].trouble, Some(GpuTrouble::Ecc));
    assert_eq!(*desired.borrow(), DesiredState::Run);
}
