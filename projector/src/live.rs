//! What machines say of themselves now: the last heartbeat, and one-minute means of a day. Volatile: it
//! comes back from TELEMETRY and the heartbeats to come, and is no part of what must replay.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_nats::jetstream::{
    Context,
    consumer::{DeliverPolicy, push::OrderedConfig},
};
use futures_util::StreamExt;
use gpubnb_events::{Aggregate, MachineId, Timestamp, stream::TELEMETRY, subject, telemetry::Heartbeat};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::view::Notice;

/// Minutes kept.
const MINUTES: usize = 24 * 60;
/// Largest heartbeat that is read.
const MAX_HEARTBEAT: usize = 8 * 1024;

/// Readings of all machines.
#[derive(Default)]
pub(crate) struct Live(Mutex<HashMap<MachineId, Readings>>);

#[derive(Default)]
struct Readings {
    last: Option<Heartbeat>,
    minutes: VecDeque<Minute>,
}

struct Minute {
    starts: i64,
    sum: u32,
    count: u32,
}

impl Live {
    fn hear(&self, heartbeat: Heartbeat, at: Timestamp) {
        let load = load(&heartbeat);
        let mut machines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let readings = machines.entry(heartbeat.machine).or_default();
        let starts = at.millis() / 60_000;
        match readings.minutes.back_mut() {
            Some(minute) if minute.starts == starts => {
                minute.sum += load;
                minute.count += 1;
            }
            _ => readings.minutes.push_back(Minute { starts, sum: load, count: 1 }),
        }
        if readings.minutes.len() > MINUTES {
            readings.minutes.pop_front();
        }
        readings.last = Some(heartbeat);
    }

    /// The last heartbeat of a machine, and its load in the last `minutes`.
    pub(crate) fn of(&self, machine: MachineId, minutes: usize) -> (Option<Heartbeat>, Vec<u8>) {
        let machines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(readings) = machines.get(&machine) else { return (None, Vec::new()) };
        // The present minute is left out: its mean moves with every heartbeat, and pages would with it.
        let complete = readings.minutes.len().saturating_sub(1);
        let skip = complete.saturating_sub(minutes);
        let load = readings
            .minutes
            .iter()
            .take(complete)
            .skip(skip)
            .map(|m| u8::try_from(m.sum / m.count.max(1)).unwrap_or(100));
        (readings.last.clone(), load.collect())
    }

    /// Listens until shutdown.
    pub(crate) async fn listen(&self, js: &Context, shutdown: CancellationToken) {
        loop {
            let heard = self.hear_all(js);
            tokio::select! {
                () = shutdown.cancelled() => return,
                ended = heard => if let Err(e) = ended { warn!(error = %e, "listening to heartbeats again") },
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn hear_all(&self, js: &Context) -> Result<(), async_nats::Error> {
        let config = OrderedConfig {
            deliver_subject: js.client().new_inbox(),
            deliver_policy: DeliverPolicy::All,
            filter_subject: subject::HEARTBEATS.to_owned(),
            ..Default::default()
        };
        let mut messages = js.create_consumer_on_stream(config, TELEMETRY).await?.messages().await?;
        while let Some(message) = messages.next().await {
            let message = message?;
            let Some(machine) = subject::machine_of_heartbeat(&message.subject) else { continue };
            if message.payload.len() > MAX_HEARTBEAT {
                continue;
            }
            let info = message.info()?;
            let (at, caught_up) = (Timestamp::from_nanos(info.published.unix_timestamp_nanos()), info.pending == 0);
            match serde_json::from_slice::<Heartbeat>(&message.payload) {
                // A machine speaks for itself only.
                Ok(heartbeat) if heartbeat.machine == machine => {
                    self.hear(heartbeat, at);
                    if caught_up {
                        let notice = serde_json::to_vec(&Notice { seq: gpubnb_events::Seq::ZERO })?;
                        js.client().publish(subject::notice(Aggregate::Machine(machine)), notice.into()).await?;
                    }
                }
                Ok(_) => warn!(%machine, "a heartbeat in another machine's name"),
                Err(e) => warn!(%machine, error = %e, "unreadable heartbeat"),
            }
        }
        Ok(())
    }
}

/// One number for how busy a machine is: its GPUs, or its CPUs where it has none.
fn load(heartbeat: &Heartbeat) -> u32 {
    let gpus = u32::try_from(heartbeat.gpus.len()).unwrap_or(0);
    match heartbeat.gpus.iter().map(|g| g.utilisation_percent.min(100)).sum::<u32>().checked_div(gpus) {
        Some(mean) => mean,
        // Rounded to whole percent on purpose: it is drawn, not reckoned with.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        None => heartbeat.cpu_percent.clamp(0.0, 100.0) as u32,
    }
}
