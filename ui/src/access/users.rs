//! Users: their e-mail addresses, passwords, tokens and operator rights.
//!
//! Each user has two rows in the bucket CREDENTIALS: `login.<hash of the e-mail address>` holds the account's id, and
//! `account.<account>` holds the user. (`reset.…`, `confirm.…` and `mailed.…`: `mailed_links.rs`; `sign-ins.…`:
//! `sign_ins.rs`; `passkeys.…`: `passkeys.rs`.) Passwords and tokens are stored as hashes.

use gpubnb_events::{AccountId, CommandId, Timestamp};
use gpubnb_runtime::permit::PermitKey;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{
    Scope,
    kv_cache::KvCache,
    mailed_links::MailedLinks,
    passkeys::Passkeys,
    secret::{Passwords, digest, new_secret},
    sign_ins::SignIns,
};
use crate::error::Problem;

/// The allowed number of characters in a password.
const PASSWORD_CHARACTERS: std::ops::RangeInclusive<usize> = 10..=200;
/// The maximum number of tokens of one user.
const MAX_TOKENS: usize = 50;
/// The beginning of every token. Secret scanners recognise a published token by this prefix.
const TOKEN_PREFIX: &str = "gpubnb_";
/// The minimum time between two writes of a token's `last_used`, in milliseconds.
const RECORD_USE_EVERY_MS: u64 = 60_000;

/// A user, as stored in the bucket.
#[derive(Clone, Serialize, Deserialize)]
struct User {
    email: String,
    /// The argon2id hash.
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
    /// Id of the token, by which the token is revoked.
    #[schema(value_type = String, format = Uuid)]
    pub(crate) id: CommandId,
    /// Purpose of the token, in the owner's words.
    pub(crate) label: String,
    /// The rights of the token.
    #[schema(value_type = Vec<String>)]
    pub(crate) scopes: Vec<Scope>,
    /// When the token was created.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created_at: Timestamp,
    /// When the token expires.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) expires_at: Timestamp,
    /// When the token was last used. Uses within a minute of each other are not recorded.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(default)]
    pub(crate) last_used: Option<Timestamp>,
}

/// A token that is to be created.
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
    pub(super) is_operator: bool,
    pub(super) scopes: Vec<Scope>,
}

/// All users, in the bucket CREDENTIALS.
#[derive(Clone)]
pub(crate) struct Users {
    rows: KvCache,
    passwords: Passwords,
}

fn account_key(account: AccountId) -> String {
    format!("account.{account}")
}

/// The hash of an e-mail address. Capital letters and outer spaces make no difference: `A@b.example` and ` a@b.example`
/// have the same hash.
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
    let has_plain_characters = !email.chars().any(|c| c.is_whitespace() || c.is_control());
    if has_parts && has_plain_characters && email.len() <= 254 {
        return Ok(());
    }
    Err(Problem::invalid("email", "This is not an e-mail address."))
}

/// The name that a person gave a token or a passkey, without outer spaces. `advice` is the text of the refusal.
pub(super) fn check_label<'a>(label: &'a str, advice: &str) -> Result<&'a str, Problem> {
    let label = label.trim();
    if label.is_empty() || label.chars().count() > 80 || label.chars().any(char::is_control) {
        return Err(Problem::invalid("label", advice));
    }
    Ok(label)
}

