//! The independent judge: a small fold of its own over the log, which is asked at every sequence. The judge shares
//! event types and `ledger::postings` with the market, and no decision. Here are money, accounts and machines; jobs are
//! in `facts`.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry as Slot};

use gpubnb_events::{
    AccountId, Actor, Aggregate, CommandId, Event, HourlyRate, JobId, MachineId, Millis, Recorded, Seq, Timestamp,
    event::{MachineListed, Reason},
    ledger::{self, LedgerAccount},
    message::Envelope,
};

use super::{
    facts::{JobFacts, LeaseFacts},
    tally::Tally,
};

/// A promise was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation(pub(crate) String);

/// `Ok` as long as every promise holds.
pub(crate) type Held<T = ()> = Result<T, Violation>;

/// Turns a promise that does not hold into a violation.
pub(crate) fn holds(promise: bool, broken: impl FnOnce() -> String) -> Held {
    if promise { Ok(()) } else { Err(Violation(broken())) }
}

/// The judge's knowledge of an account.
#[derive(Default)]
struct AccountFacts {
    suspended: bool,
    deposits: BTreeSet<CommandId>,
    payouts: BTreeMap<CommandId, PayoutFacts>,
    jobs: BTreeSet<JobId>,
    /// Holds of submissions whose job is not settled.
    open_holds: i128,
}

struct PayoutFacts {
    requested: Seq,
    amount: i64,
    closed: bool,
}

/// The judge's knowledge of a machine.
pub(crate) struct MachineFacts {
    pub(crate) owner: AccountId,
    /// Every price that the machine ever had: a replica may assign a job on an old state.
    pub(crate) prices: BTreeSet<HourlyRate>,
    pub(crate) slots: usize,
    pub(crate) lost: bool,
    suspect: bool,
    delisted: bool,
}

/// The settings of the market that the judge must know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// The platform's share, in ten-thousandths.
    pub(crate) fee: u32,
    /// True if accounts may deposit play money by themselves.
    pub(crate) test_funds: bool,
    /// How long a machine has to accept.
    pub(crate) accept_within: Millis,
    /// How long after a limit the platform waits for the worker.
    pub(crate) grace: Millis,
    /// How far the clocks of replicas and broker may be apart.
    pub(crate) skew: Millis,
}

/// The judge.
pub(crate) struct Checker {
    pub(crate) rules: Rules,
    /// Machines with an honest worker, which counts its slots.
    pub(crate) honest: BTreeSet<MachineId>,
    pub(crate) jobs: BTreeMap<JobId, JobFacts>,
    pub(crate) machines: BTreeMap<MachineId, MachineFacts>,
    pub(crate) ledger: BTreeMap<LedgerAccount, i128>,
    accounts: BTreeMap<AccountId, AccountFacts>,
    /// Holds of second submissions with one id: two accounts submitted it at once, and the later one got no job.
    pub(crate) stranded: BTreeMap<AccountId, i128>,
    /// How often each event was seen.
    pub(crate) seen: Tally,
}

