//! The machine's pulse. One that cannot be sent is not kept: the next one says more.

use std::{sync::Arc, time::Duration};

use async_nats::Client;
use gpubnb_events::{
    Clock as _, MachineId, SystemClock,
    nats::connected,
    subject,
    telemetry::{Heartbeat, WorkerState},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{gpu::Gpus, hand::Hand, hardware::CpuLoad};

/// Beats until shutdown.
pub(crate) async fn beat(
    client: Client,
    machine: MachineId,
    gpus: Arc<Gpus>,
    hand: Arc<Hand>,
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
        if !connected(&client) {
            continue;
        }
        let leases = hand.leases();
        let heartbeat = Heartbeat {
            machine,
            occurred_at: SystemClock.now(),
            state: WorkerState::Ready,
            cpu_percent: cpu.percent(),
            gpus: gpus.readings(!leases.is_empty()),
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
