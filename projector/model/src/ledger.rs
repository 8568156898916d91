//! The model of the ledger: balances, statements, sums by day, and receipts. A *posting* is a change of one ledger
//! account by one event; this model sums the postings of all events.

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, BatchId, Event, JobId, Lease, MicroUsd, Millis, Recorded, Seq,
    event::Settled,
    ledger::{LedgerAccount, Posting, postings},
    spec::Terms,
};
use gpubnb_query::view::Day;
use gpubnb_store::{StoreError, WriteBatch};
use serde::{Deserialize, Serialize};

use super::rows::{BalanceRow, DayRow, ReceiptRow, StatementRow};
use super::{Projection, account_key, job_key, key};

/// Rows: `b<account>` → balance; `s<account><sequence>` → statement line; `r<job>` → receipt; `t<job>` → price terms of
/// the current lease; `d<account><day>` → the sums of a day's settlements; `p` → the platform's totals.
pub struct Ledger;

/// The totals that belong to no account.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformTotals {
    /// The platform's fees.
    pub fees: MicroUsd,
    /// The balance of the outside world: minus the sum of all other ledger accounts.
    pub external: MicroUsd,
}

/// The price terms of an assignment. A later change of the machine's price does not change them.
#[derive(Clone, Serialize, Deserialize)]
struct LockedTerms {
    lease: Lease,
    terms: Terms,
}

/// The key prefix of all balances.
pub const BALANCES_PREFIX: &[u8] = b"b";

/// The key of an account's balance.
pub fn balance_key(account: AccountId) -> Vec<u8> {
    account_key(b'b', account)
}

/// The key prefix of an account's statement.
pub fn statement_prefix(account: AccountId) -> Vec<u8> {
    account_key(b's', account)
}

/// The key of a statement line.
pub fn statement_key(account: AccountId, seq: Seq) -> Vec<u8> {
    key(b's', &[account.as_bytes(), &seq.0.to_be_bytes()])
}

/// The key prefix of an account's sums by day.
pub fn days_prefix(account: AccountId) -> Vec<u8> {
    account_key(b'd', account)
}

/// The key of a receipt.
pub fn receipt_key(job: JobId) -> Vec<u8> {
    job_key(b'r', job)
}

/// The key of the platform's totals.
pub const TOTALS_KEY: &[u8] = b"p";

impl Projection for Ledger {
    fn name(&self) -> &'static str {
        "ledger"
    }

    fn version(&self) -> u32 {
        6
    }

    fn apply(&self, rows: &mut WriteBatch<'_>, recorded: &Recorded, event: &Event) -> Result<(), StoreError> {
        match event {
            Event::JobAssigned(e) => {
                let locked = LockedTerms { lease: Lease(recorded.seq), terms: e.terms.clone() };
                rows.put(&job_key(b't', e.job), locked);
            }
            Event::Settled(e) => {
                let key_of_terms = job_key(b't', e.job);
                let locked: Option<LockedTerms> = rows.get(&key_of_terms)?;
                rows.remove(&key_of_terms);
                // The receipt has no terms if no attempt is billed, or if the bill is for an earlier lease.
                let terms = locked.filter(|l| Some(l.lease) == e.lease).map(|l| l.terms);
                let receipt = ReceiptRow { seq: recorded.seq, at: recorded.at, terms, settled: e.clone() };
                rows.put(&receipt_key(e.job), receipt);
                add_to_days(rows, recorded, e)?;
            }
            Event::AccountSuspended(e) => set_suspended(rows, e.account, true)?,
            Event::AccountReinstated(e) => set_suspended(rows, e.account, false)?,
            Event::AccountClosed(e) => set_suspended(rows, e.account, true)?,
            _ => {}
        }
        post(rows, recorded, event, &postings(event))
    }
}

fn set_suspended(rows: &mut WriteBatch<'_>, account: AccountId, suspended: bool) -> Result<(), StoreError> {
    rows.upsert::<BalanceRow>(&balance_key(account), |balance| balance.suspended = suspended)
}

