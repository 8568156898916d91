//! Spare means spare: when the machine is its owner's, by the hours of the day and by who uses its GPUs.
//!
//! Looks once a second. When its owner's turn comes, the market hears of it and what runs is stopped; when it is over,
//! the market hears of that.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use gpubnb_events::{
    Clock as _, SystemClock,
    command::{ChangeMachine, Done, MachineChange},
};
use gpubnb_runtime::rpc::Failure;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    gpu::Gpus,
    hand::{Hand, Wish},
    platform::Platform,
};

const LOOK: Duration = Duration::from_secs(1);

/// Hours of the day, by the machine's own clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hours {
    /// From and to, minutes since midnight; a window may go past midnight.
    windows: Vec<(u16, u16)>,
    text: String,
}

impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |part: &str| format!("`{part}` is no window of time: write 22:00-08:00");
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
    /// Whether a minute of the day is within.
    fn hold(&self, minute: u16) -> bool {
        self.windows
            .iter()
            .any(|(from, to)| if from <= to { (*from..*to).contains(&minute) } else { minute >= *from || minute < *to })
    }
}

/// When the machine is spare.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policy {
    /// GPUs idle for so long.
    pub(crate) idle: Option<Duration>,
    pub(crate) hours: Option<Hours>,
}

/// Why the machine is its owner's now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Processes that are not ours use its GPUs, or did a moment ago.
    GpuInUse,
    /// The hour of the day.
    Hours,
}

impl Turn {
    /// In words.
    pub(crate) const fn words(&self) -> &'static str {
        match self {
            Self::GpuInUse => "somebody else's process uses its GPU, or did a moment ago",
            Self::Hours => "it is outside of the hours at which it is spare",
        }
    }
}

impl Policy {
    /// Whose turn it is: `None`, the machine is spare. `unused` is since when no other process has used a GPU.
    fn turn(&self, minute: u16, unused: Option<Duration>) -> Option<Turn> {
        if self.hours.as_ref().is_some_and(|hours| !hours.hold(minute)) {
            return Some(Turn::Hours);
        }
        let idle = self.idle?;
        unused.is_none_or(|unused| unused < idle).then_some(Turn::GpuInUse)
    }

    fn is_any(&self) -> bool {
        self.idle.is_some() || self.hours.is_some()
    }
}

/// Watches until shutdown. `turn` says whose turn it is, for whoever wants to know.
pub(crate) async fn watch(
    policy: Policy,
    gpus: Arc<Gpus>,
    hand: Arc<Hand>,
    platform: Platform,
    turn: watch::Sender<Option<Turn>>,
    shutdown: CancellationToken,
) {
    if !policy.is_any() {
        // It may have been away when it was configured otherwise.
        return tell(&platform, MachineChange::Back, &shutdown).await;
    }
    // Nobody knows what was before the start: what is idle now has been for long enough.
    let mut used: Option<Instant> = None;
    let mut told: Option<Option<Turn>> = None;
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = look.tick() => {}
        }
        let others = policy.idle.is_some() && gpus.used_by_others(&hand.containers());
        if others {
            used = Some(Instant::now());
        }
        let unused = if others { None } else { Some(used.map_or(Duration::MAX, |used| used.elapsed())) };
        let now = policy.turn(SystemClock.now().local_minute(), unused);
        if told.as_ref() == Some(&now) {
            continue;
        }
        turn.send_replace(now.clone());
        if let Some(why) = &now {
            info!(why = why.words(), "the owner's turn: no new jobs, and what runs is stopped");
            hand.wish_all(Wish::Preempt);
            tell(&platform, MachineChange::Away, &shutdown).await;
            // What was accepted while the market did not know yet.
            hand.wish_all(Wish::Preempt);
        } else {
            info!("the machine is spare again");
            tell(&platform, MachineChange::Back, &shutdown).await;
        }
        told = Some(now);
    }
}

/// Tells the market, for as long as it takes.
async fn tell(platform: &Platform, wish: MachineChange, shutdown: &CancellationToken) {
    let change = ChangeMachine { machine: platform.machine(), wish };
    loop {
        match platform.ask::<Done>("wish", &change).await {
            Ok(_) => return,
            Err(Failure::Refused(refusal)) => return warn!(%refusal, ?wish, "the market does not take it"),
            Err(Failure::Unavailable(_)) => {}
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
            assert_eq!(hours.hold(minute), within, "{minute}");
        }
        assert!("0:00-24:00".parse::<Hours>().unwrap().hold(23 * 60 + 59));
        for bad in ["", "22-8", "25:00-08:00", "22:00", "22:60-08:00"] {
            assert!(bad.parse::<Hours>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_machine_is_spare_when_hours_and_gpus_agree() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let policy = Policy { idle: Some(minutes(10)), hours: Some("22:00-08:00".parse().unwrap()) };
        assert_eq!(policy.turn(12 * 60, Some(Duration::MAX)), Some(Turn::Hours));
        assert_eq!(policy.turn(0, None), Some(Turn::GpuInUse));
        assert_eq!(policy.turn(0, Some(minutes(9))), Some(Turn::GpuInUse));
        assert_eq!(policy.turn(0, Some(minutes(10))), None);
        assert_eq!(Policy::default().turn(0, None), None);
    }
}
