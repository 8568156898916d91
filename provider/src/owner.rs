//! Applies the owner's rules for sharing. The machine is *spare* in the hours at which the owner shares it, and while
//! no process but those of jobs uses a GPU. Otherwise the machine is *reclaimed*: the owner needs it.
//!
//! The worker checks the rules once a second. When the machine is reclaimed, the worker reports that to the market and
//! stops the jobs. When the machine is spare again, the worker reports that, too.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use gpubnb_events::{
    Clock as _, SystemClock,
    command::{ChangeMachine, Done, MachineChange},
};
use gpubnb_runtime::rpc::RpcError;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{gpu::Gpus, lease_table::LeaseTable, platform::Platform};

/// Time between two checks of the rules, and between two tries to report a change.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Hours of the day, by the machine's clock, such as `22:00-08:00` or `22:00-08:00,12:30-13:00`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hours {
    /// Start (included) and end (excluded) of each window, minutes since midnight. A window may go past midnight: its
    /// end is then smaller than its start.
    windows: Vec<(u16, u16)>,
    /// The text from which the hours were parsed.
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
    /// Returns true if one of the windows contains this minute of the day, 0 to 1,439.
    fn contains(&self, minute: u16) -> bool {
        self.windows
            .iter()
            .any(|(from, to)| if from <= to { (*from..*to).contains(&minute) } else { minute >= *from || minute < *to })
    }
}

/// The owner's rules for sharing the machine. Without rules the machine is always spare.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharingRules {
    /// The machine is spare only after the GPUs have been idle for this time.
    pub(crate) idle: Option<Duration>,
    /// The machine is spare only in these hours.
    pub(crate) hours: Option<Hours>,
}

/// The reason why the machine is reclaimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReclaimReason {
    /// A process that belongs to no job uses a GPU, or used it within the idle time.
    GpuInUse,
    /// The machine is not shared at this hour.
    OutsideHours,
    /// The self-test found the machine unfit, but jobs of a former run of the worker still run.
    Unfit,
}

impl ReclaimReason {
    /// True if all jobs must stop. While the owner uses a GPU, only the jobs with a GPU are in the owner's way.
    fn concerns_all_jobs(&self) -> bool {
        *self == Self::OutsideHours
    }
}

impl fmt::Display for ReclaimReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GpuInUse => "somebody else's process uses its GPU, or did a moment ago",
            Self::OutsideHours => "it is outside the hours at which it is shared",
            Self::Unfit => "its self-test failed: the jobs that run may end, and it takes no others",
        })
    }
}

impl SharingRules {
    /// The reason why the machine is reclaimed; `None` if it is spare. `minute` is the minute of the day. `unused` is
    /// the time since a process other than those of jobs used a GPU; `None` while such a process uses a GPU.
    fn reclaim_reason(&self, minute: u16, unused: Option<Duration>) -> Option<ReclaimReason> {
        if self.hours.as_ref().is_some_and(|hours| !hours.contains(minute)) {
            return Some(ReclaimReason::OutsideHours);
        }
        let idle = self.idle?;
        unused.is_none_or(|unused| unused < idle).then_some(ReclaimReason::GpuInUse)
    }

    /// Returns true if the owner has set at least one rule.
    fn has_rules(&self) -> bool {
        self.idle.is_some() || self.hours.is_some()
    }
}

/// Checks the rules until shutdown, and publishes the reason through `reclaimed`.
pub(crate) async fn watch_rules(
    rules: SharingRules,
    gpus: Arc<Gpus>,
    leases: Arc<LeaseTable>,
    platform: Platform,
    reclaimed: watch::Sender<Option<ReclaimReason>>,
    shutdown: CancellationToken,
) {
    if !rules.has_rules() {
        // A former run of the worker may have had rules, and may have reported the machine as reclaimed.
        return report_change(&platform, MachineChange::Back, &shutdown).await;
    }
    // The worker does not know when the GPUs were last used before its start. So GPUs that are idle at the start count
    // as idle for long enough.
    let mut last_use: Option<Instant> = None;
    let mut reported: Option<Option<ReclaimReason>> = None;
    let mut timer = tokio::time::interval(WATCH_INTERVAL);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = timer.tick() => {}
        }
        let is_used = rules.idle.is_some() && gpus.is_used_by_others(&leases.containers());
        if is_used {
            last_use = Some(Instant::now());
        }
        let unused = if is_used { None } else { Some(last_use.map_or(Duration::MAX, |at| at.elapsed())) };
        let reason = rules.reclaim_reason(SystemClock.now().local_minute(), unused);
        if reported.as_ref() == Some(&reason) {
            continue;
        }
        reclaimed.send_replace(reason.clone());
        if let Some(why) = &reason {
            info!(%why, "the owner needs the machine: no new jobs, and the jobs in the owner's way are stopped");
            leases.preempt(why.concerns_all_jobs());
            report_change(&platform, MachineChange::Away, &shutdown).await;
            // The market may have assigned jobs to this machine before it had the report.
            leases.preempt(why.concerns_all_jobs());
        } else {
            info!("the machine is spare again");
            report_change(&platform, MachineChange::Back, &shutdown).await;
        }
        reported = Some(reason);
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
            Err(RpcError::Refused(refusal)) => return warn!(%refusal, ?change, "the market refuses a change"),
            Err(RpcError::Unavailable(problem)) => debug!(%problem, ?change, "reporting the change again"),
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
    fn hours_may_go_past_midnight() {
        let hours: Hours = "22:00-08:00, 12:30-13:00".parse().unwrap();
        for (minute, within) in [(22 * 60, true), (0, true), (8 * 60, false), (12 * 60 + 45, true), (13 * 60, false)] {
            assert_eq!(hours.contains(minute), within, "{minute}");
        }
        assert!("0:00-24:00".parse::<Hours>().unwrap().contains(23 * 60 + 59));
        for bad in ["", "22-8", "25:00-08:00", "22:00", "22:60-08:00"] {
            assert!(bad.parse::<Hours>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_machine_is_spare_only_in_its_hours_and_after_the_idle_time() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let rules = SharingRules { idle: Some(minutes(10)), hours: Some("22:00-08:00".parse().unwrap()) };
        assert_eq!(rules.reclaim_reason(12 * 60, Some(Duration::MAX)), Some(ReclaimReason::OutsideHours));
        assert_eq!(rules.reclaim_reason(0, None), Some(ReclaimReason::GpuInUse));
        assert_eq!(rules.reclaim_reason(0, Some(minutes(9))), Some(ReclaimReason::GpuInUse));
        assert_eq!(rules.reclaim_reason(0, Some(minutes(10))), None);
        assert_eq!(SharingRules::default().reclaim_reason(0, None), None);
    }
}
