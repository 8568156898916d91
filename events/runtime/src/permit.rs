//! Permits, most of them to download or upload files. A process signs a permit for one purpose until a given time, and
//! the web server checks the permit.
//!
//! The text of a permit is `<purpose>.<field>.….<expires>.<hmac-sha256>`, for example
//! `upload.<job>.<lease>.<max_bytes>.1770000000000.<hmac-sha256>`. `expires` is in milliseconds since 1970. The text
//! can be used as it is in a header and in an address.

use std::fmt;

use gpubnb_events::{AccountId, CommandId, JobId, Lease, Timestamp, dataset::DatasetId};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// The secret with which permits are signed and checked. The services and the web server share the secret.
#[derive(Clone)]
pub struct PermitKey(Vec<u8>);

impl fmt::Debug for PermitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PermitKey(•••)")
    }
}

/// The purpose of a permit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// Uploading the files that one attempt left.
    Upload {
        /// The job.
        job: JobId,
        /// The attempt.
        lease: Lease,
        /// The largest total size of the files, bytes.
        max_bytes: u64,
    },
    /// Downloading one input file of a job, for one attempt.
    Input {
        /// The job.
        job: JobId,
        /// The attempt.
        lease: Lease,
        /// The account that owns the file.
        account: AccountId,
        /// The file.
        input: CommandId,
    },
    /// Downloading one dataset of a job, for one attempt.
    Dataset {
        /// The job.
        job: JobId,
        /// The attempt.
        lease: Lease,
        /// The account that owns the dataset.
        account: AccountId,
        /// The dataset.
        dataset: DatasetId,
    },
    /// Trying passwords for one person, from a browser in which this person has signed in before. Such a browser has
    /// its own limit of wrong attempts.
    KnownBrowser {
        /// The login: the hash of an e-mail address, hexadecimal.
        login: String,
        /// The browser: an id that was made when the person signed in there.
        browser: String,
    },
    /// Finishing a ceremony of a passkey that the market began.
    Passkey {
        /// The id of the ceremony.
        ceremony: String,
        /// The state of the ceremony, JSON.
        state: String,
    },
    /// Downloading one file that an attempt left.
    Artifact {
        /// The job.
        job: JobId,
        /// The attempt.
        lease: Lease,
        /// Path below `/output`.
        path: String,
        /// The file's SHA-256 in the manifest.
        sha256: String,
    },
}

/// Permission for one purpose until `expires`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    /// The purpose.
    pub purpose: Purpose,
    /// The time at which the permit ends.
    pub expires: Timestamp,
}

/// The reason why a permit is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPermit {
    /// The permit was not signed with this key, or was changed.
    #[error("the permit is not valid")]
    Invalid,
    /// The permit has expired.
    #[error("the permit has expired")]
    Expired,
}

impl Permit {
    fn text(&self) -> String {
        let expires = self.expires.millis();
        match &self.purpose {
            Purpose::Upload { job, lease, max_bytes } => format!("upload.{job}.{lease}.{max_bytes}.{expires}"),
            Purpose::Input { job, lease, account, input } => {
                format!("input.{job}.{lease}.{account}.{input}.{expires}")
            }
            Purpose::Dataset { job, lease, account, dataset } => {
                format!("dataset.{job}.{lease}.{account}.{dataset}.{expires}")
            }
            Purpose::KnownBrowser { login, browser } => format!("known.{login}.{browser}.{expires}"),
            Purpose::Passkey { ceremony, state } => format!("passkey.{ceremony}.{}.{expires}", hex::encode(state)),
            // A path may contain any character, also the dot that separates the parts: write it in hexadecimal.
            Purpose::Artifact { job, lease, path, sha256 } => {
                format!("artifact.{job}.{lease}.{}.{sha256}.{expires}", hex::encode(path))
            }
        }
    }

