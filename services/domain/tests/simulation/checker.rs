//! The independent checker. It reads every event of the log, keeps its own facts, and checks every promise. It shares
//! only the event types and `ledger::postings` with the market, and no decision. This file checks money, accounts and
//! machines; `facts.rs` checks jobs, and `batches.rs` checks batches.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry as MapEntry};

use gpubnb_events::{
    AccountId, Actor, Aggregate, BatchId, CommandId, Event, HourlyRate, JobId, MachineId, Millis, Recorded, Seq,
    Timestamp,
    event::{MachineListed, Reason},
    ledger::{self, LedgerAccount},
    message::Envelope,
};

use super::{
    batches::BatchFacts,
    facts::{JobFacts, LeaseFacts},
    tally::Tally,
};

/// A promise was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation(pub(crate) String);

/// The result of a check: `Ok` if the promise holds.
pub(crate) type Verdict<T = ()> = Result<T, Violation>;

/// Makes a violation with this text, if the promise does not hold.
pub(crate) fn ensure(promise: bool, broken: impl FnOnce() -> String) -> Verdict {
    if promise { Ok(()) } else { Err(Violation(broken())) }
}

/// The checker's facts about an account.
#[derive(Default)]
pub(crate) struct AccountFacts {
    pub(crate) suspended: bool,
    deposits: BTreeSet<CommandId>,
    payouts: BTreeMap<CommandId, PayoutFacts>,
    pub(crate) jobs: BTreeSet<JobId>,
    /// The sum of the account's holds, micro-dollars. The settlement of a job ends its hold.
    pub(crate) open_holds: i128,
    closed: bool,
}

/// The checker's facts about a payout.
struct PayoutFacts {
    requested: Seq,
    /// Micro-dollars.
    amount: i64,
    closed: bool,
}

/// The checker's facts about a machine.
pub(crate) struct MachineFacts {
    pub(crate) owner: AccountId,
    /// Every price that the machine ever had. A replica with an old state may assign a job at an old price.
    pub(crate) prices: BTreeSet<HourlyRate>,
    pub(crate) slots: usize,
    pub(crate) lost: bool,
    suspect: bool,
    delisted: bool,
}

/// The settings of the market that the checker must know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// The platform's share, in ten-thousandths.
    pub(crate) fee: u32,
    /// True if accounts may deposit play money by themselves.
    pub(crate) test_funds: bool,
    /// Time for a machine to accept a job, in milliseconds.
    pub(crate) accept_within: Millis,
    /// Time that a worker has to report after a request to cancel the job, in milliseconds.
    pub(crate) grace: Millis,
    /// Greatest difference between the clocks of a replica and of the broker, in milliseconds.
    pub(crate) skew: Millis,
}

/// The checker, with its facts about everything in the log.
pub(crate) struct Checker {
    pub(crate) rules: Rules,
    /// Machines with an honest worker. Only these keep to their number of slots.
    pub(crate) honest: BTreeSet<MachineId>,
    pub(crate) jobs: BTreeMap<JobId, JobFacts>,
    pub(crate) batches: BTreeMap<BatchId, BatchFacts>,
    pub(crate) machines: BTreeMap<MachineId, MachineFacts>,
    /// The balance of each ledger account, micro-dollars.
    pub(crate) ledger: BTreeMap<LedgerAccount, i128>,
    pub(crate) accounts: BTreeMap<AccountId, AccountFacts>,
    /// The holds of submissions without a job, micro-dollars, by the sequence of `JobSubmitted`. If two accounts submit
    /// one job id at the same time, the later submission gets no job, and its hold is released.
    pub(crate) stranded: BTreeMap<Seq, (AccountId, i64)>,
    /// The number of such holds that were released.
    pub(crate) released: u64,
    /// How often each event was read, by the event's name.
    pub(crate) seen: Tally,
}

/// An event, with the sequence, the time and the envelope of its message.
pub(crate) struct Entry<'a> {
    pub(crate) seq: Seq,
    pub(crate) at: Timestamp,
    pub(crate) envelope: &'a Envelope,
    pub(crate) event: &'a Event,
}

