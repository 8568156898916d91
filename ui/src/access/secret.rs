//! Secrets that this server issues, and the hashing of passwords.

use std::sync::Arc;

use argon2::password_hash::{
    PasswordHasher as _, PasswordVerifier as _,
    phc::{Error, PasswordHash},
};
use gpubnb_events::notification::WEBHOOK_SECRET_PREFIX;
use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::frugal_argon2::FrugalArgon2;
use crate::error::Problem;

/// The maximum number of passwords that are hashed at the same time. One hash takes 19 MiB of memory and one core.
const MAX_CONCURRENT: usize = 2;
/// The hash that is verified for an unknown user, so that the answer takes as long as for a known user.
const DUMMY_HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$WfgKz0sM6M6CxmLBgPn1VBTTfX5hVyGXHgHVzlP6MUA";

/// Generates a secret: 256 random bits, as 64 hexadecimal digits.
pub(super) fn new_secret() -> String {
    gpubnb_events::hex(rand::rng().random::<[u8; 32]>())
}

/// Generates the secret of a webhook: 256 random bits in the form of Standard Webhooks.
pub(crate) fn new_webhook_secret() -> String {
    format!("{WEBHOOK_SECRET_PREFIX}{}", data_encoding::BASE64.encode(&rand::rng().random::<[u8; 32]>()))
}

/// True if a text has the form of a secret. Only such a text may get from the URL of an operator's link into the HTML
/// of the page.
pub(crate) fn is_secret(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The hash under which a secret is stored. The hash cannot be used in place of the secret.
pub(super) fn digest(secret: &str) -> String {
    gpubnb_events::hex(Sha256::digest(secret.as_bytes()))
}

/// Hashes and verifies passwords, at most [`MAX_CONCURRENT`] at the same time.
#[derive(Clone)]
pub(super) struct Passwords(Arc<Semaphore>);

impl Passwords {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_CONCURRENT)))
    }

    async fn run_limited<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
        let permit = Arc::clone(&self.0).acquire_owned().await.map_err(|e| Problem::internal(&e))?;
        let task = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(permit);
            result
        });
        task.await.map_err(|e| Problem::internal(&e))
    }

    /// The argon2id hash of a password, with a random salt.
    pub(super) async fn hash(&self, password: String) -> Result<String, Problem> {
        let hashed = self.run_limited(move || FrugalArgon2.hash_password(password.as_bytes()).map(|h| h.to_string()));
        hashed.await?.map_err(|e| Problem::internal(&e))
    }

    /// True if `hash` is a hash of the password. Without a hash the answer is false, and takes as long as with a hash.
    pub(super) async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, Problem> {
        let has_hash = hash.is_some();
        let hash = hash.unwrap_or_else(|| DUMMY_HASH.to_owned());
        let verified = self.run_limited(move || {
            let parsed = PasswordHash::new(&hash)?;
            Ok::<_, Error>(FrugalArgon2.verify_password(password.as_bytes(), &parsed).is_ok())
        });
        Ok(verified.await?.map_err(|e| Problem::internal(&e))? && has_hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hash_verifies_only_the_password_that_it_was_made_from() {
        let passwords = Passwords::new();
        let hash = passwords.hash("correct horse".to_owned()).await.unwrap();
        assert!(hash.starts_with("$argon2id$") && !hash.contains("horse"));
        assert_ne!(hash, passwords.hash("correct horse".to_owned()).await.unwrap());
        assert!(passwords.verify("correct horse".to_owned(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify("wrong horse".to_owned(), Some(hash)).await.unwrap());
        assert!(!passwords.verify("correct horse".to_owned(), None).await.unwrap());
    }
}
