//! The named secrets of accounts: values that a person stores once, and that jobs get as environment variables by name.
//!
//! A value is stored sealed (encrypted) with the market's key. Nobody can read it again: a submission copies it into
//! the sealed environment of the job (`secrets.rs`). No event and no read model contains a value.

use std::{collections::BTreeMap, sync::Arc};

use async_nats::jetstream::{self, kv};
use data_encoding::BASE64;
use gpubnb_domain::submission::{is_reserved_variable, is_variable_name};
use gpubnb_events::{
    AccountId, Millis, Timestamp,
    command::{SetSecret, StoredSecret},
    refusal::{Refusal, RefusalKind},
};
use gpubnb_log::stream::SECRETS;
use gpubnb_runtime::rpc::RpcError;
use serde::{Deserialize, Serialize};

use crate::credentials::{Sealing, Secrets};

/// Most secrets of an account.
const MAX_SECRETS: usize = 64;
/// Largest value, bytes: a private key of any kind fits.
const MAX_VALUE: usize = 16 * 1024;
/// Most bytes of all sealed values of an account, base64. They are one entry of the bucket.
const MAX_SEALED: usize = 128 * 1024;
/// The last use of a secret is this exact. A job each second would otherwise write all secrets each second.
const USE_EVERY: Millis = Millis(60_000);
/// Tries of a change, while other changes of the same account are faster.
const MAX_TRIES: usize = 5;

/// The message if the bucket does not answer, or a value cannot be sealed.
const UNAVAILABLE: &str = "the secrets of accounts cannot be reached now; try again";

fn unavailable(e: impl std::error::Error + 'static) -> RpcError {
    RpcError::unavailable(UNAVAILABLE, &e)
}

fn sealing_failed(e: anyhow::Error) -> RpcError {
    RpcError::unavailable(UNAVAILABLE, e.as_ref())
}

fn refused(field: &str, message: impl Into<String>) -> RpcError {
    RpcError::refused(Refusal::new("InvalidField", RefusalKind::Invalid, message).with_field(field))
}

fn unknown(name: &str) -> RpcError {
    let message =
        format!("You have no secret {name}: store it with `gpubnb secrets set {name}`, or on the page Secrets.");
    refused("secrets", message)
}

/// A stored secret.
#[derive(Clone, Serialize, Deserialize)]
struct Sealed {
    /// The value, sealed with the market's key, base64.
    value: String,
    changed_at: Timestamp,
    used_at: Option<Timestamp>,
}

/// The secrets of an account, by name: an entry of the bucket.
type Row = BTreeMap<String, Sealed>;

/// The bucket of the accounts' secrets, and the key that opens them.
#[derive(Clone)]
pub(crate) struct AccountSecrets {
    bucket: kv::Store,
    sealing: Arc<Sealing>,
}

impl AccountSecrets {
    /// Opens the bucket.
    pub(crate) async fn open(js: &jetstream::Context, sealing: Arc<Sealing>) -> anyhow::Result<Self> {
        Ok(Self { bucket: js.get_key_value(SECRETS).await?, sealing })
    }

    async fn read(&self, account: AccountId) -> Result<(Row, Option<u64>), RpcError> {
        let entry = self.bucket.entry(account.to_string()).await.map_err(unavailable)?;
        let Some(entry) = entry else { return Ok((Row::new(), None)) };
        let row = match entry.operation {
            kv::Operation::Put => serde_json::from_slice(&entry.value).map_err(unavailable)?,
            _ => Row::new(),
        };
        Ok((row, Some(entry.revision)))
    }

    /// Changes the secrets of an account. Another change at the same time makes this one begin again.
    async fn change<T>(
        &self,
        account: AccountId,
        mut change: impl FnMut(&mut Row) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        for _ in 0..MAX_TRIES {
            let (mut row, revision) = self.read(account).await?;
            let answer = change(&mut row)?;
            let bytes: bytes::Bytes = serde_json::to_vec(&row).map_err(unavailable)?.into();
            let key = account.to_string();
            let written = match revision {
                Some(revision) => self
                    .bucket
                    .update(&key, bytes, revision)
                    .await
                    .map(drop)
                    .map_err(|e| (e.kind() == kv::UpdateErrorKind::WrongLastRevision, unavailable(e))),
                None => self
                    .bucket
                    .create(&key, bytes)
                    .await
                    .map(drop)
                    .map_err(|e| (e.kind() == kv::CreateErrorKind::AlreadyExists, unavailable(e))),
            };
            match written {
                Ok(()) => return Ok(answer),
                Err((true, _)) => {}
                Err((false, e)) => return Err(e),
            }
        }
        Err(RpcError::Unavailable("the secrets of this account are changed too often now; try again".to_owned()))
    }

