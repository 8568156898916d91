//! The invariants of the log: rules that must hold after every event.
//!
//! Belongs here: rules that the log alone can break or keep. Rules that need the domain are tested by the simulation of
//! `services`.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
};

use gpubnb_events::{
    AccountId, Event, JobId, Lease, MachineId, MicroUsd, Seq,
    ledger::{LedgerAccount, postings},
};
use gpubnb_query::view::ops::Violation;

/// Most broken invariants that are reported.
const MOST_REPORTED: usize = 100;

/// The state after the events so far, as far as the rules need it.
#[derive(Default)]
pub struct Invariants {
    balances: HashMap<AccountId, AccountBalance>,
    live: HashMap<JobId, LiveLease>,
    settled: HashSet<u64>,
    /// For `settled`, which has a hash of each job and not the id, to save memory. The keys of the hash are random, so
    /// that nobody can prepare two ids with one hash. With ten million jobs, two hashes are equal by chance in one of
    /// three hundred thousand verifications.
    hash: RandomState,
    slots: HashMap<MachineId, Slots>,
    found: Vec<Violation>,
}

#[derive(Default)]
struct AccountBalance {
    available: MicroUsd,
    held: MicroUsd,
    payable: MicroUsd,
}

struct LiveLease {
    lease: Lease,
    machine: MachineId,
    accepted: bool,
}

#[derive(Default)]
struct Slots {
    offered: u32,
    taken: u32,
}

impl Invariants {
    /// The broken invariants so far.
    pub fn found(&self) -> &[Violation] {
        &self.found
    }

    /// Frees all memory but that of the broken invariants. Call this after the last event.
    pub fn forget(&mut self) {
        *self = Self { found: std::mem::take(&mut self.found), ..Self::default() };
    }

    /// Checks the next event.
    pub fn apply(&mut self, seq: Seq, event: &Event) {
        self.ledger(seq, event);
        match event {
            Event::MachineListed(e) => self.slots.entry(e.machine).or_default().offered = e.offer.slots,
            Event::JobAssigned(e) => {
                if self.live.contains_key(&e.job) {
                    self.broken(seq, format!("job {} is assigned while another lease is live", e.job));
                }
                let live = LiveLease { lease: Lease(seq), machine: e.machine, accepted: false };
                self.live.insert(e.job, live);
            }
            Event::Accepted(e) => self.accepted(seq, e.job, e.lease),
            Event::Started(e) => self.reports(seq, e.job, Some(e.lease)),
            Event::Exited(e) => self.reports(seq, e.job, Some(e.lease)),
            Event::Declined(e) => self.ended(seq, e.job, Some(e.lease)),
            Event::Requeued(e) => self.ended(seq, e.job, Some(e.lease)),
            Event::Completed(e) => self.ended(seq, e.job, Some(e.lease)),
            Event::Failed(e) => self.ended(seq, e.job, e.lease),
            Event::Cancelled(e) => self.ended(seq, e.job, e.lease),
            Event::Settled(e) => {
                if !self.settled.insert(self.hash.hash_one(e.job)) {
                    self.broken(seq, format!("job {} is settled twice", e.job));
                }
                if e.cost != e.fee + e.earned {
                    self.broken(seq, format!("job {}: the cost is not fee and earnings together", e.job));
                }
            }
            _ => {}
        }
    }

    /// Notes a broken invariant.
    pub fn broken(&mut self, seq: Seq, what: String) {
        if self.found.len() < MOST_REPORTED {
            self.found.push(Violation { seq, what });
        }
    }

    fn ledger(&mut self, seq: Seq, event: &Event) {
        let postings = postings(event);
        let sum: MicroUsd = postings.iter().map(|p| p.amount).sum();
        if sum != MicroUsd::ZERO {
            self.broken(seq, format!("its postings sum to {sum}, not to zero"));
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
                self.broken(seq, format!("account {account} is overdrawn: {} is {amount}", posting.account));
            }
        }
    }

    fn reports(&mut self, seq: Seq, job: JobId, lease: Option<Lease>) {
        let live = self.live.get(&job).map(|live| live.lease);
        if lease != live {
            self.broken(seq, format!("job {job}: a report by a lease that is not the live one"));
        }
    }

    fn accepted(&mut self, seq: Seq, job: JobId, lease: Lease) {
        self.reports(seq, job, Some(lease));
        let Some(live) = self.live.get_mut(&job) else { return };
        live.accepted = true;
        let (machine, slots) = (live.machine, self.slots.entry(live.machine).or_default());
        slots.taken += 1;
        let (taken, offered) = (slots.taken, slots.offered);
        if taken > offered {
            self.broken(seq, format!("machine {machine} has {taken} accepted leases on {offered} slots"));
        }
    }

    fn ended(&mut self, seq: Seq, job: JobId, lease: Option<Lease>) {
        self.reports(seq, job, lease);
        if let Some(live) = self.live.remove(&job)
            && live.accepted
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
    fn an_overdraft_and_a_report_without_a_lease_are_named_with_their_sequence() {
        let (account, mut invariants) = (AccountId::generate(), Invariants::default());
        let (deposit, payout) = (CommandId::generate(), CommandId::generate());
        let amount = MicroUsd::dollars(1);
        invariants.apply(Seq(1), &FundsDeposited { account, deposit, amount }.into());
        assert!(invariants.found().is_empty());
        let amount = MicroUsd::dollars(2);
        invariants.apply(Seq(2), &PayoutRequested { account, payout, amount }.into());
        invariants.apply(Seq(3), &Accepted { job: JobId::generate(), lease: Lease(Seq(1)) }.into());
        let seqs: Vec<_> = invariants.found().iter().map(|v| v.seq.0).collect();
        assert_eq!(seqs, [2, 3]);
    }
}
