//! Sessions of signed-in browsers. Each account has one row in the bucket SESSIONS, with all its sessions. The cookie
//! holds the account and a secret. The row holds only the hash of the secret, so a copy of the bucket is of no use for
//! signing in.

use axum::http::{HeaderMap, header};
use gpubnb_events::{AccountId, CommandId, Timestamp};
use gpubnb_log::stream::SESSION_LIFE;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    browser_name::browser_name,
    kv_cache::KvCache,
    secret::{digest, new_secret},
};
use crate::error::Problem;

/// The name of the cookie. Because of the prefix `__Host-`, browsers send the cookie only to this host, and accept it
/// only over TLS or from `localhost`.
pub(crate) const SESSION_COOKIE: &str = "__Host-session";
/// The maximum number of sessions of one account. A further session ends the oldest one.
const MAX_SESSIONS: usize = 20;
/// The minimum time between two writes of `last_seen`, in milliseconds.
const RECORD_USE_EVERY_MS: u64 = 300_000;

#[derive(Clone, Serialize, Deserialize)]
struct Session {
    #[serde(flatten)]
    info: SessionInfo,
    digest: String,
}

impl Session {
    fn new(browser: &str, secret: &str, now: Timestamp) -> Self {
        let browser = browser_name(browser);
        let info = SessionInfo { id: CommandId::generate(), created_at: now, last_seen: now, browser };
        Self { info, digest: digest(secret) }
    }
}

/// A session without its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SessionInfo {
    pub(crate) id: CommandId,
    pub(crate) created_at: Timestamp,
    pub(crate) last_seen: Timestamp,
    /// The browser in a few words. A session of an earlier version has the beginning of its `User-Agent`.
    pub(crate) browser: String,
}

/// The session that a cookie names.
#[derive(Debug, Clone, Copy)]
pub(super) struct CookieSession {
    pub(super) account: AccountId,
    pub(super) id: CommandId,
    /// The token that the forms of this session carry (see `gate.rs`).
    pub(super) csrf: [u8; 16],
}

/// All sessions, in the bucket SESSIONS.
#[derive(Clone)]
pub(crate) struct Sessions(KvCache);

/// The value of a cookie.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get_all(header::COOKIE).iter().filter_map(|h| h.to_str().ok()).flat_map(|h| h.split(';')).find_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        (key == name).then_some(value)
    })
}

/// The value of a `Set-Cookie` header that makes a browser forget its session.
pub(crate) fn clear_cookie() -> String {
    format!("{SESSION_COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0")
}

/// The CSRF token of a session. It is derived from the session's secret, and the secret cannot be computed from it.
fn csrf_token(secret: &str) -> [u8; 16] {
    let hash = Sha256::digest(format!("csrf.{secret}").as_bytes());
    let mut token = [0; 16];
    token.copy_from_slice(&hash[..16]);
    token
}

impl Sessions {
    pub(crate) fn new(bucket: async_nats::jetstream::kv::Store) -> Self {
        Self(KvCache::new(bucket))
    }

    /// Follows the changes that other replicas make, until shutdown.
    pub(crate) async fn listen(self, shutdown: CancellationToken) {
        self.0.listen(shutdown).await;
    }

    /// Begins a session. Returns the value of the `Set-Cookie` header.
    pub(crate) async fn begin(&self, account: AccountId, browser: &str, now: Timestamp) -> Result<String, Problem> {
        let secret = new_secret();
        let session = Session::new(browser, &secret, now);
        self.0
            .change(&account.to_string(), |sessions: &mut Option<Vec<Session>>| {
                add(sessions.get_or_insert_default(), session.clone(), now);
                Ok(())
            })
            .await?;
        Ok(set_cookie(account, &secret))
    }

    /// The session that a cookie names, if the session has not ended.
    pub(super) async fn by_cookie(&self, cookie: &str, now: Timestamp) -> Result<Option<CookieSession>, Problem> {
        let Some((account, secret)) = account_and_secret(cookie) else { return Ok(None) };
        let sessions: Option<Vec<Session>> = self.0.get(&account.to_string()).await?;
        let Some(found) = find(sessions.unwrap_or_default(), secret, now) else { return Ok(None) };
        if now.since(found.last_seen).0 > RECORD_USE_EVERY_MS {
            self.record_use(account, found.id, now).await;
        }
        Ok(Some(CookieSession { account, id: found.id, csrf: csrf_token(secret) }))
    }

    async fn record_use(&self, account: AccountId, id: CommandId, now: Timestamp) {
        let key = account.to_string();
        let recorded = self.0.change(&key, |sessions: &mut Option<Vec<Session>>| {
            for session in sessions.iter_mut().flatten().filter(|s| s.info.id == id) {
                session.info.last_seen = now;
            }
            Ok(())
        });
        // A failure does not stop the request: `last_seen` is only information for the user.
        if let Err(problem) = recorded.await {
            tracing::debug!(detail = problem.detail, "the last use of a session was not recorded");
        }
    }

