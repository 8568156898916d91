//! Limits the guesses of secrets, such as passwords. Only wrong guesses use up an allowance: an attempt is counted when
//! it begins, so that many attempts at once gain nothing, and is taken back when the secret was right.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// With more keys than this, the keys without a counted guess are dropped. If many keys remain, the next cleaning waits
/// until there are twice as many.
const CLEAN_AT: usize = 10_000;

/// An allowance of guesses for each key: `burst` at once, and one more after each `period`.
///
/// This is the generic cell rate algorithm: for each key, it keeps the time at which the whole allowance is there
/// again.
/// <https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm>
pub(super) struct Guesses<K> {
    burst: u32,
    period: Duration,
    keys: Mutex<Keys<K>>,
}

struct Keys<K> {
    full_at: HashMap<K, Instant>,
    clean_at: usize,
}

impl<K: Hash + Eq + Clone> Guesses<K> {
    pub(super) fn new(burst: u32, period: Duration) -> Self {
        Self { burst, period, keys: Mutex::new(Keys { full_at: HashMap::new(), clean_at: CLEAN_AT }) }
    }

    fn keys(&self) -> MutexGuard<'_, Keys<K>> {
        // A poisoned lock is used anyway: no panic can leave an entry half written.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a guess. If the allowance is used up, counts nothing and returns the time to wait.
    pub(super) fn count(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let mut keys = self.keys();
        let Keys { full_at, clean_at } = &mut *keys;
        if full_at.len() > *clean_at {
            full_at.retain(|_, full_at| *full_at > now);
            *clean_at = CLEAN_AT.max(2 * full_at.len());
        }
        let full = full_at.get(key).copied().unwrap_or(now).max(now);
        let most = self.period * self.burst.saturating_sub(1);
        match (full - now).checked_sub(most) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                full_at.insert(key.clone(), full + self.period);
                Ok(())
            }
        }
    }

    /// Takes a guess back.
    pub(super) fn take_back(&self, key: &K) {
        if let Some(full_at) = self.keys().full_at.get_mut(key) {
            *full_at = full_at.checked_sub(self.period).unwrap_or(*full_at);
        }
    }

    /// True if guesses of this key are counted now.
    pub(super) fn has_guessed(&self, key: &K, now: Instant) -> bool {
        self.keys().full_at.get(key).is_some_and(|full_at| *full_at > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(20);

    #[test]
    fn only_guesses_that_are_not_taken_back_use_up_the_allowance() {
        let (guesses, now) = (Guesses::new(3, PERIOD), Instant::now());
        for _ in 0..100 {
            guesses.count(&"a", now).unwrap();
            guesses.take_back(&"a");
        }
        assert!(!guesses.has_guessed(&"a", now));
        for _ in 0..3 {
            guesses.count(&"a", now).unwrap();
        }
        assert_eq!(guesses.count(&"a", now), Err(PERIOD));
        assert!(guesses.has_guessed(&"a", now));
        guesses.count(&"b", now).unwrap();
        // One more guess is there after each period, and all three after three periods.
        guesses.count(&"a", now + PERIOD).unwrap();
        assert!(guesses.count(&"a", now + PERIOD).is_err());
        assert!((0..3).all(|_| guesses.count(&"a", now + 4 * PERIOD).is_ok()));
    }
}
