//! The watchdog: notices machines that fall silent.
//!
//! The watchdog publishes a tick each second and counts the silence of a machine in ticks that *come back* from the
//! broker, through the same stream as the heartbeats. An outage of the broker stops ticks and heartbeats alike, so that
//! an outage never looks like lost machines.

use std::{collections::HashMap, time::Duration};

use async_nats::jetstream::{
    Context, Message,
    consumer::{DeliverPolicy, push::OrderedConfig},
};
use futures_util::StreamExt;
use gpubnb_domain::{
    Command,
    machine::{Availability, Presence},
};
use gpubnb_events::{Actor, Aggregate, Chain, MachineId, subject, telemetry::Tick};
use gpubnb_log::stream::{StreamOptions, TELEMETRY, provision_telemetry};
use gpubnb_runtime::rpc::RpcError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Leadership;
use crate::execute::Executor;

const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// A longer pause between two ticks means that this process was stopped, and not that machines are silent.
const MAX_TICK_GAP: Duration = Duration::from_secs(3);

/// The ticks of silence after which a machine counts as suspect or lost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SilenceLimits {
    pub(crate) suspect_after: u32,
    pub(crate) lost_after: u32,
}

/// Counts the silence of each machine.
struct Silence {
    limits: SilenceLimits,
    machines: HashMap<MachineId, Silent>,
    last_tick: Option<Instant>,
}

/// The silence of one machine.
#[derive(Default)]
struct Silent {
    /// The ticks since the last heartbeat, or since the count began.
    ticks: u32,
    /// True if a heartbeat came since the count began.
    was_heard: bool,
}

impl Silence {
    fn record_heartbeat(&mut self, machine: MachineId) {
        self.machines.insert(machine, Silent { ticks: 0, was_heard: true });
    }

    /// Counts a tick that came back. Returns the commands for machines whose presence changed.
    fn count_tick(&mut self, now: Instant, machines: &[(MachineId, Presence)]) -> Vec<Command> {
        let has_paused = self.last_tick.replace(now).is_none_or(|last| now.duration_since(last) > MAX_TICK_GAP);
        if has_paused {
            self.machines.clear();
        }
        let mut commands = Vec::new();
        for (machine, presence) in machines {
            let silent = self.machines.entry(*machine).or_default();
            silent.ticks = silent.ticks.saturating_add(1);
            match presence {
                Presence::Online if silent.ticks > self.limits.suspect_after => {
                    commands.push(Command::Suspect(*machine));
                }
                Presence::Suspect if silent.ticks > self.limits.lost_after => commands.push(Command::Lose(*machine)),
                // The machine was heard within the last two ticks.
                Presence::Suspect | Presence::Lost if silent.was_heard && silent.ticks <= 2 => {
                    commands.push(Command::Recover(*machine));
                }
                _ => {}
            }
        }
        commands
    }
}

