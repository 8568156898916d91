//! The one who looks, as the gate let them in. Handlers get one from here, and have no other way to learn of an actor.

use std::{convert::Infallible, net::IpAddr};

use axum::{
    extract::FromRequestParts,
    http::{header, request::Parts},
};
use gpubnb_events::{AccountId, Actor, CommandId};

use crate::error::{ApiError, Problem};

/// The one who looks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Viewer {
    /// Who is signed in, or whose token it is.
    pub(crate) account: Option<AccountId>,
    /// Whether they run the platform, and came in by a way that lets them.
    pub(crate) operator: bool,
    /// The session, at a browser.
    pub(crate) session: Option<CommandId>,
    pub(super) csrf: Option<[u8; 16]>,
}

tokio::task_local! {
    /// Who looks, while a request is answered: for the page that says what went wrong.
    static LOOKING: Viewer;
}

/// Answers a request of somebody.
pub(super) async fn looking<T>(viewer: Viewer, answer: impl Future<Output = T>) -> T {
    LOOKING.scope(viewer, answer).await
}

/// One who is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SignedIn {
    pub(crate) viewer: Viewer,
    pub(crate) account: AccountId,
}

impl Viewer {
    /// In whose name queries are asked. A stranger sees what the platform shows to all.
    pub(crate) fn actor(self) -> Actor {
        // A stranger's account id that nobody has: public queries answer, private ones find nothing.
        self.account.map_or_else(|| Actor::Account(AccountId::generate()), Actor::Account)
    }

    /// In whose name what is another's is read: operators see everything, as what they are.
    pub(crate) fn reader(self) -> Actor {
        match self.account {
            Some(account) if self.operator => Actor::Operator(Some(account)),
            _ => self.actor(),
        }
    }

    /// Who looks, where a request is being answered.
    pub(crate) fn present() -> Self {
        LOOKING.try_with(|viewer| *viewer).unwrap_or_default()
    }

    /// What the forms of this session carry; empty where there is none.
    pub(crate) fn csrf(self) -> String {
        self.csrf.map(gpubnb_events::hex).unwrap_or_default()
    }
}

impl SignedIn {
    pub(crate) fn actor(self) -> Actor {
        Actor::Account(self.account)
    }

    /// In whose name what is another's is read: operators see every job, as what they are.
    pub(crate) fn reader(self) -> Actor {
        self.viewer.reader()
    }

    /// As one who runs the platform. The gate has seen to it that they do, where only they come in.
    pub(crate) fn operator(self) -> Actor {
        Actor::Operator(Some(self.account))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Viewer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        // Where no gate stood, nobody came in.
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

/// The program at the other end: where it is, and what it calls itself.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) address: IpAddr,
    pub(crate) name: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Client {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let address = parts.extensions.get::<super::gate::PeerAddress>().map_or([0; 4].into(), |peer| peer.0);
        let name = parts.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        Ok(Self { address, name: name.to_owned() })
    }
}
