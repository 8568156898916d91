//! The last sign-ins of each account: when, with which program and from which network. A person can see here that
//! somebody else knows the password.
//!
//! Only sign-ins that succeeded are kept. If wrong passwords were kept, a stranger could push the others off the list.

use gpubnb_events::{AccountId, Timestamp};
use serde::{Deserialize, Serialize};

use super::{browser_name::browser_name, kv_cache::KvCache, network_of, peer::Client};
use crate::error::Problem;

/// The number of sign-ins that are kept.
const KEPT: usize = 10;

/// One sign-in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SignIn {
    pub(crate) at: Timestamp,
    /// The browser or program, in a few words.
    pub(crate) browser: String,
    /// The IPv4 address, or the first address of the IPv6 network of 64 bits.
    pub(crate) network: String,
    /// The proof of the person's identity.
    pub(crate) proof: SignInProof,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SignInProof {
    Password,
    Passkey,
}

impl SignInProof {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Passkey => "passkey",
        }
    }
}

/// The sign-ins, in the bucket CREDENTIALS: `sign-ins.<account>`.
#[derive(Clone)]
pub(crate) struct SignIns(KvCache);

fn row_key(account: AccountId) -> String {
    format!("sign-ins.{account}")
}

impl SignIns {
    pub(super) fn new(rows: KvCache) -> Self {
        Self(rows)
    }

    /// Keeps a sign-in. A failure stops no sign-in: the list is only information for the user.
    pub(crate) async fn record(&self, account: AccountId, client: &Client, proof: SignInProof, now: Timestamp) {
        let (browser, network) = (browser_name(&client.name), network_of(client.address).to_string());
        let sign_in = SignIn { at: now, browser, network, proof };
        let key = row_key(account);
        let recorded = self.0.change(&key, |kept: &mut Option<Vec<SignIn>>| {
            add(kept.get_or_insert_default(), sign_in.clone());
            Ok(())
        });
        if let Err(problem) = recorded.await {
            tracing::debug!(detail = problem.detail, "a sign-in was not recorded");
        }
    }

    /// The last sign-ins of an account, newest first.
    pub(crate) async fn list(&self, account: AccountId) -> Result<Vec<SignIn>, Problem> {
        let kept: Option<Vec<SignIn>> = self.0.get(&row_key(account)).await?;
        Ok(kept.into_iter().flatten().rev().collect())
    }

    /// Forgets the sign-ins of an account.
    pub(crate) async fn forget(&self, account: AccountId) -> Result<(), Problem> {
        self.0.remove(&row_key(account)).await
    }
}

fn add(kept: &mut Vec<SignIn>, sign_in: SignIn) {
    kept.push(sign_in);
    kept.drain(..kept.len().saturating_sub(KEPT));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_sign_ins_are_kept() {
        let mut kept = Vec::new();
        for number in 0..i64::try_from(KEPT).unwrap() + 3 {
            let at = Timestamp::from_millis(number);
            let (browser, network) = ("x".to_owned(), "192.0.2.0/24".to_owned());
            add(&mut kept, SignIn { at, browser, network, proof: SignInProof::Password });
        }
        assert_eq!(kept.len(), KEPT);
        assert_eq!(kept[0].at, Timestamp::from_millis(3));
    }
}
