//! The sender of a request, as the gate identified it. A handler acts in the name of the viewer's account.

use std::convert::Infallible;

use axum::{extract::FromRequestParts, http::request::Parts};
use gpubnb_events::{AccountId, Actor, CommandId};

use crate::error::{ApiError, Problem};

/// The sender of a request: a user, or a stranger, who has no account.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Viewer {
    /// The account that is signed in, or that owns the token. `None` for a stranger.
    pub(crate) account: Option<AccountId>,
    /// True if the user is an operator and sent the request with a session or with a token of the scope `ops`.
    pub(crate) is_operator: bool,
    /// The session, if the request comes from a signed-in browser.
    pub(crate) session: Option<CommandId>,
    /// The session's token against cross-site request forgery (see `gate.rs`).
    pub(super) csrf: Option<[u8; 16]>,
}

/// A viewer who has an account.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SignedIn {
    pub(crate) viewer: Viewer,
    pub(crate) account: AccountId,
}

impl Viewer {
    /// The actor for queries about public data and about the viewer's own data.
    pub(crate) fn actor(self) -> Actor {
        // A stranger acts as a new account: public queries are answered, and private queries find nothing.
        self.account.map_or_else(|| Actor::Account(AccountId::generate()), Actor::Account)
    }

    /// The actor for queries about data that an operator may see of every account, and a user only of the own account.
    pub(crate) fn reading_actor(self) -> Actor {
        match self.account {
            Some(account) if self.is_operator => Actor::Operator(Some(account)),
            _ => self.actor(),
        }
    }

    /// The CSRF token of the session, in hex; empty without a session.
    pub(crate) fn csrf(self) -> String {
        self.csrf.map(gpubnb_events::hex).unwrap_or_default()
    }
}

impl SignedIn {
    pub(crate) fn actor(self) -> Actor {
        Actor::Account(self.account)
    }

    /// The actor for queries about data that an operator may see of every account, and a user only of the own account.
    pub(crate) fn reading_actor(self) -> Actor {
        self.viewer.reading_actor()
    }

    /// The actor for an operator's commands. Call this only in endpoints that demand [`super::Access::Operator`], where
    /// the gate has checked that the user is an operator.
    pub(crate) fn operator_actor(self) -> Actor {
        Actor::Operator(Some(self.account))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Viewer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        // Without the gate's extension, the sender is a stranger.
        Ok(parts.extensions.get::<Self>().copied().unwrap_or_default())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for SignedIn {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Ok(viewer) = Viewer::from_request_parts(parts, state).await;
        let account = viewer.account.ok_or_else(|| ApiError(Problem::sign_in_needed()))?;
        Ok(Self { viewer, account })
    }
}
