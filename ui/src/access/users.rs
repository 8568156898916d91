//! Users: their e-mail addresses, passwords and tokens, and whether they may run the platform.
//!
//! Each user has two rows in the bucket CREDENTIALS: `login.<hash of the e-mail address>` holds the account's id, and
//! `account.<account>` holds the user. Passwords and tokens are stored as hashes.

use gpubnb_events::{AccountId, CommandId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{
    Scope,
    kv_cache::KvCache,
    secret::{Passwords, digest, new_secret},
};
use crate::error::Problem;

/// Characters that a password may have.
const PASSWORD: std::ops::RangeInclusive<usize> = 10..=200;
/// Most tokens of one user.
const MOST_TOKENS: usize = 50;
/// Every token begins like this, so that a scanner for secrets recognises one that was published by mistake.
const TOKEN_PREFIX: &str = "gpubnb_";
/// The row is written to note the use of a token no more often than this.
const NOTE_USE_EVERY_MS: u64 = 60_000;

/// A user, as stored.
#[derive(Clone, Serialize, Deserialize)]
struct User {
    email: String,
    password: String,
    created_at: Timestamp,
    #[serde(default)]
    operator: bool,
    #[serde(default)]
    tokens: Vec<Token>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Token {
    #[serde(flatten)]
    info: TokenInfo,
    digest: String,
}

/// A token without its secret.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct TokenInfo {
    /// The id by which it is revoked.
    #[schema(value_type = String, format = Uuid)]
    pub(crate) id: CommandId,
    /// Its purpose, in the owner's words.
    pub(crate) label: String,
    /// The rights of the token.
    #[schema(value_type = Vec<String>)]
    pub(crate) scopes: Vec<Scope>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created_at: Timestamp,
    /// When it expires.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) expires_at: Timestamp,
    /// When it was used last, to the minute.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(default)]
    pub(crate) last_used: Option<Timestamp>,
}

/// A token to be made.
pub(crate) struct NewToken {
    pub(crate) label: String,
    pub(crate) scopes: Vec<Scope>,
    pub(crate) expires_at: Timestamp,
}

/// A request to sign up.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignUp {
    /// E-mail address, which is also the name to sign in with.
    pub(crate) email: String,
    /// From 10 to 200 characters.
    pub(crate) password: String,
}

/// The user to whom a token belongs, and the token's rights.
pub(super) struct TokenUser {
    pub(super) account: AccountId,
    pub(super) operator: bool,
    pub(super) scopes: Vec<Scope>,
}

/// The users, in their bucket.
#[derive(Clone)]
pub(crate) struct Users {
    rows: KvCache,
    passwords: Passwords,
}

fn account_key(account: AccountId) -> String {
    format!("account.{account}")
}

/// The key of an e-mail address, the same for every spelling of it: `A@b.example` and ` a@b.example`.
pub(crate) fn login_of(email: &str) -> String {
    digest(&email.trim().to_lowercase())
}

fn login_key(email: &str) -> String {
    format!("login.{}", login_of(email))
}

fn check_email(email: &str) -> Result<(), Problem> {
    let has_parts = email.split_once('@').is_some_and(|(name, host)| {
        !name.is_empty() && host.contains('.') && !host.starts_with('.') && !host.ends_with('.')
    });
    let plain = !email.chars().any(|c| c.is_whitespace() || c.is_control());
    if has_parts && plain && email.len() <= 254 {
        return Ok(());
    }
    Err(Problem::invalid("email", "This is no e-mail address."))
}

fn check_password(password: &str) -> Result<(), Problem> {
    if PASSWORD.contains(&password.chars().count()) {
        return Ok(());
    }
    Err(Problem::invalid(
        "password",
        "A password has from 10 to 200 characters. A long phrase is better than a short puzzle.",
    ))
}

impl Users {
    pub(crate) fn new(bucket: async_nats::jetstream::kv::Store) -> Self {
        Self { rows: KvCache::new(bucket), passwords: Passwords::new() }
    }

    /// Follows what other replicas change, until shutdown.
    pub(crate) async fn listen(self, shutdown: CancellationToken) {
        self.rows.listen(shutdown).await;
    }