/// Watches the machines until shutdown.
pub(crate) async fn watch(
    executor: Executor,
    js: Context,
    leadership: Leadership,
    replica_id: String,
    limits: SilenceLimits,
    streams: StreamOptions,
    shutdown: CancellationToken,
) {
    let ticker = tokio::spawn(publish_ticks(js.clone(), replica_id.clone(), shutdown.clone()));
    loop {
        let watched = async {
            provision_telemetry(&js, &streams).await?;
            listen(&executor, &js, &leadership, &replica_id, limits).await
        };
        tokio::select! {
            () = shutdown.cancelled() => break,
            ended = watched => if let Err(e) = ended { warn!(error = %Chain(e.as_ref()), "the watchdog starts again") },
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    ticker.abort();
}

/// Publishes this replica's ticks. A lost tick is not sent again: silence must not be counted while the broker is away.
async fn publish_ticks(js: Context, replica_id: String, shutdown: CancellationToken) {
    let mut interval = tokio::time::interval(TICK_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    for number in 0.. {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = interval.tick() => {}
        }
        if !gpubnb_runtime::nats::is_connected(&js.client()) {
            continue;
        }
        let tick = Tick { replica: replica_id.clone(), number };
        let Ok(payload) = serde_json::to_vec(&tick) else { continue };
        if let Err(e) = js.client().publish(subject::tick(&replica_id), payload.into()).await {
            warn!(error = %e, "a tick could not be sent");
        }
    }
}

async fn listen(
    executor: &Executor,
    js: &Context,
    leadership: &Leadership,
    replica_id: &str,
    limits: SilenceLimits,
) -> Result<(), async_nats::Error> {
    let own_tick = subject::tick(replica_id);
    let config = OrderedConfig {
        deliver_subject: js.client().new_inbox(),
        deliver_policy: DeliverPolicy::New,
        filter_subjects: vec![subject::HEARTBEATS.to_owned(), own_tick.clone()],
        ..Default::default()
    };
    let mut messages = js.create_consumer_on_stream(config, TELEMETRY).await?.messages().await?;
    let mut silence = Silence { limits, machines: HashMap::new(), last_tick: None };
    while let Some(message) = messages.next().await {
        let message: Message = message?;
        if message.subject.as_str() != own_tick {
            if let Some(machine) = subject::machine_of_heartbeat(&message.subject) {
                silence.record_heartbeat(machine);
            }
            continue;
        }
        let machines: Vec<_> = executor.replica.read(|w| {
            let listed = w.machines().filter(|(_, m)| m.availability != Availability::Delisted);
            listed.map(|(id, m)| (*id, m.presence)).collect()
        });
        let commands = silence.count_tick(Instant::now(), &machines);
        if leadership.is_leader() {
            for command in commands {
                execute(executor, command).await;
            }
        }
    }
    Ok(())
}

async fn execute(executor: &Executor, command: Command) {
    info!(?command, "presence");
    let lost = if let Command::Lose(machine) = command { Some(machine) } else { None };
    if let Err(RpcError::Unavailable(problem)) = executor.execute(Actor::Platform, &command).await {
        warn!(problem, "the next tick tries again");
        return;
    }
    let Some(lost) = lost else { return };
    let held: Vec<_> =
        executor.replica.read(|w| w.machine(lost).map(|m| m.leases.keys().copied().collect()).unwrap_or_default());
    for job in held {
        if let Err(e) = executor.execute(Actor::Platform, &Command::Abandon(job)).await {
            warn!(error = %e, aggregate = %Aggregate::Job(job), "the reconciler requeues the job later");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silence() -> Silence {
        let limits = SilenceLimits { suspect_after: 3, lost_after: 6 };
        Silence { limits, machines: HashMap::new(), last_tick: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_machine_becomes_suspect_then_lost_and_a_heartbeat_recovers_it() {
        let (mut s, m) = (silence(), MachineId::generate());
        let mut presence = Presence::Online;
        let mut seen = Vec::new();
        for _ in 0..10 {
            tokio::time::advance(TICK_INTERVAL).await;
            for command in s.count_tick(Instant::now(), &[(m, presence)]) {
                presence = if matches!(command, Command::Lose(_)) { Presence::Lost } else { Presence::Suspect };
                seen.push(command);
            }
        }
        assert_eq!(seen, [Command::Suspect(m), Command::Lose(m)]);
        s.record_heartbeat(m);
        tokio::time::advance(TICK_INTERVAL).await;
        assert_eq!(s.count_tick(Instant::now(), &[(m, presence)]), [Command::Recover(m)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_this_process_does_not_count_as_silence() {
        let (mut s, m) = (silence(), MachineId::generate());
        for _ in 0..3 {
            tokio::time::advance(TICK_INTERVAL).await;
            assert_eq!(s.count_tick(Instant::now(), &[(m, Presence::Online)]), []);
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(s.count_tick(Instant::now(), &[(m, Presence::Online)]), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_machine_stays_lost_until_its_heartbeat_comes() {
        let (mut s, m) = (silence(), MachineId::generate());
        for pause in [TICK_INTERVAL, Duration::from_secs(60)] {
            tokio::time::advance(pause).await;
            for _ in 0..4 {
                assert_eq!(s.count_tick(Instant::now(), &[(m, Presence::Lost)]), []);
                tokio::time::advance(TICK_INTERVAL).await;
            }
        }
        s.record_heartbeat(m);
        assert_eq!(s.count_tick(Instant::now(), &[(m, Presence::Lost)]), [Command::Recover(m)]);
    }
}
