//! Applies the owner's rules for sharing. The machine is *spare* in the hours at which the owner shares it, while no
//! process but those of jobs uses a GPU, and while the owner has not paused it for a time. Otherwise the machine is
//! *reclaimed*: the owner needs it.
//!
//! The worker checks the rules once a second. When the machine is reclaimed, the worker reports that to the market and
//! stops the jobs. When the machine is spare again, the worker reports that, too.

mod pause;

use std::{fmt, sync::Arc, time::Duration};

use gpubnb_events::{
    Clock as _, SystemClock,
    command::{ChangeMachine, Done, MachineChange},
    spec::{Hours, Offer},
};
use gpubnb_runtime::rpc::RpcError;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub(crate) use self::pause::{Pause, PauseSwitch, next_local_time};
use crate::{gpu::Gpus, lease_table::LeaseTable, platform::Platform, settings::Settings};

/// Time between two checks of the rules, and between two tries to report a change.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// The owner's rules for sharing the machine. Without rules the machine is always spare.
#[derive(Debug, Clone, Default)]
struct SharingRules {
    /// The machine is spare only after the GPUs have been idle for this time.
    idle: Option<Duration>,
    /// The machine is spare only in these hours.
    hours: Option<Hours>,
}

/// The reason why the machine is reclaimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReclaimReason {
    /// The owner paused the machine, from the page of the worker or with `gpubnb-provider pause`.
    Paused(Pause),
    /// A process that belongs to no job uses a GPU, or used it within the idle time.
    GpuInUse,
    /// The machine is not shared at this hour.
    OutsideHours,
    /// The self-test found the machine unfit, but jobs of a former run of the worker still run.
    Unfit,
}

impl ReclaimReason {
    /// Stops the jobs that are in the owner's way. While the owner uses a GPU, only the jobs with a GPU are.
    fn stop_jobs(&self, leases: &LeaseTable) {
        match self {
            Self::Paused(pause) if !pause.stops_jobs => {}
            Self::Paused(_) | Self::OutsideHours => leases.preempt(true),
            Self::GpuInUse | Self::Unfit => leases.preempt(false),
        }
    }
}

impl fmt::Display for ReclaimReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Paused(pause) => return pause.fmt(f),
            Self::GpuInUse => "somebody else's process uses its GPU, or did a moment ago",
            Self::OutsideHours => "it is outside the hours at which it is shared",
            Self::Unfit => "its self-test failed: the jobs that run may end, and it takes no others",
        })
    }
}

impl SharingRules {
    /// The rules of an offer. Hours that cannot be read forbid nothing; the market and the options refuse them.
    fn of(offer: &Offer) -> Self {
        let idle = offer.policy.idle_minutes.map(|minutes| Duration::from_secs(60 * u64::from(minutes)));
        Self { idle, hours: offer.policy.hours.as_deref().and_then(|hours| hours.parse().ok()) }
    }

    /// The reason why the machine is reclaimed; `None` if it is spare. `minute` is the minute of the day. `unused` is
    /// the time since a process other than those of jobs used a GPU; `None` while such a process uses a GPU. Of several
    /// reasons, the one that stops the most jobs counts.
    fn reclaim_reason(&self, pause: Option<Pause>, minute: u16, unused: Option<Duration>) -> Option<ReclaimReason> {
        let paused = pause.map(ReclaimReason::Paused);
        if pause.is_some_and(|pause| pause.stops_jobs) {
            return paused;
        }
        self.broken_rule(minute, unused).or(paused)
    }

    /// The rule that forbids jobs now.
    fn broken_rule(&self, minute: u16, unused: Option<Duration>) -> Option<ReclaimReason> {
        if self.hours.as_ref().is_some_and(|hours| !hours.contains(minute)) {
            return Some(ReclaimReason::OutsideHours);
        }
        let idle = self.idle?;
        unused.is_none_or(|unused| unused < idle).then_some(ReclaimReason::GpuInUse)
    }
}