    /// Creates a user. `None` if the address is taken: nobody may learn that from the answer, so it takes as long.
    pub(crate) async fn sign_up(&self, new: &SignUp, now: Timestamp) -> Result<Option<AccountId>, Problem> {
        let email = new.email.trim();
        check_email(email)?;
        check_password(&new.password)?;
        let account = AccountId::generate();
        let password = self.passwords.hash(new.password.clone()).await?;
        let user = User { email: email.to_owned(), password, created_at: now, operator: false, tokens: Vec::new() };
        // The user's row comes first. If the process stopped after the other one, the address would be taken for ever
        // by an account that does not exist.
        self.rows.create(&account_key(account), &user).await?;
        Ok(self.rows.create(&login_key(email), &account).await?.then_some(account))
    }

    /// The account with this address and password.
    pub(crate) async fn sign_in(&self, email: &str, password: &str) -> Result<AccountId, Problem> {
        let account: Option<AccountId> = self.rows.get(&login_key(email)).await?;
        let user = match account {
            Some(account) => self.user(account).await?,
            None => None,
        };
        // A text longer than any password is cut, so that its hash costs no more than a password's.
        let short: String = password.chars().take(*PASSWORD.end() + 1).collect();
        let fits = self.passwords.verify(short, user.map(|u| u.password)).await?;
        account.filter(|_| fits).ok_or_else(Problem::bad_credentials)
    }

    async fn user(&self, account: AccountId) -> Result<Option<User>, Problem> {
        self.rows.get(&account_key(account)).await
    }

    async fn change<R>(
        &self,
        account: AccountId,
        mut change: impl FnMut(&mut User) -> Result<R, Problem>,
    ) -> Result<R, Problem> {
        let gone = || Problem::not_found("account");
        self.rows.change(&account_key(account), |user| change(user.as_mut().ok_or_else(gone)?)).await
    }

    /// The e-mail address of an account.
    pub(crate) async fn email(&self, account: AccountId) -> Result<String, Problem> {
        Ok(self.user(account).await?.map(|u| u.email).unwrap_or_default())
    }

    /// True if an account may run the platform.
    pub(super) async fn is_operator(&self, account: AccountId) -> Result<bool, Problem> {
        Ok(self.user(account).await?.is_some_and(|u| u.operator))
    }

    /// Lets an account run the platform.
    pub(crate) async fn make_operator(&self, account: AccountId) -> Result<(), Problem> {
        self.change(account, |user| {
            user.operator = true;
            Ok(())
        })
        .await
    }

    /// Replaces the password of a user who knows the present one. All the user's tokens end.
    pub(crate) async fn change_password(&self, account: AccountId, old: &str, new: &str) -> Result<(), Problem> {
        check_password(new)?;
        let user = self.user(account).await?.ok_or_else(|| Problem::not_found("account"))?;
        if !self.passwords.verify(old.to_owned(), Some(user.password)).await? {
            return Err(Problem::invalid("old", "This is not your present password."));
        }
        let password = self.passwords.hash(new.to_owned()).await?;
        self.change(account, |user| {
            user.password.clone_from(&password);
            // Somebody who got hold of the session may have made a token for later.
            user.tokens.clear();
            Ok(())
        })
        .await
    }

    /// Creates a token. It is shown to its owner once and stored as a hash.
    pub(crate) async fn create_token(
        &self,
        account: AccountId,
        new: &NewToken,
        now: Timestamp,
    ) -> Result<(TokenInfo, String), Problem> {
        let label = new.label.trim();
        if label.is_empty() || label.chars().count() > 80 || label.chars().any(char::is_control) {
            return Err(Problem::invalid("label", "Enter a name of up to 80 characters for the token."));
        }
        if new.scopes.is_empty() {
            return Err(Problem::invalid("scopes", "Choose at least one permission."));
        }
        let info = TokenInfo {
            id: CommandId::generate(),
            label: label.to_owned(),
            scopes: new.scopes.clone(),
            created_at: now,
            expires_at: new.expires_at,
            last_used: None,
        };
        let secret = new_secret();
        let token = Token { info: info.clone(), digest: digest(&secret) };
        self.change(account, |user| {
            user.tokens.retain(|t| t.info.expires_at > now);
            if user.tokens.len() >= MOST_TOKENS {
                return Err(Problem::invalid("label", "You have 50 tokens: revoke one that is not used."));
            }
            if new.scopes.contains(&Scope::Ops) && !user.operator {
                return Err(Problem::invalid("scopes", "Only operators can have the scope `ops`."));
            }
            user.tokens.push(token.clone());
            Ok(())
        })
        .await?;
        Ok((info, format!("{TOKEN_PREFIX}{account}_{secret}")))
    }

