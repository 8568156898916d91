//! The machine's pulse. One that cannot be sent is not kept: the next one says more.

use std::{sync::Arc, time::Duration};

use async_nats::Client;
use gpubnb_events::{
    Clock as _, MachineId, SystemClock, subject,
    telemetry::{GpuTrouble, Heartbeat, WorkerState},
};
use gpubnb_runtime::nats::connected;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    gpu::Gpus,
    hand::{Hand, Wish},
    hardware::CpuLoad,
};

/// Whether a job cannot go on with such a GPU.
fn is_fatal(trouble: GpuTrouble) -> bool {
    matches!(trouble, GpuTrouble::Lost | GpuTrouble::ResetRequired | GpuTrouble::Driver)
}

/// Beats until shutdown, and ends the jobs whose GPU is gone.
pub(crate) async fn beat(
    client: Client,
    machine: MachineId,
    gpus: Arc<Gpus>,
    hand: Arc<Hand>,
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
        let leases = hand.leases();
        let readings = gpus.readings(!leases.is_empty());
        let gone: Vec<String> =
            readings.iter().filter(|gpu| gpu.trouble.is_some_and(is_fatal)).map(|gpu| gpu.uuid.clone()).collect();
        hand.wish_holders(&gone, Wish::GpuLost);
        if !connected(&client) {
            continue;
        }
        let heartbeat = Heartbeat {
            machine,
            occurred_at: SystemClock.now(),
            state: state(),
            cpu_percent: cpu.percent(),
            gpus: readings,
            leases,
        };
        let sent = match serde_json::to_vec(&heartbeat) {
            Ok(payload) => client.publish(subject.clone(), payload.into()).await.map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        if let Err(problem) = sent {
            warn!(problem, "a heartbeat was not sent");
        }
    }
}
