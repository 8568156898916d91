//! The run time of a job, which no jump of the wall clock changes, and the detection of a reboot.
//!
//! The worker saves a reading of the clocks when it has started a container. `CLOCK_MONOTONIC` counts from boot, so a
//! later run of the worker can go on with the saved reading until the machine is rebooted. Docker's own times of the
//! start and the end are wall-clock times. They are used where the worker learned late of the start or of the end,
//! corrected by the jumps of the wall clock since the reading.

use std::{fs, io, path::Path, time::Duration};

use gpubnb_events::{Clock as _, Millis, SystemClock, Timestamp};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::json_file;

/// The file with the saved reading, in the attempt's directory.
const FILE: &str = "clock.json";
/// A random id that the kernel makes at each boot (`random(4)`).
const KERNEL_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Largest difference between the wall clock and the monotonic clock that counts as no jump: clocks that are kept in
/// time drift by less.
const MAX_DRIFT_MILLIS: u64 = 1_000;
/// Longest time in which Docker starts a container. A longer time means that the worker was stopped meanwhile.
const MAX_START: Millis = Millis(2_000);

/// The clocks at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ClockReading {
    boot_id: String,
    /// `CLOCK_MONOTONIC`: the time since boot, without the time in suspension.
    monotonic: Millis,
    wall: Timestamp,
}

impl ClockReading {
    /// Reads the clocks. The boot id is empty if the kernel has none.
    pub(super) fn now() -> io::Result<Self> {
        let boot_id = match fs::read_to_string(KERNEL_BOOT_ID) {
            Ok(id) => id.trim().to_owned(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e),
        };
        let time = clock_gettime(ClockId::Monotonic);
        let since_boot = Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), 0)
            + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or_default());
        Ok(Self { boot_id, monotonic: Millis::from_duration(since_boot), wall: SystemClock.now() })
    }

    /// The time from this reading to a later one; `None` if the machine was rebooted in between.
    pub(super) fn until(&self, later: &Self) -> Option<Millis> {
        let is_same_boot = !self.boot_id.is_empty() && self.boot_id == later.boot_id;
        is_same_boot.then(|| Millis(later.monotonic.0.saturating_sub(self.monotonic.0)))
    }
}

/// The saved reading of the clocks at the start of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StartReading {
    #[serde(flatten)]
    at: ClockReading,
    /// False if the container may have started later than this reading: the worker was stopped or killed while Docker
    /// started the container.
    #[serde(default)]
    is_exact: bool,
}

impl StartReading {
    /// The reading that was saved; `None` if none was saved, or if the file cannot be read.
    pub(super) fn saved(dir: &Path) -> Option<Self> {
        json_file::saved(&dir.join(FILE))
    }

    /// True if the container started at this reading.
    pub(super) fn is_exact(&self) -> bool {
        self.is_exact
    }

    /// The time from this reading to a later one; `None` if the machine was rebooted in between.
    pub(super) fn until(&self, later: &ClockReading) -> Option<Millis> {
        self.at.until(later)
    }

    /// Saves the reading in an attempt's directory, whole or not at all. Without the reading, Docker's times decide.
    fn save(&self, dir: &Path) {
        if let Err(e) = json_file::save(&dir.join(FILE), self) {
            warn!(error = %e, "the time of the start could not be saved");
        }
    }
}

/// Saves the present reading as a time before the start of an attempt's container. The file is written by another
/// thread, so that the caller can do something else meanwhile.
pub(super) async fn save_before_start(dir: &Path) {
    let at = match ClockReading::now() {
        Ok(at) => at,
        Err(e) => return warn!(error = %e, "the clocks could not be read"),
    };
    let dir = dir.to_owned();
    let saving = tokio::task::spawn_blocking(move || StartReading { at, is_exact: false }.save(&dir));
    if let Err(e) = saving.await {
        warn!(error = %e, "the time before the start could not be saved");
    }
}

/// Saves the present reading as the start of a container. If the saved time before the start is long ago, that reading
/// stays: the worker was stopped in between, and the container may have started, and ended, at any moment of the pause.
pub(super) fn save_start(dir: &Path) {
    match (StartReading::saved(dir), ClockReading::now()) {
        (Some(before), Ok(at)) => {
            if before.until(&at).is_some_and(|waited| waited <= MAX_START) {
                StartReading { at, is_exact: true }.save(dir);
            }
        }
        (None, _) => {}
        (_, Err(e)) => warn!(error = %e, "the clocks could not be read"),
    }
}

/// Returns true if the machine was rebooted after the reading was saved; false if that is not known.
pub(super) fn is_rebooted(dir: &Path) -> bool {
    match (StartReading::saved(dir), ClockReading::now()) {
        (Some(saved), Ok(now)) => saved.at.boot_id != now.boot_id,
        _ => false,
    }
}

