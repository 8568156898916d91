//! The ledger: balances, statements and receipts, from the postings of every event.

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, Event, JobId, Lease, MicroUsd, Millis, Recorded, Seq,
    event::Settled,
    ledger::{LedgerAccount, Posting, postings},
    spec::Terms,
};
use gpubnb_query::view::Day;
use gpubnb_store::{StoreError, WriteBatch};
use serde::{Deserialize, Serialize};

use super::rows::{BalanceRow, DayRow, ReceiptRow, StatementRow};
use super::{Projection, account_key, job_key, key};

/// `b<account>` → balance; `s<account><sequence>` → statement line; `r<job>` → receipt;
/// `t<job>` → price terms of the present lease; `d<account><day>` → what was settled on a day; `p` → platform totals.
pub struct Ledger;

/// The totals that belong to no account.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformTotals {
    /// Fees.
    pub fees: MicroUsd,
    /// The world outside: minus what is inside.
    pub external: MicroUsd,
}

#[derive(Clone, Serialize, Deserialize)]
struct LockedTerms {
    lease: Lease,
    terms: Terms,
}

/// Prefix of all balances.
pub const BALANCES: &[u8] = b"b";

/// Key of an account's balance.
pub fn balance_key(account: AccountId) -> Vec<u8> {
    account_key(b'b', account)
}

/// Prefix of an account's statement.
pub fn statement_prefix(account: AccountId) -> Vec<u8> {
    account_key(b's', account)
}

/// Key of a statement line.
pub fn statement_key(account: AccountId, seq: Seq) -> Vec<u8> {
    key(b's', &[account.as_bytes(), &seq.0.to_be_bytes()])
}

/// Prefix of an account's days.
pub fn days(account: AccountId) -> Vec<u8> {
    account_key(b'd', account)
}

/// Key of a receipt.
pub fn receipt_key(job: JobId) -> Vec<u8> {
    job_key(b'r', job)
}

/// Key of the platform's totals.
pub const TOTALS: &[u8] = b"p";

impl Projection for Ledger {
    fn name(&self) -> &'static str {
        "ledger"
    }

    fn version(&self) -> u32 {
        3
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
                let terms = locked.filter(|l| Some(l.lease) == e.lease).map(|l| l.terms);
                let receipt = ReceiptRow { seq: recorded.seq, at: recorded.at, terms, settled: e.clone() };
                rows.put(&receipt_key(e.job), receipt);
                settle(rows, recorded, e)?;
            }
            _ => {}
        }
        post(rows, recorded, event, &postings(event))
    }
}

/// What was spent and earned on a day.
fn settle(rows: &mut WriteBatch<'_>, recorded: &Recorded, e: &Settled) -> Result<(), StoreError> {
    let day = Day::of(recorded.at);
    let metered = e.metering.as_ref().map_or(0, |m| m.billed.0);
    let mut add = |account, spent, earned| {
        rows.upsert::<DayRow>(&[days(account), day.to_be_bytes().to_vec()].concat(), |sum| {
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

/// Changes of one account by one event.
#[derive(Default)]
struct Change {
    available: MicroUsd,
    held: MicroUsd,
    payable: MicroUsd,
}

fn post(rows: &mut WriteBatch<'_>, recorded: &Recorded, event: &Event, postings: &[Posting]) -> Result<(), StoreError> {
    if postings.is_empty() {
        return Ok(());
    }
    let mut changes: BTreeMap<AccountId, Change> = BTreeMap::new();
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
            available: change.available,
            held: change.held,
            balance: available,
        };
        rows.put(&statement_key(account, recorded.seq), line);
    }
    if totals != PlatformTotals::default() {
        rows.upsert::<PlatformTotals>(TOTALS, |sum| {
            sum.fees += totals.fees;
            sum.external += totals.external;
        })?;
    }
    Ok(())
}
