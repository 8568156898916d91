//! A limit on the amount that each key uses at the same time. For example, the key is an IP address, and the amount is
//! the number of its open connections.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The amount that each key uses. Clones share the amounts. A key that uses nothing takes no memory.
pub(crate) struct KeyedLimit<K: Eq + Hash>(Arc<Mutex<HashMap<K, u64>>>);

/// An amount that a key uses until the share is dropped.
pub(crate) struct Share<K: Eq + Hash> {
    limit: KeyedLimit<K>,
    key: K,
    amount: u64,
}

impl<K: Eq + Hash> Clone for KeyedLimit<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Eq + Hash> Default for KeyedLimit<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash> KeyedLimit<K> {
    fn amounts(&self) -> MutexGuard<'_, HashMap<K, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `amount` for a key. `None` if the key would use more than `max` in total.
    pub(crate) fn take(&self, key: K, amount: u64, max: u64) -> Option<Share<K>>
    where
        K: Clone,
    {
        let mut used = self.amounts();
        let sum = used.get(&key).copied().unwrap_or(0).checked_add(amount).filter(|sum| *sum <= max)?;
        used.insert(key.clone(), sum);
        drop(used);
        Some(Share { limit: self.clone(), key, amount })
    }

    /// True if no key uses anything.
    #[cfg(test)]
    pub(crate) fn is_unused(&self) -> bool {
        self.amounts().is_empty()
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut used = self.limit.amounts();
        let Some(sum) = used.get_mut(&self.key) else { return };
        *sum = sum.saturating_sub(self.amount);
        if *sum == 0 {
            used.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_own_limit_and_dropping_a_share_releases_it() {
        let limit = KeyedLimit::default();
        let first = limit.take("a", 6, 10).unwrap();
        assert!(limit.take("a", 5, 10).is_none());
        assert!(limit.take("a", 4, 10).is_some());
        assert!(limit.take("b", 10, 10).is_some());
        drop(first);
        assert!(limit.take("a", 10, 10).is_some());
        assert!(limit.is_unused());
    }

    #[test]
    fn an_amount_that_overflows_is_refused() {
        let limit = KeyedLimit::default();
        let _held = limit.take("a", 1, u64::MAX).unwrap();
        assert!(limit.take("a", u64::MAX, u64::MAX).is_none());
    }

    #[test]
    fn a_refused_key_takes_no_memory() {
        let limit = KeyedLimit::default();
        assert!(limit.take("a", 11, 10).is_none());
        assert!(limit.is_unused());
    }
}
