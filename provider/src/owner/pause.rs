//! The pause that the owner orders on this machine, with an end or until the owner ends it. The worker keeps the pause
//! in a file, so that a restart does not end it, and obeys it even while the market is away.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use gpubnb_events::{Clock as _, Millis, SystemClock, Timestamp, spec::minute_of_day};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{json_file, lease_table::LeaseTable};

/// The file of the pause, in the worker's directory.
const FILE: &str = "pause.json";
/// Minutes of a day.
const DAY_MINUTES: u16 = 1_440;

/// A pause of this machine by its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pause {
    /// When the pause ends; `None`: when the owner ends it.
    pub(crate) until: Option<Timestamp>,
    /// True if the running jobs stop at once. They start again elsewhere. Each counts as a fault of the machine.
    pub(crate) stops_jobs: bool,
}

impl Pause {
    fn is_over(self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.stops_jobs { "its owner took it back" } else { "its owner paused it" })?;
        match self.until.map(Timestamp::local_minute) {
            Some(minute) => write!(f, " until {:02}:{:02}", minute / 60, minute % 60),
            None => Ok(()),
        }
    }
}

/// Starts and ends pauses. Clones share the pause.
#[derive(Clone)]
pub(crate) struct PauseSwitch {
    file: Arc<PathBuf>,
    pause: watch::Sender<Option<Pause>>,
    leases: Arc<LeaseTable>,
}

impl PauseSwitch {
    /// Continues the pause of a former run of the worker. `state` is the worker's directory.
    pub(crate) fn open(state: &Path, leases: Arc<LeaseTable>) -> Self {
        let file = state.join(FILE);
        let pause = json_file::saved::<Option<Pause>>(&file).flatten();
        Self { file: Arc::new(file), pause: watch::Sender::new(pause), leases }
    }

    /// Starts a pause in place of the present one, or ends it with `None`. The jobs stop at once, before the market
    /// knows of the pause.
    pub(crate) fn set(&self, pause: Option<Pause>) -> io::Result<()> {
        json_file::save(&self.file, &pause)?;
        self.pause.send_replace(pause);
        if pause.is_some_and(|pause| pause.stops_jobs) {
            self.leases.preempt(true);
        }
        Ok(())
    }

    /// The present pause; `None` if there is none, or if it is over.
    pub(crate) fn current(&self) -> Option<Pause> {
        self.pause.borrow().filter(|pause| !pause.is_over(SystemClock.now()))
    }

    /// A receiver that notices each change of the pause, but not its end by time.
    pub(super) fn changes(&self) -> watch::Receiver<Option<Pause>> {
        self.pause.subscribe()
    }
}

/// The next time at which this machine's clock shows `text`, such as `18:00`; `None` if the text is no time of day. On
/// the day on which the clock changes, the time is wrong by the change.
pub(crate) fn next_local_time(text: &str, now: Timestamp) -> Option<Timestamp> {
    let minute = minute_of_day(text).filter(|minute| *minute < DAY_MINUTES)?;
    let ahead = match (minute + DAY_MINUTES - now.local_minute()) % DAY_MINUTES {
        0 => DAY_MINUTES,
        ahead => ahead,
    };
    let minute_began = Timestamp::from_millis(now.millis() - now.millis().rem_euclid(60_000));
    Some(minute_began.plus(Millis(u64::from(ahead) * 60_000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_outlives_the_worker_and_ends_at_its_time() {
        let state = tempfile::tempdir().unwrap();
        let open = || PauseSwitch::open(state.path(), Arc::new(LeaseTable::new(1)));
        assert_eq!(open().current(), None);
        let now = SystemClock.now();
        let until = |seconds: u64| Pause { until: Some(now.plus(Millis(seconds * 1_000))), stops_jobs: false };
        open().set(Some(until(600))).unwrap();
        assert_eq!(open().current(), Some(until(600)));
        open().set(Some(until(0))).unwrap();
        assert_eq!(open().current(), None, "the pause is over");
        open().set(Some(Pause { until: None, stops_jobs: false })).unwrap();
        open().set(None).unwrap();
        assert_eq!(open().current(), None, "the owner ended the pause");
    }

    #[test]
    fn the_next_time_of_day_is_within_a_day() {
        let now = SystemClock.now();
        for text in ["00:00", "9:30", "18:00", "23:59"] {
            let at = next_local_time(text, now).unwrap();
            assert!(at > now && at.since(now) <= Millis(86_400_000), "{text}: {at}");
            assert_eq!(at.millis() % 60_000, 0);
        }
        let minute = now.local_minute();
        let present = format!("{}:{:02}", minute / 60, minute % 60);
        assert!(next_local_time(&present, now).unwrap() > now, "the present minute is tomorrow's");
        for bad in ["", "18", "24:00", "12:60", "-1:00", "1:2:3"] {
            assert_eq!(next_local_time(bad, now), None, "{bad}");
        }
    }
}
