//! Permission to put the files of one attempt at the edge: a signed, expiring token that is good for
//! nothing else. Services sign it, the edge checks it; both hold the key.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::{
    ids::{JobId, Lease},
    time::Timestamp,
};

/// The key that services and the edge share. Never printed.
#[derive(Clone)]
pub struct TransferKey(Vec<u8>);

/// What a token permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadPermit {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub lease: Lease,
    /// Until when.
    pub expires: Timestamp,
}

/// A token that permits nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// Its form or its signature is wrong.
    #[error("the token is not valid")]
    Invalid,
    /// It was good once.
    #[error("the token has expired")]
    Expired,
}

impl std::fmt::Debug for TransferKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TransferKey")
    }
}

impl TransferKey {
    /// From a secret of at least 32 bytes.
    pub fn new(secret: &[u8]) -> Option<Self> {
        (secret.len() >= 32).then(|| Self(secret.to_vec()))
    }

    /// From a file that holds the secret.
    pub fn read(path: &std::path::Path) -> std::io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        Self::new(text.trim().as_bytes())
            .ok_or_else(|| std::io::Error::other("the transfer key must have at least 32 characters"))
    }

    fn mac(&self, permit: UploadPermit) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        mac.update(format!("upload.{}.{}.{}", permit.job, permit.lease, permit.expires.millis()).as_bytes());
        Some(mac)
    }

    /// A token for a permit.
    pub fn sign(&self, permit: UploadPermit) -> Option<String> {
        let mac = hex::encode(self.mac(permit)?.finalize().into_bytes());
        Some(format!("{}.{}.{}.{mac}", permit.job, permit.lease, permit.expires.millis()))
    }

    /// What a token permits at this moment. The comparison takes the same time whatever differs.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<UploadPermit, BadToken> {
        let mut parts = token.split('.');
        let mut part = || parts.next().ok_or(BadToken::Invalid);
        let permit = UploadPermit {
            job: part()?.parse().map_err(|_| BadToken::Invalid)?,
            lease: part()?.parse().map_err(|_| BadToken::Invalid)?,
            expires: Timestamp::from_millis(part()?.parse().map_err(|_| BadToken::Invalid)?),
        };
        let signature = hex::decode(part()?).map_err(|_| BadToken::Invalid)?;
        let mac = self.mac(permit).ok_or(BadToken::Invalid)?;
        mac.verify_slice(&signature).map_err(|_| BadToken::Invalid)?;
        if now > permit.expires { Err(BadToken::Expired) } else { Ok(permit) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ids::Seq, time::Millis};

    #[test]
    fn a_token_permits_what_was_signed_and_nothing_else() {
        let key = TransferKey::new(&[7; 32]).unwrap();
        let now = Timestamp::from_millis(1_000_000);
        let permit = UploadPermit { job: JobId::generate(), lease: Lease(Seq(42)), expires: now.plus(Millis(1_000)) };
        let token = key.sign(permit).unwrap();
        assert_eq!(key.verify(&token, now), Ok(permit));
        assert_eq!(key.verify(&token, now.plus(Millis(1_001))), Err(BadToken::Expired));
        assert_eq!(key.verify(&token.replace(".42.", ".43."), now), Err(BadToken::Invalid));
        assert_eq!(TransferKey::new(&[8; 32]).unwrap().verify(&token, now), Err(BadToken::Invalid));
        assert_eq!(key.verify("", now), Err(BadToken::Invalid));
        assert!(TransferKey::new(b"short").is_none());
    }
}
