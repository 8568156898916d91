//! Secret links that are sent by e-mail: to choose a new password, and to confirm an e-mail address.
//!
//! Each account has at most [`MAX_LINKS`] links of each kind, in the bucket CREDENTIALS, so that a stranger who asks
//! for another link does not end the first one. An address gets a bounded number of e-mails.

use gpubnb_events::{AccountId, Millis, Timestamp};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use super::{
    kv_cache::KvCache,
    secret::{digest, is_secret, new_secret},
    users::login_of,
};
use crate::error::Problem;

/// Most links of one kind that an account has.
const MAX_LINKS: usize = 3;
/// Most e-mails with links to one address in an hour, and in a day.
const MAX_MAILS: [(usize, Millis); 2] = [(3, Millis(3_600_000)), (6, Millis(24 * 3_600_000))];

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

    /// The time for which a link works.
    pub(crate) const fn life(self) -> Millis {
        match self {
            Self::Reset => Millis(3_600_000),
            Self::Confirm => Millis(24 * 3_600_000),
        }
    }
}

/// A link as stored in the bucket.
#[derive(Serialize, Deserialize)]
struct Link {
    /// The hash of the secret.
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

    /// Makes a link, and returns the secret part of its address. `None` if the e-mail address has got too many e-mails.
    pub(crate) async fn make(
        &self,
        kind: LinkKind,
        account: AccountId,
        email: &str,
        now: Timestamp,
    ) -> Result<Option<String>, Problem> {
        if !self.may_mail(email, now).await? {
            return Ok(None);
        }
        let (secret, key) = (new_secret(), key(kind, account));
        let change = |links: &mut Option<Vec<Link>>| {
            let links = links.get_or_insert_default();
            links.retain(|link| now.since(link.made_at) <= kind.life());
            if links.len() == MAX_LINKS {
                links.remove(0);
            }
            links.push(Link { digest: digest(&secret), made_at: now });
            Ok(())
        };
        self.rows.change(&key, change).await?;
        Ok(Some(format!("{account}.{secret}")))
    }

    /// Forgets the links of an account and the e-mails to its address.
    pub(crate) async fn forget(&self, account: AccountId, email: &str) -> Result<(), Problem> {
        for kind in [LinkKind::Reset, LinkKind::Confirm] {
            self.rows.remove(&key(kind, account)).await?;
        }
        self.rows.remove(&format!("mailed.{}", login_of(email))).await
    }

    /// True if one more e-mail may go to an address, which is then counted.
    pub(crate) async fn may_mail(&self, email: &str, now: Timestamp) -> Result<bool, Problem> {
        let key = format!("mailed.{}", login_of(email));
        let change = |times: &mut Option<Vec<Timestamp>>| Ok(count_mail(times.get_or_insert_default(), now));
        self.rows.change(&key, change).await
    }

    /// The account of a link that can be used now.
    pub(crate) async fn check(&self, kind: LinkKind, text: &str, now: Timestamp) -> Result<AccountId, Problem> {
        let (account, secret) = read(text)?;
        let links: Option<Vec<Link>> = self.rows.get(&key(kind, account)).await?;
        let is_known = links.is_some_and(|links| links.iter().any(|link| is_valid(link, kind, secret, now)));
        if is_known { Ok(account) } else { Err(ended()) }
    }

    /// Uses a link, which works once. The account's other links of this kind end, too.
    pub(crate) async fn take(&self, kind: LinkKind, text: &str, now: Timestamp) -> Result<AccountId, Problem> {
        let (account, secret) = read(text)?;
        let change = |links: &mut Option<Vec<Link>>| match links {
            Some(links) if links.iter().any(|link| is_valid(link, kind, secret, now)) => {
                links.clear();
                Ok(())
            }
            _ => Err(ended()),
        };
        self.rows.change(&key(kind, account), change).await?;
        Ok(account)
    }
}

/// Counts an e-mail, if the address may get one more.
fn count_mail(times: &mut Vec<Timestamp>, now: Timestamp) -> bool {
    let within = |times: &[Timestamp], span: Millis| times.iter().filter(|at| now.since(**at) < span).count();
    if MAX_MAILS.iter().any(|(most, span)| within(times, *span) >= *most) {
        return false;
    }
    times.retain(|at| MAX_MAILS.iter().any(|(_, span)| now.since(*at) < *span));
    times.push(now);
    true
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
    let detail = "This link has run out, was used, or was followed by others. Ask for another.";
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
    }

    #[test]
    fn an_address_gets_few_e_mails() {
        let mut times = Vec::new();
        let mut sent = |minute: i64| count_mail(&mut times, Timestamp::from_millis(minute * 60_000));
        assert_eq!([0, 1, 2, 3, 59].map(&mut sent), [true, true, true, false, false]);
        assert_eq!([61, 62, 63, 64].map(&mut sent), [true, true, true, false]);
        assert_eq!([130, 24 * 60 + 3].map(&mut sent), [false, true]);
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
