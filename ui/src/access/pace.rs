//! How often somebody may ask: per address, per account, and more strictly where a secret could be guessed.

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

/// After so many questions the limiters forget those who are idle: their memory is bounded by who is busy.
const FORGET_EVERY: u64 = 10_000;

/// How often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Requests a second of one address or account.
    pub(crate) requests_per_second: NonZeroU32,
    /// Attempts a minute to sign in, or to redeem a code, of one address.
    pub(crate) sign_ins_per_minute: NonZeroU32,
    /// New accounts a minute of one address.
    pub(crate) sign_ups_per_minute: NonZeroU32,
}

/// Wrong passwords in a row before one has to wait, and for how long for each further one.
const GUESSES: NonZeroU32 = NonZeroU32::new(5).unwrap();
const PER_GUESS: Duration = Duration::from_secs(20);
/// A burst of requests may be so many seconds' worth.
const BURST_SECONDS: u32 = 5;

type Limiter<K> = Arc<DefaultKeyedRateLimiter<K>>;

/// The limiters of one replica.
#[derive(Clone)]
pub(crate) struct Paces {
    addresses: Limiter<IpAddr>,
    accounts: Limiter<AccountId>,
    sign_ins: Limiter<IpAddr>,
    sign_ups: Limiter<IpAddr>,
    guesses: Limiter<String>,
    asked: Arc<AtomicU64>,
}

impl Paces {
    pub(crate) fn new(pace: Pace) -> Self {
        let burst = pace.requests_per_second.saturating_mul(NonZeroU32::MIN.saturating_add(BURST_SECONDS - 1));
        let requests = Quota::per_second(pace.requests_per_second).allow_burst(burst);
        let guesses = Quota::with_period(PER_GUESS).unwrap_or(Quota::per_minute(GUESSES)).allow_burst(GUESSES);
        Self {
            addresses: Arc::new(RateLimiter::keyed(requests)),
            accounts: Arc::new(RateLimiter::keyed(requests)),
            sign_ins: Arc::new(RateLimiter::keyed(Quota::per_minute(pace.sign_ins_per_minute))),
            sign_ups: Arc::new(RateLimiter::keyed(Quota::per_minute(pace.sign_ups_per_minute))),
            guesses: Arc::new(RateLimiter::keyed(guesses)),
            asked: Arc::default(),
        }
    }

    /// One request of an address.
    pub(crate) fn address(&self, address: IpAddr) -> Result<(), Problem> {
        if self.asked.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
            self.addresses.retain_recent();
            self.accounts.retain_recent();
            self.sign_ins.retain_recent();
            self.sign_ups.retain_recent();
            self.guesses.retain_recent();
        }
        check(&self.addresses, &network_of(address), "Too many requests from your address.")
    }

    /// One request of an account.
    pub(crate) fn account(&self, account: AccountId) -> Result<(), Problem> {
        check(&self.accounts, &account, "Too many requests of your account.")
    }

    /// One attempt to get in from an address.
    pub(crate) fn sign_in(&self, address: IpAddr) -> Result<(), Problem> {
        check(&self.sign_ins, &network_of(address), "Too many attempts from your address.")
    }

    /// One new account from an address.
    pub(crate) fn sign_up(&self, address: IpAddr) -> Result<(), Problem> {
        check(&self.sign_ups, &network_of(address), "Too many new accounts from your address.")
    }

    /// One attempt at a person's password, whether there is such a person or not.
    pub(crate) fn guess(&self, login: &str) -> Result<(), Problem> {
        check(&self.guesses, &login.to_owned(), "Too many attempts for this address.")
    }
}

/// Whoever has an IPv6 address has the 2^64 around it.
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
        let paces =
            Paces::new(Pace { requests_per_second: n(2), sign_ins_per_minute: n(3), sign_ups_per_minute: n(1) });
        for _ in 0..GUESSES.get() {
            paces.guess("a").unwrap();
        }
        let problem = paces.guess("a").unwrap_err();
        assert_eq!(problem.status, 429);
        assert!(problem.retry_after.is_some_and(|seconds| (1..=21).contains(&seconds)));
        paces.guess("b").unwrap();
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        (0..10).for_each(|_| paces.address(one).unwrap());
        assert!(paces.address(one).is_err());
        paces.address(other).unwrap();
    }

    #[test]
    fn a_network_of_addresses_counts_as_one() {
        let of = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