    /// The tokens of an account that have not expired, newest first.
    pub(crate) async fn tokens(&self, account: AccountId, now: Timestamp) -> Result<Vec<TokenInfo>, Problem> {
        let tokens = self.user(account).await?.map(|u| u.tokens).unwrap_or_default();
        Ok(tokens.into_iter().rev().map(|t| t.info).filter(|t| t.expires_at > now).collect())
    }

    /// Ends a token.
    pub(crate) async fn revoke_token(&self, account: AccountId, id: CommandId) -> Result<(), Problem> {
        self.change(account, |user| {
            let before = user.tokens.len();
            user.tokens.retain(|t| t.info.id != id);
            if user.tokens.len() < before { Ok(()) } else { Err(Problem::not_found("token")) }
        })
        .await
    }

    /// The user to whom a token belongs; `None` if the token is unknown or has expired.
    pub(super) async fn by_token(&self, token: &str, now: Timestamp) -> Result<Option<TokenUser>, Problem> {
        let parts = token.strip_prefix(TOKEN_PREFIX).and_then(|rest| rest.split_once('_'));
        let Some((account, secret)) = parts else { return Ok(None) };
        let Ok(account) = account.parse::<AccountId>() else { return Ok(None) };
        let Some(user) = self.user(account).await? else { return Ok(None) };
        let digest = digest(secret);
        let found = user.tokens.iter().find(|t| t.digest == digest && t.info.expires_at > now);
        let Some(found) = found else { return Ok(None) };
        if found.info.last_used.is_none_or(|last| now.since(last).0 > NOTE_USE_EVERY_MS) {
            self.note_use(account, found.info.id, now).await;
        }
        Ok(Some(TokenUser { account, operator: user.operator, scopes: found.info.scopes.clone() }))
    }

    async fn note_use(&self, account: AccountId, id: CommandId, now: Timestamp) {
        let noted = self.change(account, |user| {
            for token in user.tokens.iter_mut().filter(|t| t.info.id == id) {
                token.info.last_used = Some(now);
            }
            Ok(())
        });
        // The request goes on: when the token was last used is information for its owner, and nothing depends on it.
        if let Err(problem) = noted.await {
            tracing::debug!(detail = problem.detail, "the use of a token was not noted");
        }
    }

    /// Creates the secret of a link that makes the first user who accepts it an operator. It is stored as a hash.
    pub(crate) async fn invite_operator(&self, expires_at: Timestamp) -> Result<String, Problem> {
        let secret = new_secret();
        self.rows.create(&format!("invite.{}", digest(&secret)), &Invite { expires_at, used: false }).await?;
        Ok(secret)
    }

    /// True at the very first call in the life of a market. At its first start, the market prints a link for an
    /// operator.
    pub(crate) async fn first_run(&self) -> Result<bool, Problem> {
        self.rows.create("first-run", &true).await
    }

    /// Uses an invitation. It can be used once.
    pub(crate) async fn accept_invite(&self, secret: &str, now: Timestamp) -> Result<(), Problem> {
        let bad = || Problem::new(axum::http::StatusCode::FORBIDDEN, "BadInvite", "This link has run out or was used.");
        self.rows
            .change(&format!("invite.{}", digest(secret)), |invite: &mut Option<Invite>| match invite {
                Some(invite) if !invite.used && now <= invite.expires_at => {
                    invite.used = true;
                    Ok(())
                }
                _ => Err(bad()),
            })
            .await
    }
}

#[derive(Serialize, Deserialize)]
struct Invite {
    expires_at: Timestamp,
    used: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_passwords_have_a_shape() {
        for good in ["a@b.example", "first.last+tag@host.example"] {
            assert!(check_email(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "a@", "@b.example", "a@b", "a b@c.example", "a@.example", "a\n@b.example"] {
            assert!(check_email(bad).is_err(), "{bad:?}");
        }
        assert!(check_password("too short").is_err());
        assert!(check_password("long enough").is_ok());
        assert_eq!(login_of(" A@B.example "), login_of("a@b.example"));
    }
}
