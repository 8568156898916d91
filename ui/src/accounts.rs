//! Signing up, checking a password, and the roles of a user. Pages and API both use these functions.

use gpubnb_events::{
    AccountId, Actor, Seq,
    command::{Done, OpenAccount},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    access::{Client, SignUp, SignedIn, login_of},
    app::App,
    error::Problem,
};

/// Creates a user and opens an account. If the e-mail address is taken, nothing happens, and the result is the same.
pub(crate) async fn sign_up(app: &App, new: &SignUp) -> Result<(), Problem> {
    if let Some(account) = app.users.sign_up(new, app.now()).await? {
        open_account(app, account).await?;
    }
    Ok(())
}

/// Opens the account of a user. Opening it again changes nothing.
async fn open_account(app: &App, account: AccountId) -> Result<(), Problem> {
    app.command::<Done>("account", "open", Actor::Account(account), &OpenAccount {}).await?;
    Ok(())
}

/// The account with this e-mail address and password. Rate limits, by client and by user, slow down guessing.
pub(crate) async fn check_password(
    app: &App,
    client: &Client,
    email: &str,
    password: &str,
) -> Result<AccountId, Problem> {
    app.rate_limits.check_sign_in(client.address)?;
    app.rate_limits.check_password_attempt(&login_of(email))?;
    let account = app.users.sign_in(email, password).await?;
    // Signing up has two steps. The process may have stopped between them, so the second step is repeated here.
    open_account(app, account).await?;
    Ok(account)
}

/// The role of a user on the market.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// May submit jobs. Every user has this role.
    Consumer,
    /// Owns a machine on the market.
    Provider,
    /// Runs the platform.
    Operator,
}

impl Role {
    /// The role as one word.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Consumer => "consumer",
            Self::Provider => "provider",
            Self::Operator => "operator",
        }
    }
}

/// The roles of a user.
pub(crate) async fn roles(app: &App, signed_in: SignedIn) -> Result<Vec<Role>, Problem> {
    let machines = app.queries.machines(signed_in.actor(), Seq::ZERO).await?;
    let is_provider = machines.iter().any(|m| m.listed.owner == signed_in.account);
    let further = [(is_provider, Role::Provider), (signed_in.viewer.is_operator, Role::Operator)];
    let roles = further.into_iter().filter(|(has_role, _)| *has_role).map(|(_, role)| role);
    Ok(std::iter::once(Role::Consumer).chain(roles).collect())
}
