//! The ledger, account by account, and its sums, which must add up to zero.

use gpubnb_events::{AccountId, Seq};
use gpubnb_model::ledger::{self, PlatformTotals, TOTALS};
use gpubnb_query::view::{
    Balance,
    ops::{AccountLine, Accounts, LedgerSums},
};
use gpubnb_store::{self, StoreError, Table};

/// Most accounts in one answer.
const AT_ONCE: usize = 100;

/// Attempts to read all balances without a posting in between.
const TRIES: usize = 50;

/// The accounts after one, by id, and the sums of all accounts, as of one moment. `None` where the market was too busy
/// for that.
pub(super) fn accounts(table: &Table, after: Option<AccountId>) -> Result<Option<Accounts>, StoreError> {
    for _ in 0..TRIES {
        let at = gpubnb_store::checkpoint(table)?;
        let found = summed(table, at, after)?;
        // Each batch moves the checkpoint. Where it has not moved, nothing was posted between the first row and the
        // last.
        if gpubnb_store::checkpoint(table)? == at {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn summed(table: &Table, at: Seq, after: Option<AccountId>) -> Result<Accounts, StoreError> {
    let totals: PlatformTotals = gpubnb_store::get(table, TOTALS)?.unwrap_or_default();
    let mut sums = LedgerSums { fees: totals.fees, external: totals.external, ..LedgerSums::default() };
    let (mut rows, mut more) = (Vec::new(), false);
    for entry in table.scan_prefix(ledger::BALANCES) {
        let (key, bytes) = entry?;
        let balance: Balance = gpubnb_store::decode(&key, &bytes)?;
        let id = key.get(1..).and_then(|id| id.try_into().ok()).and_then(|id| AccountId::from_bytes(id).ok());
        let account = id.ok_or_else(|| StoreError::corrupt(&key, "no account's id in it"))?;
        sums.accounts += 1;
        sums.available += balance.available;
        sums.held += balance.held;
        sums.payable += balance.payable;
        if after.is_none_or(|after| account > after) {
            match rows.len() {
                AT_ONCE => more = true,
                _ => rows.push(AccountLine { account, balance }),
            }
        }
    }
    Ok(Accounts { at, sums, rows, more })
}
