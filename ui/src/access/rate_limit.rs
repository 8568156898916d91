//! Rate limits: requests per address and per account, and stricter ones for requests that could guess a secret.

use std::{
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter, clock::Clock as _};
use gpubnb_events::AccountId;

use crate::error::Problem;

/// After this many requests the limiters forget the keys that are idle, so their memory is bounded by the keys in use.
const FORGET_EVERY: u64 = 10_000;

/// The rates that the options of `run` set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    /// Requests per second from one address, and from one account.
    pub(crate) requests_per_second: NonZeroU32,
    /// Attempts per minute from one address to sign in or to redeem a code.
    pub(crate) sign_ins_per_minute: NonZeroU32,
    /// New accounts per minute from one address.
    pub(crate) sign_ups_per_minute: NonZeroU32,
}

/// Passwords that may be tried in a row for one account, and the wait before each further try.
const GUESSES: NonZeroU32 = NonZeroU32::new(5).unwrap();
const PER_GUESS: Duration = Duration::from_secs(20);
/// A burst may have as many requests as are allowed within this many seconds.
const BURST_SECONDS: u32 = 5;

type Limiter<K> = Arc<DefaultKeyedRateLimiter<K>>;

/// The rate limits, as this replica counts them.
#[derive(Clone)]
pub(crate) struct RateLimits {
    addresses: Limiter<IpAddr>,
    accounts: Limiter<AccountId>,
    sign_ins: Limiter<IpAddr>,
    sign_ups: Limiter<IpAddr>,
    guesses: Limiter<String>,
    requests: Arc<AtomicU64>,
}

impl RateLimits {
    pub(crate) fn new(rates: Rates) -> Self {
        let burst = rates.requests_per_second.saturating_mul(NonZeroU32::MIN.saturating_add(BURST_SECONDS - 1));
        let per_second = Quota::per_second(rates.requests_per_second).allow_burst(burst);
        let guesses = Quota::with_period(PER_GUESS).unwrap_or(Quota::per_minute(GUESSES)).allow_burst(GUESSES);
        Self {
            addresses: Arc::new(RateLimiter::keyed(per_second)),
            accounts: Arc::new(RateLimiter::keyed(per_second)),
            sign_ins: Arc::new(RateLimiter::keyed(Quota::per_minute(rates.sign_ins_per_minute))),
            sign_ups: Arc::new(RateLimiter::keyed(Quota::per_minute(rates.sign_ups_per_minute))),
            guesses: Arc::new(RateLimiter::keyed(guesses)),
            requests: Arc::default(),
        }
    }

    /// Counts a request from an address.
    pub(crate) fn address(&self, address: IpAddr) -> Result<(), Problem> {
        if self.requests.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
            self.addresses.retain_recent();
            self.accounts.retain_recent();
            self.sign_ins.retain_recent();
            self.sign_ups.retain_recent();
            self.guesses.retain_recent();
        }
        check(&self.addresses, &network_of(address), "Too many requests from your address.")
    }

    /// Counts a request from an account.
    pub(crate) fn account(&self, account: AccountId) -> Result<(), Problem> {
        check(&self.accounts, &account, "Too many requests of your account.")
    }

    /// Counts an attempt to sign in from an address.
    pub(crate) fn sign_in(&self, address: IpAddr) -> Result<(), Problem> {
        check(&self.sign_ins, &network_of(address), "Too many attempts from your address.")
    }

    /// Counts a new account from an address.
    pub(crate) fn sign_up(&self, address: IpAddr) -> Result<(), Problem> {
        check(&self.sign_ups, &network_of(address), "Too many new accounts from your address.")
    }

    /// Counts an attempt at the password of a user, also of one that does not exist.
    pub(crate) fn guess(&self, login: &str) -> Result<(), Problem> {
        check(&self.guesses, &login.to_owned(), "Too many attempts for this address.")
    }
}

/// The network that counts as one address. A provider gives each customer an IPv6 network of at least 2^64 addresses.
pub(super) fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
        },
    }
}

fn check<K: std::hash::Hash + Eq + Clone>(limiter: &Limiter<K>, key: &K, what: &str) -> Result<(), Problem> {
    limiter.check_key(key).map_err(|not_until| {
        let wait = not_until.wait_time_from(limiter.clock().now()).as_secs() + 1;
        Problem::too_many(what, wait)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guessing_slows_down_and_others_are_not_held_back() {
        let n = |n| NonZeroU32::new(n).unwrap();
        let limits =
            RateLimits::new(Rates { requests_per_second: n(2), sign_ins_per_minute: n(3), sign_ups_per_minute: n(1) });
        for _ in 0..GUESSES.get() {
            limits.guess("a").unwrap();
        }
        let problem = limits.guess("a").unwrap_err();
        assert_eq!(problem.status, 429);
        assert!(problem.retry_after.is_some_and(|seconds| (1..=21).contains(&seconds)));
        limits.guess("b").unwrap();
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        (0..10).for_each(|_| limits.address(one).unwrap());
        assert!(limits.address(one).is_err());
        limits.address(other).unwrap();
    }

    #[test]
    fn a_network_of_addresses_counts_as_one() {
        let of = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