    fn read(text: &str) -> Option<Self> {
        let (rest, expires) = text.rsplit_once('.')?;
        let mut parts = rest.split('.');
        let purpose = match (parts.next()?, parts.next()?, parts.next()?) {
            ("upload", job, lease) => {
                let max_bytes = parts.next()?.parse().ok()?;
                Purpose::Upload { job: job.parse().ok()?, lease: lease.parse().ok()?, max_bytes }
            }
            ("input", job, lease) => {
                let (account, input) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
                Purpose::Input { job: job.parse().ok()?, lease: lease.parse().ok()?, account, input }
            }
            ("dataset", job, lease) => {
                let (account, dataset) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
                Purpose::Dataset { job: job.parse().ok()?, lease: lease.parse().ok()?, account, dataset }
            }
            ("known", login, browser) => Purpose::KnownBrowser { login: login.to_owned(), browser: browser.to_owned() },
            ("passkey", ceremony, state) => {
                let state = String::from_utf8(hex::decode(state).ok()?).ok()?;
                Purpose::Passkey { ceremony: ceremony.to_owned(), state }
            }
            ("artifact", job, lease) => {
                let path = String::from_utf8(hex::decode(parts.next()?).ok()?).ok()?;
                let sha256 = parts.next()?.to_owned();
                Purpose::Artifact { job: job.parse().ok()?, lease: lease.parse().ok()?, path, sha256 }
            }
            _ => return None,
        };
        Some(Self { purpose, expires: Timestamp::from_millis(expires.parse().ok()?) })
    }
}

impl PermitKey {
    /// A key from these bytes; `None` if there are fewer than 32.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= 32).then(|| Self(bytes.to_vec()))
    }

    /// Reads the key from a text file. Every byte of the text is a byte of the key; white space around it is ignored.
    pub fn read(path: &std::path::Path) -> std::io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        Self::new(text.trim().as_bytes())
            .ok_or_else(|| std::io::Error::other("the transfer key must have at least 32 characters"))
    }

    fn mac(&self, text: &str) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        mac.update(text.as_bytes());
        Some(mac)
    }

    /// The text of a permit with its signature.
    pub fn sign(&self, permit: &Permit) -> Option<String> {
        let text = permit.text();
        let mac = hex::encode(self.mac(&text)?.finalize().into_bytes());
        Some(format!("{text}.{mac}"))
    }

    /// The purpose of a signed permit, if the permit is valid now. The signature is compared in constant time.
    pub fn verify(&self, signed: &str, now: Timestamp) -> Result<Purpose, BadPermit> {
        let (text, signature) = signed.rsplit_once('.').ok_or(BadPermit::Invalid)?;
        let signature = hex::decode(signature).map_err(|_| BadPermit::Invalid)?;
        let mac = self.mac(text).ok_or(BadPermit::Invalid)?;
        mac.verify_slice(&signature).map_err(|_| BadPermit::Invalid)?;
        let permit = Permit::read(text).ok_or(BadPermit::Invalid)?;
        if now > permit.expires { Err(BadPermit::Expired) } else { Ok(permit.purpose) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::{Millis, Seq};

    #[test]
    fn a_permit_is_valid_only_unchanged_and_in_time() {
        let key = PermitKey::new(&[7; 32]).unwrap();
        let now = Timestamp::from_millis(1_000_000);
        let (job, lease) = (JobId::generate(), Lease(Seq(42)));
        for purpose in [
            Purpose::Upload { job, lease, max_bytes: 7 },
            Purpose::Input {
                job: JobId::generate(),
                lease: Lease(Seq(7)),
                account: AccountId::generate(),
                input: CommandId::generate(),
            },
            Purpose::Dataset { job, lease, account: AccountId::generate(), dataset: "0a".repeat(32).parse().unwrap() },
            Purpose::KnownBrowser { login: "0a".to_owned(), browser: "ff".to_owned() },
            Purpose::Passkey { ceremony: "0a".to_owned(), state: "{\"a.b\":1}".to_owned() },
            Purpose::Artifact { job, lease, path: "a/b.42.png\n".to_owned(), sha256: "0a".to_owned() },
        ] {
            let permit = Permit { purpose: purpose.clone(), expires: now.plus(Millis(1_000)) };
            let text = key.sign(&permit).unwrap();
            assert_eq!(key.verify(&text, now), Ok(purpose));
            assert_eq!(key.verify(&text, now.plus(Millis(1_001))), Err(BadPermit::Expired));
            assert_eq!(PermitKey::new(&[8; 32]).unwrap().verify(&text, now), Err(BadPermit::Invalid));
            let changed = text.replace(".42.", ".43.").replacen("input", "upload", 1);
            assert!(changed == text || key.verify(&changed, now) == Err(BadPermit::Invalid));
        }
        assert_eq!(key.verify("", now), Err(BadPermit::Invalid));
        assert_eq!(key.verify("...", now), Err(BadPermit::Invalid));
        assert!(PermitKey::new(b"short").is_none());
    }
}
