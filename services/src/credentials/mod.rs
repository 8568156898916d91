//! Credentials for the broker. The keys of a market are made once; the credentials of machines are issued and revoked
//! while the market runs.
//!
//! Belongs here: keys, JWTs, and the rights of each user of the broker. Must not come here: people's passwords (`ui`),
//! or a decision of the market.

mod bootstrap;
mod connections;
mod files;
mod issuer;
mod jwt;
mod revoker;
mod rights;
mod sealing;

pub use bootstrap::bootstrap;
pub(crate) use issuer::{Issuer, is_signed_by};
pub(crate) use revoker::Revoker;
pub(crate) use sealing::{Sealing, Secrets};
