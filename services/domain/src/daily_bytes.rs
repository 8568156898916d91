//! The bytes of events that an account or a machine appends to the log on one day without anything that pays for them.
//!
//! The log is never trimmed, and accounts and machines are free. So a day's submissions that never run, deposits,
//! wishes, offers and self-tests are bounded by the bytes of their events. A job that runs does not count.

use std::io;

use gpubnb_events::Timestamp;
use serde::{Deserialize, Serialize};

use crate::DomainError;

/// Most such bytes of one account on one day.
pub(crate) const MAX_OF_ACCOUNT: u64 = 32 << 20;
/// Most such bytes of one machine on one day.
pub(crate) const MAX_OF_MACHINE: u64 = 8 << 20;
/// The bytes of a message beside its body: subject and headers.
const ENVELOPE: u64 = 512;
const DAY_MILLIS: i64 = 24 * 3_600_000;

/// The bytes of one day (UTC), which is counted from 1970.
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

    /// Takes back bytes that were added at a time, because the job that they describe runs. Bytes of an earlier day do
    /// not matter any more.
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
        CommandId, MicroUsd, Millis,
        command::{Deposit, MachineChange, RecordTest},
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
        let refused = market.when(market.as_operator(), deposit).expect_refused();
        assert_eq!(refused, DomainError::DailyBytes(MAX_OF_ACCOUNT >> 20));
        market.advance_time(Millis(3_600_000 * 24));
        let again = submission(&mut market);
        market.when(market.as_consumer(), again).expect_appended();
    }

    #[test]
    fn a_job_that_runs_does_not_count() {
        let mut market = given();
        let before = market.account(market.consumer).daily_bytes;
        market.start_default();
        let after = market.account(market.consumer).daily_bytes;
        assert_eq!((after.bytes, after.day), (before.bytes, after.day));
    }

    #[test]
    fn a_machine_cannot_fill_the_log_with_self_tests_and_wishes() {
        let mut market = given();
        let check = |n: usize| Check {
            id: format!("check.{n}"),
            actual: "y".repeat(100),
            required: String::new(),
            unit: String::new(),
            passed: true,
            remedy: String::new(),
        };
        let test = Command::RecordTest(market.machine, RecordTest { checks: (0..60).map(check).collect() });
        let tests =
            (0..10_000).take_while(|_| market.when(market.as_machine(), test.clone()).refused().is_none()).count();
        assert!((500..1_200).contains(&tests), "{tests}");
        let wish = Command::ChangeMachine(gpubnb_events::command::ChangeMachine {
            machine: market.machine,
            change: MachineChange::Pause,
        });
        let refused = market.when(market.as_machine(), wish).expect_refused();
        assert_eq!(refused, DomainError::DailyBytes(MAX_OF_MACHINE >> 20));
    }
}
