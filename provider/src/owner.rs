//! Watches when the owner needs the machine: outside the hours at which it is shared, and while a process that is no
//! job's uses a GPU.
//!
//! The watch looks once a second. When the owner needs the machine, the worker tells the market and stops the jobs.
//! When the machine is spare again, the worker tells that, too.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use gpubnb_events::{
    Clock as _, SystemClock,
    command::{ChangeMachine, Done, MachineChange},
};
use gpubnb_runtime::rpc::Failure;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    desired_state::{DesiredState, StopReason},
    gpu::Gpus,
    lease_table::LeaseTable,
    platform::Platform,
};

/// Time between two looks, and between two tries to tell the market.
const LOOK: Duration = Duration::from_secs(1);

/// Hours of the day, by the machine's clock: `22:00-08:00`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hours {
    /// Begin and end of each window, minutes since midnight. A window may go past midnight.
    windows: Vec<(u16, u16)>,
    text: String,
}

impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |part: &str| format!("`{part}` is not a window of time: write it like 22:00-08:00");
        let minute = |part: &str| -> Option<u16> {
            let (hours, minutes) = part.trim().split_once(':')?;
            let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
            (minutes < 60 && (hours < 24 || (hours, minutes) == (24, 0))).then_some(hours * 60 + minutes)
        };
        let window = |part: &str| {
            let (from, to) = part.split_once('-').ok_or_else(|| bad(part))?;
            minute(from).zip(minute(to)).ok_or_else(|| bad(part))
        };
        let windows = text.split(',').map(window).collect::<Result<_, String>>()?;
        Ok(Self { windows, text: text.to_owned() })
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Hours {
    /// Returns true for a minute of the day that is in one of the windows.
    fn contain(&self, minute: u16) -> bool {
        self.windows
            .iter()
            .any(|(from, to)| if from <= to { (*from..*to).contains(&minute) } else { minute >= *from || minute < *to })
    }
}

/// The owner's rules for when the machine is spare. Without any rule it always is.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharingRules {
    /// How long the GPUs must have been idle.
    pub(crate) idle: Option<Duration>,
    /// The hours at which the machine is shared.
    pub(crate) hours: Option<Hours>,
}

/// Why the machine is not spare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AwayReason {
    /// A process that is no job's uses a GPU, or did a moment ago.
    GpuInUse,
    /// The present hour is outside the hours at which the machine is shared.
    OutsideHours,
}

impl fmt::Display for AwayReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GpuInUse => "somebody else's process uses its GPU, or did a moment ago",
            Self::OutsideHours => "it is outside the hours at which it is shared",
        })
    }
}

impl SharingRules {
    /// Why the machine is not spare; `None` where it is. `unused` is how long no other process has used a GPU; `None`
    /// while one does.
    fn away(&self, minute: u16, unused: Option<Duration>) -> Option<AwayReason> {
        if self.hours.as_ref().is_some_and(|hours| !hours.contain(minute)) {
            return Some(AwayReason::OutsideHours);
        }
        let idle = self.idle?;
        unused.is_none_or(|unused| unused < idle).then_some(AwayReason::GpuInUse)
    }

    /// Returns true where there is any rule.
    fn is_any(&self) -> bool {
        self.idle.is_some() || self.hours.is_some()
    }
}

/// Watches until shutdown, and keeps `away` up to date.
pub(crate) async fn watch(
    rules: SharingRules,
    gpus: Arc<Gpus>,
    leases: Arc<LeaseTable>,
    platform: Platform,
    away: watch::Sender<Option<AwayReason>>,
    shutdown: CancellationToken,
) {
    if !rules.is_any() {
        // A former run of the worker may have had rules, and have told the market that the owner needs the machine.
        return tell(&platform, MachineChange::Back, &shutdown).await;
    }
    // The time before the start is not known. GPUs that are idle now count as idle for long enough.
    let mut used: Option<Instant> = None;
    let mut told: Option<Option<AwayReason>> = None;
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = look.tick() => {}
        }
        let others = rules.idle.is_some() && gpus.used_by_others(&leases.containers());
        if others {
            used = Some(Instant::now());
        }
        let unused = if others { None } else { Some(used.map_or(Duration::MAX, |used| used.elapsed())) };
        let now = rules.away(SystemClock.now().local_minute(), unused);
        if told.as_ref() == Some(&now) {
            continue;
        }
        away.send_replace(now.clone());
        if let Some(why) = &now {
            info!(%why, "the owner needs the machine: no new jobs, and the jobs that run are stopped");
            let preempted = DesiredState::Stop(StopReason::Preempted);
            leases.set_desired_of_all(preempted);
            tell(&platform, MachineChange::Away, &shutdown).await;
            // The market may have given this machine jobs before it knew.
            leases.set_desired_of_all(preempted);
        } else {
            info!("the machine is spare again");
            tell(&platform, MachineChange::Back, &shutdown).await;
        }
        told = Some(now);
    }
}

/// Tells the market of a change, and tries again until the market answers.
async fn tell(platform: &Platform, change: MachineChange, shutdown: &CancellationToken) {
    let command = ChangeMachine { machine: platform.machine(), wish: change };
    loop {
        match platform.ask::<Done>("wish", &command).await {
            Ok(_) => return,
            Err(Failure::Refused(refusal)) => return warn!(%refusal, ?change, "the market refuses a change"),
            Err(Failure::Unavailable(problem)) => debug!(%problem, ?change, "the market is told again"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_may_go_past_midnight() {
        let hours: Hours = "22:00-08:00, 12:30-13:00".parse().unwrap();
        for (minute, within) in [(22 * 60, true), (0, true), (8 * 60, false), (12 * 60 + 45, true), (13 * 60, false)] {
            assert_eq!(hours.contain(minute), within, "{minute}");
        }
        assert!("0:00-24:00".parse::<Hours>().unwrap().contain(23 * 60 + 59));
        for bad in ["", "22-8", "25:00-08:00", "22:00", "22:60-08:00"] {
            assert!(bad.parse::<Hours>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_machine_is_spare_when_hours_and_gpus_agree() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let rules = SharingRules { idle: Some(minutes(10)), hours: Some("22:00-08:00".parse().unwrap()) };
        assert_eq!(rules.away(12 * 60, Some(Duration::MAX)), Some(AwayReason::OutsideHours));
        assert_eq!(rules.away(0, None), Some(AwayReason::GpuInUse));
        assert_eq!(rules.away(0, Some(minutes(9))), Some(AwayReason::GpuInUse));
        assert_eq!(rules.away(0, Some(minutes(10))), None);
        assert_eq!(SharingRules::default().away(0, None), None);
    }
}
