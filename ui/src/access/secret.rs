//! Secrets that this server issues, and the hashing of passwords.

use std::sync::Arc;

use argon2::{
    Argon2,
    password_hash::{
        PasswordHasher as _, PasswordVerifier as _,
        phc::{Error, PasswordHash},
    },
};
use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::error::Problem;

/// Passwords hashed at the same time. Hashing one takes 19 MiB of memory and most of a core.
const AT_ONCE: usize = 2;
/// Verified if there is no such user, so that the answer takes as long as for one that exists.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$WfgKz0sM6M6CxmLBgPn1VBTTfX5hVyGXHgHVzlP6MUA";

/// 256 bits from the operating system's generator, as text.
pub(super) fn new_secret() -> String {
    gpubnb_events::hex(rand::rng().random::<[u8; 32]>())
}

/// True if a text has the form of such a secret. A page shows a text from an address only if this is true.
pub(crate) fn is_secret(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The hash of a secret, for storage. Nobody can use it in place of the secret.
pub(super) fn digest(secret: &str) -> String {
    gpubnb_events::hex(Sha256::digest(secret.as_bytes()))
}

/// Hashes and checks passwords, a few at a time.
#[derive(Clone)]
pub(super) struct Passwords(Arc<Semaphore>);

impl Passwords {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }

    async fn in_turn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
        let place = Arc::clone(&self.0).acquire_owned().await.map_err(|e| Problem::internal(&e))?;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(place);
            done
        });
        done.await.map_err(|e| Problem::internal(&e))
    }

    /// The argon2id hash of a password, with a salt of its own.
    pub(super) async fn hash(&self, password: String) -> Result<String, Problem> {
        let hashed = self.in_turn(move || Argon2::default().hash_password(password.as_bytes()).map(|h| h.to_string()));
        hashed.await?.map_err(|e| Problem::internal(&e))
    }

    /// True if the hash is the password's. Without a hash the answer is no, and takes as long.
    pub(super) async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, Problem> {
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| NOBODY.to_owned());
        let verified = self.in_turn(move || {
            let parsed = PasswordHash::new(&hash)?;
            Ok::<_, Error>(Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok())
        });
        Ok(verified.await?.map_err(|e| Problem::internal(&e))? && known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_is_kept_as_a_hash_that_only_it_fits() {
        let passwords = Passwords::new();
        let hash = passwords.hash("correct horse".to_owned()).await.unwrap();
        assert!(hash.starts_with("$argon2id$") && !hash.contains("horse"));
        assert_ne!(hash, passwords.hash("correct horse".to_owned()).await.unwrap());
        assert!(passwords.verify("correct horse".to_owned(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify("wrong horse".to_owned(), Some(hash)).await.unwrap());
        assert!(!passwords.verify("correct horse".to_owned(), None).await.unwrap());
    }
}
