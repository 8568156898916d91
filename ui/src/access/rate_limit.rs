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

/// After this number of requests the limiters drop the keys that are idle, so only active keys take memory.
const CLEAN_UP_EVERY: u64 = 10_000;

/// The rates that the command-line options of `gpubnb-ui run` set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    /// Requests per second from one address, and from one account.
    pub(crate) requests_per_second: NonZeroU32,
    /// Attempts per minute from one address to sign in or to redeem a code.
    pub(crate) sign_ins_per_minute: NonZeroU32,
    /// New accounts per minute from one address.
    pub(crate) sign_ups_per_minute: NonZeroU32,
}

/// The number of passwords that may be tried at once for one account, and the wait before each further attempt.
const PASSWORD_ATTEMPTS: NonZeroU32 = NonZeroU32::new(5).unwrap();
const PASSWORD_ATTEMPT_PERIOD: Duration = Duration::from_secs(20);
/// A burst may have as many requests as the rate allows in this number of seconds.
const BURST_SECONDS: u32 = 5;

type Limiter<K> = Arc<DefaultKeyedRateLimiter<K>>;

/// The rate limits. Each replica of the web server counts on its own. Each `check_` method counts one request, and
/// refuses the request if it exceeds the limit.
#[derive(Clone)]
pub(crate) struct RateLimits {
    addresses: Limiter<IpAddr>,
    accounts: Limiter<AccountId>,
    sign_ins: Limiter<IpAddr>,
    sign_ups: Limiter<IpAddr>,
    password_attempts: Limiter<String>,
    requests: Arc<AtomicU64>,
}

impl RateLimits {
    pub(crate) fn new(rates: Rates) -> Self {
        // `NonZeroU32::MIN` is 1, so the rate is multiplied by `BURST_SECONDS`.
        let burst = rates.requests_per_second.saturating_mul(NonZeroU32::MIN.saturating_add(BURST_SECONDS - 1));
        let per_second = Quota::per_second(rates.requests_per_second).allow_burst(burst);
        // `with_period` returns `None` only for a period of zero, so the other quota is never used.
        let password_attempts = Quota::with_period(PASSWORD_ATTEMPT_PERIOD)
            .unwrap_or(Quota::per_minute(PASSWORD_ATTEMPTS))
            .allow_burst(PASSWORD_ATTEMPTS);
        Self {
            addresses: Arc::new(RateLimiter::keyed(per_second)),
            accounts: Arc::new(RateLimiter::keyed(per_second)),
            sign_ins: Arc::new(RateLimiter::keyed(Quota::per_minute(rates.sign_ins_per_minute))),
            sign_ups: Arc::new(RateLimiter::keyed(Quota::per_minute(rates.sign_ups_per_minute))),
            password_attempts: Arc::new(RateLimiter::keyed(password_attempts)),
            requests: Arc::default(),
        }
    }

    /// Checks a request from an address.
    pub(crate) fn check_request_from(&self, address: IpAddr) -> Result<(), Problem> {
        if self.requests.fetch_add(1, Ordering::Relaxed) % CLEAN_UP_EVERY == CLEAN_UP_EVERY - 1 {
            self.addresses.retain_recent();
            self.accounts.retain_recent();
            self.sign_ins.retain_recent();
            self.sign_ups.retain_recent();
            self.password_attempts.retain_recent();
        }
        check(&self.addresses, &network_of(address), "Too many requests from your address.")
    }

    /// Checks a request of an account.
    pub(crate) fn check_request_of(&self, account: AccountId) -> Result<(), Problem> {
        check(&self.accounts, &account, "Too many requests of your account.")
    }

    /// Checks an attempt to sign in from an address.
    pub(crate) fn check_sign_in(&self, address: IpAddr) -> Result<(), Problem> {
        check(&self.sign_ins, &network_of(address), "Too many attempts from your address.")
    }

    /// Checks the creation of an account from an address.
    pub(crate) fn check_sign_up(&self, address: IpAddr) -> Result<(), Problem> {
        check(&self.sign_ups, &network_of(address), "Too many new accounts from your address.")
    }

    /// Checks a request that contains a user's password, which may be a guess. `login` identifies the user, who may not
    /// exist: it is the hash of an e-mail address (see `login_of`) or an account's id. In the message, "this address"
    /// means the e-mail address.
    pub(crate) fn check_password_attempt(&self, login: &str) -> Result<(), Problem> {
        check(&self.password_attempts, &login.to_owned(), "Too many attempts for this address.")
    }
}

/// The network that counts as one address: an IPv4 address, or an IPv6 network of 64 bits. Internet providers give each
/// customer at least one such network.
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
    fn a_limit_applies_to_one_account_or_address_and_not_to_others() {
        let n = |n| NonZeroU32::new(n).unwrap();
        let limits =
            RateLimits::new(Rates { requests_per_second: n(2), sign_ins_per_minute: n(3), sign_ups_per_minute: n(1) });
        for _ in 0..PASSWORD_ATTEMPTS.get() {
            limits.check_password_attempt("a").unwrap();
        }
        let problem = limits.check_password_attempt("a").unwrap_err();
        assert_eq!(problem.status, 429);
        assert!(problem.retry_after.is_some_and(|seconds| (1..=21).contains(&seconds)));
        limits.check_password_attempt("b").unwrap();
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        (0..10).for_each(|_| limits.check_request_from(one).unwrap());
        assert!(limits.check_request_from(one).is_err());
        limits.check_request_from(other).unwrap();
    }

    #[test]
    fn an_ipv6_network_counts_as_one_address() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:2"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1"));
    }
}
