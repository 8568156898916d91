//! An account, and the money that it may spend.
//!
//! The account's own events are guarded. Events of jobs also change the balance, but they only ever raise the available
//! amount: a decision on an older state is never too generous.

use std::collections::HashMap;

use gpubnb_events::{
    AccountId, CommandId, Event, MicroUsd, Seq,
    command::{ClosePayout, Deposit, RequestPayout, SetSuspension},
    event::{AccountReinstated, AccountSuspended, FundsDeposited, PayoutFailed, PayoutPaid, PayoutRequested},
    ledger::{LedgerAccount, Posting},
    message::{EventId, Proposal},
};
use serde::{Deserialize, Serialize};

use super::{Decision, Refusal};

/// Greatest amount of one deposit or payout.
const MAX_AMOUNT: MicroUsd = MicroUsd::dollars(100_000);

/// State of one account.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Account {
    /// Last sequence of the account's own events, which is the guard. Zero: the account is not opened.
    pub last: Seq,
    /// The sequence of `AccountOpened`.
    pub opened: Seq,
    /// The money that the account may spend.
    pub available: MicroUsd,
    /// The money that is held for the account's jobs.
    pub held: MicroUsd,
    /// The reason of the suspension; `None` for an account that is not suspended.
    pub suspended: Option<String>,
    deposits: HashMap<CommandId, (Seq, MicroUsd)>,
    payouts: HashMap<CommandId, Payout>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Payout {
    requested: Seq,
    amount: MicroUsd,
    closed: Option<Seq>,
}

impl Account {
    /// A proposal on this account.
    pub(crate) fn propose(&self, event: impl Into<Event>, id: String, cause: Option<Seq>) -> Decision {
        Decision::Append(Proposal { event: event.into(), id: EventId(id), expected: self.last, cause })
    }

    /// Deposits money.
    pub(crate) fn deposit(&self, account: AccountId, c: &Deposit) -> Result<Decision, Refusal> {
        if let Some((seq, amount)) = self.deposits.get(&c.deposit) {
            return same(*amount == c.amount, *seq, "deposit");
        }
        check_amount(c.amount)?;
        let event = FundsDeposited { account, deposit: c.deposit, amount: c.amount };
        Ok(self.propose(event, format!("{}.deposited", c.deposit), None))
    }

    /// Requests a payout.
    pub(crate) fn request_payout(&self, account: AccountId, c: &RequestPayout) -> Result<Decision, Refusal> {
        if let Some(payout) = self.payouts.get(&c.payout) {
            return same(payout.amount == c.amount, payout.requested, "payout");
        }
        // The money stays the account's own. It can be paid out when the suspension ends.
        if let Some(why) = &self.suspended {
            return Err(Refusal::Suspended(why.clone()));
        }
        check_amount(c.amount)?;
        if c.amount > self.available {
            return Err(Refusal::PayoutTooLarge { asked: c.amount, available: self.available });
        }
        let event = PayoutRequested { account, payout: c.payout, amount: c.amount };
        Ok(self.propose(event, format!("{}.requested", c.payout), None))
    }

    /// Records that a payout was paid, or failed.
    pub(crate) fn close_payout(&self, c: &ClosePayout) -> Result<Decision, Refusal> {
        let payout = self.payouts.get(&c.payout).ok_or(Refusal::UnknownPayout)?;
        if let Some(seq) = payout.closed {
            return Ok(Decision::Already(seq));
        }
        let (account, amount, requested) = (c.account, payout.amount, payout.requested);
        let event: Event = match &c.failed {
            None => PayoutPaid { account, payout: c.payout, amount, requested }.into(),
            Some(reason) => {
                PayoutFailed { account, payout: c.payout, amount, requested, reason: reason.clone() }.into()
            }
        };
        Ok(self.propose(event, format!("{}.closed", c.payout), Some(requested)))
    }

    /// Suspends or reinstates the account.
    pub(crate) fn set_suspension(&self, c: &SetSuspension) -> Decision {
        if self.suspended.is_some() == c.reason.is_some() {
            return Decision::Already(self.last);
        }
        let account = c.account;
        let event: Event = match &c.reason {
            Some(reason) => AccountSuspended { account, reason: reason.clone() }.into(),
            None => AccountReinstated { account }.into(),
        };
        self.propose(event, format!("{account}.suspension.{}", self.last), None)
    }

    /// Folds one of the account's own events.
    pub(crate) fn apply(&mut self, seq: Seq, event: &Event) {
        self.last = seq;
        match event {
            Event::AccountOpened(_) => self.opened = seq,
            Event::FundsDeposited(e) => {
                self.deposits.insert(e.deposit, (seq, e.amount));
            }
            Event::PayoutRequested(e) => {
                self.payouts.insert(e.payout, Payout { requested: seq, amount: e.amount, closed: None });
            }
            Event::PayoutPaid(e) => self.close(e.payout, seq),
            Event::PayoutFailed(e) => self.close(e.payout, seq),
            Event::AccountSuspended(e) => self.suspended = Some(e.reason.clone()),
            Event::AccountReinstated(_) => self.suspended = None,
            _ => {}
        }
    }

