//! Rate limits: requests per address and per account, new accounts per address, and guesses of secrets.

use std::{
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter, clock::Clock as _};
use gpubnb_events::AccountId;

use super::guesses::Guesses;
use crate::error::Problem;

/// After this number of requests the limiters drop the keys that are idle, so only active keys take memory.
const CLEAN_UP_EVERY: u64 = 10_000;

/// The rates that the command-line options of `gpubnb-ui run` set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    /// Requests per second from one address, and from one account.
    pub(crate) requests_per_second: NonZeroU32,
    /// Wrong attempts per minute from one address to sign in or to redeem a code.
    pub(crate) sign_ins_per_minute: NonZeroU32,
    /// New accounts per minute from one address.
    pub(crate) sign_ups_per_minute: NonZeroU32,
}

/// The number of wrong passwords that one network, or one known browser, may try at once for one person, and the wait
/// before each further attempt.
const PASSWORD_ATTEMPTS: u32 = 5;
const PASSWORD_ATTEMPT_PERIOD: Duration = Duration::from_secs(20);
/// The same limits for all sites (see [`site_of`]) together that have tried a wrong password for this person before.
const REPEATED_ATTEMPTS: u32 = 30;
const REPEATED_ATTEMPT_PERIOD: Duration = Duration::from_secs(60);
/// A site counts as one of these sites for six hours for each wrong password: after two wrong passwords, for 12 hours.
/// No more than [`TRIED_AT_MOST`] wrong passwords are added up.
const TRIED_PERIOD: Duration = Duration::from_secs(6 * 3_600);
const TRIED_AT_MOST: u32 = 100;
/// One network, or all known browsers of one person, may make this many attempts, right or wrong, for each wrong
/// attempt that one network may make. Right attempts are limited, too, because each of them takes the time of a
/// password's hash.
const ATTEMPTS_PER_WRONG: NonZeroU32 = NonZeroU32::new(3).unwrap();
/// A wider network may make this many times the attempts of one network.
const NETWORKS_IN_WIDER: u32 = 4;
/// A burst may have as many requests as the rate allows in this number of seconds.
const BURST_SECONDS: NonZeroU32 = NonZeroU32::new(5).unwrap();

/// Where a guess of a password comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    Network(IpAddr),
    /// A browser in which this person has signed in before.
    KnownBrowser(String),
    /// A session of this person.
    Session,
}

/// A guess that was counted. [`RateLimits::take_back_password`] takes the guess back if the password was right.
#[derive(Debug)]
pub(crate) struct PasswordGuess {
    person: (String, Source),
    /// The person and the site; `None` for a known browser and for a session.
    site: Option<(String, IpAddr)>,
    /// True if the guess also counts in the `repeated` guesses of [`RateLimits`].
    is_repeated: bool,
}

type Limiter<K> = Arc<DefaultKeyedRateLimiter<K>>;

/// The rate limits. Each replica of the web server counts on its own. Each `check_` method counts one request, and
/// refuses the request if it exceeds the limit.
#[derive(Clone)]
pub(crate) struct RateLimits {
    addresses: Limiter<IpAddr>,
    accounts: Limiter<AccountId>,
    sign_ups: Limiter<IpAddr>,
    /// Wrong passwords and codes from one network, and from one wider network.
    networks: Arc<Guesses<IpAddr>>,
    wider_networks: Arc<Guesses<IpAddr>>,
    /// Wrong passwords for one person, from one network or one known browser.
    people: Arc<Guesses<(String, Source)>>,
    /// The sites (see [`site_of`]) that have tried a wrong password for one person in the last hours.
    tried: Arc<Guesses<(String, IpAddr)>>,
    /// Wrong passwords for one person from these sites.
    repeated: Arc<Guesses<String>>,
    /// Passwords from one network, or from all known browsers of one person, right or wrong.
    attempts: Limiter<Source>,
    requests: Arc<AtomicU64>,
}

