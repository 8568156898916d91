//! The sums of the ledger, without statements and receipts. Time travel, which folds the market as it was at an earlier
//! event, needs only these sums.

use gpubnb_events::{
    Event, MicroUsd, Recorded,
    ledger::{LedgerAccount, postings},
};
use gpubnb_store::{self, StoreError, Table, WriteBatch};

use super::rows::LedgerSumsRow;
use super::{Projection, key};

/// Rows: `L` → sums; `A<account>`, a key without a value, for each account that has a posting. Time travel folds this
/// model, the machines and the figures into one table, so two of these models must not use the same letter.
pub struct Balances;

const SUMS_KEY: &[u8] = b"L";

/// The sums of the ledger.
pub fn sums(table: &Table) -> Result<LedgerSumsRow, StoreError> {
    Ok(gpubnb_store::get(table, SUMS_KEY)?.unwrap_or_default())
}

impl Projection for Balances {
    fn name(&self) -> &'static str {
        "balances"
    }

    fn version(&self) -> u32 {
        2
    }

    fn apply(&self, rows: &mut WriteBatch<'_>, _: &Recorded, event: &Event) -> Result<(), StoreError> {
        for posting in postings(event) {
            let mut is_known = true;
            if let LedgerAccount::Available(id) = posting.account {
                let account = key(b'A', &[id.as_bytes()]);
                is_known = rows.get::<()>(&account)?.is_some();
                rows.put(&account, ());
            }
            rows.upsert::<LedgerSumsRow>(SUMS_KEY, |sums| {
                sums.accounts += u64::from(!is_known);
                add_posting(sums, posting.account, posting.amount);
            })?;
        }
        Ok(())
    }
}

fn add_posting(sums: &mut LedgerSumsRow, account: LedgerAccount, amount: MicroUsd) {
    let sum = match account {
        LedgerAccount::Available(_) => &mut sums.available,
        LedgerAccount::Held(_) => &mut sums.held,
        LedgerAccount::Payable(_) => &mut sums.payable,
        LedgerAccount::Fees => &mut sums.fees,
        LedgerAccount::External => &mut sums.external,
    };
    *sum += amount;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{COST, EARNED, FEE, HOLD, History, account, job, machine};

    #[test]
    fn all_postings_are_summed_and_each_account_is_counted_once() {
        let mut history = History::default();
        history.deposited(account(1), MicroUsd::dollars(1));
        history.deposited(account(1), MicroUsd::dollars(1));
        history.whole_job(job(1), account(1), (account(2), machine(1)));
        history.submitted(account(1), job(2));
        let found = sums(&history.fold(&Balances)).unwrap();
        let expected = LedgerSumsRow {
            accounts: 2,
            available: MicroUsd::dollars(2) - HOLD - COST + EARNED,
            held: HOLD,
            payable: MicroUsd::ZERO,
            fees: FEE,
            external: -MicroUsd::dollars(2),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn all_sums_of_an_empty_log_are_zero() {
        assert_eq!(sums(&History::default().fold(&Balances)).unwrap(), LedgerSumsRow::default());
    }
}
