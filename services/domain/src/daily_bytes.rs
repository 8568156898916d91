//! The bytes of events that an account or a machine appends to the log on one day, and that nobody pays for.
//!
//! The log is never trimmed, and accounts and machines are free. So there is a limit for the bytes of an account's
//! submissions and deposits of a day, and for those of a machine's offers, self-tests and changes such as a pause. A
//! submission no longer counts when its job is paid for.

use std::io;

use gpubnb_events::Timestamp;
use serde::{Deserialize, Serialize};

use crate::DomainError;

/// Most unpaid bytes of one account on one day: 32 MiB.
pub(crate) const MAX_OF_ACCOUNT: u64 = 32 << 20;
/// Most unpaid bytes of one machine on one day: 8 MiB.
pub(crate) const MAX_OF_MACHINE: u64 = 8 << 20;
/// The bytes beyond [`MAX_OF_MACHINE`] for the events that take a machine off the market, or list it.
pub(crate) const RESERVE_OF_MACHINE: u64 = 1 << 20;
/// The bytes of a message beside its body: subject and headers.
const ENVELOPE: u64 = 512;
/// The bytes that count for a task of a batch until it is paid for, as for a job's submission: its events take room,
/// too.
pub(crate) const OF_TASK: u64 = 1_024;
const DAY_MILLIS: i64 = 24 * 3_600_000;

/// The bytes of one day. `day` is the number of days since 1970-01-01 (UTC).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DailyBytes {
    day: i64,
    bytes: u64,
}

impl DailyBytes {
    /// Adds bytes that were appended at a time.
    pub(crate) fn add(&mut self, at: Timestamp, bytes: u64) {
        if day_of(at) != self.day {
            *self = Self { day: day_of(at), bytes: 0 };
        }
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Takes back bytes that were added at a time, because the job that they describe is paid for. Bytes of an earlier
    /// day do not matter any more.
    pub(crate) fn take_back(&mut self, added_at: Timestamp, bytes: u64) {
        if day_of(added_at) == self.day {
            self.bytes = self.bytes.saturating_sub(bytes);
        }
    }

    /// Fails if the day's bytes have reached `most`.
    pub(crate) fn check(&self, now: Timestamp, most: u64) -> Result<(), DomainError> {
        if day_of(now) == self.day && self.bytes >= most { Err(DomainError::DailyBytes(most >> 20)) } else { Ok(()) }
    }
}

fn day_of(at: Timestamp) -> i64 {
    at.millis().div_euclid(DAY_MILLIS)
}

/// The bytes that an event with this body takes in the log.
pub(crate) fn size_of(event: &impl Serialize) -> u64 {
    let mut counter = Counter(ENVELOPE);
    // Counting cannot fail, and every event can be written as JSON: it was read from JSON.
    drop(serde_json::to_writer(&mut counter, event));
    counter.0
}

/// Counts the bytes that are written.
struct Counter(u64);

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.saturating_add(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, testing::*};
    use gpubnb_events::{
        Actor, CommandId, MicroUsd, Millis,
        command::{ChangeMachine, Deposit, MachineChange, RecordTest},
        event::Check,
    };

    #[test]
    fn a_new_day_begins_at_midnight() {
        let at = |millis| Timestamp::EPOCH.plus(Millis(millis));
        let day = u64::try_from(DAY_MILLIS).unwrap();
        let mut bytes = DailyBytes::default();
        bytes.add(at(day - 1), 100);
        assert!(bytes.check(at(day - 1), 100).is_err() && bytes.check(at(day - 1), 101).is_ok());
        assert!(bytes.check(at(day), 100).is_ok());
        bytes.add(at(day), 7);
        bytes.take_back(at(day - 1), 7);
        assert_eq!(bytes, DailyBytes { day: 1, bytes: 7 });
        bytes.take_back(at(day + 5), 7);
        assert_eq!(bytes, DailyBytes { day: 1, bytes: 0 });
    }

