//! Access control. Only this module decides who sends a request: a user, or a stranger, who has no account (see
//! `viewer.rs`).
//!
//! Belongs here: users with their passwords, sessions and tokens; the access that an endpoint demands; rate limits.
//! Must not come here: a page, or a rule about what an account may do on the market (that belongs to `services`).

mod browser_name;
mod frugal_argon2;
mod gate;
mod guesses;
mod kv_cache;
mod mailed_links;
mod passkeys;
mod peer;
mod rate_limit;
mod routes;
mod secret;
mod sessions;
mod sign_ins;
mod streams;
mod users;
mod viewer;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub(crate) use self::{
    gate::CSRF_FIELD,
    kv_cache::KvCache,
    mailed_links::{LinkKind, MailedLinks},
    passkeys::{PasskeyInfo, Passkeys},
    peer::{Client, KNOWN_COOKIE},
    rate_limit::{RateLimits, Rates, Source, network_of},
    routes::{BodySchema, BodyShape, Endpoint, Routes},
    secret::{is_secret, new_webhook_secret},
    sessions::{SESSION_COOKIE, SessionInfo, Sessions, clear_cookie, cookie},
    sign_ins::{SignIn, SignInProof, SignIns},
    streams::OpenStreams,
    users::{NewToken, SignUp, TokenInfo, Users, check_password, login_of},
    viewer::{SignedIn, Viewer},
};

/// The demand of an endpoint: the access that the sender of a request must have. `ui/src/routes.rs` states the demand
/// of every endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anybody, signed in or not.
    Public,
    /// Anybody whose request carries a proof: a password, a code, a signature or a permit. The gate lets the request
    /// pass, and the handler checks the proof.
    ProofInRequest,
    /// A signed-in browser, or a token with any scopes.
    Authenticated,
    /// A signed-in browser. A token is refused.
    Session,
    /// A signed-in browser, or a token with this scope.
    Scope(Scope),
    /// An operator, who runs the platform, in a signed-in browser or with a token of the scope `ops`.
    Operator,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Public => f.write_str("public"),
            Self::ProofInRequest => f.write_str("proof"),
            Self::Authenticated => f.write_str("authenticated"),
            Self::Session => f.write_str("session"),
            Self::Scope(scope) => scope.fmt(f),
            Self::Operator => f.write_str("operator"),
        }
    }
}

/// A right of an API token.
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
    /// Looking at the account's wallet: its money and its postings.
    #[serde(rename = "wallet:read")]
    WalletRead,
    /// Adding, testing and removing webhooks, and looking at what was sent.
    #[serde(rename = "webhooks:write")]
    WebhooksWrite,
    /// Storing and deleting named secrets, and looking at their names. Nobody can read their values.
    #[serde(rename = "secrets:write")]
    SecretsWrite,
    /// Running the platform, if the token's user is an operator.
    #[serde(rename = "ops")]
    Ops,
}

impl Scope {
    /// All scopes, in the order in which forms list them.
    pub(crate) const ALL: [Self; 7] = [
        Self::JobsRead,
        Self::JobsWrite,
        Self::MachinesWrite,
        Self::WalletRead,
        Self::WebhooksWrite,
        Self::SecretsWrite,
        Self::Ops,
    ];

    /// The words for the scope in the form of a new token.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::JobsRead => "See your jobs, their logs and files",
            Self::JobsWrite => "Run and cancel jobs, which spends your money and can use your secrets",
            Self::MachinesWrite => "Add, change and remove your machines",
            Self::WalletRead => "See your money",
            Self::WebhooksWrite => "Add, test and remove your webhooks",
            Self::SecretsWrite => "Store and delete your secrets",
            Self::Ops => "Operate the market",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::JobsRead => "jobs:read",
            Self::JobsWrite => "jobs:write",
            Self::MachinesWrite => "machines:write",
            Self::WalletRead => "wallet:read",
            Self::WebhooksWrite => "webhooks:write",
            Self::SecretsWrite => "secrets:write",
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
