//! Issues the credentials of machines. A credential is valid for a short time. The issuer's key is scoped: the broker
//! limits each credential that the key signs to the machine's own subjects.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use data_encoding::BASE64URL_NOPAD;
use gpubnb_events::{MachineId, Millis, Timestamp};
use nkeys::KeyPair;
use rand::RngExt as _;

use super::{
    files,
    jwt::{self, JwtError},
};

/// Time limit for a machine to sign a challenge.
const CHALLENGE_LIFETIME: Millis = Millis(60_000);

/// A machine's credential for the broker.
pub(crate) struct Credential {
    pub(crate) jwt: String,
    pub(crate) expires: Timestamp,
}

/// Issues credentials to machines.
pub(crate) struct Issuer {
    key: KeyPair,
    /// The public key of the machines' NATS account.
    account: String,
    lifetime: Millis,
}

impl Issuer {
    /// Reads the issuer's key, and the machines' NATS account, that bootstrap made.
    pub(crate) fn open(dir: &Path, lifetime: Duration) -> anyhow::Result<Self> {
        let account = jwt::claims(&files::read(&dir.join(files::MACHINES))?)?;
        let account =
            account["sub"].as_str().context("the JWT of the machines' NATS account has no claim `sub`")?.to_owned();
        let lifetime = Millis(u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX));
        Ok(Self { key: files::read_key(&dir.join(files::ISSUER))?, account, lifetime })
    }

    /// Lifetime of a credential. A revoked key stays on the revocation list for this time. Then the last credential of
    /// the key has expired.
    pub(crate) fn lifetime(&self) -> Millis {
        self.lifetime
    }

    /// Issues a credential for the machine with this public key.
    pub(crate) fn issue(&self, machine: MachineId, public_key: &str, now: Timestamp) -> Result<Credential, JwtError> {
        let expires = now.plus(self.lifetime);
        let jwt = jwt::machine(public_key, &machine.to_string(), &self.account, now, expires, &self.key)?;
        Ok(Credential { jwt, expires })
    }

    /// Makes a challenge for one machine. Returns the challenge, which the machine's signature must cover, and the time
    /// at which the challenge expires.
    pub(crate) fn challenge(&self, machine: MachineId, now: Timestamp) -> Result<(String, Timestamp), JwtError> {
        let expires = now.plus(CHALLENGE_LIFETIME);
        let random = gpubnb_events::hex(rand::rng().random::<[u8; 16]>());
        let text = format!("{machine}.{}.{random}", expires.millis());
        let signature = BASE64URL_NOPAD.encode(&self.key.sign(text.as_bytes())?);
        Ok((format!("{text}.{signature}"), expires))
    }

    /// True if this issuer made the challenge for this machine, and the challenge has not expired.
    pub(crate) fn is_valid_challenge(&self, challenge: &str, machine: MachineId, now: Timestamp) -> bool {
        let check = || {
            let (text, signature) = challenge.rsplit_once('.')?;
            let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).ok()?;
            self.key.verify(text.as_bytes(), &signature).ok()?;
            let mut parts = text.split('.');
            let to: MachineId = parts.next()?.parse().ok()?;
            let expires = Timestamp::from_millis(parts.next()?.parse().ok()?);
            Some(to == machine && now <= expires)
        };
        check().unwrap_or(false)
    }
}

/// True if the holder of a machine's key signed this text. The signature is base64url.
pub(crate) fn is_signed_by(public_key: &str, text: &str, signature: &str) -> bool {
    let Ok(key) = KeyPair::from_public_key(public_key) else { return false };
    let Ok(signature) = BASE64URL_NOPAD.decode(signature.as_bytes()) else { return false };
    // Every machine's key is the key of a user (`U`). The library does not check the length of a signature.
    public_key.starts_with('U') && signature.len() == 64 && key.verify(text.as_bytes(), &signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_valid_for_one_machine_until_it_expires() {
        let issuer = Issuer { key: KeyPair::new_account(), account: "A".to_owned(), lifetime: Millis(1_000) };
        let (machine, now) = (MachineId::generate(), Timestamp::from_millis(1_000_000));
        let (nonce, expires) = issuer.challenge(machine, now).unwrap();
        assert!(issuer.is_valid_challenge(&nonce, machine, expires));
        assert!(!issuer.is_valid_challenge(&nonce, machine, expires.plus(Millis(1))));
        assert!(!issuer.is_valid_challenge(&nonce, MachineId::generate(), now));
        let other_issuer = Issuer { key: KeyPair::new_account(), account: "A".to_owned(), lifetime: Millis(1_000) };
        assert!(!other_issuer.is_valid_challenge(&nonce, machine, now));
        assert!(!issuer.is_valid_challenge("", machine, now));
    }

    #[test]
    fn a_signature_with_another_key_or_of_another_text_is_refused() {
        let (key, other) = (KeyPair::new_user(), KeyPair::new_user());
        let signature = BASE64URL_NOPAD.encode(&key.sign(b"text").unwrap());
        assert!(is_signed_by(&key.public_key(), "text", &signature));
        assert!(!is_signed_by(&other.public_key(), "text", &signature));
        assert!(!is_signed_by(&key.public_key(), "other", &signature));
        assert!(!is_signed_by("", "text", &signature) && !is_signed_by(&key.public_key(), "text", ""));
        // A machine's key is a user's key: an account's key is refused.
        let account = KeyPair::new_account();
        let signature = BASE64URL_NOPAD.encode(&account.sign(b"text").unwrap());
        assert!(!is_signed_by(&account.public_key(), "text", &signature));
    }
}