    #[test]
    fn an_account_cannot_fill_the_log_with_jobs_that_never_run() {
        let mut market = given();
        market.settings.max_open_jobs = u32::MAX;
        let submission = |market: &mut TestMarket| {
            let mut submit = market.new_submission();
            submit.budget = Some(MicroUsd(1));
            submit.spec.command = vec!["x".repeat(4_000); 8];
            Command::Submit(market.consumer, submit)
        };
        let mut accepted = 0_u64;
        let refused = loop {
            let submit = submission(&mut market);
            match market.when(market.as_consumer(), submit).refused() {
                None => accepted += 1,
                Some(refused) => break refused,
            }
        };
        assert_eq!(refused, DomainError::DailyBytes(MAX_OF_ACCOUNT >> 20));
        assert!(accepted * 30_000 < MAX_OF_ACCOUNT + 30_000, "{accepted}");
        // A deposit counts, too, and a day later all is as before.
        let deposit = Deposit { deposit: CommandId::generate(), amount: MicroUsd::dollars(1) };
        let deposit = Command::Deposit(market.consumer, deposit);
        let refused = market.when(market.as_consumer(), deposit.clone()).expect_refused();
        assert_eq!(refused, DomainError::DailyBytes(MAX_OF_ACCOUNT >> 20));
        market.when(market.as_operator(), deposit).expect_appended();
        market.advance_time(Millis(3_600_000 * 24));
        let again = submission(&mut market);
        market.when(market.as_consumer(), again).expect_appended();
    }

    /// The day's bytes of a consumer before the submission of a job, and after this job ran for a time and was settled.
    fn bytes_around_a_job(run: Millis) -> (u64, u64) {
        let mut market = given();
        let before = market.account(market.consumer).daily_bytes.bytes;
        let (job, lease) = market.start_default();
        market.advance_time(run);
        market.complete(job, lease, run);
        market.when(Actor::Platform, Command::Settle(job)).expect_appended();
        (before, market.account(market.consumer).daily_bytes.bytes)
    }

    #[test]
    fn a_job_that_is_paid_for_does_not_count_and_a_free_job_counts() {
        let (before, after) = bytes_around_a_job(Millis(60_000));
        assert_eq!(before, after);
        let (before, after) = bytes_around_a_job(Millis(0));
        assert!(after > before + ENVELOPE, "{before} {after}");
    }

    #[test]
    fn a_machine_cannot_fill_the_log_with_self_tests_and_wishes() {
        let mut market = given();
        let check = |n: usize| Check {
            id: format!("check.{n}"),
            actual: "y".repeat(100),
            required: String::new(),
            unit: String::new(),
            passed: false,
            remedy: String::new(),
            recommended: false,
        };
        // The same test again would append nothing.
        let test =
            |n: usize| Command::RecordTest(market.machine, RecordTest { checks: (n..n + 60).map(check).collect() });
        let tests = (0..10_000).map(test).collect::<Vec<_>>();
        let tests =
            tests.into_iter().take_while(|t| market.when(market.as_machine(), t.clone()).refused().is_none()).count();
        assert!((500..1_200).contains(&tests), "{tests}");
        // The reserve still lets the machine pause, but not resume. Pausing and draining in turn uses up the reserve,
        // too.
        let machine = market.machine;
        let wish = |change| Command::ChangeMachine(ChangeMachine { machine, change });
        let (pause, resume) = (wish(MachineChange::Pause), wish(MachineChange::Resume));
        market.when(market.as_machine(), pause.clone()).expect_appended();
        let refused = market.when(market.as_machine(), resume.clone()).expect_refused();
        assert_eq!(refused, DomainError::DailyBytes(MAX_OF_MACHINE >> 20));
        market.when(market.as_operator(), resume).expect_appended();
        let (drain, mut changes) = (wish(MachineChange::Drain), 0);
        while market.when(market.as_machine(), pause.clone()).refused().is_none()
            && market.when(market.as_machine(), drain.clone()).refused().is_none()
        {
            changes += 1;
        }
        assert!((100..5_000).contains(&changes), "{changes}");
    }
}