/// Checks a password before it is set.
pub(crate) fn check_password(password: &str) -> Result<(), Problem> {
    if PASSWORD_CHARACTERS.contains(&password.chars().count()) {
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

    /// The links that are sent by e-mail, which are in the same bucket.
    pub(crate) fn links(&self) -> MailedLinks {
        MailedLinks::new(self.rows.clone())
    }

    /// The passkeys of each user, which are in the same bucket.
    pub(crate) fn passkeys(&self, permit_key: PermitKey, url: Option<&url::Url>) -> anyhow::Result<Passkeys> {
        Passkeys::new(self.rows.clone(), permit_key, url)
    }

    /// The last sign-ins of each user, which are in the same bucket.
    pub(crate) fn sign_ins(&self) -> SignIns {
        SignIns::new(self.rows.clone())
    }

    /// The account with this e-mail address; `None` if there is none.
    pub(crate) async fn account_of(&self, email: &str) -> Result<Option<AccountId>, Problem> {
        self.rows.get(&login_key(email)).await
    }

    /// Follows the changes that other replicas make, until shutdown.
    pub(crate) async fn listen(self, shutdown: CancellationToken) {
        self.rows.listen(shutdown).await;
    }

    /// Creates a user. `None` if the e-mail address is taken. Both answers take the same time, so that nobody can find
    /// out from the duration whether an address has an account.
    pub(crate) async fn sign_up(&self, new: &SignUp, now: Timestamp) -> Result<Option<AccountId>, Problem> {
        let email = new.email.trim();
        check_email(email)?;
        check_password(&new.password)?;
        let account = AccountId::generate();
        let password = self.passwords.hash(new.password.clone()).await?;
        let user = User { email: email.to_owned(), password, created_at: now, operator: false, tokens: Vec::new() };
        // The account's row is written before the login row. In the other order, a crash between the two writes would
        // block the address for ever.
        self.rows.create(&account_key(account), &user).await?;
        if self.rows.create(&login_key(email), &account).await? {
            return Ok(Some(account));
        }
        // In the background, so that the answer takes no longer.
        let rows = self.rows.clone();
        tokio::spawn(async move {
            if let Err(problem) = rows.remove(&account_key(account)).await {
                tracing::warn!(%account, problem = problem.detail, "the row of an account that was not opened stays");
            }
        });
        Ok(None)
    }

    /// The account with this e-mail address and password. A wrong address or password is an error.
    pub(crate) async fn sign_in(&self, email: &str, password: &str) -> Result<AccountId, Problem> {
        let account: Option<AccountId> = self.rows.get(&login_key(email)).await?;
        let user = match account {
            Some(account) => self.user(account).await?,
            None => None,
        };
        // A longer text cannot be a password. It is cut, so that its hash costs no more than the hash of a password.
        let short: String = password.chars().take(*PASSWORD_CHARACTERS.end() + 1).collect();
        let is_correct = self.passwords.verify(short, user.map(|u| u.password)).await?;
        account.filter(|_| is_correct).ok_or_else(Problem::bad_credentials)
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

    /// The e-mail address of an account; empty if there is no such user.
    pub(crate) async fn email(&self, account: AccountId) -> Result<String, Problem> {
        Ok(self.user(account).await?.map(|u| u.email).unwrap_or_default())
    }

    /// True if the user is an operator, who may run the platform.
    pub(crate) async fn is_operator(&self, account: AccountId) -> Result<bool, Problem> {
        Ok(self.user(account).await?.is_some_and(|u| u.operator))
    }

    /// Makes a user an operator.
    pub(crate) async fn make_operator(&self, account: AccountId) -> Result<(), Problem> {
        self.change(account, |user| {
            user.operator = true;
            Ok(())
        })
        .await
    }

    /// Takes the operator right from a user, and revokes the user's tokens for operators.
    pub(crate) async fn remove_operator(&self, account: AccountId) -> Result<(), Problem> {
        self.change(account, |user| {
            user.operator = false;
            user.tokens.retain(|token| !token.info.scopes.contains(&Scope::Ops));
            Ok(())
        })
        .await
    }

    /// Replaces the password, if `old` is the current password. Revokes all tokens of the user.
    pub(crate) async fn change_password(&self, account: AccountId, old: &str, new: &str) -> Result<(), Problem> {
        check_password(new)?;
        self.verify_password(account, old).await?;
        self.set_password(account, new).await
    }

    /// Fails if this is not the password of a user who is signed in.
    pub(crate) async fn verify_password(&self, account: AccountId, password: &str) -> Result<(), Problem> {
        let user = self.user(account).await?.ok_or_else(|| Problem::not_found("account"))?;
        let short: String = password.chars().take(*PASSWORD_CHARACTERS.end() + 1).collect();
        if self.passwords.verify(short, Some(user.password)).await? {
            return Ok(());
        }
        Err(Problem::invalid("old", "This is not your current password."))
    }

    /// True if the account has a user. A closed account has none.
    pub(crate) async fn exists(&self, account: AccountId) -> Result<bool, Problem> {
        Ok(self.user(account).await?.is_some())
    }

    /// Removes everything that is stored of a user. The address is free for a new account then.
    pub(crate) async fn remove(&self, account: AccountId) -> Result<(), Problem> {
        self.sign_ins().forget(account).await?;
        // The account's row goes last: it has the password with which a failed removal is repeated.
        if let Some(user) = self.user(account).await? {
            self.links().forget(account, &user.email).await?;
            let login = login_key(&user.email);
            // After a removal that failed in the middle, the address may lead to a new account.
            if self.rows.get::<AccountId>(&login).await? == Some(account) {
                self.rows.remove(&login).await?;
            }
        }
        self.rows.remove(&account_key(account)).await
    }

    /// Replaces the password, and revokes all tokens of the user.
    pub(crate) async fn set_password(&self, account: AccountId, new: &str) -> Result<(), Problem> {
        check_password(new)?;
        let password = self.passwords.hash(new.to_owned()).await?;
        self.change(account, |user| {
            user.password.clone_from(&password);
            // An attacker who took over the account may have created tokens.
            user.tokens.clear();
            Ok(())
        })
        .await
    }

    /// Creates a token. The token is stored as a hash, so it can be shown only now.
    pub(crate) async fn create_token(
        &self,
        account: AccountId,
        new: &NewToken,
        now: Timestamp,
    ) -> Result<(TokenInfo, String), Problem> {
        let label = check_label(&new.label, "Enter a name of up to 80 characters for the token.")?;
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
            if user.tokens.len() >= MAX_TOKENS {
                return Err(Problem::invalid("label", "You have 50 tokens: revoke one that you do not use."));
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

    /// Revokes a token.
    pub(crate) async fn revoke_token(&self, account: AccountId, id: CommandId) -> Result<(), Problem> {
        self.change(account, |user| {
            let before = user.tokens.len();
            user.tokens.retain(|t| t.info.id != id);
            if user.tokens.len() < before { Ok(()) } else { Err(Problem::not_found("token")) }
        })
        .await
    }

    /// The user to whom a token belongs. `None` if the token is unknown or has expired.
    pub(super) async fn by_token(&self, token: &str, now: Timestamp) -> Result<Option<TokenUser>, Problem> {
        let parts = token.strip_prefix(TOKEN_PREFIX).and_then(|rest| rest.split_once('_'));
        let Some((account, secret)) = parts else { return Ok(None) };
        let Ok(account) = account.parse::<AccountId>() else { return Ok(None) };
        let Some(user) = self.user(account).await? else { return Ok(None) };
        let digest = digest(secret);
        let found = user.tokens.iter().find(|t| t.digest == digest && t.info.expires_at > now);
        let Some(found) = found else { return Ok(None) };
        if found.info.last_used.is_none_or(|last| now.since(last).0 > RECORD_USE_EVERY_MS) {
            self.record_use(account, found.info.id, now).await;
        }
        Ok(Some(TokenUser { account, is_operator: user.operator, scopes: found.info.scopes.clone() }))
    }

    async fn record_use(&self, account: AccountId, id: CommandId, now: Timestamp) {
        let recorded = self.change(account, |user| {
            for token in user.tokens.iter_mut().filter(|t| t.info.id == id) {
                token.info.last_used = Some(now);
            }
            Ok(())
        });
        // A failure does not stop the request: `last_used` is only information for the user.
        if let Err(problem) = recorded.await {
            tracing::debug!(detail = problem.detail, "the last use of a token was not recorded");
        }
    }

    /// Creates an invitation, and returns its secret. The user who accepts the invitation becomes an operator.
    pub(crate) async fn invite_operator(&self, expires_at: Timestamp) -> Result<String, Problem> {
        let secret = new_secret();
        self.rows.create(&format!("invite.{}", digest(&secret)), &Invite { expires_at, used: false }).await?;
        Ok(secret)
    }

    /// True at the first call since the market was created, and false at every later call. At its first start, the web
    /// server prints an invitation for an operator.
    pub(crate) async fn is_first_run(&self) -> Result<bool, Problem> {
        self.rows.create("first-run", &true).await
    }

    /// Accepts an invitation, which can be used only once.
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
    fn malformed_addresses_and_short_passwords_are_refused() {
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