impl Checker {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            honest: BTreeSet::new(),
            jobs: BTreeMap::new(),
            batches: BTreeMap::new(),
            machines: BTreeMap::new(),
            ledger: BTreeMap::new(),
            accounts: BTreeMap::new(),
            stranded: BTreeMap::new(),
            released: 0,
            seen: Tally::default(),
        }
    }

    /// Checks the next message of the log, and adds it to the facts.
    pub(crate) fn observe(&mut self, recorded: &Recorded) -> Verdict {
        let Ok((envelope, event)) = &recorded.entry else { return Ok(()) };
        self.seen.count(event.name());
        let entry = Entry { seq: recorded.seq, at: recorded.at, envelope, event };
        self.check(&entry).map_err(|Violation(v)| Violation(format!("{} at {}: {v}", event.name(), recorded.seq)))
    }

    fn check(&mut self, entry: &Entry<'_>) -> Verdict {
        match entry.event {
            Event::AccountOpened(e) => {
                ensure(entry.envelope.actor == Actor::Account(e.account), || "opened by another".to_owned())?;
                let before = self.accounts.insert(e.account, AccountFacts::default());
                ensure(before.is_none(), || "opened twice".to_owned())?;
            }
            Event::FundsDeposited(_)
            | Event::PayoutRequested(_)
            | Event::PayoutPaid(_)
            | Event::PayoutFailed(_)
            | Event::AccountSuspended(_)
            | Event::AccountReinstated(_)
            | Event::AccountClosed(_) => self.check_account(entry)?,
            Event::JobSubmitted(_) => self.check_submission(entry)?,
            Event::BatchSubmitted(_) | Event::TasksOpened(_) | Event::BatchClosed(_) => self.check_batch(entry)?,
            Event::HoldReleased(e) => {
                ensure(entry.envelope.actor == Actor::Platform, || "released by another".to_owned())?;
                let stranded = self.stranded.remove(&e.submission);
                ensure(stranded == Some((e.account, e.amount.0)), || "no such hold is without a job".to_owned())?;
                let account = self.accounts.entry(e.account).or_default();
                account.open_holds -= i128::from(e.amount.0);
                self.released += 1;
            }
            Event::MachineListed(e) => self.check_listing(entry, e)?,
            Event::MachineRepriced(_)
            | Event::MachineSettingsRequested(_)
            | Event::MachinePaused(_)
            | Event::MachineResumed(_)
            | Event::MachineDrainStarted(_)
            | Event::MachineDelisted(_)
            | Event::MachineTested(_)
            | Event::MachineSuspected(_)
            | Event::MachineLost(_)
            | Event::MachineRecovered(_) => self.check_machine(entry)?,
            _ => self.check_job(entry)?,
        }
        self.check_money(entry.event)
    }

    /// Adds the event's postings to the ledger. Checks that the ledger balances, that no balance is below zero, and
    /// that each account's holds are those of its open jobs. Only the account of the outside world may be below zero.
    fn check_money(&mut self, event: &Event) -> Verdict {
        let postings = ledger::postings(event);
        if postings.is_empty() {
            return Ok(());
        }
        let sum: i128 = postings.iter().map(|p| i128::from(p.amount.0)).sum();
        ensure(sum == 0, || format!("its postings sum to {sum}"))?;
        for posting in &postings {
            *self.ledger.entry(posting.account).or_default() += i128::from(posting.amount.0);
        }
        for (account, balance) in &self.ledger {
            let may_owe = *account == LedgerAccount::External;
            ensure(may_owe || *balance >= 0, || format!("{account} is {balance}"))?;
        }
        let total: i128 = self.ledger.values().sum();
        ensure(total == 0, || format!("the ledger sums to {total}"))?;
        for (id, account) in &self.accounts {
            let held = self.balance(LedgerAccount::Held(*id));
            let open = account.open_holds;
            ensure(held == open, || format!("held:{id} is {held}, and its open jobs hold {open}"))?;
        }
        Ok(())
    }

    /// The balance of a ledger account, micro-dollars.
    pub(crate) fn balance(&self, account: LedgerAccount) -> i128 {
        self.ledger.get(&account).copied().unwrap_or_default()
    }

    /// All accounts that were opened.
    pub(crate) fn accounts(&self) -> impl Iterator<Item = AccountId> + '_ {
        self.accounts.keys().copied()
    }

    fn check_account(&mut self, entry: &Entry<'_>) -> Verdict {
        let actor = entry.envelope.actor;
        let Aggregate::Account(id) = entry.event.aggregate() else { return Ok(()) };
        let account = self.accounts.get_mut(&id).ok_or_else(|| Violation("the account is not open".to_owned()))?;
        let own = actor == Actor::Account(id);
        let allowed = match entry.event {
            Event::PayoutRequested(_) | Event::AccountClosed(_) => own,
            Event::FundsDeposited(_) => matches!(actor, Actor::Operator(_)) || (own && self.rules.test_funds),
            _ => matches!(actor, Actor::Operator(_)),
        };
        ensure(allowed, || format!("{actor} was not allowed"))?;
        ensure(!account.closed, || "the account is closed".to_owned())?;
        let mut close = |payout: &CommandId, amount: i64, requested: Seq| {
            let known =
                account.payouts.get_mut(payout).ok_or_else(|| Violation("no such payout was requested".to_owned()))?;
            ensure(!known.closed, || "closed twice".to_owned())?;
            known.closed = true;
            ensure((known.amount, known.requested) == (amount, requested), || {
                "the amount or the request differs".to_owned()
            })
        };
        match entry.event {
            Event::PayoutPaid(e) => close(&e.payout, e.amount.0, e.requested),
            Event::PayoutFailed(e) => close(&e.payout, e.amount.0, e.requested),
            Event::FundsDeposited(e) => ensure(account.deposits.insert(e.deposit), || "deposited twice".to_owned()),
            Event::PayoutRequested(e) => {
                ensure(!account.suspended, || "the account is suspended".to_owned())?;
                let facts = PayoutFacts { requested: entry.seq, amount: e.amount.0, closed: false };
                ensure(account.payouts.insert(e.payout, facts).is_none(), || "requested twice".to_owned())
            }
            Event::AccountSuspended(_) | Event::AccountReinstated(_) => {
                let suspended = matches!(entry.event, Event::AccountSuspended(_));
                ensure(account.suspended != suspended, || "the suspension does not change".to_owned())?;
                account.suspended = suspended;
                Ok(())
            }
            Event::AccountClosed(_) => {
                ensure(!account.suspended, || "the account is suspended or closed".to_owned())?;
                let is_closed = |payout: &PayoutFacts| payout.closed;
                ensure(account.payouts.values().all(is_closed), || "a payout is open".to_owned())?;
                (account.suspended, account.closed) = (true, true);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn check_submission(&mut self, entry: &Entry<'_>) -> Verdict {
        let Event::JobSubmitted(e) = entry.event else { return Ok(()) };
        ensure(entry.envelope.actor == Actor::Account(e.account), || "submitted by another".to_owned())?;
        let account =
            self.accounts.get_mut(&e.account).ok_or_else(|| Violation("the account is not open".to_owned()))?;
        ensure(!account.suspended, || "the account is suspended".to_owned())?;
        ensure(account.jobs.insert(e.job), || "submitted twice by one account".to_owned())?;
        ensure(e.hold.0 >= 0 && e.limits.budget == e.hold, || "the hold is not the budget".to_owned())?;
        account.open_holds += i128::from(e.hold.0);
        if self.is_in_batch(e.job) {
            self.stranded.insert(entry.seq, (e.account, e.hold.0));
            return Ok(());
        }
        match self.jobs.entry(e.job) {
            MapEntry::Vacant(slot) => _ = slot.insert(JobFacts::new(entry.seq, entry.at, e)),
            MapEntry::Occupied(_) => _ = self.stranded.insert(entry.seq, (e.account, e.hold.0)),
        }
        Ok(())
    }

    fn check_listing(&mut self, entry: &Entry<'_>, e: &MachineListed) -> Verdict {
        ensure(entry.envelope.actor == Actor::Machine(e.machine), || "listed by another".to_owned())?;
        ensure(self.accounts.contains_key(&e.owner), || "the owner has no account".to_owned())?;
        let slots = e.offer.slots as usize;
        let known = self.machines.entry(e.machine).or_insert_with(|| MachineFacts {
            owner: e.owner,
            prices: BTreeSet::new(),
            slots,
            lost: false,
            suspect: false,
            delisted: false,
        });
        ensure(known.owner == e.owner, || "the owner of the machine changed".to_owned())?;
        known.prices.insert(e.offer.price);
        (known.slots, known.lost, known.suspect, known.delisted) = (slots, false, false, false);
        Ok(())
    }

    fn check_machine(&mut self, entry: &Entry<'_>) -> Verdict {
        let Aggregate::Machine(id) = entry.event.aggregate() else { return Ok(()) };
        let machine = self.machines.get_mut(&id).ok_or_else(|| Violation("the machine was never listed".to_owned()))?;
        let actor = entry.envelope.actor;
        let is_by_watchdog =
            matches!(entry.event, Event::MachineSuspected(_) | Event::MachineLost(_) | Event::MachineRecovered(_));
        let is_by_owner = [Actor::Machine(id), Actor::Account(machine.owner), Actor::Operator(None)].contains(&actor);
        ensure(if is_by_watchdog { actor == Actor::Platform } else { is_by_owner }, || {
            format!("{actor} was not allowed")
        })?;
        let absent = machine.suspect || machine.lost;
        match entry.event {
            Event::MachineSuspected(_) => ensure(!absent, || "the machine was suspect or lost already".to_owned())?,
            Event::MachineLost(_) => ensure(!machine.lost, || "the machine was lost already".to_owned())?,
            Event::MachineRecovered(_) => ensure(absent, || "the machine was online already".to_owned())?,
            Event::MachineTested(_) => {}
            _ => ensure(!machine.delisted, || "the machine had left the market".to_owned())?,
        }
        match entry.event {
            Event::MachineRepriced(e) => _ = machine.prices.insert(e.price),
            Event::MachineSettingsRequested(e) => _ = machine.prices.insert(e.settings.price),
            Event::MachineDelisted(_) => machine.delisted = true,
            Event::MachineSuspected(_) => machine.suspect = true,
            Event::MachineLost(_) => {
                machine.lost = true;
                let on_this_machine = |live: &&mut LeaseFacts| live.machine == id;
                self.jobs
                    .values_mut()
                    .filter_map(|j| j.live.as_mut())
                    .filter(on_this_machine)
                    .for_each(|l| l.lost = true);
            }
            Event::MachineRecovered(_) => (machine.suspect, machine.lost) = (false, false),
            _ => {}
        }
        Ok(())
    }

    fn check_job(&mut self, entry: &Entry<'_>) -> Verdict {
        let id = entry.event.job().ok_or_else(|| Violation("the event names no job".to_owned()))?;
        let job = self.jobs.get_mut(&id).ok_or_else(|| Violation("the job was never submitted".to_owned()))?;
        job.check(entry, &self.machines, &self.rules)?;
        match entry.event {
            Event::Accepted(_) => self.check_slots(id)?,
            Event::Failed(_) => {
                let batch = BatchId::of_task(id).and_then(|(batch, _)| self.batches.get_mut(&batch));
                if let Some(batch) = batch {
                    batch.failed += 1;
                }
            }
            Event::Settled(e) => {
                let account = self.accounts.entry(e.consumer).or_default();
                account.open_holds -= i128::from(self.jobs.get(&id).map_or(0, |j| j.hold.0));
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks that no honest worker has more accepted leases than slots.
    fn check_slots(&self, job: JobId) -> Verdict {
        let live = || self.jobs.values().filter_map(|j| j.live.as_ref()).filter(|l| l.accepted.is_some());
        let Some(machine) = self.jobs.get(&job).and_then(|j| j.live.as_ref()).map(|l| l.machine) else {
            return Ok(());
        };
        let taken = live().filter(|l| l.machine == machine).count();
        let slots = self.machines.get(&machine).map_or(0, |m| m.slots);
        let fits = taken <= slots || !self.honest.contains(&machine);
        ensure(fits, || format!("{taken} accepted leases on {slots} slots"))
    }
}

/// True for a reason that only the platform can know. No machine may report it.
pub(crate) fn is_platform_reason(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ProviderLost
            | Reason::AssignTimeout
            | Reason::NotReported
            | Reason::PrepareTimeout
            | Reason::UploadTimeout
            | Reason::NoMachine
    )
}