impl RateLimits {
    pub(crate) fn new(rates: Rates) -> Self {
        let burst = rates.requests_per_second.saturating_mul(BURST_SECONDS);
        let per_second = Quota::per_second(rates.requests_per_second).allow_burst(burst);
        let (attempts, minute) = (rates.sign_ins_per_minute.get(), Duration::from_secs(60));
        let wider = attempts.saturating_mul(NETWORKS_IN_WIDER);
        Self {
            addresses: Arc::new(RateLimiter::keyed(per_second)),
            accounts: Arc::new(RateLimiter::keyed(per_second)),
            sign_ups: Arc::new(RateLimiter::keyed(Quota::per_minute(rates.sign_ups_per_minute))),
            networks: Arc::new(Guesses::new(attempts, minute / attempts)),
            wider_networks: Arc::new(Guesses::new(wider, minute / wider)),
            people: Arc::new(Guesses::new(PASSWORD_ATTEMPTS, PASSWORD_ATTEMPT_PERIOD)),
            tried: Arc::new(Guesses::new(TRIED_AT_MOST, TRIED_PERIOD)),
            repeated: Arc::new(Guesses::new(REPEATED_ATTEMPTS, REPEATED_ATTEMPT_PERIOD)),
            attempts: Arc::new(RateLimiter::keyed(Quota::per_minute(
                rates.sign_ins_per_minute.saturating_mul(ATTEMPTS_PER_WRONG),
            ))),
            requests: Arc::default(),
        }
    }

    /// Checks a request from an address.
    pub(crate) fn check_request_from(&self, address: IpAddr) -> Result<(), Problem> {
        if self.requests.fetch_add(1, Ordering::Relaxed) % CLEAN_UP_EVERY == CLEAN_UP_EVERY - 1 {
            self.addresses.retain_recent();
            self.accounts.retain_recent();
            self.sign_ups.retain_recent();
            self.attempts.retain_recent();
        }
        check(&self.addresses, &network_of(address), "Too many requests from your address.")
    }

    /// Checks a request of an account.
    pub(crate) fn check_request_of(&self, account: AccountId) -> Result<(), Problem> {
        check(&self.accounts, &account, "Too many requests of your account.")
    }

    /// Counts a guess of a code from an address. Call [`Self::take_back_guess`] if the code was right.
    pub(crate) fn count_guess(&self, address: IpAddr) -> Result<(), Problem> {
        let (network, now) = (network_of(address), Instant::now());
        let refused = |wait: Duration| too_many("Too many wrong attempts from your address.", wait);
        self.networks.count(&network, now).map_err(refused)?;
        self.wider_networks.count(&wider_network_of(address), now).map_err(|wait| {
            self.networks.take_back(&network);
            refused(wait)
        })
    }

    pub(crate) fn take_back_guess(&self, address: IpAddr) {
        self.networks.take_back(&network_of(address));
        self.wider_networks.take_back(&wider_network_of(address));
    }

    /// Checks an attempt to sign in, right or wrong: each takes the time of a password's hash.
    ///
    /// All known browsers of a person count together: each sign-in makes another one.
    pub(crate) fn check_attempt(&self, login: &str, source: &Source) -> Result<(), Problem> {
        let counted = match source {
            Source::KnownBrowser(_) => Source::KnownBrowser(login.to_owned()),
            Source::Network(_) | Source::Session => source.clone(),
        };
        check(&self.attempts, &counted, "Too many attempts from your address.")
    }

    /// Counts a guess of a person's password. Call [`Self::take_back_password`] if the password was right.
    ///
    /// `login` is the person, who may not exist: the hash of an e-mail address (see `login_of`), or an account's id. No
    /// stranger can lock a person out: whatever strangers guess, a known browser keeps its own attempts, and a site
    /// that has not guessed wrong keeps its first attempt.
    pub(crate) fn count_password(&self, login: &str, source: &Source) -> Result<PasswordGuess, Problem> {
        self.count_password_at(login, source, Instant::now())
            .map_err(|wait| too_many("Too many wrong passwords.", wait))
    }

    fn count_password_at(&self, login: &str, source: &Source, now: Instant) -> Result<PasswordGuess, Duration> {
        let person = (login.to_owned(), source.clone());
        self.people.count(&person, now)?;
        let mut guess = PasswordGuess { person, site: None, is_repeated: false };
        let Source::Network(address) = source else { return Ok(guess) };
        let site = (login.to_owned(), site_of(*address));
        guess.is_repeated = self.tried.has_guessed(&site, now);
        if guess.is_repeated {
            self.repeated.count(&site.0, now).inspect_err(|_| self.people.take_back(&guess.person))?;
        }
        // An error means that the site has reached `TRIED_AT_MOST`. The site stays counted.
        self.tried.count(&site, now).unwrap_or_default();
        guess.site = Some(site);
        Ok(guess)
    }

    pub(crate) fn take_back_password(&self, guess: &PasswordGuess) {
        self.people.take_back(&guess.person);
        if let Some(site) = &guess.site {
            self.tried.take_back(site);
            if guess.is_repeated {
                self.repeated.take_back(&site.0);
            }
        }
    }

