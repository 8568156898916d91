//! Sessions of signed-in browsers. Each account has one row in the bucket SESSIONS, with its sessions. The cookie holds
//! the account and a secret, the row holds only the secret's hash, so nobody can sign in with what the bucket contains.

use axum::http::{HeaderMap, header};
use gpubnb_events::{AccountId, CommandId, Timestamp};
use gpubnb_log::stream::SESSION_LIFE;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    kv_cache::KvCache,
    secret::{digest, new_secret},
};
use crate::error::Problem;

/// The name of the cookie. Because of the prefix `__Host-`, browsers send it only to this very host, and accept it only
/// over TLS or from their own machine.
pub(crate) const SESSION_COOKIE: &str = "__Host-session";
/// Most sessions of one account. When one more begins, the oldest ends.
const MOST: usize = 20;
/// The row is written to note the use of a session no more often than this.
const NOTE_USE_EVERY_MS: u64 = 300_000;

#[derive(Clone, Serialize, Deserialize)]
struct Session {
    #[serde(flatten)]
    info: SessionInfo,
    digest: String,
}

impl Session {
    fn new(browser: &str, secret: &str, now: Timestamp) -> Self {
        let browser = browser.chars().filter(|c| !c.is_control()).take(80).collect();
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
    /// The beginning of the browser's `User-Agent`.
    pub(crate) browser: String,
}

/// The session to which a cookie belongs.
#[derive(Debug, Clone, Copy)]
pub(super) struct OpenSession {
    pub(super) account: AccountId,
    pub(super) id: CommandId,
    /// The token that forms of this session carry.
    pub(super) csrf: [u8; 16],
}

/// The sessions, in their bucket.
#[derive(Clone)]
pub(crate) struct Sessions(KvCache);

/// Reads a cookie.
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

/// The token against cross-site requests. It is derived from the session's secret, which no other site knows, and the
/// secret cannot be computed from it.
fn csrf(secret: &str) -> [u8; 16] {
    let hash = Sha256::digest(format!("csrf.{secret}").as_bytes());
    let mut token = [0; 16];
    token.copy_from_slice(&hash[..16]);
    token
}

impl Sessions {
    pub(crate) fn new(bucket: async_nats::jetstream::kv::Store) -> Self {
        Self(KvCache::new(bucket))
    }

    /// Follows what other replicas change, until shutdown.
    pub(crate) async fn listen(self, shutdown: CancellationToken) {
        self.0.listen(shutdown).await;
    }

    /// Begins a session with a new secret. Returns the value of the `Set-Cookie` header.
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

    /// The session to which a cookie belongs, if it has one that is live.
    pub(super) async fn open(&self, cookie: &str, now: Timestamp) -> Result<Option<OpenSession>, Problem> {
        let Some((account, secret)) = account_and_secret(cookie) else { return Ok(None) };
        let sessions: Option<Vec<Session>> = self.0.get(&account.to_string()).await?;
        let Some(found) = find(sessions.unwrap_or_default(), secret, now) else { return Ok(None) };
        if now.since(found.last_seen).0 > NOTE_USE_EVERY_MS {
            self.note_use(account, found.id, now).await;
        }
        Ok(Some(OpenSession { account, id: found.id, csrf: csrf(secret) }))
    }

    async fn note_use(&self, account: AccountId, id: CommandId, now: Timestamp) {
        let key = account.to_string();
        let noted = self.0.change(&key, |sessions: &mut Option<Vec<Session>>| {
            for session in sessions.iter_mut().flatten().filter(|s| s.info.id == id) {
                session.info.last_seen = now;
            }
            Ok(())
        });
        // The request goes on: when the session was last used is information for its owner, and nothing depends on it.
        if let Err(problem) = noted.await {
            tracing::debug!(detail = problem.detail, "the use of a session was not noted");
        }
    }

    /// The sessions of an account, newest first.
    pub(crate) async fn of(&self, account: AccountId, now: Timestamp) -> Result<Vec<SessionInfo>, Problem> {
        let sessions: Option<Vec<Session>> = self.0.get(&account.to_string()).await?;
        Ok(sessions.into_iter().flatten().rev().filter(|s| is_live(s, now)).map(|s| s.info).collect())
    }

    /// Ends the sessions of an account for which `ends` is true.
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

/// The two parts of the cookie's value.
fn account_and_secret(cookie: &str) -> Option<(AccountId, &str)> {
    let (account, secret) = cookie.split_once('.')?;
    Some((account.parse().ok()?, secret))
}

fn set_cookie(account: AccountId, secret: &str) -> String {
    let life = SESSION_LIFE.as_secs();
    format!("{SESSION_COOKIE}={account}.{secret}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={life}")
}

/// Adds a session to those of an account. Sessions that are over go, and so do the oldest if there are too many.
fn add(sessions: &mut Vec<Session>, session: Session, now: Timestamp) {
    sessions.retain(|s| is_live(s, now));
    let too_many = (sessions.len() + 1).saturating_sub(MOST);
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
    fn a_session_is_found_by_its_secret_until_its_life_is_over() {
        let sessions = vec![Session::new("one", "secret", NOW), Session::new("other", "another secret", NOW)];
        let found = |secret: &str, now| find(sessions.clone(), secret, now).map(|info| info.browser);
        assert_eq!(found("secret", later(life() - 1)).as_deref(), Some("one"));
        assert_eq!(found("secret", later(life())), None);
        assert_eq!(found("guess", NOW), None);
        // The bucket holds the hash. Somebody who reads it cannot use it as a secret.
        assert_eq!(found(&sessions[0].digest, NOW), None);
    }

    #[test]
    fn one_session_too_many_ends_the_oldest() {
        let mut sessions = Vec::new();
        for number in 0..=MOST {
            add(&mut sessions, Session::new(&number.to_string(), &number.to_string(), NOW), NOW);
        }
        assert_eq!(sessions.len(), MOST);
        assert!(find(sessions.clone(), "0", NOW).is_none());
        assert!(find(sessions.clone(), "1", NOW).is_some());
        add(&mut sessions, Session::new("new", "new", later(life())), later(life()));
        assert_eq!(sessions.len(), 1, "sessions whose life is over go first");
    }

    #[test]
    fn a_cookie_leads_back_to_its_account_and_secret() {
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
    fn the_token_of_forms_differs_from_session_to_session_and_from_the_stored_hash() {
        assert_eq!(csrf("a"), csrf("a"));
        assert_ne!(csrf("a"), csrf("b"));
        assert!(!digest("a").starts_with(&gpubnb_events::hex(csrf("a"))));
    }

    #[test]
    fn a_browsers_name_is_cut_and_has_no_control_characters() {
        let session = Session::new(&format!("A\u{1b}[31m{}", "x".repeat(200)), "secret", NOW);
        assert!(session.info.browser.starts_with("A[31mx"));
        assert_eq!(session.info.browser.chars().count(), 80);
    }
}
