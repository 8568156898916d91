//! Signed-in browsers. A row for each account in the bucket SESSIONS; the cookie holds the account and a secret, the row
//! the secret's hash: whoever reads the bucket cannot sign in.

use axum::http::{HeaderMap, header};
use gpubnb_events::{AccountId, CommandId, Timestamp};
use gpubnb_log::stream::SESSION_LIFE;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    rows::Rows,
    secret::{digest, new_secret},
};
use crate::error::Problem;

/// The cookie of a session. Browsers send one with this prefix only to this very host, and take it only over TLS or
/// on their own machine.
pub(crate) const SESSION_COOKIE: &str = "__Host-session";
/// Most sessions of one account: the oldest ends when one more begins.
const MOST: usize = 20;
/// That a session was used is noted this seldom.
const NOTE_USE_EVERY_MS: u64 = 300_000;

#[derive(Clone, Serialize, Deserialize)]
struct Session {
    #[serde(flatten)]
    info: SessionInfo,
    digest: String,
}

/// A session, without what makes it one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SessionInfo {
    pub(crate) id: CommandId,
    pub(crate) created_at: Timestamp,
    pub(crate) last_seen: Timestamp,
    /// What the browser calls itself, cut short.
    pub(crate) browser: String,
}

/// A session that a cookie names.
#[derive(Clone, Copy)]
pub(super) struct Open {
    pub(super) account: AccountId,
    pub(super) id: CommandId,
    /// What forms of this session carry.
    pub(super) csrf: [u8; 16],
}

/// The bucket of sessions.
#[derive(Clone)]
pub(crate) struct Sessions(Rows);

/// Reads a cookie.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get_all(header::COOKIE).iter().filter_map(|h| h.to_str().ok()).flat_map(|h| h.split(';')).find_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        (key == name).then_some(value)
    })
}

/// A header that makes a browser forget its session.
pub(crate) fn clear_cookie() -> String {
    format!("{SESSION_COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0")
}

/// Made of the session's secret, which no other site knows; from it the secret cannot be found.
fn csrf(secret: &str) -> [u8; 16] {
    let hash = Sha256::digest(format!("csrf.{secret}").as_bytes());
    let mut token = [0; 16];
    token.copy_from_slice(&hash[..16]);
    token
}

impl Sessions {
    pub(crate) fn new(bucket: async_nats::jetstream::kv::Store) -> Self {
        Self(Rows::new(bucket))
    }

    /// Hears of what other replicas change, until shutdown.
    pub(crate) async fn listen(self, shutdown: CancellationToken) {
        self.0.listen(shutdown).await;
    }

    /// Begins a session, always with a secret of its own. Returns the header that sets its cookie.
    pub(crate) async fn begin(&self, account: AccountId, browser: &str, now: Timestamp) -> Result<String, Problem> {
        let secret = new_secret();
        let browser = browser.chars().filter(|c| !c.is_control()).take(80).collect();
        let info = SessionInfo { id: CommandId::generate(), created_at: now, last_seen: now, browser };
        let session = Session { info, digest: digest(&secret) };
        self.0
            .change(&account.to_string(), |sessions: &mut Option<Vec<Session>>| {
                let sessions = sessions.get_or_insert_default();
                sessions.retain(|s| is_live(s, now));
                let too_many = (sessions.len() + 1).saturating_sub(MOST);
                sessions.drain(..too_many);
                sessions.push(session.clone());
                Ok(())
            })
            .await?;
        let life = SESSION_LIFE.as_secs();
        Ok(format!("{SESSION_COOKIE}={account}.{secret}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={life}"))
    }

    /// The session that a cookie names, if there is one.
    pub(super) async fn open(&self, cookie: &str, now: Timestamp) -> Result<Option<Open>, Problem> {
        let Some((account, secret)) = cookie.split_once('.') else { return Ok(None) };
        let Ok(account) = account.parse::<AccountId>() else { return Ok(None) };
        let digest = digest(secret);
        let sessions: Option<Vec<Session>> = self.0.get(&account.to_string()).await?;
        let found = sessions.into_iter().flatten().find(|s| s.digest == digest && is_live(s, now));
        let Some(found) = found else { return Ok(None) };
        if now.since(found.info.last_seen).0 > NOTE_USE_EVERY_MS {
            self.note_use(account, found.info.id, now).await;
        }
        Ok(Some(Open { account, id: found.info.id, csrf: csrf(secret) }))
    }

    async fn note_use(&self, account: AccountId, id: CommandId, now: Timestamp) {
        let key = account.to_string();
        let noted = self.0.change(&key, |sessions: &mut Option<Vec<Session>>| {
            for session in sessions.iter_mut().flatten().filter(|s| s.info.id == id) {
                session.info.last_seen = now;
            }
            Ok(())
        });
        // A note that is missing harms nobody.
        if let Err(problem) = noted.await {
            tracing::debug!(detail = problem.detail, "the use of a session was not noted");
        }
    }

    /// The sessions of an account, newest first.
    pub(crate) async fn of(&self, account: AccountId, now: Timestamp) -> Result<Vec<SessionInfo>, Problem> {
        let sessions: Option<Vec<Session>> = self.0.get(&account.to_string()).await?;
        Ok(sessions.into_iter().flatten().rev().filter(|s| is_live(s, now)).map(|s| s.info).collect())
    }

    /// Ends those sessions of an account that are to end.
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

fn is_live(session: &Session, now: Timestamp) -> bool {
    now.since(session.info.created_at).0 < u64::try_from(SESSION_LIFE.as_millis()).unwrap_or(u64::MAX)
}
