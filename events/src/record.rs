//! A machine's record: the number of its attempts with and without a fault of the machine. The placement of jobs and
//! the projector's rows use the same functions, so that both have the same record.

use serde::{Deserialize, Serialize};

use crate::event::{Event, Fault, Reason};

/// The result of an attempt in its machine's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptResult {
    /// The machine ran the job's program to its end, even if the job failed.
    Success,
    /// A fault of the machine ended the attempt.
    MachineFault(Reason),
}

/// The result that an event adds to the record of the job's machine; `None` for an event that proves nothing about the
/// machine.
pub fn attempt_result(event: &Event) -> Option<AttemptResult> {
    // A result needs proof: a program that ran, or a fault of the machine. A bad image proves nothing about the
    // machine.
    let of = |reason: Reason, fault: Fault| match fault {
        Fault::Provider => Some(AttemptResult::MachineFault(reason)),
        Fault::Consumer if reason.is_after_run() => Some(AttemptResult::Success),
        Fault::Consumer | Fault::Platform | Fault::Nobody => None,
    };
    match event {
        Event::Completed(_) => Some(AttemptResult::Success),
        Event::Requeued(e) => of(e.reason, e.fault),
        // A failure without a lease means that no machine came free: no machine is at fault.
        Event::Failed(e) => e.lease.and_then(|_| of(e.reason, e.fault)),
        _ => None,
    }
}

/// The record of a machine: the number of its attempts by result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Attempts in which the machine ran the job's program to its end.
    pub successes: u32,
    /// Attempts that a fault of the machine ended.
    pub faults: u32,
}

impl MachineRecord {
    /// Adds the result of one attempt.
    pub fn count(&mut self, result: AttemptResult) {
        let counter = match result {
            AttemptResult::Success => &mut self.successes,
            AttemptResult::MachineFault(_) => &mut self.faults,
        };
        *counter = counter.saturating_add(1);
    }

    /// The number of all attempts.
    pub fn attempts(self) -> u32 {
        self.successes.saturating_add(self.faults)
    }

    /// The percentage of attempts without a fault of the machine, rounded down; `None` before the first attempt.
    pub fn percent(self) -> Option<u32> {
        let percent = (u64::from(self.successes) * 100).checked_div(u64::from(self.attempts()))?;
        u32::try_from(percent).ok()
    }

    /// The probability that the next attempt ends without a fault, in millionths, by Laplace's rule of succession
    /// (s + 1) / (n + 2). By this rule, 1 success in 1 attempt counts for less than 99 in 100.
    pub fn success_probability_ppm(self) -> u64 {
        (u64::from(self.successes) + 1) * 1_000_000 / (u64::from(self.attempts()) + 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_success_is_worth_less_than_99_of_100() {
        let record = |successes, faults| MachineRecord { successes, faults };
        assert_eq!(record(0, 0).percent(), None);
        assert_eq!(record(2, 1).percent(), Some(66));
        assert!(record(1, 0).success_probability_ppm() < record(99, 1).success_probability_ppm());
        assert!(record(0, 1).success_probability_ppm() < record(0, 0).success_probability_ppm());
    }
}
