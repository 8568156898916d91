//! The invariants of the log: rules that must be true after every event. Example: no balance of an account is negative.
//!
//! Only rules that can be checked from the log alone are here. The simulation in `services` tests the other rules of
//! the domain.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
};

use gpubnb_events::{
    AccountId, Event, JobId, Lease, MachineId, MicroUsd, Seq,
    ledger::{LedgerAccount, postings},
};
use gpubnb_query::view::ops::Violation;

/// The most violations that are reported.
const MAX_REPORTED: usize = 100;

/// Checks the invariants, event by event. The fields are the part of the market's state that the rules need.
#[derive(Default)]
pub struct Invariants {
    balances: HashMap<AccountId, AccountBalance>,
    live_leases: HashMap<JobId, LiveLease>,
    /// A hash of each settled job's id. The hash takes less memory than the id.
    settled: HashSet<u64>,
    /// The function for the hashes in `settled`. Its keys are random, so that nobody can choose two ids with the same
    /// hash. With ten million jobs, one of 300,000 verifications has two equal hashes by chance.
    hash: RandomState,
    slots: HashMap<MachineId, Slots>,
    violations: Vec<Violation>,
}

/// The balance of an account. No part may be negative.
#[derive(Default)]
struct AccountBalance {
    available: MicroUsd,
    held: MicroUsd,
    payable: MicroUsd,
}

/// The lease of a job that is assigned to a machine and has not ended.
struct LiveLease {
    lease: Lease,
    machine: MachineId,
    is_accepted: bool,
}

/// The slots of a machine. A slot is room for one job.
#[derive(Default)]
struct Slots {
    offered: u32,
    /// The number of accepted leases.
    taken: u32,
}

impl Invariants {
    /// The violations that were found so far.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Clears the state, but keeps the violations. Call this function after the last event, to free memory.
    pub fn clear_state(&mut self) {
        *self = Self { violations: std::mem::take(&mut self.violations), ..Self::default() };
    }

    /// Checks the next event.
    pub fn apply(&mut self, seq: Seq, event: &Event) {
        self.check_ledger(seq, event);
        match event {
            Event::MachineListed(e) => self.slots.entry(e.machine).or_default().offered = e.offer.slots,
            Event::JobAssigned(e) => {
                if self.live_leases.contains_key(&e.job) {
                    self.add_violation(seq, format!("job {} is assigned while another lease is live", e.job));
                }
                let live = LiveLease { lease: Lease(seq), machine: e.machine, is_accepted: false };
                self.live_leases.insert(e.job, live);
            }
            Event::Accepted(e) => self.accept(seq, e.job, e.lease),
            Event::Started(e) => self.check_lease(seq, e.job, Some(e.lease)),
            Event::Exited(e) => self.check_lease(seq, e.job, Some(e.lease)),
            Event::Declined(e) => self.end(seq, e.job, Some(e.lease)),
            Event::Requeued(e) => self.end(seq, e.job, Some(e.lease)),
            Event::Completed(e) => self.end(seq, e.job, Some(e.lease)),
            Event::Failed(e) => self.end(seq, e.job, e.lease),
            Event::Cancelled(e) => self.end(seq, e.job, e.lease),
            Event::Settled(e) => {
                if !self.settled.insert(self.hash.hash_one(e.job)) {
                    self.add_violation(seq, format!("job {} is settled twice", e.job));
                }
                if e.cost != e.fee + e.earned {
                    self.add_violation(seq, format!("job {}: the cost is not the sum of fee and earnings", e.job));
                }
            }
            _ => {}
        }
    }

    /// Adds a violation that the event `seq` caused. `what` describes the violation.
    pub fn add_violation(&mut self, seq: Seq, what: String) {
        if self.violations.len() < MAX_REPORTED {
            self.violations.push(Violation { seq, what });
        }
    }

    fn check_ledger(&mut self, seq: Seq, event: &Event) {
        let postings = postings(event);
        let sum: MicroUsd = postings.iter().map(|p| p.amount).sum();
        if sum != MicroUsd::ZERO {
            self.add_violation(seq, format!("its postings sum to {sum}, not to zero"));
        }
        for posting in postings {
            let (account, amount) = match posting.account {
                LedgerAccount::Available(id) => {
                    let balance = self.balances.entry(id).or_default();
                    balance.available += posting.amount;
                    (id, balance.available)
                }
                LedgerAccount::Held(id) => {
                    let balance = self.balances.entry(id).or_default();
                    balance.held += posting.amount;
                    (id, balance.held)
                }
                LedgerAccount::Payable(id) => {
                    let balance = self.balances.entry(id).or_default();
                    balance.payable += posting.amount;
                    (id, balance.payable)
                }
                LedgerAccount::Fees | LedgerAccount::External => continue,
            };
            if amount < MicroUsd::ZERO {
                self.add_violation(seq, format!("account {account} is overdrawn: {} is {amount}", posting.account));
            }
        }
    }

    fn check_lease(&mut self, seq: Seq, job: JobId, lease: Option<Lease>) {
        let live = self.live_leases.get(&job).map(|live| live.lease);
        if lease != live {
            self.add_violation(seq, format!("job {job}: a report names a lease that is not live"));
        }
    }

    fn accept(&mut self, seq: Seq, job: JobId, lease: Lease) {
        self.check_lease(seq, job, Some(lease));
        let Some(live) = self.live_leases.get_mut(&job) else { return };
        live.is_accepted = true;
        let (machine, slots) = (live.machine, self.slots.entry(live.machine).or_default());
        slots.taken += 1;
        let (taken, offered) = (slots.taken, slots.offered);
        if taken > offered {
            self.add_violation(seq, format!("machine {machine} has {taken} accepted leases on {offered} slots"));
        }
    }

    fn end(&mut self, seq: Seq, job: JobId, lease: Option<Lease>) {
        self.check_lease(seq, job, lease);
        if let Some(live) = self.live_leases.remove(&job)
            && live.is_accepted
            && let Some(slots) = self.slots.get_mut(&live.machine)
        {
            slots.taken = slots.taken.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::{
        CommandId,
        event::{Accepted, FundsDeposited, PayoutRequested},
    };

    #[test]
    fn an_overdraft_and_a_report_without_a_lease_are_violations() {
        let (account, mut invariants) = (AccountId::generate(), Invariants::default());
        let (deposit, payout) = (CommandId::generate(), CommandId::generate());
        let amount = MicroUsd::dollars(1);
        invariants.apply(Seq(1), &FundsDeposited { account, deposit, amount }.into());
        assert!(invariants.violations().is_empty());
        let amount = MicroUsd::dollars(2);
        invariants.apply(Seq(2), &PayoutRequested { account, payout, amount }.into());
        invariants.apply(Seq(3), &Accepted { job: JobId::generate(), lease: Lease(Seq(1)) }.into());
        let seqs: Vec<_> = invariants.violations().iter().map(|v| v.seq.0).collect();
        assert_eq!(seqs, [2, 3]);
    }
}
