//! People: how they are called, how they prove it, what they may run, and the tokens they gave out.
//!
//! Two rows each in the bucket CREDENTIALS: `login.<hash of the e-mail address>` → account, and
//! `account.<account>` → the person. Passwords and tokens are kept as hashes.

use gpubnb_events::{AccountId, CommandId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{
    Scope,
    rows::Rows,
    secret::{Passwords, digest, new_secret},
};
use crate::error::Problem;

/// Shortest and longest password.
const PASSWORD: std::ops::RangeInclusive<usize> = 10..=200;
/// Most tokens of one person.
const MOST_TOKENS: usize = 50;
/// How a token begins, so that it is known for what it is where it should not be.
const TOKEN_PREFIX: &str = "gpubnb_";
/// The use of a token is noted this seldom.
const NOTE_USE_EVERY_MS: u64 = 60_000;

/// A person.
#[derive(Clone, Serialize, Deserialize)]
struct Person {
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

/// A token, without what makes it one.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct TokenInfo {
    /// Its name for revoking it.
    #[schema(value_type = String, format = Uuid)]
    pub(crate) id: CommandId,
    /// What it is for, in the owner's words.
    pub(crate) label: String,
    /// What it may be used for.
    #[schema(value_type = Vec<String>)]
    pub(crate) scopes: Vec<Scope>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created_at: Timestamp,
    /// Until when it is of use.
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

/// Who wants to join.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignUp {
    /// E-mail address: the name to sign in with.
    pub(crate) email: String,
    /// From 10 to 200 characters.
    pub(crate) password: String,
}

/// One who is known by password or token.
pub(super) struct Known {
    pub(super) account: AccountId,
    pub(super) operator: bool,
    /// `None`: all of them.
    pub(super) scopes: Option<Vec<Scope>>,
}

/// The bucket of people.
#[derive(Clone)]
pub(crate) struct People {
    rows: Rows,
    passwords: Passwords,
}

fn account_key(account: AccountId) -> String {
    format!("account.{account}")
}

/// The same address, however it is written.
pub(crate) fn login_of(email: &str) -> String {
    digest(&email.trim().to_lowercase())
}

fn login_key(email: &str) -> String {
    format!("login.{}", login_of(email))
}

fn check_email(email: &str) -> Result<(), Problem> {
    let shaped = email.split_once('@').is_some_and(|(name, host)| {
        !name.is_empty() && host.contains('.') && !host.starts_with('.') && !host.ends_with('.')
    });
    let plain = !email.chars().any(|c| c.is_whitespace() || c.is_control());
    if shaped && plain && email.len() <= 254 {
        return Ok(());
    }
    Err(Problem::invalid("email", "This is no e-mail address."))
}

fn check_password(password: &str) -> Result<(), Problem> {
    if PASSWORD.contains(&password.chars().count()) {
        return Ok(());
    }
    Err(Problem::invalid("password", "A password has from 10 to 200 characters. Long beats complicated."))
}

impl People {
    pub(crate) fn new(bucket: async_nats::jetstream::kv::Store) -> Self {
        Self { rows: Rows::new(bucket), passwords: Passwords::new() }
    }

    /// Hears of what other replicas change, until shutdown.
    pub(crate) async fn listen(self, shutdown: CancellationToken) {
        self.rows.listen(shutdown).await;
    }

    /// A new person. `None`: the address is taken; whoever asks is not told, and it took as long.
    pub(crate) async fn sign_up(&self, new: &SignUp, now: Timestamp) -> Result<Option<AccountId>, Problem> {
        let email = new.email.trim();
        check_email(email)?;
        check_password(&new.password)?;
        let account = AccountId::generate();
        let password = self.passwords.hash(new.password.clone()).await?;
        let person = Person { email: email.to_owned(), password, created_at: now, operator: false, tokens: Vec::new() };
        // The person first: an address that leads nowhere could never be used again.
        self.rows.create(&account_key(account), &person).await?;
        Ok(self.rows.create(&login_key(email), &account).await?.then_some(account))
    }

    /// Who has this address and password.
    pub(crate) async fn sign_in(&self, email: &str, password: &str) -> Result<AccountId, Problem> {
        let account: Option<AccountId> = self.rows.get(&login_key(email)).await?;
        let person = match account {
            Some(account) => self.person(account).await?,
            None => None,
        };
        // Longer than any password: not worth a hash.
        let short: String = password.chars().take(*PASSWORD.end() + 1).collect();
        let fits = self.passwords.verify(short, person.map(|p| p.password)).await?;
        account.filter(|_| fits).ok_or_else(Problem::bad_credentials)
    }

    async fn person(&self, account: AccountId) -> Result<Option<Person>, Problem> {
        self.rows.get(&account_key(account)).await
    }

    async fn change<R>(
        &self,
        account: AccountId,
        mut change: impl FnMut(&mut Person) -> Result<R, Problem>,
    ) -> Result<R, Problem> {
        let gone = || Problem::not_found("account");
        self.rows.change(&account_key(account), |person| change(person.as_mut().ok_or_else(gone)?)).await
    }

    /// The address of an account.
    pub(crate) async fn email(&self, account: AccountId) -> Result<String, Problem> {
        Ok(self.person(account).await?.map(|p| p.email).unwrap_or_default())
    }

    /// Whether an account may run the platform.
    pub(super) async fn is_operator(&self, account: AccountId) -> Result<bool, Problem> {
        Ok(self.person(account).await?.is_some_and(|p| p.operator))
    }

    /// Lets an account run the platform.
    pub(crate) async fn make_operator(&self, account: AccountId) -> Result<(), Problem> {
        self.change(account, |person| {
            person.operator = true;
            Ok(())
        })
        .await
    }

    /// Another password, for who knows the present one. Tokens end with the old one.
    pub(crate) async fn change_password(&self, account: AccountId, old: &str, new: &str) -> Result<(), Problem> {
        check_password(new)?;
        let person = self.person(account).await?.ok_or_else(|| Problem::not_found("account"))?;
        if !self.passwords.verify(old.to_owned(), Some(person.password)).await? {
            return Err(Problem::invalid("old", "This is not your present password."));
        }
        let password = self.passwords.hash(new.to_owned()).await?;
        self.change(account, |person| {
            person.password.clone_from(&password);
            // Whoever made a token while they had the session loses it too.
            person.tokens.clear();
            Ok(())
        })
        .await
    }

    /// A new token: shown once, kept as a hash.
    pub(crate) async fn create_token(
        &self,
        account: AccountId,
        new: &NewToken,
        now: Timestamp,
    ) -> Result<(TokenInfo, String), Problem> {
        let label = new.label.trim();
        if label.is_empty() || label.chars().count() > 80 || label.chars().any(char::is_control) {
            return Err(Problem::invalid("label", "Say in up to 80 characters what the token is for."));
        }
        if new.scopes.is_empty() {
            return Err(Problem::invalid("scopes", "Choose what the token may be used for."));
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
        self.change(account, |person| {
            person.tokens.retain(|t| t.info.expires_at > now);
            if person.tokens.len() >= MOST_TOKENS {
                return Err(Problem::invalid("label", "You have 50 tokens: revoke one that is not used."));
            }
            if new.scopes.contains(&Scope::Ops) && !person.operator {
                return Err(Problem::invalid("scopes", "Only those who run the platform have the scope `ops`."));
            }
            person.tokens.push(token.clone());
            Ok(())
        })
        .await?;
        Ok((info, format!("{TOKEN_PREFIX}{account}_{secret}")))
    }

    /// The tokens of an account that are still of use, newest first.
    pub(crate) async fn tokens(&self, account: AccountId, now: Timestamp) -> Result<Vec<TokenInfo>, Problem> {
        let tokens = self.person(account).await?.map(|p| p.tokens).unwrap_or_default();
        Ok(tokens.into_iter().rev().map(|t| t.info).filter(|t| t.expires_at > now).collect())
    }

    /// Ends a token.
    pub(crate) async fn revoke_token(&self, account: AccountId, id: CommandId) -> Result<(), Problem> {
        self.change(account, |person| {
            let before = person.tokens.len();
            person.tokens.retain(|t| t.info.id != id);
            if person.tokens.len() < before { Ok(()) } else { Err(Problem::not_found("token")) }
        })
        .await
    }

    /// Whose token this is, if it is one and of use.
    pub(super) async fn by_token(&self, token: &str, now: Timestamp) -> Result<Option<Known>, Problem> {
        let parts = token.strip_prefix(TOKEN_PREFIX).and_then(|rest| rest.split_once('_'));
        let Some((account, secret)) = parts else { return Ok(None) };
        let Ok(account) = account.parse::<AccountId>() else { return Ok(None) };
        let Some(person) = self.person(account).await? else { return Ok(None) };
        let digest = digest(secret);
        let found = person.tokens.iter().find(|t| t.digest == digest && t.info.expires_at > now);
        let Some(found) = found else { return Ok(None) };
        if found.info.last_used.is_none_or(|last| now.since(last).0 > NOTE_USE_EVERY_MS) {
            self.note_use(account, found.info.id, now).await;
        }
        Ok(Some(Known { account, operator: person.operator, scopes: Some(found.info.scopes.clone()) }))
    }

    async fn note_use(&self, account: AccountId, id: CommandId, now: Timestamp) {
        let noted = self.change(account, |person| {
            for token in person.tokens.iter_mut().filter(|t| t.info.id == id) {
                token.info.last_used = Some(now);
            }
            Ok(())
        });
        // A note that is missing harms nobody.
        if let Err(problem) = noted.await {
            tracing::debug!(detail = problem.detail, "the use of a token was not noted");
        }
    }

    /// A link that makes whoever opens it first an operator. Kept as a hash, and used once.
    pub(crate) async fn invite_operator(&self, expires_at: Timestamp) -> Result<String, Problem> {
        let secret = new_secret();
        self.rows.create(&format!("invite.{}", digest(&secret)), &Invite { expires_at, used: false }).await?;
        Ok(secret)
    }

    /// Whether any operator was ever invited: on its first run a market prints a link.
    pub(crate) async fn first_run(&self) -> Result<bool, Problem> {
        self.rows.create("first-run", &true).await
    }

    /// Uses an invitation up.
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