/// The run time of a job that started at the reading `start`, or after it.
///
/// - `end`: the reading at which the worker learned of the end.
/// - `docker`: Docker's time of the end minus Docker's time of the start.
/// - `is_end_exact`: the worker learned of the end at once, and not after a pause, a restart, or an outage of Docker.
///
/// Example: the worker is stopped while a job runs for 2 s, and learns of the end after 45 s. The run time is 2 s, by
/// Docker's times.
pub(super) fn run_time(start: &StartReading, end: &ClockReading, docker: Option<Millis>, is_end_exact: bool) -> Millis {
    let is_exact = start.is_exact && is_end_exact;
    let Some(watched) = start.until(end) else { return docker.unwrap_or_default() };
    let Some(docker) = docker else { return if is_exact { watched } else { Millis(0) } };
    let jump = signed(end.wall.millis()) - signed(start.at.wall.millis()) - i128::from(watched.0);
    if jump.unsigned_abs() <= u128::from(MAX_DRIFT_MILLIS) {
        return docker.min(watched);
    }
    if is_exact {
        return watched;
    }
    // Nobody knows whether the clock jumped while the job ran or after its end. If the clock jumped while the job ran,
    // Docker's difference contains the jump, and the run time is the difference without the jump. That is possible only
    // if the result is between zero and `watched`.
    let without_jump = i128::from(docker.0).saturating_sub(jump);
    let during_run = u64::try_from(without_jump).ok().map(Millis).filter(|run| *run <= watched);
    // Where two times are possible, the shorter one is billed.
    docker.min(during_run.unwrap_or(watched)).min(watched)
}

