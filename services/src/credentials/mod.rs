//! Credentials of the broker: what is made once for a market, and what is issued and revoked while it runs.
//!
//! Belongs here: keys, JWTs, and who may do what on the broker. Must not come here: people's passwords (that is the
//! edge), or a decision of the market.

mod bootstrap;
mod files;
mod issuer;
mod jwt;
mod revoker;
mod rights;
mod sealing;

pub use bootstrap::bootstrap;
pub(crate) use issuer::{Issuer, signed_by};
pub(crate) use revoker::Revoker;
pub(crate) use sealing::{Sealing, Secrets};
