//! Who may come in, and how far: here a request becomes a viewer, and nowhere else.
//!
//! Belongs here: people, their passwords, sessions and tokens, what each endpoint demands, and how often it may be
//! asked. Must not come here: a page, or what an account may do on the market (that is `services`).

mod gate;
mod pace;
mod people;
mod routes;
mod rows;
mod secret;
mod sessions;
mod streams;
mod viewer;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub(crate) use self::{
    gate::CSRF_FIELD,
    pace::{Pace, Paces},
    people::{NewToken, People, SignUp, TokenInfo, login_of},
    routes::{Endpoint, Many, Routes, Shape},
    secret::is_secret,
    sessions::{SESSION_COOKIE, SessionInfo, Sessions, clear_cookie, cookie},
    streams::Streams,
    viewer::{Client, SignedIn, Viewer},
};

/// What an endpoint demands of whoever asks. Every endpoint says it where it is added to the routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing: anybody may look.
    Public,
    /// Nothing but proof in the request itself: a password, a code, a signature, a permit.
    Proof,
    /// Anybody who is known: a person, or any token.
    Known,
    /// A person at a browser.
    Person,
    /// A person at a browser, or a token with this scope.
    Scope(Scope),
    /// A person who runs the platform: at a browser, or with a token of the scope `ops`.
    Operator,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Public => f.write_str("public"),
            Self::Proof => f.write_str("proof"),
            Self::Known => f.write_str("known"),
            Self::Person => f.write_str("person"),
            Self::Scope(scope) => scope.fmt(f),
            Self::Operator => f.write_str("operator"),
        }
    }
}

/// What a token may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Scope {
    /// Looking at jobs, their logs and files.
    #[serde(rename = "jobs:read")]
    JobsRead,
    /// Submitting and cancelling jobs.
    #[serde(rename = "jobs:write")]
    JobsWrite,
    /// Adding and changing machines.
    #[serde(rename = "machines:write")]
    MachinesWrite,
    /// Looking at the wallet.
    #[serde(rename = "wallet:read")]
    WalletRead,
    /// Running the platform.
    #[serde(rename = "ops")]
    Ops,
}

impl Scope {
    /// All of them, as a person is asked.
    pub(crate) const ALL: [Self; 5] =
        [Self::JobsRead, Self::JobsWrite, Self::MachinesWrite, Self::WalletRead, Self::Ops];
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::JobsRead => "jobs:read",
            Self::JobsWrite => "jobs:write",
            Self::MachinesWrite => "machines:write",
            Self::WalletRead => "wallet:read",
            Self::Ops => "ops",
        })
    }
}

impl FromStr for Scope {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|scope| scope.to_string() == text).ok_or(())
    }
}
