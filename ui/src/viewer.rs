//! Who looks at a page: here a request becomes an actor, and nowhere else.

use axum::{
    extract::{FromRef, FromRequestParts},
    http::{HeaderMap, header, request::Parts},
};
use gpubnb_events::{AccountId, Actor};

use crate::{
    app::App,
    error::{ApiError, Problem},
};

/// Name of the cookie that holds which demonstration account a visitor chose.
pub(crate) const PERSONA: &str = "persona";

/// The accounts of a demonstration. Without them nobody is signed in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accounts(pub(crate) Option<DemoAccounts>);

/// The two accounts of a demonstration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DemoAccounts {
    pub(crate) consumer: AccountId,
    pub(crate) provider: AccountId,
}

/// The one who looks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Viewer {
    pub(crate) account: Option<AccountId>,
    pub(crate) as_provider: bool,
}

/// One who is signed in.
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
}

impl SignedIn {
    pub(crate) fn actor(self) -> Actor {
        Actor::Account(self.account)
    }
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get_all(header::COOKIE).iter().filter_map(|h| h.to_str().ok()).flat_map(|h| h.split(';')).find_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        (key == name).then_some(value)
    })
}

impl<S> FromRequestParts<S> for Viewer
where
    S: Send + Sync,
    App: FromRef<S>,
{
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let Accounts(demo) = App::from_ref(state).accounts;
        let as_provider = cookie(&parts.headers, PERSONA) == Some("provider");
        let account = demo.map(|demo| if as_provider { demo.provider } else { demo.consumer });
        Ok(Self { account, as_provider })
    }
}

impl<S> FromRequestParts<S> for SignedIn
where
    S: Send + Sync,
    App: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Ok(viewer) = Viewer::from_request_parts(parts, state).await;
        let account = viewer.account.ok_or_else(|| ApiError(Problem::sign_in_needed()))?;
        Ok(Self { viewer, account })
    }
}