    /// Stores a value under a name, in place of an earlier value.
    pub(crate) async fn set(
        &self,
        account: AccountId,
        SetSecret { name, value }: &SetSecret,
        now: Timestamp,
    ) -> Result<StoredSecret, RpcError> {
        check_name(name)?;
        if value.0.is_empty() || value.0.len() > MAX_VALUE || value.0.contains('\0') {
            return Err(refused("value", "A value has from 1 byte to 16 KiB, and no NUL."));
        }
        let sealed = self.sealing.seal(&[(name.clone(), value.0.clone())].into()).map_err(sealing_failed)?;
        let sealed = Sealed { value: BASE64.encode(&sealed), changed_at: now, used_at: None };
        self.change(account, |row| {
            row.insert(name.clone(), sealed.clone());
            let bytes: usize = row.values().map(|sealed| sealed.value.len()).sum();
            if row.len() > MAX_SECRETS || bytes > MAX_SEALED {
                let message = "An account has at most 64 secrets, about 90 KiB: delete one that you do not use.";
                return Err(refused("name", message));
            }
            Ok(stored(name, &sealed))
        })
        .await
    }

    /// The names of an account's secrets, in alphabetical order.
    pub(crate) async fn list(&self, account: AccountId) -> Result<Vec<StoredSecret>, RpcError> {
        let (row, _) = self.read(account).await?;
        Ok(row.iter().map(|(name, sealed)| stored(name, sealed)).collect())
    }

    /// Deletes a secret. Jobs that were submitted with the secret keep their copy until they end.
    pub(crate) async fn delete(&self, account: AccountId, name: &str) -> Result<(), RpcError> {
        self.change(account, |row| {
            let removed = row.remove(name);
            removed.map(drop).ok_or_else(|| {
                RpcError::refused(Refusal::new("NotFound", RefusalKind::NotFound, "There is no such secret."))
            })
        })
        .await
    }

    /// Deletes all secrets of an account, and their history in the bucket.
    pub(crate) async fn forget(&self, account: AccountId) -> Result<(), RpcError> {
        self.bucket.purge(account.to_string()).await.map_err(unavailable)
    }

    /// Refuses a name without a secret.
    pub(crate) async fn check(&self, account: AccountId, names: &[String]) -> Result<(), RpcError> {
        if names.is_empty() {
            return Ok(());
        }
        let (row, _) = self.read(account).await?;
        names.iter().find(|name| !row.contains_key(*name)).map_or(Ok(()), |name| Err(unknown(name)))
    }

    /// The values of these secrets, for the environment of a job. Refuses a name without a secret.
    pub(crate) async fn values(&self, account: AccountId, names: &[String]) -> Result<Secrets, RpcError> {
        if names.is_empty() {
            return Ok(Secrets::new());
        }
        let (row, _) = self.read(account).await?;
        let mut values = Secrets::new();
        for name in names {
            let sealed = row.get(name).ok_or_else(|| unknown(name))?;
            let sealed = BASE64.decode(sealed.value.as_bytes()).map_err(unavailable)?;
            values.extend(self.sealing.open_stored(&sealed).map_err(sealing_failed)?);
        }
        Ok(values)
    }

    /// Remembers that a job got these secrets, if their last known use is older than [`USE_EVERY`].
    pub(crate) async fn mark_used(&self, account: AccountId, names: &[String], now: Timestamp) -> Result<(), RpcError> {
        let is_known = |sealed: &Sealed| sealed.used_at.is_some_and(|at| now.since(at) < USE_EVERY);
        let (row, _) = self.read(account).await?;
        if names.iter().filter_map(|name| row.get(name)).all(is_known) {
            return Ok(());
        }
        self.change(account, |row| {
            for (_, sealed) in row.iter_mut().filter(|(name, _)| names.contains(name)) {
                sealed.used_at = Some(now);
            }
            Ok(())
        })
        .await
    }
}

fn stored(name: &str, sealed: &Sealed) -> StoredSecret {
    StoredSecret { name: name.to_owned(), changed_at: sealed.changed_at, used_at: sealed.used_at }
}

/// The name of a secret is the name of an environment variable.
fn check_name(name: &str) -> Result<(), RpcError> {
    if is_variable_name(name) && !is_reserved_variable(name) {
        return Ok(());
    }
    let message =
        "A name has letters, digits and _, such as HF_TOKEN. It may not begin with a digit, GPUBNB_ or NVIDIA_.";
    Err(refused("name", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_a_secret_is_a_name_of_a_variable() {
        for good in ["HF_TOKEN", "_x", "a1"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "1A", "A-B", "A B", "A.B", "Ä", "GPUBNB_JOB", "NVIDIA_VISIBLE_DEVICES", &"A".repeat(101)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
