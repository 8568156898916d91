//! Who takes how much of a store.

use std::collections::BTreeMap;

use gpubnb_events::AccountId;

/// The least that a file counts, in bytes. The description of a file takes room, too, even if the file is empty.
const LEAST_BYTES: u64 = 4 << 10;

/// The account whose share a file takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The account.
    pub account: AccountId,
    /// True if the account had money when the file was stored. All accounts without money have one share of the store
    /// together, because anybody can open any number of them.
    pub has_money: bool,
}

/// Bytes and files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UsedBytes {
    /// Bytes. A small file counts 4 KiB.
    pub bytes: u64,
    /// Number of files.
    pub files: usize,
}

impl UsedBytes {
    fn add(&mut self, bytes: u64, files: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.files += files;
    }
}

/// The use of a store by account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    by_account: BTreeMap<AccountId, UsedBytes>,
    without_money: UsedBytes,
}

impl Usage {
    pub(crate) fn add(&mut self, owner: Owner, bytes: u64) {
        let counted = bytes.max(LEAST_BYTES);
        self.by_account.entry(owner.account).or_default().add(counted, 1);
        if !owner.has_money {
            self.without_money.add(counted, 1);
        }
    }

    /// The use of one account.
    pub fn of(&self, account: AccountId) -> UsedBytes {
        self.by_account.get(&account).copied().unwrap_or_default()
    }

    /// The use of all files that were stored by accounts without money.
    pub fn without_money(&self) -> UsedBytes {
        self.without_money
    }

    /// The use of all accounts.
    pub fn total(&self) -> UsedBytes {
        self.by_account.values().fold(UsedBytes::default(), |mut total, used| {
            total.add(used.bytes, used.files);
            total
        })
    }

    /// The accounts that use most, most first.
    pub fn largest(&self, count: usize) -> Vec<(AccountId, UsedBytes)> {
        let mut all: Vec<_> = self.by_account.iter().map(|(account, used)| (*account, *used)).collect();
        all.sort_by_key(|(_, used)| std::cmp::Reverse(used.bytes));
        all.truncate(count);
        all
    }
}