fn signed(millis: i64) -> i128 {
    i128::from(millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn reading(boot_id: &str, monotonic: u64, wall: u64) -> ClockReading {
        ClockReading {
            boot_id: boot_id.to_owned(),
            monotonic: Millis(monotonic),
            wall: Timestamp::EPOCH.plus(Millis(1_000_000 + wall)),
        }
    }

    #[tokio::test]
    async fn a_changed_boot_id_means_a_reboot() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_rebooted(dir.path()), "nothing was saved");
        save_before_start(dir.path()).await;
        assert!(!is_rebooted(dir.path()));
        StartReading { at: reading("another", 1, 1), is_exact: true }.save(dir.path());
        assert!(is_rebooted(dir.path()));
    }

    fn exact(at: ClockReading) -> StartReading {
        StartReading { at, is_exact: true }
    }

    #[tokio::test]
    async fn a_worker_that_was_stopped_during_the_start_keeps_the_time_before_it() {
        let dir = tempfile::tempdir().unwrap();
        save_before_start(dir.path()).await;
        save_start(dir.path());
        assert!(StartReading::saved(dir.path()).unwrap().is_exact(), "Docker answered at once");
        let mut before = ClockReading::now().unwrap();
        before.monotonic.0 = before.monotonic.0.saturating_sub(14_000);
        let before = StartReading { at: before, is_exact: false };
        before.save(dir.path());
        save_start(dir.path());
        assert_eq!(StartReading::saved(dir.path()), Some(before));
    }

    #[test]
    fn a_job_that_ran_while_its_start_was_unknown_is_billed_by_dockers_times() {
        let start = StartReading { at: reading("a", 10_000, 0), is_exact: false };
        let end = reading("a", 24_000, 14_000);
        assert_eq!(run_time(&start, &end, Some(Millis(1_050)), true), Millis(1_050));
        assert_eq!(run_time(&start, &end, None, true), Millis(0), "nobody knows");
    }

    #[test]
    fn no_jump_stop_or_restart_changes_a_run_time() {
        let start = exact(reading("a", 10_000, 0));
        let hour = 3_600_000_u64;
        for (name, end, docker, is_end_exact, expected) in [
            ("nothing happens", reading("a", 12_000, 2_000), Some(1_990), true, 1_990),
            ("the wall clock jumps ahead", reading("a", 12_000, 2_000 + hour), Some(2_000 + hour), true, 2_000),
            ("the worker learns of the end late", reading("a", 55_000, 45_000), Some(2_000), false, 2_000),
            (
                "a jump, and the worker learns late",
                reading("a", 55_000, 45_000 + hour),
                Some(2_000 + hour),
                false,
                2_000,
            ),
            ("a jump after an end that nobody saw", reading("a", 55_000, 45_000 + hour), Some(2_000), false, 2_000),
            ("a jump back after an end that nobody saw", reading("a", 55_000, 15_000), Some(2_000), false, 2_000),
            ("the machine sleeps for an hour", reading("a", 12_000, 2_000 + hour), Some(2_000 + hour), true, 2_000),
            ("a reboot", reading("b", 500, 60_000), Some(7_000), false, 7_000),
            ("Docker forgot the times", reading("a", 12_000, 2_000), None, true, 2_000),
            ("nobody knows", reading("a", 12_000, 2_000), None, false, 0),
        ] {
            let found = run_time(&start, &end, docker.map(Millis), is_end_exact);
            assert_eq!(found, Millis(expected), "{name}");
        }
    }

    #[test]
    fn a_jump_back_before_the_end_is_corrected() {
        let (start, end) = (exact(reading("a", 10_000, 500_000)), reading("a", 30_000, 100_000));
        // The wall clock went back by 420 s while the job ran for 20 s, so Docker's end is before Docker's start.
        assert_eq!(run_time(&start, &end, Some(Millis(0)), true), Millis(20_000));
    }

    /// What happened to a machine while a job ran there, and afterwards until the worker learned of the end. Times are
    /// in milliseconds of the true time since the job's start.
    #[derive(Debug, Clone)]
    struct History {
        /// How long the job ran, not counting the time in which the machine was suspended.
        run: u64,
        /// Suspensions of the machine while the job ran: after how much of the run, and for how long.
        suspensions: Vec<(u64, u64)>,
        /// Jumps of the wall clock: at which true time, and by how much.
        jumps: Vec<(u64, i64)>,
        /// The pause between the job's end and the moment at which the worker learned of the end.
        late: u64,
    }

    impl History {
        /// The true time at which the job ended.
        fn end(&self) -> u64 {
            self.run + self.suspensions.iter().map(|(_, long)| long).sum::<u64>()
        }

        /// The wall clock at a true time.
        fn wall(&self, at: u64) -> i64 {
            let jumped = self.jumps.iter().filter(|(when, _)| *when <= at).map(|(_, by)| by);
            1_000_000_000 + i64::try_from(at).unwrap() + jumped.sum::<i64>()
        }

        fn reading(&self, at: u64, suspended: u64) -> ClockReading {
            ClockReading {
                boot_id: "a".to_owned(),
                monotonic: Millis(500_000 + at - suspended),
                wall: Timestamp::EPOCH.plus(Millis(u64::try_from(self.wall(at)).unwrap())),
            }
        }

        /// The run time that the worker reports. `is_end_exact` as the worker finds it.
        fn reported(&self) -> Millis {
            let start = StartReading { at: self.reading(0, 0), is_exact: true };
            let suspended = self.end() - self.run;
            let learned = self.reading(self.end() + self.late, suspended);
            let docker = Millis(u64::try_from(self.wall(self.end()) - self.wall(0)).unwrap_or(0));
            run_time(&start, &learned, Some(docker), self.late <= MAX_LATE_WHILE_WATCHING)
        }
    }

    /// A worker that watches learns of an end within this time.
    const MAX_LATE_WHILE_WATCHING: u64 = 500;

    fn history(max_late: u64, max_jumps: usize) -> impl Strategy<Value = History> {
        let hour = 3_600_000_u64;
        let suspensions = vec((0..hour, 1..hour), 0..3);
        let jumps = vec((0..2 * hour, -100 * 1_000_000_i64..100_000_000), 0..=max_jumps);
        (0..hour, suspensions, jumps, 0..=max_late).prop_map(|(run, suspensions, jumps, late)| History {
            run,
            suspensions,
            jumps,
            late,
        })
    }

    proptest! {
        /// While the worker watches, any number of jumps and suspensions changes a run time by no more than the drift
        /// that the clocks are allowed.
        #[test]
        fn a_watched_run_is_reported_as_it_was(history in history(MAX_LATE_WHILE_WATCHING, 5)) {
            let reported = history.reported().0;
            let tolerance = MAX_DRIFT_MILLIS + MAX_LATE_WHILE_WATCHING;
            prop_assert!(reported <= history.run + MAX_LATE_WHILE_WATCHING, "{reported}");
            prop_assert!(reported + tolerance >= history.run, "{reported}");
        }

        /// A worker that was stopped, or was not there, at the end learns of the end hours later. One jump or
        /// suspension meanwhile never makes the bill longer than the run.
        #[test]
        fn a_run_whose_end_nobody_saw_is_never_reported_longer(
            history in history(10 * 3_600_000, 1)
                .prop_filter("one cause", |h| h.jumps.len() + h.suspensions.len() <= 1),
        ) {
            prop_assert!(history.reported().0 <= history.run + MAX_DRIFT_MILLIS, "{:?}", history.reported());
        }
    }
}
