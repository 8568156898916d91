//! Accounts of users, for the pages and for the API alike: signing up, checking a password, and roles.

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

/// Creates a user and opens an account. If the address is taken, nothing happens, and the caller cannot tell.
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
    app.rate_limits.sign_in(client.address)?;
    app.rate_limits.guess(&login_of(email))?;
    let account = app.users.sign_in(email, password).await?;
    // The process may have stopped between the two steps of signing up, so the second one is repeated here.
    open_account(app, account).await?;
    Ok(account)
}

/// The role of a user on the market. It follows from what the user does: nobody applies for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// Submits jobs, which everybody may.
    Consumer,
    /// Has a machine on the market.
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
    let provider = machines.iter().any(|m| m.listed.owner == signed_in.account);
    let also = [(provider, Role::Provider), (signed_in.viewer.operator, Role::Operator)];
    let roles = also.into_iter().filter(|(so, _)| *so).map(|(_, role)| role);
    Ok(std::iter::once(Role::Consumer).chain(roles).collect())
}
