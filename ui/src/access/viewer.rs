//! The sender of a request, as the gate identified it. Handlers learn from here, and from nowhere else, in whose name
//! they act.

use std::convert::Infallible;

use axum::{extract::FromRequestParts, http::request::Parts};
use gpubnb_events::{AccountId, Actor, CommandId};

use crate::error::{ApiError, Problem};

/// The sender of a request: a user, or a stranger.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Viewer {
    /// The account that is signed in or owns the token; `None` for a stranger.
    pub(crate) account: Option<AccountId>,
    /// True if the user runs the platform and came in by a way that allows it: a session, or a token of the scope
    /// `ops`.
    pub(crate) operator: bool,
    /// The session, if the request comes from a signed-in browser.
    pub(crate) session: Option<CommandId>,
    pub(super) csrf: Option<[u8; 16]>,
}

/// A viewer who has an account.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SignedIn {
    pub(crate) viewer: Viewer,
    pub(crate) account: AccountId,
}

impl Viewer {
    /// The actor of queries about the viewer's own things, and about what everybody may see.
    pub(crate) fn actor(self) -> Actor {
        // A stranger gets an account that nobody has: public queries answer, private ones find nothing.
        self.account.map_or_else(|| Actor::Account(AccountId::generate()), Actor::Account)
    }

    /// The actor of queries about things of other accounts, which operators may see.
    pub(crate) fn reader(self) -> Actor {
        match self.account {
            Some(account) if self.operator => Actor::Operator(Some(account)),
            _ => self.actor(),
        }
    }

    /// The token that the forms of this session carry; empty without a session.
    pub(crate) fn csrf(self) -> String {
        self.csrf.map(gpubnb_events::hex).unwrap_or_default()
    }
}

impl SignedIn {
    pub(crate) fn actor(self) -> Actor {
        Actor::Account(self.account)
    }

    /// The actor of queries about things of other accounts, which operators may see.
    pub(crate) fn reader(self) -> Actor {
        self.viewer.reader()
    }

    /// The actor of an operator's commands. Only for endpoints that demand [`super::Access::Operator`]: there the gate
    /// has checked that the user is one.
    pub(crate) fn operator(self) -> Actor {
        Actor::Operator(Some(self.account))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Viewer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        // Without a gate before the handler, the sender is a stranger.
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
