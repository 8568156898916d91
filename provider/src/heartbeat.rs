//! Heartbeats: how the machine is, sent every few seconds. Each beat also looks at the GPUs, and stops the jobs whose
//! GPU has failed. A heartbeat that cannot be sent is dropped: the next one is newer.

use std::{sync::Arc, time::Duration};

use async_nats::Client;
use gpubnb_events::{
    Clock as _, MachineId, SystemClock, subject,
    telemetry::{GpuReading, GpuTrouble, Heartbeat, WorkerState},
};
use gpubnb_runtime::nats::connected;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{gpu::Gpus, hardware::CpuLoad, lease_table::LeaseTable};

/// A heartbeat that was not sent.
#[derive(Debug, thiserror::Error)]
enum NotSent {
    #[error("the heartbeat cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    #[error("the broker did not take the heartbeat")]
    Broker(#[from] async_nats::client::PublishError),
}

/// Returns true for a trouble of a GPU with which a job cannot go on. Memory errors are none: the program itself sees
/// them.
fn is_fatal(trouble: GpuTrouble) -> bool {
    matches!(trouble, GpuTrouble::Lost | GpuTrouble::ResetRequired | GpuTrouble::Driver)
}

/// Reads the GPUs, and stops the attempts whose GPU has failed.
pub(crate) fn check_gpus(gpus: &Gpus, leases: &LeaseTable) -> Vec<GpuReading> {
    let readings = gpus.readings(!leases.running().is_empty());
    let failed = readings.iter().filter(|gpu| gpu.trouble.is_some_and(is_fatal));
    let failed: Vec<String> = failed.map(|gpu| gpu.uuid.clone()).collect();
    leases.stop_holders(&failed);
    readings
}

/// Sends heartbeats until shutdown.
pub(crate) async fn beat(
    client: Client,
    machine: MachineId,
    gpus: Arc<Gpus>,
    leases: Arc<LeaseTable>,
    state: impl Fn() -> WorkerState + Send,
    every: Duration,
    shutdown: CancellationToken,
) {
    let subject = subject::heartbeat(machine);
    let mut cpu = CpuLoad::default();
    let mut interval = tokio::time::interval(every);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = interval.tick() => {}
        }
        let readings = check_gpus(&gpus, &leases);
        if !connected(&client) {
            continue;
        }
        let heartbeat = Heartbeat {
            machine,
            occurred_at: SystemClock.now(),
            state: state(),
            cpu_percent: cpu.percent(),
            gpus: readings,
            leases: leases.running(),
        };
        if let Err(e) = send(&client, subject.clone(), &heartbeat).await {
            warn!(error = format!("{:#}", anyhow::Error::new(e)), "a heartbeat was not sent");
        }
    }
}

async fn send(client: &Client, subject: String, heartbeat: &Heartbeat) -> Result<(), NotSent> {
    let payload = serde_json::to_vec(heartbeat)?;
    Ok(client.publish(subject, payload.into()).await?)
}
