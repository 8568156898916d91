//! Who may see the page: whoever opens the link that the worker gave out, once. The link leads to addresses that begin
//! with a second secret, the session. A cookie would not do, because a browser sends it to every port of this computer.

use std::{
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use subtle::ConstantTimeEq as _;
use tokio::time::Instant;
use uuid::Uuid;

use super::url;

/// A link that nobody has opened stops working after this time.
const LINK_LIFETIME: Duration = Duration::from_secs(120);

/// The access to one served page.
pub(super) struct Access {
    /// The address at which the page is served.
    pub(super) address: SocketAddr,
    /// The user of the operating system whose browsers may connect.
    pub(super) uid: u32,
    secrets: Mutex<Secrets>,
}

struct Secrets {
    /// The secret of the link that nobody has opened yet, and when it was given out.
    link: Option<(String, Instant)>,
    /// The secret with which the addresses of the open page begin.
    session: Option<String>,
    last_use: Instant,
}

impl Access {
    pub(super) fn new(address: SocketAddr, uid: u32) -> Self {
        Self { address, uid, secrets: Mutex::new(Secrets { link: None, session: None, last_use: Instant::now() }) }
    }

    fn secrets(&self) -> MutexGuard<'_, Secrets> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a new link, and ends the session of the former link.
    pub(super) fn new_link(&self) -> String {
        let secret = new_secret();
        let link = url(self.address, &format!("/open/{secret}"));
        *self.secrets() = Secrets { link: Some((secret, Instant::now())), session: None, last_use: Instant::now() };
        link
    }

    /// Uses up the link, and begins a session; `None` if this is not the secret of a link that still works.
    pub(super) fn redeem(&self, secret: &str) -> Option<String> {
        let mut secrets = self.secrets();
        let (_, given_out) = secrets.link.take_if(|(link, _)| is_same(link, secret))?;
        if given_out.elapsed() > LINK_LIFETIME {
            return None;
        }
        let session = new_secret();
        secrets.session = Some(session.clone());
        Some(session)
    }

    /// Returns true if this is the secret of the session, which is then in use.
    pub(super) fn is_session(&self, secret: &str) -> bool {
        let mut secrets = self.secrets();
        let is_session = secrets.session.as_ref().is_some_and(|session| is_same(session, secret));
        if is_session {
            secrets.last_use = Instant::now();
        }
        is_session
    }

    /// The time since the page was last used.
    pub(super) fn idle_for(&self) -> Duration {
        self.secrets().last_use.elapsed()
    }
}

/// A secret of 122 random bits from the operating system.
fn new_secret() -> String {
    Uuid::new_v4().simple().to_string()
}

fn is_same(one: &str, other: &str) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret_of(link: &str) -> &str {
        link.strip_prefix("http://127.0.0.1:1234/open/").unwrap()
    }

    #[test]
    fn a_link_works_once_and_a_new_link_ends_the_session_of_the_former() {
        let access = Access::new("127.0.0.1:1234".parse().unwrap(), 1_000);
        assert!(!access.is_session(""));
        let first = access.new_link();
        assert_eq!(access.redeem("00000000000000000000000000000000"), None);
        let session = access.redeem(secret_of(&first)).unwrap();
        assert!(access.is_session(&session));
        assert_eq!(access.redeem(secret_of(&first)), None, "the link was used");
        let second = access.new_link();
        assert!(!access.is_session(&session), "the new link ends the session");
        assert_ne!(access.redeem(secret_of(&second)), Some(session));
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_nobody_opens_stops_working() {
        let access = Access::new("127.0.0.1:1234".parse().unwrap(), 1_000);
        let link = access.new_link();
        tokio::time::advance(LINK_LIFETIME + Duration::from_secs(1)).await;
        assert_eq!(access.redeem(secret_of(&link)), None);
    }
}