    /// Checks the creation of an account from an address.
    pub(crate) fn check_sign_up(&self, address: IpAddr) -> Result<(), Problem> {
        check(
            &self.sign_ups,
            &network_of(address),
            "Too many new accounts, or links for a password, from your address.",
        )
    }
}

/// The network that counts as one address: an IPv4 address, or an IPv6 network of 64 bits. Internet providers give each
/// customer at least one such network.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
        },
    }
}

/// An IPv6 network of 56 bits, which many internet providers give to one customer; an IPv4 address.
fn wider_network_of(address: IpAddr) -> IpAddr {
    match network_of(address) {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 72 << 72).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The largest network that internet providers usually give to one customer: an IPv6 network of 48 bits, or an IPv4
/// address.
fn site_of(address: IpAddr) -> IpAddr {
    match network_of(address) {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 80 << 80).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

fn too_many(what: &str, wait: Duration) -> Problem {
    Problem::too_many(what, wait.as_secs() + 1)
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
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        (0..10).for_each(|_| limits.check_request_from(one).unwrap());
        assert!(limits.check_request_from(one).is_err());
        limits.check_request_from(other).unwrap();
    }

    fn limits() -> RateLimits {
        let n = |n| NonZeroU32::new(n).unwrap();
        RateLimits::new(Rates { requests_per_second: n(2), sign_ins_per_minute: n(3), sign_ups_per_minute: n(1) })
    }

    fn network(last: u8) -> Source {
        Source::Network([10, 0, 0, last].into())
    }

    #[test]
    fn wrong_passwords_are_limited_and_right_ones_are_not() {
        let limits = limits();
        for _ in 0..50 {
            let guess = limits.count_password("a", &network(1)).unwrap();
            limits.take_back_password(&guess);
        }
        for _ in 0..PASSWORD_ATTEMPTS {
            limits.count_password("a", &network(1)).unwrap();
        }
        let problem = limits.count_password("a", &network(1)).unwrap_err();
        assert_eq!(problem.status, 429);
        assert!(problem.retry_after.is_some_and(|seconds| (1..=21).contains(&seconds)));
        limits.count_password("b", &network(1)).unwrap();
    }

    #[test]
    fn no_number_of_strangers_locks_a_person_out_and_their_guesses_are_few() {
        let (limits, now) = (limits(), Instant::now());
        let guess = |address: IpAddr, now| limits.count_password_at("a", &Source::Network(address), now).is_ok();
        let mut guesses = 0;
        // An hour in which each network tries as often as it alone may.
        for turn in 0..180 {
            let now = now + turn * PASSWORD_ATTEMPT_PERIOD;
            guesses += (0..=255_u8).filter(|last| guess([10, 0, 0, *last].into(), now)).count();
        }
        // Each network has its first attempt. All further attempts together have one allowance.
        let allowance = REPEATED_ATTEMPTS as usize + 60;
        assert!((256..=256 + allowance).contains(&guesses), "{guesses}");
        // The networks of one site have one first attempt.
        let of_site = |network: u16| IpAddr::from([0x2001, 0xdb8, 1, network, 0, 0, 0, 1]);
        assert_eq!((0..1_000).filter(|network| guess(of_site(*network), now)).count(), 1);
        // The person has the first attempt of a new network, and those of the browser that has signed in before.
        assert!(guess([192, 0, 2, 1].into(), now));
        let browser = Source::KnownBrowser("b".to_owned());
        assert!((0..PASSWORD_ATTEMPTS).all(|_| limits.count_password("a", &browser).is_ok()));
        assert!(limits.count_password("a", &browser).is_err(), "a stolen browser guesses no more than others");
    }

    #[test]
    fn codes_are_limited_by_network_and_by_wider_network() {
        let limits = limits();
        let address = |network: u16| IpAddr::from([0x2001, 0xdb8, 0, network, 0, 0, 0, 1]);
        let count = |network| (0..10).filter(|_| limits.count_guess(address(network)).is_ok()).count();
        assert_eq!(count(1), 3);
        // The 256 networks in one wider network have twelve attempts together. Network 1 has used three of them.
        assert_eq!((2..200).map(count).sum::<usize>(), 9);
        assert_eq!(count(0x100), 3, "another wider network");
        limits.take_back_guess(address(1));
        limits.count_guess(address(1)).unwrap();
    }

    #[test]
    fn an_ipv6_network_counts_as_one_address() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:2"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1"));
    }
}
