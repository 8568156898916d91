//! The sums of the ledger alone, for looking back at the whole market: no statements, no receipts.

use gpubnb_events::{
    Event, MicroUsd, Recorded,
    ledger::{LedgerAccount, postings},
};

use super::{Projection, key};
use crate::{
    store::{self, Rows, StoreError},
    tree::Tree,
    view::ops::LedgerSums,
};

/// `L` → sums; `A<account>` → nothing. Letters that no other model of a market uses: they share a tree.
pub struct Balances;

const SUMS: &[u8] = b"L";

/// The sums.
pub fn sums(tree: &Tree) -> Result<LedgerSums, StoreError> {
    Ok(store::get(tree, SUMS)?.unwrap_or_default())
}

impl Projection for Balances {
    fn name(&self) -> &'static str {
        "balances"
    }

    fn version(&self) -> u32 {
        1
    }

    fn apply(&self, rows: &mut Rows<'_>, _: &Recorded, event: &Event) -> Result<(), StoreError> {
        for posting in postings(event) {
            let mut known = true;
            if let LedgerAccount::Available(id) = posting.account {
                let account = key(b'A', &[id.as_bytes()]);
                known = rows.get::<()>(&account)?.is_some();
                rows.put(&account, ());
            }
            rows.upsert::<LedgerSums>(SUMS, |sums| {
                sums.accounts += u64::from(!known);
                add(sums, posting.account, posting.amount);
            })?;
        }
        Ok(())
    }
}

fn add(sums: &mut LedgerSums, account: LedgerAccount, amount: MicroUsd) {
    let side = match account {
        LedgerAccount::Available(_) => &mut sums.available,
        LedgerAccount::Held(_) => &mut sums.held,
        LedgerAccount::Payable(_) => &mut sums.payable,
        LedgerAccount::Fees => &mut sums.fees,
        LedgerAccount::External => &mut sums.external,
    };
    *side += amount;
}