    /// The live sessions of an account, newest first.
    pub(crate) async fn list(&self, account: AccountId, now: Timestamp) -> Result<Vec<SessionInfo>, Problem> {
        let sessions: Option<Vec<Session>> = self.0.get(&account.to_string()).await?;
        Ok(sessions.into_iter().flatten().rev().filter(|s| is_live(s, now)).map(|s| s.info).collect())
    }

    /// Ends all sessions of an account, and forgets them.
    pub(crate) async fn forget(&self, account: AccountId) -> Result<(), Problem> {
        self.0.remove(&account.to_string()).await
    }

    /// Ends the sessions of an account for which `ends` returns true.
    pub(crate) async fn end(&self, account: AccountId, ends: impl Fn(CommandId) -> bool) -> Result<(), Problem> {
        self.0
            .change(&account.to_string(), |sessions: &mut Option<Vec<Session>>| {
                if let Some(sessions) = sessions {
                    sessions.retain(|s| !ends(s.info.id));
                }
                Ok(())
            })
            .await
    }
}

/// Splits the cookie's value, `<account>.<secret>`.
fn account_and_secret(cookie: &str) -> Option<(AccountId, &str)> {
    let (account, secret) = cookie.split_once('.')?;
    Some((account.parse().ok()?, secret))
}

fn set_cookie(account: AccountId, secret: &str) -> String {
    let life = SESSION_LIFE.as_secs();
    format!("{SESSION_COOKIE}={account}.{secret}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={life}")
}

/// Adds a session to the sessions of an account. Removes expired sessions, and the oldest ones if there are too many.
fn add(sessions: &mut Vec<Session>, session: Session, now: Timestamp) {
    sessions.retain(|s| is_live(s, now));
    let too_many = (sessions.len() + 1).saturating_sub(MAX_SESSIONS);
    sessions.drain(..too_many);
    sessions.push(session);
}

/// The live session with this secret.
fn find(sessions: Vec<Session>, secret: &str, now: Timestamp) -> Option<SessionInfo> {
    let digest = digest(secret);
    sessions.into_iter().find(|s| s.digest == digest && is_live(s, now)).map(|s| s.info)
}

fn is_live(session: &Session, now: Timestamp) -> bool {
    now.since(session.info.created_at).0 < u64::try_from(SESSION_LIFE.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use gpubnb_events::Millis;

    const NOW: Timestamp = Timestamp::EPOCH;

    fn later(milliseconds: u64) -> Timestamp {
        NOW.plus(Millis(milliseconds))
    }

    fn life() -> u64 {
        u64::try_from(SESSION_LIFE.as_millis()).unwrap()
    }

    #[test]
    fn a_session_is_found_by_its_secret_until_it_expires() {
        let sessions = vec![Session::new("one", "secret", NOW), Session::new("other", "another secret", NOW)];
        let found = |secret: &str, now| find(sessions.clone(), secret, now).map(|info| info.browser);
        assert_eq!(found("secret", later(life() - 1)).as_deref(), Some("one"));
        assert_eq!(found("secret", later(life())), None);
        assert_eq!(found("guess", NOW), None);
        // The bucket holds the hash, which is not accepted as a secret.
        assert_eq!(found(&sessions[0].digest, NOW), None);
    }

    #[test]
    fn a_session_beyond_the_maximum_ends_the_oldest() {
        let mut sessions = Vec::new();
        for number in 0..=MAX_SESSIONS {
            add(&mut sessions, Session::new(&number.to_string(), &number.to_string(), NOW), NOW);
        }
        assert_eq!(sessions.len(), MAX_SESSIONS);
        assert!(find(sessions.clone(), "0", NOW).is_none());
        assert!(find(sessions.clone(), "1", NOW).is_some());
        add(&mut sessions, Session::new("new", "new", later(life())), later(life()));
        assert_eq!(sessions.len(), 1, "expired sessions are removed first");
    }

    #[test]
    fn a_cookie_yields_its_account_and_secret() {
        let account = AccountId::generate();
        let header = set_cookie(account, "abc");
        assert!(header.contains("; Secure; HttpOnly; SameSite=Lax;"), "{header}");
        let mut headers = HeaderMap::new();
        let sent = format!("theme=dark; {}", header.split(';').next().unwrap());
        headers.insert(header::COOKIE, HeaderValue::from_str(&sent).unwrap());
        assert_eq!(account_and_secret(cookie(&headers, SESSION_COOKIE).unwrap()), Some((account, "abc")));
        assert_eq!(cookie(&headers, "session"), None);
        for broken in ["", "abc", ".abc", "not-an-account.abc"] {
            assert_eq!(account_and_secret(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_csrf_token_differs_between_sessions_and_from_the_stored_hash() {
        assert_eq!(csrf_token("a"), csrf_token("a"));
        assert_ne!(csrf_token("a"), csrf_token("b"));
        assert!(!digest("a").starts_with(&gpubnb_events::hex(csrf_token("a"))));
    }

    #[test]
    fn a_session_names_its_browser() {
        let session = Session::new("A\u{1b}[31m browser", "secret", NOW);
        assert_eq!(session.info.browser, "A[31m");
    }
}