/// Checks the rules and the owner's pause until shutdown, publishes the reason through `reclaimed`, and stops the jobs
/// that are in the owner's way. Needs no market.
pub(crate) async fn watch_rules(
    settings: Settings,
    pause: PauseSwitch,
    gpus: Arc<Gpus>,
    leases: Arc<LeaseTable>,
    reclaimed: watch::Sender<Option<ReclaimReason>>,
    shutdown: CancellationToken,
) {
    // The worker does not know when the GPUs were last used before its start. So GPUs that are idle at the start count
    // as idle for long enough.
    let mut last_use: Option<Instant> = None;
    let mut pauses = pause.changes();
    // The first result is published even if nothing forbids jobs, because the market may know something else.
    let mut is_first = true;
    let mut timer = tokio::time::interval(WATCH_INTERVAL);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = timer.tick() => {}
            Ok(()) = pauses.changed() => {}
        }
        let rules = SharingRules::of(&settings.offer());
        let is_used = rules.idle.is_some() && gpus.is_used_by_others(&leases.containers());
        if is_used {
            last_use = Some(Instant::now());
        }
        let unused = if is_used { None } else { Some(last_use.map_or(Duration::MAX, |at| at.elapsed())) };
        let reason = rules.reclaim_reason(pause.current(), SystemClock.now().local_minute(), unused);
        // The market may assign jobs to this machine until it knows that the machine is reclaimed, so the jobs are
        // stopped for as long as the reason holds.
        if let Some(why) = &reason {
            why.stop_jobs(&leases);
        }
        reclaimed.send_if_modified(|present| {
            let is_new = *present != reason;
            match &reason {
                Some(why) if is_new => info!(%why, "the owner needs the machine: no new jobs"),
                None if is_new => info!("the machine is spare again"),
                _ => {}
            }
            *present = reason;
            std::mem::take(&mut is_first) || is_new
        });
    }
}

/// Tells the market until shutdown whether the machine is reclaimed. A former run of the worker may have said something
/// else, so the first state is told, too.
pub(crate) async fn report_reclaims(
    platform: Platform,
    mut reclaimed: watch::Receiver<Option<ReclaimReason>>,
    shutdown: CancellationToken,
) {
    // The rules have not been checked yet.
    let mut is_told = true;
    loop {
        let change = if reclaimed.borrow().is_some() { MachineChange::Away } else { MachineChange::Back };
        tokio::select! {
            () = shutdown.cancelled() => return,
            // If the market does not know of the former state yet, nobody needs to know of that state any more.
            changed = reclaimed.changed() => match changed {
                Ok(()) => is_told = false,
                Err(_) => return,
            },
            () = report_change(&platform, change, &shutdown), if !is_told => is_told = true,
        }
    }
}

/// Lets the attempts of a former run of the worker end on a machine that is no longer fit, and takes no others. Then
/// shuts the worker down.
pub(crate) async fn finish_attempts(leases: Arc<LeaseTable>, platform: Platform, shutdown: CancellationToken) {
    report_change(&platform, MachineChange::Away, &shutdown).await;
    while !leases.running().is_empty() {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
        }
    }
    shutdown.cancel();
}

/// Reports a change of the machine to the market, and tries again until the market answers.
async fn report_change(platform: &Platform, change: MachineChange, shutdown: &CancellationToken) {
    let command = ChangeMachine { machine: platform.machine(), change };
    loop {
        match platform.call::<Done>("wish", &command).await {
            Ok(_) => return,
            // Another command changed the machine at the same time.
            Err(RpcError::Refused(refusal)) if refusal.name == "Conflict" => {}
            Err(RpcError::Refused(refusal)) => return warn!(%refusal, ?command.change, "the market refuses a change"),
            Err(RpcError::Unavailable(problem)) => debug!(%problem, ?command.change, "reporting the change again"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_spare_only_in_its_hours_and_after_the_idle_time() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let rules = SharingRules { idle: Some(minutes(10)), hours: Some("22:00-08:00".parse().unwrap()) };
        assert_eq!(rules.reclaim_reason(None, 12 * 60, Some(Duration::MAX)), Some(ReclaimReason::OutsideHours));
        assert_eq!(rules.reclaim_reason(None, 0, None), Some(ReclaimReason::GpuInUse));
        assert_eq!(rules.reclaim_reason(None, 0, Some(minutes(9))), Some(ReclaimReason::GpuInUse));
        assert_eq!(rules.reclaim_reason(None, 0, Some(minutes(10))), None);
        assert_eq!(SharingRules::default().reclaim_reason(None, 0, None), None);
    }

    #[test]
    fn of_a_pause_and_a_rule_the_one_that_stops_more_jobs_counts() {
        let rules = SharingRules { idle: None, hours: Some("22:00-08:00".parse().unwrap()) };
        let pause = |stops_jobs| Pause { until: None, stops_jobs };
        let reason = |pause, minute| rules.reclaim_reason(pause, minute, Some(Duration::MAX));
        assert_eq!(reason(Some(pause(false)), 0), Some(ReclaimReason::Paused(pause(false))));
        assert_eq!(reason(Some(pause(false)), 12 * 60), Some(ReclaimReason::OutsideHours));
        assert_eq!(reason(Some(pause(true)), 12 * 60), Some(ReclaimReason::Paused(pause(true))));
    }
}