/// Adds a settlement to the day's sums of the consumer and of the provider.
fn add_to_days(rows: &mut WriteBatch<'_>, recorded: &Recorded, e: &Settled) -> Result<(), StoreError> {
    let day = Day::number(recorded.at);
    let metered = e.metering.as_ref().map_or(0, |m| m.billed.0);
    let mut add = |account, spent, earned| {
        rows.upsert::<DayRow>(&[days_prefix(account), day.to_be_bytes().to_vec()].concat(), |sum| {
            sum.day = day;
            sum.spent += spent;
            sum.earned += earned;
            sum.metered = Millis(sum.metered.0.saturating_add(metered));
            sum.jobs += 1;
        })
    };
    if e.provider == Some(e.consumer) {
        return add(e.consumer, e.cost, e.earned);
    }
    add(e.consumer, e.cost, MicroUsd::ZERO)?;
    e.provider.map_or(Ok(()), |provider| add(provider, MicroUsd::ZERO, e.earned))
}

/// The changes of one account's balance by one event.
#[derive(Default)]
struct BalanceChange {
    available: MicroUsd,
    held: MicroUsd,
    payable: MicroUsd,
}

/// The batch that an event with postings is about; `None` for the settlement of a task, which names its job.
fn batch_of(event: &Event) -> Option<BatchId> {
    match event {
        Event::BatchSubmitted(e) => Some(e.batch),
        Event::BatchClosed(e) => Some(e.batch),
        _ => None,
    }
}