    fn close(&mut self, payout: CommandId, seq: Seq) {
        if let Some(payout) = self.payouts.get_mut(&payout) {
            payout.closed = Some(seq);
        }
    }

    /// Folds a posting, of an event of any aggregate.
    pub(crate) fn post(&mut self, posting: &Posting) {
        match posting.account {
            LedgerAccount::Available(_) => self.available += posting.amount,
            LedgerAccount::Held(_) => self.held += posting.amount,
            LedgerAccount::Payable(_) | LedgerAccount::Fees | LedgerAccount::External => {}
        }
    }
}

/// The answer to a command whose id was used before: the earlier answer, if the content is the same.
fn same(same: bool, seq: Seq, field: &'static str) -> Result<Decision, Refusal> {
    if same { Ok(Decision::Already(seq)) } else { Err(Refusal::IdReused(field)) }
}

fn check_amount(amount: MicroUsd) -> Result<(), Refusal> {
    if amount <= MicroUsd::ZERO || amount > MAX_AMOUNT {
        return Err(Refusal::field("amount", format!("The amount must be above $0 and at most {MAX_AMOUNT}.")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, Refusal, testing::*};

    #[test]
    fn a_deposit_said_twice_is_one_deposit() {
        let mut w = given();
        let deposit = Deposit { deposit: CommandId::generate(), amount: MicroUsd::dollars(5) };
        let first = w.when(w.as_operator(), Command::Deposit(w.consumer, deposit)).appended();
        assert_eq!(w.when(w.as_operator(), Command::Deposit(w.consumer, deposit)).already(), first);
        let other = Deposit { amount: MicroUsd::dollars(6), ..deposit };
        let refusal = w.when(w.as_operator(), Command::Deposit(w.consumer, other)).refused();
        assert_eq!(refusal, Refusal::IdReused("deposit"));
    }

    #[test]
    fn a_payout_never_exceeds_what_is_available_and_a_failed_one_comes_back() {
        let mut w = given();
        let before = w.account(w.consumer).available;
        let (account, payout) = (w.consumer, CommandId::generate());
        let ask = |amount| Command::RequestPayout(account, RequestPayout { payout, amount });
        let too_much = w.when(w.as_consumer(), ask(before + MicroUsd(1))).refused();
        assert_eq!(too_much, Refusal::PayoutTooLarge { asked: before + MicroUsd(1), available: before });
        w.when(w.as_consumer(), ask(before)).appended();
        assert_eq!(w.account(account).available, MicroUsd::ZERO);
        let failed = ClosePayout { account, payout, failed: Some("account closed".to_owned()) };
        let seq = w.when(w.as_operator(), Command::ClosePayout(failed.clone())).appended();
        assert_eq!(w.account(account).available, before);
        assert_eq!(w.when(w.as_operator(), Command::ClosePayout(failed)).already(), seq);
    }

    #[test]
    fn a_lack_of_money_is_told_of_the_field_that_is_at_fault() {
        let mut w = given();
        let available = w.account(w.consumer).available;
        let amount = available + MicroUsd(1);
        let payout = RequestPayout { payout: CommandId::generate(), amount };
        let payout = w.when(w.as_consumer(), Command::RequestPayout(w.consumer, payout)).refused();
        let mut submission = w.a_submission();
        submission.budget = Some(amount);
        let submission = w.when(w.as_consumer(), Command::Submit(w.consumer, submission)).refused();

        let [payout, submission] = [payout, submission].map(gpubnb_events::Refusal::from);
        assert_eq!((payout.name.as_str(), payout.field.as_deref()), ("PayoutTooLarge", Some("amount")));
        assert!(!payout.message.contains("budget"), "{}", payout.message);
        assert_eq!((submission.name.as_str(), submission.field.as_deref()), ("InsufficientFunds", Some("budget")));
        assert!(submission.message.contains("lower the budget"), "{}", submission.message);
        assert_eq!([payout.kind, submission.kind], [gpubnb_events::RefusalKind::Funds; 2]);
    }

    #[test]
    fn nobody_gives_themselves_money_unless_it_is_play_money() {
        let mut w = given();
        w.settings.test_funds = false;
        let deposit = Deposit { deposit: CommandId::generate(), amount: MicroUsd::dollars(5) };
        let refusal = w.when(w.as_consumer(), Command::Deposit(w.consumer, deposit)).refused();
        assert!(matches!(refusal, Refusal::NotAllowed(_)));
    }
}