/// An event with its message.
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
            machines: BTreeMap::new(),
            ledger: BTreeMap::new(),
            accounts: BTreeMap::new(),
            stranded: BTreeMap::new(),
            seen: Tally::default(),
        }
    }

    /// Judges the next message.
    pub(crate) fn observe(&mut self, recorded: &Recorded) -> Held {
        let Ok((envelope, event)) = &recorded.entry else { return Ok(()) };
        self.seen.count(event.name());
        let entry = Entry { seq: recorded.seq, at: recorded.at, envelope, event };
        self.judge(&entry).map_err(|Violation(v)| Violation(format!("{} at {}: {v}", event.name(), recorded.seq)))
    }

    fn judge(&mut self, entry: &Entry<'_>) -> Held {
        match entry.event {
            Event::AccountOpened(e) => {
                holds(entry.envelope.actor == Actor::Account(e.account), || "opened by another".to_owned())?;
                let before = self.accounts.insert(e.account, AccountFacts::default());
                holds(before.is_none(), || "opened twice".to_owned())?;
            }
            Event::FundsDeposited(_)
            | Event::PayoutRequested(_)
            | Event::PayoutPaid(_)
            | Event::PayoutFailed(_)
            | Event::AccountSuspended(_)
            | Event::AccountReinstated(_) => self.account(entry)?,
            Event::JobSubmitted(_) => self.submitted(entry)?,
            Event::MachineListed(e) => self.listed(entry, e)?,
            Event::MachineRepriced(_)
            | Event::MachinePaused(_)
            | Event::MachineResumed(_)
            | Event::MachineDrainStarted(_)
            | Event::MachineDelisted(_)
            | Event::MachineTested(_)
            | Event::MachineSuspected(_)
            | Event::MachineLost(_)
            | Event::MachineRecovered(_) => self.machine(entry)?,
            _ => self.job(entry)?,
        }
        self.money(entry.event)
    }

    /// Checks that the ledger balances and that no account is below zero.
    fn money(&mut self, event: &Event) -> Held {
        let postings = ledger::postings(event);
        if postings.is_empty() {
            return Ok(());
        }
        let sum: i128 = postings.iter().map(|p| i128::from(p.amount.0)).sum();
        holds(sum == 0, || format!("its postings sum to {sum}"))?;
        for posting in &postings {
            *self.ledger.entry(posting.account).or_default() += i128::from(posting.amount.0);
        }
        for (account, balance) in &self.ledger {
            let may_owe = *account == LedgerAccount::External;
            holds(may_owe || *balance >= 0, || format!("{account} is {balance}"))?;
        }
        let total: i128 = self.ledger.values().sum();
        holds(total == 0, || format!("the ledger sums to {total}"))?;
        for (id, account) in &self.accounts {
            let held = self.balance(LedgerAccount::Held(*id));
            let open = account.open_holds;
            holds(held == open, || format!("held:{id} is {held}, and its open jobs hold {open}"))?;
        }
        Ok(())
    }

    /// The balance of a ledger account.
    pub(crate) fn balance(&self, account: LedgerAccount) -> i128 {
        self.ledger.get(&account).copied().unwrap_or_default()
    }

    /// All accounts that were opened.
    pub(crate) fn accounts(&self) -> impl Iterator<Item = AccountId> + '_ {
        self.accounts.keys().copied()
    }

    fn account(&mut self, entry: &Entry<'_>) -> Held {
        let actor = entry.envelope.actor;
        let Aggregate::Account(id) = entry.event.aggregate() else { return Ok(()) };
        let account = self.accounts.get_mut(&id).ok_or_else(|| Violation("the account is not open".to_owned()))?;
        let own = actor == Actor::Account(id);
        let allowed = match entry.event {
            Event::PayoutRequested(_) => own,
            Event::FundsDeposited(_) => matches!(actor, Actor::Operator(_)) || (own && self.rules.test_funds),
            _ => matches!(actor, Actor::Operator(_)),
        };
        holds(allowed, || format!("{actor} had no right to"))?;
        let mut close = |payout: &CommandId, amount: i64, requested: Seq| {
            let known = account.payouts.get_mut(payout).ok_or_else(|| Violation("never asked for".to_owned()))?;
            holds(!known.closed, || "closed twice".to_owned())?;
            known.closed = true;
            holds((known.amount, known.requested) == (amount, requested), || "not what was asked for".to_owned())
        };
        match entry.event {
            Event::PayoutPaid(e) => close(&e.payout, e.amount.0, e.requested),
            Event::PayoutFailed(e) => close(&e.payout, e.amount.0, e.requested),
            Event::FundsDeposited(e) => holds(account.deposits.insert(e.deposit), || "deposited twice".to_owned()),
            Event::PayoutRequested(e) => {
                holds(!account.suspended, || "the account is suspended".to_owned())?;
                let facts = PayoutFacts { requested: entry.seq, amount: e.amount.0, closed: false };
                holds(account.payouts.insert(e.payout, facts).is_none(), || "asked for twice".to_owned())
            }
            Event::AccountSuspended(_) | Event::AccountReinstated(_) => {
                let suspended = matches!(entry.event, Event::AccountSuspended(_));
                holds(account.suspended != suspended, || "it was so already".to_owned())?;
                account.suspended = suspended;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn submitted(&mut self, entry: &Entry<'_>) -> Held {
        let Event::JobSubmitted(e) = entry.event else { return Ok(()) };
        holds(entry.envelope.actor == Actor::Account(e.account), || "submitted by another".to_owned())?;
        let account =
            self.accounts.get_mut(&e.account).ok_or_else(|| Violation("the account is not open".to_owned()))?;
        holds(!account.suspended, || "the account is suspended".to_owned())?;
        holds(account.jobs.insert(e.job), || "submitted twice by one account".to_owned())?;
        holds(e.hold.0 >= 0 && e.limits.budget == e.hold, || "the hold is not the budget".to_owned())?;
        account.open_holds += i128::from(e.hold.0);
        match self.jobs.entry(e.job) {
            Slot::Vacant(slot) => _ = slot.insert(JobFacts::new(entry.seq, entry.at, e)),
            Slot::Occupied(_) => *self.stranded.entry(e.account).or_default() += i128::from(e.hold.0),
        }
        Ok(())
    }

    fn listed(&mut self, entry: &Entry<'_>, e: &MachineListed) -> Held {
        holds(entry.envelope.actor == Actor::Machine(e.machine), || "listed by another".to_owned())?;
        holds(self.accounts.contains_key(&e.owner), || "the owner has no account".to_owned())?;
        let slots = e.offer.slots as usize;
        let known = self.machines.entry(e.machine).or_insert_with(|| MachineFacts {
            owner: e.owner,
            prices: BTreeSet::new(),
            slots,
            lost: false,
            suspect: false,
            delisted: false,
        });
        holds(known.owner == e.owner, || "it was taken over".to_owned())?;
        known.prices.insert(e.offer.price);
        (known.slots, known.lost, known.suspect, known.delisted) = (slots, false, false, false);
        Ok(())
    }

    fn machine(&mut self, entry: &Entry<'_>) -> Held {
        let Aggregate::Machine(id) = entry.event.aggregate() else { return Ok(()) };
        let machine = self.machines.get_mut(&id).ok_or_else(|| Violation("it was never listed".to_owned()))?;
        let actor = entry.envelope.actor;
        let watched =
            matches!(entry.event, Event::MachineSuspected(_) | Event::MachineLost(_) | Event::MachineRecovered(_));
        let owned = [Actor::Machine(id), Actor::Account(machine.owner), Actor::Operator(None)].contains(&actor);
        holds(if watched { actor == Actor::Platform } else { owned }, || format!("{actor} had no right to"))?;
        let absent = machine.suspect || machine.lost;
        match entry.event {
            Event::MachineSuspected(_) => holds(!absent, || "it was so already".to_owned())?,
            Event::MachineLost(_) => holds(!machine.lost, || "it was so already".to_owned())?,
            Event::MachineRecovered(_) => holds(absent, || "it was there".to_owned())?,
            Event::MachineTested(_) => {}
            _ => holds(!machine.delisted, || "it had left the market".to_owned())?,
        }
        match entry.event {
            Event::MachineRepriced(e) => _ = machine.prices.insert(e.price),
            Event::MachineDelisted(_) => machine.delisted = true,
            Event::MachineSuspected(_) => machine.suspect = true,
            Event::MachineLost(_) => {
                machine.lost = true;
                let here = |live: &&mut LeaseFacts| live.machine == id;
                self.jobs.values_mut().filter_map(|j| j.live.as_mut()).filter(here).for_each(|l| l.lost = true);
            }
            Event::MachineRecovered(_) => (machine.suspect, machine.lost) = (false, false),
            _ => {}
        }
        Ok(())
    }

    fn job(&mut self, entry: &Entry<'_>) -> Held {
        let id = entry.event.job().ok_or_else(|| Violation("no job in it".to_owned()))?;
        let job = self.jobs.get_mut(&id).ok_or_else(|| Violation("the job was never submitted".to_owned()))?;
        job.judge(entry, &self.machines, &self.rules)?;
        match entry.event {
            Event::Accepted(_) => self.slots(id)?,
            Event::Settled(e) => {
                let account = self.accounts.entry(e.consumer).or_default();
                account.open_holds -= i128::from(self.jobs.get(&id).map_or(0, |j| j.hold.0));
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks that no honest worker has more accepted leases than slots.
    fn slots(&self, job: JobId) -> Held {
        let live = || self.jobs.values().filter_map(|j| j.live.as_ref()).filter(|l| l.accepted.is_some());
        let Some(machine) = self.jobs.get(&job).and_then(|j| j.live.as_ref()).map(|l| l.machine) else {
            return Ok(());
        };
        let taken = live().filter(|l| l.machine == machine).count();
        let slots = self.machines.get(&machine).map_or(0, |m| m.slots);
        let fits = taken <= slots || !self.honest.contains(&machine);
        holds(fits, || format!("{taken} accepted leases on {slots} slots"))
    }
}

/// The reasons that only the platform can find out, and that no machine may give.
pub(crate) fn platforms_own(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ProviderLost
            | Reason::AssignTimeout
            | Reason::NotReported
            | Reason::PrepareTimeout
            | Reason::UploadTimeout
            | Reason::NoMachine
            | Reason::Internal
    )
}