/// Applies an event's postings to balances, statements and totals.
fn post(rows: &mut WriteBatch<'_>, recorded: &Recorded, event: &Event, postings: &[Posting]) -> Result<(), StoreError> {
    if postings.is_empty() {
        return Ok(());
    }
    let mut changes: BTreeMap<AccountId, BalanceChange> = BTreeMap::new();
    let mut totals = PlatformTotals::default();
    for Posting { account, amount } in postings {
        match account {
            LedgerAccount::Available(id) => changes.entry(*id).or_default().available += *amount,
            LedgerAccount::Held(id) => changes.entry(*id).or_default().held += *amount,
            LedgerAccount::Payable(id) => changes.entry(*id).or_default().payable += *amount,
            LedgerAccount::Fees => totals.fees += *amount,
            LedgerAccount::External => totals.external += *amount,
        }
    }
    for (account, change) in changes {
        let mut available = MicroUsd::ZERO;
        rows.upsert::<BalanceRow>(&balance_key(account), |balance| {
            balance.available += change.available;
            balance.held += change.held;
            balance.payable += change.payable;
            if let Event::Settled(e) = event {
                if e.consumer == account {
                    balance.spent += e.cost;
                }
                if e.provider == Some(account) {
                    balance.earned += e.earned;
                }
            }
            available = balance.available;
        })?;
        let line = StatementRow {
            seq: recorded.seq,
            at: recorded.at,
            event: event.name().to_owned(),
            job: event.job(),
            batch: batch_of(event),
            available: change.available,
            held: change.held,
            balance: available,
        };
        rows.put(&statement_key(account, recorded.seq), line);
    }
    if totals != PlatformTotals::default() {
        rows.upsert::<PlatformTotals>(TOTALS_KEY, |sum| {
            sum.fees += totals.fees;
            sum.external += totals.external;
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use gpubnb_events::{
        CommandId,
        event::{PayoutFailed, PayoutPaid, PayoutRequested},
    };
    use gpubnb_store::Table;

    use super::*;
    use crate::testing::{BILLED, COST, DAY, EARNED, FEE, FIRST_DAY, HOLD, History, account, job, machine};

    const CONSUMER: u16 = 1;
    const PROVIDER: u16 = 2;

    fn balance(table: &Table, number: u16) -> BalanceRow {
        gpubnb_store::get(table, &balance_key(account(number))).unwrap().unwrap_or_default()
    }

    fn statement(table: &Table, number: u16) -> Vec<StatementRow> {
        let lines = table.scan_prefix(statement_prefix(account(number))).map(|entry| {
            let (key, bytes) = entry.unwrap();
            gpubnb_store::decode(&key, &bytes).unwrap()
        });
        lines.collect()
    }

    fn days_of(table: &Table, number: u16) -> Vec<DayRow> {
        let days = table.scan_prefix(days_prefix(account(number))).map(|entry| {
            let (key, bytes) = entry.unwrap();
            gpubnb_store::decode(&key, &bytes).unwrap()
        });
        days.collect()
    }

    fn totals(table: &Table) -> PlatformTotals {
        gpubnb_store::get(table, TOTALS_KEY).unwrap().unwrap_or_default()
    }

    fn deposited() -> History {
        let mut history = History::default();
        history.deposited(account(CONSUMER), MicroUsd::dollars(1));
        history
    }

    #[test]
    fn a_deposit_is_available_and_subtracted_from_the_external_balance() {
        let history = deposited();
        let table = history.fold(&Ledger);
        assert_eq!(balance(&table, CONSUMER).available, MicroUsd::dollars(1));
        assert_eq!(totals(&table), PlatformTotals { fees: MicroUsd::ZERO, external: -MicroUsd::dollars(1) });
        let [line] = &statement(&table, CONSUMER)[..] else { panic!("one line") };
        assert_eq!((line.event.as_str(), line.job, line.at), ("FundsDeposited", None, history.last().at));
        assert_eq!((line.available, line.balance), (MicroUsd::dollars(1), MicroUsd::dollars(1)));
    }

    #[test]
    fn a_submission_holds_money_and_the_settlement_pays_from_the_hold() {
        let mut history = deposited();
        history.submitted(account(CONSUMER), job(1));
        let held = balance(&history.fold(&Ledger), CONSUMER);
        assert_eq!((held.available, held.held), (MicroUsd::dollars(1) - HOLD, HOLD));
        let lease = history.assigned(job(1), machine(1));
        history.completed(job(1), lease);
        history.settled(job(1), account(CONSUMER), Some((account(PROVIDER), lease)));
        let table = history.fold(&Ledger);
        let consumer = balance(&table, CONSUMER);
        assert_eq!((consumer.available, consumer.held), (MicroUsd::dollars(1) - COST, MicroUsd::ZERO));
        assert_eq!((consumer.spent, consumer.earned), (COST, MicroUsd::ZERO));
        let provider = balance(&table, PROVIDER);
        assert_eq!((provider.available, provider.spent, provider.earned), (EARNED, MicroUsd::ZERO, EARNED));
        assert_eq!(totals(&table).fees, FEE);
        let balances: Vec<_> = statement(&table, CONSUMER).iter().map(|line| line.balance).collect();
        assert_eq!(balances, [MicroUsd::dollars(1), MicroUsd::dollars(1) - HOLD, MicroUsd::dollars(1) - COST]);
    }

    #[test]
    fn a_receipt_has_the_terms_of_the_billed_lease() {
        let receipt = |history: &History| -> ReceiptRow {
            gpubnb_store::get(&history.fold(&Ledger), &receipt_key(job(1))).unwrap().unwrap()
        };
        let mut billed = deposited();
        let lease = billed.whole_job(job(1), account(CONSUMER), (account(PROVIDER), machine(1)));
        let found = receipt(&billed);
        assert_eq!((found.seq, found.settled.lease), (billed.last().seq, Some(lease)));
        assert!(found.terms.is_some());

        let mut unbilled = deposited();
        unbilled.submitted(account(CONSUMER), job(1));
        let lease = unbilled.assigned(job(1), machine(1));
        unbilled.cancelled(job(1), Some(lease));
        unbilled.settled(job(1), account(CONSUMER), None);
        assert_eq!(receipt(&unbilled).terms, None);
        let consumer = balance(&unbilled.fold(&Ledger), CONSUMER);
        assert_eq!((consumer.available, consumer.held), (MicroUsd::dollars(1), MicroUsd::ZERO));
    }

    #[test]
    fn a_receipt_for_an_earlier_lease_has_no_terms() {
        let mut history = deposited();
        history.submitted(account(CONSUMER), job(1));
        let first = history.assigned(job(1), machine(1));
        history.declined(job(1), first, machine(1));
        history.assigned(job(1), machine(2));
        // The bill names the first lease, but the stored terms belong to the second lease.
        history.settled(job(1), account(CONSUMER), Some((account(PROVIDER), first)));
        let receipt: ReceiptRow = gpubnb_store::get(&history.fold(&Ledger), &receipt_key(job(1))).unwrap().unwrap();
        assert_eq!(receipt.terms, None);
    }

    #[test]
    fn settlements_are_summed_by_the_day_of_the_event() {
        let mut history = deposited();
        history.whole_job(job(1), account(CONSUMER), (account(PROVIDER), machine(1)));
        let lease = history.whole_job(job(2), account(CONSUMER), (account(PROVIDER), machine(1)));
        // Job 3 is settled in the last millisecond of the first day, and job 4 on the second day.
        history.submitted(account(CONSUMER), job(3));
        history.submitted(account(CONSUMER), job(4));
        let midnight = i64::from(FIRST_DAY + 1) * 86_400_000;
        let time_left = u64::try_from(midnight - 1 - history.now().millis()).unwrap();
        history.advance_time(Millis(time_left));
        history.settled(job(3), account(CONSUMER), Some((account(PROVIDER), lease)));
        history.settled(job(4), account(CONSUMER), None);
        let table = history.fold(&Ledger);
        let first = DayRow { day: FIRST_DAY, jobs: 3, metered: Millis(3 * BILLED.0), ..DayRow::default() };
        let thrice = |amount: MicroUsd| amount + amount + amount;
        let second = DayRow { day: FIRST_DAY + 1, jobs: 1, ..DayRow::default() };
        assert_eq!(days_of(&table, CONSUMER), [DayRow { spent: thrice(COST), ..first }, second]);
        assert_eq!(days_of(&table, PROVIDER), [DayRow { earned: thrice(EARNED), ..first }]);
        history.advance_time(DAY);
        history.whole_job(job(5), account(CONSUMER), (account(PROVIDER), machine(1)));
        assert_eq!(days_of(&history.fold(&Ledger), PROVIDER).len(), 2);
    }

    #[test]
    fn an_owner_who_rents_their_own_machine_gets_one_day_and_one_statement_line() {
        let mut history = deposited();
        history.whole_job(job(1), account(CONSUMER), (account(CONSUMER), machine(1)));
        let table = history.fold(&Ledger);
        let owner = balance(&table, CONSUMER);
        assert_eq!((owner.available, owner.held), (MicroUsd::dollars(1) - FEE, MicroUsd::ZERO));
        assert_eq!((owner.spent, owner.earned), (COST, EARNED));
        let day = DayRow { day: FIRST_DAY, spent: COST, earned: EARNED, metered: BILLED, jobs: 1 };
        assert_eq!(days_of(&table, CONSUMER), [day]);
        let lines = statement(&table, CONSUMER);
        assert_eq!(lines.iter().filter(|line| line.event == "Settled").count(), 1);
    }

    #[test]
    fn a_payout_is_payable_until_it_is_paid_or_fails() {
        let (account, payout, amount) = (account(PROVIDER), CommandId::MIN, MicroUsd(500));
        let mut history = History::default();
        history.deposited(account, MicroUsd(800));
        let requested = history.record(PayoutRequested { account, payout, amount });
        let requested_balance = balance(&history.fold(&Ledger), PROVIDER);
        assert_eq!((requested_balance.available, requested_balance.payable), (MicroUsd(300), MicroUsd(500)));

        let reason = "the bank said no".to_owned();
        history.record(PayoutFailed { account, payout, amount, requested, reason });
        let failed = balance(&history.fold(&Ledger), PROVIDER);
        assert_eq!((failed.available, failed.payable), (MicroUsd(800), MicroUsd::ZERO));

        let requested = history.record(PayoutRequested { account, payout, amount });
        history.record(PayoutPaid { account, payout, amount, requested });
        let table = history.fold(&Ledger);
        let paid = balance(&table, PROVIDER);
        assert_eq!((paid.available, paid.payable), (MicroUsd(300), MicroUsd::ZERO));
        assert_eq!(totals(&table).external, MicroUsd(-300));
    }
}
