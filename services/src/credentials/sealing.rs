//! Sealing (encryption) of jobs' secrets: with the market's key while a job waits, and then for the machine that runs
//! the job.
//!
//! `XKey` is NATS's x25519 key. It seals with `crypto_box` (X25519, `XSalsa20`, `Poly1305`).

use std::{collections::BTreeMap, path::Path};

use anyhow::Context as _;
use nkeys::XKey;

use super::files;

/// The secret values of a job's environment, by name.
pub(crate) type Secrets = BTreeMap<String, String>;

/// Seals and opens secrets with the market's key.
pub(crate) struct Sealing {
    key: XKey,
}

impl Sealing {
    /// Reads the market's key.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(files::SEALING);
        let key = XKey::from_seed(&files::read(&path)?).with_context(|| format!("{} holds no key", path.display()))?;
        Ok(Self { key })
    }

    /// The market's public key, which a machine needs to open its secrets.
    pub(crate) fn public_key(&self) -> String {
        self.key.public_key()
    }

    /// Seals secrets for storage, with the market's key.
    pub(crate) fn seal(&self, secrets: &Secrets) -> anyhow::Result<Vec<u8>> {
        Ok(self.key.seal(&serde_json::to_vec(secrets)?, &self.key)?)
    }

    /// Opens stored secrets.
    pub(crate) fn open_stored(&self, stored: &[u8]) -> anyhow::Result<Secrets> {
        Ok(serde_json::from_slice(&self.key.open(stored, &self.key)?)?)
    }

    /// Opens stored secrets and seals them so that only the machine with this public key can open them.
    pub(crate) fn reseal_for(&self, stored: &[u8], machine: &str) -> anyhow::Result<Vec<u8>> {
        let machine = XKey::from_public_key(machine).context("the machine's key")?;
        Ok(self.key.seal(&self.key.open(stored, &self.key)?, &machine)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_chosen_machine_opens_sealed_secrets() {
        let sealing = Sealing { key: XKey::new() };
        let secrets = Secrets::from([("TOKEN".to_owned(), "swordfish".to_owned())]);
        let stored = sealing.seal(&secrets).unwrap();
        assert!(!stored.windows(9).any(|w| w == b"swordfish"));
        let (machine, other) = (XKey::new(), XKey::new());
        let sealed = sealing.reseal_for(&stored, &machine.public_key()).unwrap();
        let from = XKey::from_public_key(&sealing.public_key()).unwrap();
        let opened: Secrets = serde_json::from_slice(&machine.open(&sealed, &from).unwrap()).unwrap();
        assert_eq!(opened, secrets);
        assert!(other.open(&sealed, &from).is_err());
    }
}
