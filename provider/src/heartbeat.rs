//! Heartbeats: the state of the machine, sent to the market every few seconds. Before each heartbeat the worker checks
//! the GPUs, and stops the jobs whose GPU has failed. A heartbeat that cannot be sent is dropped, because the next
//! heartbeat replaces it.

use std::{sync::Arc, time::Duration};

use async_nats::Client;
use gpubnb_events::{
    Clock as _, MachineId, SystemClock, subject,
    telemetry::{GpuReading, GpuTrouble, Heartbeat, WorkerState},
};
use gpubnb_runtime::nats::is_connected;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{gpu::Gpus, hardware::CpuLoad, lease_table::LeaseTable};

/// The error for a heartbeat that was not sent.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("the heartbeat cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    #[error("the broker did not take the heartbeat")]
    Broker(#[from] async_nats::client::PublishError),
}

/// Returns true if a job cannot go on after this trouble of its GPU. After memory errors the job goes on, because the
/// program itself gets an error.
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

/// Sends a heartbeat every `interval` until shutdown. `state` returns the current state of the machine.
pub(crate) async fn send_heartbeats(
    client: Client,
    machine: MachineId,
    gpus: Arc<Gpus>,
    leases: Arc<LeaseTable>,
    state: impl Fn() -> WorkerState + Send,
    interval: Duration,
    shutdown: CancellationToken,
) {
    let subject = subject::heartbeat(machine);
    let mut cpu = CpuLoad::default();
    let mut timer = tokio::time::interval(interval);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = timer.tick() => {}
        }
        let readings = check_gpus(&gpus, &leases);
        if !is_connected(&client) {
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

async fn send(client: &Client, subject: String, heartbeat: &Heartbeat) -> Result<(), SendError> {
    let payload = serde_json::to_vec(heartbeat)?;
    Ok(client.publish(subject, payload.into()).await?)
}
