//! An account, and the money that it may spend.
//!
//! The guard of an account counts only the account's own events, such as a deposit. Settlements of jobs change the
//! balance, too, without changing the guard. This is safe because a settlement only raises the available amount: a
//! replica that has not seen it yet may refuse a command, but never allows too much.

use std::collections::HashMap;

use gpubnb_events::{
    AccountId, CommandId, Event, MicroUsd, Seq,
    command::{CloseAccount, ClosePayout, Deposit, RequestPayout, SetSuspension},
    event::{
        AccountClosed, AccountReinstated, AccountSuspended, FundsDeposited, PayoutFailed, PayoutPaid, PayoutRequested,
    },
    ledger::{LedgerAccount, Posting},
    message::{EventId, Proposal},
};
use serde::{Deserialize, Serialize};

use super::{Decision, DomainError, daily_bytes::DailyBytes, rules::check_text};

/// Greatest amount of one deposit or one payout.
const MAX_AMOUNT: MicroUsd = MicroUsd::dollars(100_000);
/// Longest reason for a suspension or a failed payout, characters.
const MAX_REASON: usize = 500;

/// The state of one account.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Account {
    /// The sequence of the account's last event, which is the guard of the next event. Zero if the account is not open.
    pub last: Seq,
    /// The sequence of `AccountOpened`.
    pub opened: Seq,
    /// The money that the account may spend.
    pub available: MicroUsd,
    /// The money that is held for the account's jobs.
    pub held: MicroUsd,
    /// The number of the account's jobs that are not settled.
    #[serde(default)]
    pub open_jobs: u32,
    /// The number of the account's batches that are not over.
    #[serde(default)]
    pub(crate) open_batches: u32,
    /// The bytes of the submissions of these batches.
    #[serde(default)]
    pub(crate) open_batch_bytes: u64,
    /// The account's jobs that machines have.
    #[serde(default)]
    pub(crate) running: Running,
    /// The bytes of today's deposits, and of today's submissions that nobody has paid for (`daily_bytes.rs`).
    #[serde(default)]
    pub(crate) daily_bytes: DailyBytes,
    /// The reason of the suspension; `None` for an account that is not suspended.
    pub suspended: Option<String>,
    /// The sequence of `AccountClosed`; `None` for an account that is not closed.
    #[serde(default)]
    closed: Option<Seq>,
    /// The sequence and the amount of each deposit.
    deposits: HashMap<CommandId, (Seq, MicroUsd)>,
    payouts: HashMap<CommandId, Payout>,
}

/// A payout that the account requested.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Payout {
    /// The sequence of `PayoutRequested`.
    requested: Seq,
    amount: MicroUsd,
    /// The sequence of `PayoutPaid` or `PayoutFailed`; `None` before.
    closed: Option<Seq>,
    /// True if the payout was closed as failed.
    has_failed: bool,
}

/// Jobs that machines have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) jobs: u32,
    /// The cost of one hour of the jobs.
    pub(crate) hourly_price: MicroUsd,
}

impl Running {
    /// Counts a change of one job. `None` means that no machine has the job.
    pub(crate) fn change(&mut self, before: Option<MicroUsd>, after: Option<MicroUsd>) {
        self.jobs = (self.jobs + u32::from(after.is_some())).saturating_sub(u32::from(before.is_some()));
        self.hourly_price = self.hourly_price + after.unwrap_or_default() - before.unwrap_or_default();
    }
}

impl Account {
    /// Proposes an event of this account. `cause` is the sequence of the event that led to it.
    pub(crate) fn propose(&self, event: impl Into<Event>, id: String, cause: Option<Seq>) -> Decision {
        Decision::Append(Proposal { event: event.into(), id: EventId(id), expected: self.last, cause })
    }

    /// Deposits money.
    pub(crate) fn deposit(&self, account: AccountId, c: &Deposit) -> Result<Decision, DomainError> {
        if let Some((seq, amount)) = self.deposits.get(&c.deposit) {
            return answer_repeated(*amount == c.amount, *seq, "deposit");
        }
        self.check_not_closed()?;
        check_amount(c.amount)?;
        let event = FundsDeposited { account, deposit: c.deposit, amount: c.amount };
        Ok(self.propose(event, format!("{account}.{}.deposited", c.deposit), None))
    }

