//! A machine's record: how its attempts ended. Pure arithmetic over events, shared by the two that must agree on the
//! record: the placement of jobs and the projector's rows. Every figure can list the events behind it.

use serde::{Deserialize, Serialize};

use crate::event::{Event, Fault, Reason};

/// How the end of an attempt counts for its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The job's program ran to its end on the machine, with success or by its own fault.
    Success,
    /// A fault of the machine ended the attempt.
    Fault(Reason),
}

/// The mark that an event of a job leaves in the record of the job's machine; `None` for an event that leaves none.
pub fn mark(event: &Event) -> Option<Mark> {
    // Only an ending that proves something about the machine counts: code of the job that ran, or a fault of the machine.
    let of = |reason: Reason, fault: Fault| match fault {
        Fault::Provider => Some(Mark::Fault(reason)),
        Fault::Consumer if reason.after_code_ran() => Some(Mark::Success),
        Fault::Consumer | Fault::Platform | Fault::Nobody => None,
    };
    match event {
        Event::Completed(_) => Some(Mark::Success),
        Event::Requeued(e) => of(e.reason, e.fault),
        // A failure without a lease means that no machine came free: no machine is at fault.
        Event::Failed(e) => e.lease.and_then(|_| of(e.reason, e.fault)),
        _ => None,
    }
}

/// The record of a machine: its attempts, by how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Attempts in which the machine ran the job's program to its end.
    pub successes: u32,
    /// Attempts that a fault of the machine ended.
    pub faults: u32,
}

impl Record {
    /// Counts a mark.
    pub fn count(&mut self, mark: Mark) {
        let counter = match mark {
            Mark::Success => &mut self.successes,
            Mark::Fault(_) => &mut self.faults,
        };
        *counter = counter.saturating_add(1);
    }

    /// The number of all attempts.
    pub fn attempts(self) -> u32 {
        self.successes.saturating_add(self.faults)
    }

    /// The share of attempts without a fault, percent, rounded down; `None` before the first attempt.
    pub fn percent(self) -> Option<u32> {
        let percent = (u64::from(self.successes) * 100).checked_div(u64::from(self.attempts()))?;
        // At most a hundred.
        u32::try_from(percent).ok()
    }

    /// The probability that the next attempt ends without a fault, in millionths, by Laplace's rule of succession
    /// (s + 1) / (n + 2). By this rule, 1 success in 1 attempt counts for less than 99 in 100.
    pub fn expected(self) -> u64 {
        (u64::from(self.successes) + 1) * 1_000_000 / (u64::from(self.attempts()) + 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_attempts_count_for_less_than_many() {
        let record = |successes, faults| Record { successes, faults };
        assert_eq!(record(0, 0).percent(), None);
        assert_eq!(record(2, 1).percent(), Some(66));
        assert!(record(1, 0).expected() < record(99, 1).expected());
        assert!(record(0, 1).expected() < record(0, 0).expected());
    }
}
