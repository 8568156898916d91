//! Issues the credentials of machines. They live for a short time, and whatever this key signs allows a machine nothing
//! but its own subjects.

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

/// How long a machine may take to sign a challenge.
const CHALLENGE_LIFE: Millis = Millis(60_000);

/// A machine's credential for the broker.
pub(crate) struct Credential {
    pub(crate) jwt: String,
    pub(crate) expires: Timestamp,
}

/// Issues credentials to machines.
pub(crate) struct Issuer {
    key: KeyPair,
    account: String,
    life: Millis,
}

impl Issuer {
    /// Reads the keys that bootstrap made.
    pub(crate) fn open(dir: &Path, life: Duration) -> anyhow::Result<Self> {
        let account = jwt::claims(&files::read(&dir.join(files::MACHINES))?)?;
        let account = account["sub"].as_str().context("the account of machines has no subject")?.to_owned();
        let life = Millis(u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
        Ok(Self { key: files::read_key(&dir.join(files::ISSUER))?, account, life })
    }

    /// How long a credential lives. A revoked credential has to be remembered for as long.
    pub(crate) fn life(&self) -> Millis {
        self.life
    }

    /// Issues a credential for the machine with this public key.
    pub(crate) fn issue(&self, machine: MachineId, public_key: &str, now: Timestamp) -> Result<Credential, JwtError> {
        let expires = now.plus(self.life);
        let jwt = jwt::machine(public_key, &machine.to_string(), &self.account, now, expires, &self.key)?;
        Ok(Credential { jwt, expires })
    }

    /// A challenge for one machine, which can be signed for a short time.
    pub(crate) fn challenge(&self, machine: MachineId, now: Timestamp) -> Result<(String, Timestamp), JwtError> {
        let expires = now.plus(CHALLENGE_LIFE);
        let random = gpubnb_events::hex(rand::rng().random::<[u8; 16]>());
        let text = format!("{machine}.{}.{random}", expires.millis());
        let signature = BASE64URL_NOPAD.encode(&self.key.sign(text.as_bytes())?);
        Ok((format!("{text}.{signature}"), expires))
    }

    /// True if this issuer made this challenge for this machine, and the challenge has not expired.
    pub(crate) fn challenged(&self, nonce: &str, machine: MachineId, now: Timestamp) -> bool {
        let genuine = || {
            let (text, signature) = nonce.rsplit_once('.')?;
            let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).ok()?;
            self.key.verify(text.as_bytes(), &signature).ok()?;
            let mut parts = text.split('.');
            let to: MachineId = parts.next()?.parse().ok()?;
            let expires = Timestamp::from_millis(parts.next()?.parse().ok()?);
            Some(to == machine && now <= expires)
        };
        genuine().unwrap_or(false)
    }
}

/// True if the holder of a machine's key signed this text. The signature is base64url.
pub(crate) fn signed_by(public_key: &str, text: &str, signature: &str) -> bool {
    let Ok(key) = KeyPair::from_public_key(public_key) else { return false };
    let Ok(signature) = BASE64URL_NOPAD.decode(signature.as_bytes()) else { return false };
    public_key.starts_with('U') && signature.len() == 64 && key.verify(text.as_bytes(), &signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_for_one_machine_and_a_short_time() {
        let issuer = Issuer { key: KeyPair::new_account(), account: "A".to_owned(), life: Millis(1_000) };
        let (machine, now) = (MachineId::generate(), Timestamp::from_millis(1_000_000));
        let (nonce, expires) = issuer.challenge(machine, now).unwrap();
        assert!(issuer.challenged(&nonce, machine, expires));
        assert!(!issuer.challenged(&nonce, machine, expires.plus(Millis(1))));
        assert!(!issuer.challenged(&nonce, MachineId::generate(), now));
        let other = Issuer { key: KeyPair::new_account(), account: "A".to_owned(), life: Millis(1_000) };
        assert!(!other.challenged(&nonce, machine, now));
        assert!(!issuer.challenged("", machine, now));
    }

    #[test]
    fn only_the_holder_of_the_key_signs() {
        let (key, other) = (KeyPair::new_user(), KeyPair::new_user());
        let signature = BASE64URL_NOPAD.encode(&key.sign(b"text").unwrap());
        assert!(signed_by(&key.public_key(), "text", &signature));
        assert!(!signed_by(&other.public_key(), "text", &signature));
        assert!(!signed_by(&key.public_key(), "other", &signature));
        assert!(!signed_by("", "text", &signature) && !signed_by(&key.public_key(), "text", ""));
        // An account's key is no machine's.
        let account = KeyPair::new_account();
        let signature = BASE64URL_NOPAD.encode(&account.sign(b"text").unwrap());
        assert!(!signed_by(&account.public_key(), "text", &signature));
    }
}
