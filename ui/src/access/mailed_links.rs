//! Secret links that are sent by e-mail: to choose a new password, and to confirm an e-mail address.
//!
//! Each account has at most one link of each kind, in the bucket CREDENTIALS. A newer link replaces the older one.

use gpubnb_events::{AccountId, Millis, Timestamp};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use super::{
    kv_cache::KvCache,
    secret::{digest, is_secret, new_secret},
};
use crate::error::Problem;

/// A person who asks again within this time gets no second e-mail.
const PAUSE: Millis = Millis(60_000);

/// The kind of a link.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LinkKind {
    /// Choose a new password.
    Reset,
    /// Confirm the e-mail address.
    Confirm,
}

impl LinkKind {
    const fn key(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Confirm => "confirm",
        }
    }

    const fn life(self) -> Millis {
        match self {
            Self::Reset => Millis(3_600_000),
            Self::Confirm => Millis(24 * 3_600_000),
        }
    }
}

/// A link as stored in the bucket.
#[derive(Serialize, Deserialize)]
struct Link {
    /// The hash of the secret; empty after the link was used.
    digest: String,
    made_at: Timestamp,
}

/// The links of all accounts.
#[derive(Clone)]
pub(crate) struct MailedLinks {
    rows: KvCache,
}

impl MailedLinks {
    pub(crate) fn new(rows: KvCache) -> Self {
        Self { rows }
    }

    /// Makes a link, and returns the secret part of its address. `None` if one was made a moment ago.
    pub(crate) async fn make(
        &self,
        kind: LinkKind,
        account: AccountId,
        now: Timestamp,
    ) -> Result<Option<String>, Problem> {
        let (secret, key) = (new_secret(), key(kind, account));
        let made = self.rows.change(&key, |link: &mut Option<Link>| {
            if link.as_ref().is_some_and(|link| now.since(link.made_at) < PAUSE) {
                return Ok(false);
            }
            *link = Some(Link { digest: digest(&secret), made_at: now });
            Ok(true)
        });
        Ok(made.await?.then(|| format!("{account}.{secret}")))
    }

    /// The account of a link that can be used now.
    pub(crate) async fn check(&self, kind: LinkKind, text: &str, now: Timestamp) -> Result<AccountId, Problem> {
        let (account, secret) = read(text)?;
        let link: Option<Link> = self.rows.get(&key(kind, account)).await?;
        link.filter(|link| is_valid(link, kind, secret, now)).map(|_| account).ok_or_else(ended)
    }

    /// Uses a link, which works once.
    pub(crate) async fn take(&self, kind: LinkKind, text: &str, now: Timestamp) -> Result<AccountId, Problem> {
        let (account, secret) = read(text)?;
        self.rows
            .change(&key(kind, account), |link: &mut Option<Link>| match link {
                Some(link) if is_valid(link, kind, secret, now) => {
                    link.digest.clear();
                    Ok(())
                }
                _ => Err(ended()),
            })
            .await?;
        Ok(account)
    }
}

fn key(kind: LinkKind, account: AccountId) -> String {
    format!("{}.{account}", kind.key())
}

fn read(text: &str) -> Result<(AccountId, &str), Problem> {
    let parts = text.split_once('.').filter(|(_, secret)| is_secret(secret));
    parts.and_then(|(account, secret)| Some((account.parse().ok()?, secret))).ok_or_else(ended)
}

fn is_valid(link: &Link, kind: LinkKind, secret: &str, now: Timestamp) -> bool {
    let is_same = link.digest.as_bytes().ct_eq(digest(secret).as_bytes());
    bool::from(is_same) && now.since(link.made_at) <= kind.life()
}

fn ended() -> Problem {
    let detail = "This link has run out, was used, or was replaced by a newer one. Ask for another.";
    Problem::new(axum::http::StatusCode::NOT_FOUND, "BadLink", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_valid_for_its_time_and_its_secret_only() {
        let (secret, made_at) = (new_secret(), Timestamp::from_millis(0));
        let link = Link { digest: digest(&secret), made_at };
        let at = |minutes: i64| Timestamp::from_millis(minutes * 60_000);
        assert!(is_valid(&link, LinkKind::Reset, &secret, at(60)));
        assert!(!is_valid(&link, LinkKind::Reset, &secret, at(61)));
        assert!(is_valid(&link, LinkKind::Confirm, &secret, at(61)));
        assert!(!is_valid(&link, LinkKind::Reset, &new_secret(), at(1)));
        let used = Link { digest: String::new(), made_at };
        assert!(!is_valid(&used, LinkKind::Reset, "", at(1)));
    }

    #[test]
    fn a_text_that_is_no_link_is_refused() {
        let (account, secret) = (AccountId::generate(), new_secret());
        assert!(read(&format!("{account}.{secret}")).is_ok());
        for bad in ["", ".", &secret, &format!("{account}."), &format!("x.{secret}"), &format!("{account}.a.b")] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
