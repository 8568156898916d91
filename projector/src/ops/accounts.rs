//! The balances of all accounts, and the sums over all accounts. Together the sums must be zero.

use gpubnb_events::{AccountId, Seq};
use gpubnb_model::ledger::{self, PlatformTotals, TOTALS_KEY};
use gpubnb_query::view::{
    Balance,
    ops::{AccountBalance, Accounts, LedgerSums},
};
use gpubnb_store::{self, StoreError, Table};

/// The most accounts in one answer.
const MAX_ACCOUNTS: usize = 100;
/// The number of attempts to read all balances while no balance changes.
const TRIES: usize = 50;

/// The balances of the accounts whose ids follow `after`, sorted by id, and the sums of all accounts. All numbers are
/// as of one event. `None` if the balances changed during every attempt.
pub(super) fn accounts(table: &Table, after: Option<AccountId>) -> Result<Option<Accounts>, StoreError> {
    for _ in 0..TRIES {
        let at = gpubnb_store::checkpoint(table)?;
        let answer = read_accounts(table, at, after)?;
        // Each batch moves the checkpoint. If the checkpoint is the same, no balance has changed while they were read.
        if gpubnb_store::checkpoint(table)? == at {
            return Ok(Some(answer));
        }
    }
    Ok(None)
}

fn read_accounts(table: &Table, at: Seq, after: Option<AccountId>) -> Result<Accounts, StoreError> {
    let totals: PlatformTotals = gpubnb_store::get(table, TOTALS_KEY)?.unwrap_or_default();
    let mut sums = LedgerSums { fees: totals.fees, external: totals.external, ..LedgerSums::default() };
    let (mut rows, mut more) = (Vec::new(), false);
    for entry in table.scan_prefix(ledger::BALANCES_PREFIX) {
        let (key, bytes) = entry?;
        let balance: Balance = gpubnb_store::decode(&key, &bytes)?;
        let id = key.get(1..).and_then(|id| id.try_into().ok()).and_then(|id| AccountId::from_bytes(id).ok());
        let account = id.ok_or_else(|| StoreError::corrupt(&key, "the key has no account id"))?;
        sums.accounts += 1;
        sums.available += balance.available;
        sums.held += balance.held;
        sums.payable += balance.payable;
        if after.is_none_or(|after| account > after) {
            match rows.len() {
                MAX_ACCOUNTS => more = true,
                _ => rows.push(AccountBalance { account, balance }),
            }
        }
    }
    Ok(Accounts { at, sums, rows, more })
}