    /// Requests a payout.
    pub(crate) fn request_payout(&self, account: AccountId, c: &RequestPayout) -> Result<Decision, DomainError> {
        if let Some(payout) = self.payouts.get(&c.payout) {
            return answer_repeated(payout.amount == c.amount, payout.requested, "payout");
        }
        // The account keeps its money, which can be paid out after the suspension.
        if let Some(why) = &self.suspended {
            return Err(DomainError::Suspended(why.clone()));
        }
        check_amount(c.amount)?;
        if c.amount > self.available {
            return Err(DomainError::PayoutTooLarge { asked: c.amount, available: self.available });
        }
        let event = PayoutRequested { account, payout: c.payout, amount: c.amount };
        Ok(self.propose(event, format!("{account}.{}.requested", c.payout), None))
    }

    /// Records that a payout was paid, or failed.
    pub(crate) fn close_payout(&self, c: &ClosePayout) -> Result<Decision, DomainError> {
        let payout = self.payouts.get(&c.payout).ok_or(DomainError::UnknownPayout)?;
        if let Some(seq) = payout.closed {
            return answer_repeated(payout.has_failed == c.failed.is_some(), seq, "payout");
        }
        if let Some(reason) = &c.failed {
            check_text("reason", reason, MAX_REASON)?;
        }
        let (account, amount, requested) = (c.account, payout.amount, payout.requested);
        let event: Event = match &c.failed {
            None => PayoutPaid { account, payout: c.payout, amount, requested }.into(),
            Some(reason) => {
                PayoutFailed { account, payout: c.payout, amount, requested, reason: reason.clone() }.into()
            }
        };
        Ok(self.propose(event, format!("{account}.{}.closed", c.payout), Some(requested)))
    }

    /// Suspends or reinstates the account.
    pub(crate) fn set_suspension(&self, c: &SetSuspension) -> Result<Decision, DomainError> {
        self.check_not_closed()?;
        if self.suspended.is_some() == c.reason.is_some() {
            return Ok(Decision::AlreadyDone(self.last));
        }
        if let Some(reason) = &c.reason {
            check_text("reason", reason, MAX_REASON)?;
        }
        let account = c.account;
        let event: Event = match &c.reason {
            Some(reason) => AccountSuspended { account, reason: reason.clone() }.into(),
            None => AccountReinstated { account }.into(),
        };
        Ok(self.propose(event, format!("{account}.suspension.{}", self.last), None))
    }

    /// False for a closed account.
    pub fn is_open(&self) -> bool {
        self.closed.is_none()
    }

    pub(crate) fn check_not_closed(&self) -> Result<(), DomainError> {
        if self.closed.is_some() { Err(DomainError::AccountClosed) } else { Ok(()) }
    }

    /// Closes the account for ever. `has_machines` is true if the account has a machine on the market.
    pub(crate) fn close(
        &self,
        account: AccountId,
        c: CloseAccount,
        has_machines: bool,
    ) -> Result<Decision, DomainError> {
        if let Some(seq) = self.closed {
            return Ok(Decision::AlreadyDone(seq));
        }
        // Otherwise a suspension would end by a new account.
        if let Some(why) = &self.suspended {
            return Err(DomainError::Suspended(why.clone()));
        }
        if self.open_jobs > 0 || self.open_batches > 0 || self.held > MicroUsd::ZERO {
            return Err(DomainError::CannotClose(
                "Some of your jobs are not settled. Cancel them or wait for their end.",
            ));
        }
        if has_machines {
            return Err(DomainError::CannotClose("You have a machine on the market. Remove it first."));
        }
        if self.payouts.values().any(|payout| payout.closed.is_none()) {
            return Err(DomainError::CannotClose("A payout is on its way. Close the account when it has arrived."));
        }
        if c.given_up != self.available {
            return Err(DomainError::NotGivenUp { available: self.available });
        }
        let event = AccountClosed { account, given_up: c.given_up };
        Ok(self.propose(event, format!("{account}.closed"), None))
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
                self.payouts
                    .insert(e.payout, Payout { requested: seq, amount: e.amount, closed: None, has_failed: false });
            }
            Event::PayoutPaid(e) => self.mark_closed(e.payout, seq, false),
            Event::PayoutFailed(e) => self.mark_closed(e.payout, seq, true),
            Event::AccountSuspended(e) => self.suspended = Some(e.reason.clone()),
            Event::AccountReinstated(_) => self.suspended = None,
            // What a suspended account may not do, a closed one may not do either.
            Event::AccountClosed(_) => {
                (self.closed, self.suspended) = (Some(seq), Some("Its owner closed it.".to_owned()));
            }
            _ => {}
        }
    }

    fn mark_closed(&mut self, payout: CommandId, seq: Seq, has_failed: bool) {
        if let Some(payout) = self.payouts.get_mut(&payout) {
            payout.closed = Some(seq);
            payout.has_failed = has_failed;
        }
    }

    /// Folds a posting to this account. The posting's event may belong to any aggregate.
    pub(crate) fn apply_posting(&mut self, posting: &Posting) {
        match posting.account {
            LedgerAccount::Available(_) => self.available += posting.amount,
            LedgerAccount::Held(_) => self.held += posting.amount,
            LedgerAccount::Payable(_) | LedgerAccount::Fees | LedgerAccount::External => {}
        }
    }
}

/// The answer to a command whose id was used before: the sequence of the first command's event, if both commands have
/// the same content.
fn answer_repeated(is_same: bool, seq: Seq, field: &'static str) -> Result<Decision, DomainError> {
    if is_same { Ok(Decision::AlreadyDone(seq)) } else { Err(DomainError::IdReused(field)) }
}

fn check_amount(amount: MicroUsd) -> Result<(), DomainError> {
    if amount <= MicroUsd::ZERO || amount > MAX_AMOUNT {
        return Err(DomainError::field("amount", format!("The amount must be above $0 and at most {MAX_AMOUNT}.")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use gpubnb_events::Actor;

    use super::*;
    use crate::{Command, DomainError, testing::*};

    #[test]
    fn a_repeated_deposit_is_made_once() {
        let mut market = given();
        let deposit = Deposit { deposit: CommandId::generate(), amount: MicroUsd::dollars(5) };
        let first = market.when(market.as_operator(), Command::Deposit(market.consumer, deposit)).expect_appended();
        assert_eq!(
            market.when(market.as_operator(), Command::Deposit(market.consumer, deposit)).expect_already_done(),
            first
        );
        let other = Deposit { amount: MicroUsd::dollars(6), ..deposit };
        let refusal = market.when(market.as_operator(), Command::Deposit(market.consumer, other)).expect_refused();
        assert_eq!(refusal, DomainError::IdReused("deposit"));
    }

    #[test]
    fn an_account_is_closed_once_it_owes_nothing_and_can_do_nothing_afterwards() {
        let mut market = given();
        let (account, payout) = (market.consumer, CommandId::generate());
        let close = |given_up| Command::CloseAccount(account, CloseAccount { given_up });
        let before = market.account(account).available;
        assert!(matches!(
            market.when(market.as_operator(), close(before)).expect_refused(),
            DomainError::NotAllowed(_)
        ));
        let refused = market.when(market.as_consumer(), close(MicroUsd::ZERO)).expect_refused();
        assert_eq!(refused, DomainError::NotGivenUp { available: before });
        let asked = RequestPayout { payout, amount: MicroUsd(1) };
        market.when(market.as_consumer(), Command::RequestPayout(account, asked)).expect_appended();
        let rest = before - MicroUsd(1);
        let refused = market.when(market.as_consumer(), close(rest)).expect_refused();
        assert!(matches!(refused, DomainError::CannotClose(_)), "a payout is open: {refused:?}");
        let paid = ClosePayout { account, payout, failed: None };
        market.when(market.as_operator(), Command::ClosePayout(paid)).expect_appended();
        let seq = market.when(market.as_consumer(), close(rest)).expect_appended();
        assert_eq!(market.when(market.as_consumer(), close(rest)).expect_already_done(), seq);
        assert_eq!(market.account(account).available, MicroUsd::ZERO);
        let deposit = Deposit { deposit: CommandId::generate(), amount: MicroUsd::dollars(5) };
        let refused = market.when(market.as_operator(), Command::Deposit(account, deposit)).expect_refused();
        assert_eq!(refused, DomainError::AccountClosed);
        let reinstate = Command::SetSuspension(SetSuspension { account, reason: None });
        assert_eq!(market.when(market.as_operator(), reinstate).expect_refused(), DomainError::AccountClosed);
        let asked = RequestPayout { payout: CommandId::generate(), amount: MicroUsd(1) };
        let refused = market.when(market.as_consumer(), Command::RequestPayout(account, asked)).expect_refused();
        assert!(matches!(refused, DomainError::Suspended(_)));
        let machine = gpubnb_events::MachineId::generate();
        let list = Command::ListMachine(machine, market.listing(account, market.offer()));
        assert_eq!(market.when(Actor::Machine(machine), list).expect_refused(), DomainError::AccountClosed);
    }

    #[test]
    fn an_account_with_a_machine_or_a_job_is_not_closed() {
        let mut market = given();
        let provider = market.provider;
        let close = Command::CloseAccount(provider, CloseAccount { given_up: MicroUsd::ZERO });
        let refused = market.when(Actor::Account(provider), close).expect_refused();
        assert!(matches!(refused, DomainError::CannotClose(why) if why.contains("machine")), "{refused:?}");
        market.submit_default();
        let given_up = market.account(market.consumer).available;
        let close = Command::CloseAccount(market.consumer, CloseAccount { given_up });
        let refused = market.when(market.as_consumer(), close).expect_refused();
        assert!(matches!(refused, DomainError::CannotClose(why) if why.contains("jobs")), "{refused:?}");
    }

    #[test]
    fn a_payout_is_limited_by_the_available_money_and_a_failed_payout_is_credited() {
        let mut market = given();
        let before = market.account(market.consumer).available;
        let (account, payout) = (market.consumer, CommandId::generate());
        let payout_of = |amount| Command::RequestPayout(account, RequestPayout { payout, amount });
        let too_much = market.when(market.as_consumer(), payout_of(before + MicroUsd(1))).expect_refused();
        assert_eq!(too_much, DomainError::PayoutTooLarge { asked: before + MicroUsd(1), available: before });
        market.when(market.as_consumer(), payout_of(before)).expect_appended();
        assert_eq!(market.account(account).available, MicroUsd::ZERO);
        let failed = ClosePayout { account, payout, failed: Some("account closed".to_owned()) };
        let seq = market.when(market.as_operator(), Command::ClosePayout(failed.clone())).expect_appended();
        assert_eq!(market.account(account).available, before);
        assert_eq!(market.when(market.as_operator(), Command::ClosePayout(failed.clone())).expect_already_done(), seq);
        // A payout that was closed as failed cannot be closed as paid.
        let paid = ClosePayout { failed: None, ..failed };
        let refused = market.when(market.as_operator(), Command::ClosePayout(paid)).expect_refused();
        assert_eq!(refused, DomainError::IdReused("payout"));
    }

    #[test]
    fn one_id_on_two_accounts_is_two_deposits_and_two_messages() {
        let mut market = given();
        let deposit = Deposit { deposit: CommandId::generate(), amount: MicroUsd::dollars(5) };
        let message_id = |market: &TestMarket, account| match market.account(account).deposit(account, &deposit) {
            Ok(Decision::Append(proposal)) => proposal.id,
            other => panic!("{other:?}"),
        };
        assert_ne!(message_id(&market, market.consumer), message_id(&market, market.provider));
        for account in [market.consumer, market.provider] {
            market.when(market.as_operator(), Command::Deposit(account, deposit)).expect_appended();
        }
    }

    #[test]
    fn an_error_for_lack_of_money_names_the_field_of_the_amount() {
        let mut market = given();
        let available = market.account(market.consumer).available;
        let amount = available + MicroUsd(1);
        let payout = RequestPayout { payout: CommandId::generate(), amount };
        let payout =
            market.when(market.as_consumer(), Command::RequestPayout(market.consumer, payout)).expect_refused();
        let mut submission = market.new_submission();
        submission.budget = Some(amount);
        let submission =
            market.when(market.as_consumer(), Command::Submit(market.consumer, submission)).expect_refused();

        let [payout, submission] = [payout, submission].map(gpubnb_events::Refusal::from);
        assert_eq!((payout.name.as_str(), payout.field.as_deref()), ("PayoutTooLarge", Some("amount")));
        assert!(!payout.message.contains("budget"), "{}", payout.message);
        assert_eq!((submission.name.as_str(), submission.field.as_deref()), ("InsufficientFunds", Some("budget")));
        assert!(submission.message.contains("lower the budget"), "{}", submission.message);
        assert_eq!([payout.kind, submission.kind], [gpubnb_events::RefusalKind::Funds; 2]);
    }

    #[test]
    fn accounts_cannot_deposit_for_themselves_without_test_funds() {
        let mut market = given();
        market.settings.test_funds = false;
        let deposit = Deposit { deposit: CommandId::generate(), amount: MicroUsd::dollars(5) };
        let refusal = market.when(market.as_consumer(), Command::Deposit(market.consumer, deposit)).expect_refused();
        assert!(matches!(refusal, DomainError::NotAllowed(_)));
    }
}
