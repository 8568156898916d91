//! The uploads that run now, of all web servers together, in a bucket of the broker. A store of files knows only its
//! complete files, so an upload claims its room here before it begins. Two uploads cannot use the same free bytes, also
//! if two web servers receive them.
//!
//! Each store has one entry with all its claims. A web server reads the entry, decides whether the upload fits, and
//! writes the entry back on condition that nobody has changed the entry meanwhile.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_nats::jetstream::kv;
use gpubnb_events::{AccountId, Clock, CommandId, Lease, Millis, Timestamp};
use gpubnb_files::Owner;
use gpubnb_runtime::rpc::RpcError;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tracing::warn;

use crate::error::Problem;

/// A claim ends this long after it was renewed last, for example because its web server was killed.
const CLAIM_LIFE: Millis = Millis(60_000);
/// Time between two renewals.
const RENEW_EVERY: Duration = Duration::from_secs(20);
/// The claim of a stored file stays for this long. It is longer than web servers use a listing of the store
/// (`ui/files`), so that each file is in the listing or has a claim.
const STORED_LIFE: Millis = Millis(15_000);
/// Files that an account stores within this time have one claim together.
const MERGED_FOR: Millis = Millis(5_000);
/// Most claims of stored files. The oldest ones are dropped beyond that, so that the entry fits into a message.
const MAX_STORED: usize = 1_000;
/// Most claims of running uploads of a store.
const MAX_CLAIMS: usize = 1_000;
/// Most claims of one account, and of all accounts without money together.
const MAX_OWN_CLAIMS: usize = MAX_CLAIMS / 4;
/// Longest wait for the decision about other uploads.
const MAX_WAIT: Duration = Duration::from_secs(20);
/// Most tries to change an entry that other web servers change.
pub(crate) const MAX_TRIES: u32 = 20;

/// The room that one upload takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Upload {
    id: CommandId,
    /// A hash of the name of the file in the store. A name may be long.
    file: String,
    account: AccountId,
    has_money: bool,
    bytes: u64,
    /// The number of files: more than one only for stored files.
    files: usize,
    /// The attempt that uploads the file; `None` for an input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<Lease>,
    /// For stored files: when the first of them was stored.
    stored_at: Option<Timestamp>,
    /// When the claim ends, unless it is renewed.
    until: Timestamp,
}

impl Upload {
    /// An upload of `bytes` bytes that takes the share of `owner`.
    pub(crate) fn new(file: &str, owner: Owner, bytes: u64, lease: Option<Lease>) -> Self {
        let Owner { account, has_money } = owner;
        let (id, until) = (CommandId::generate(), Timestamp::EPOCH);
        let file = short_hash(file);
        Self { id, file, account, has_money, bytes, files: 1, lease, stored_at: None, until }
    }

    /// The same upload with several files.
    pub(crate) fn of_files(mut self, files: usize) -> Self {
        self.files = files;
        self
    }

    fn is_stored(&self) -> bool {
        self.stored_at.is_some()
    }
}

/// The claims of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims(Vec<Upload>);

impl Claims {
    fn sum(&self, counts: impl Fn(&Upload) -> bool, bytes: impl Fn(u64) -> u64) -> u64 {
        self.0.iter().filter(|upload| counts(upload)).fold(0, |sum, upload| sum.saturating_add(bytes(upload.bytes)))
    }

    /// The bytes of all uploads, where `bytes` gives the room that an upload of a certain size takes.
    pub(crate) fn total(&self, bytes: impl Fn(u64) -> u64) -> u64 {
        self.sum(|_| true, bytes)
    }

    /// The bytes of an account's uploads.
    pub(crate) fn of(&self, account: AccountId, bytes: impl Fn(u64) -> u64) -> u64 {
        self.sum(|upload| upload.account == account, bytes)
    }

    /// The number of an account's uploads.
    pub(crate) fn files_of(&self, account: AccountId) -> usize {
        self.0.iter().filter(|upload| upload.account == account).map(|upload| upload.files).sum()
    }

    /// The bytes of the uploads of all accounts without money.
    pub(crate) fn without_money(&self, bytes: impl Fn(u64) -> u64) -> u64 {
        self.sum(|upload| !upload.has_money, bytes)
    }

    /// The bytes of an attempt's uploads that still run, without those of this file: the claim of an upload that broke
    /// off may not have ended yet.
    pub(crate) fn of_attempt(&self, lease: Lease, file: &str) -> u64 {
        let file = short_hash(file);
        let counts = |upload: &Upload| upload.lease == Some(lease) && !upload.is_stored() && upload.file != file;
        self.sum(counts, |bytes| bytes)
    }

    /// When the last of these files was stored; `None` if none of them is.
    pub(crate) fn newest_stored(&self) -> Option<Timestamp> {
        let ends = self.0.iter().filter(|upload| upload.is_stored()).map(|upload| upload.until.millis());
        let stored = u64::try_from(ends.max()?).unwrap_or(0).saturating_sub(STORED_LIFE.0);
        Some(Timestamp::EPOCH.plus(Millis(stored)))
    }

    /// Turns the claim of an upload into the claim of a stored file of `bytes` bytes.
    fn store(&mut self, upload: &Upload, bytes: u64, now: Timestamp) {
        self.0.retain(|known| known.id != upload.id);
        let is_same = |known: &Upload| (known.account, known.has_money) == (upload.account, upload.has_money);
        let is_recent = |known: &Upload| known.stored_at.is_some_and(|at| now.since(at) < MERGED_FOR);
        let until = now.plus(STORED_LIFE);
        if let Some(known) = self.0.iter_mut().find(|known| is_same(known) && is_recent(known)) {
            known.bytes = known.bytes.saturating_add(bytes);
            known.files += 1;
            known.until = until;
        } else {
            let stored =
                Upload { stored_at: Some(now), lease: None, file: String::new(), bytes, until, ..upload.clone() };
            self.0.push(stored);
        }
        let excess = self.0.iter().filter(|known| known.is_stored()).count().saturating_sub(MAX_STORED);
        for _ in 0..excess {
            let oldest = self.0.iter().position(Upload::is_stored);
            oldest.map(|index| self.0.remove(index));
        }
    }

    /// True if an upload of this file runs.
    pub(crate) fn has(&self, file: &str) -> bool {
        let file = short_hash(file);
        self.0.iter().any(|upload| upload.file == file && !upload.is_stored())
    }

    /// These claims without the files that are stored already, for somebody who has listed the store after reading the
    /// claims; `None` if there are no such files.
    pub(crate) fn without_stored(&self) -> Option<Self> {
        let running: Vec<_> = self.0.iter().filter(|upload| !upload.is_stored()).cloned().collect();
        (running.len() < self.0.len()).then_some(Self(running))
    }

    /// Adds an upload; false if there are too many.
    fn add(&mut self, upload: Upload) -> bool {
        // The files that are stored already wait only for the listings of the other web servers.
        let running = |counts: &dyn Fn(&Upload) -> bool| {
            self.0.iter().filter(|known| !known.is_stored() && counts(known)).count()
        };
        let is_bounded = running(&|_| true) < MAX_CLAIMS
            && running(&|known| known.account == upload.account) < MAX_OWN_CLAIMS
            && (upload.has_money || running(&|known| !known.has_money) < MAX_OWN_CLAIMS);
        if is_bounded {
            self.0.push(upload);
        }
        is_bounded
    }
}

/// The claims of all stores.
#[derive(Clone)]
pub(crate) struct Uploads {
    bucket: kv::Store,
    clock: Arc<dyn Clock>,
    /// One upload of this web server decides at a time about a store, so that uploads need not try again.
    turns: Arc<BTreeMap<&'static str, Arc<Mutex<()>>>>,
}

impl Uploads {
    pub(crate) fn new(bucket: kv::Store, clock: Arc<dyn Clock>, stores: [&'static str; 2]) -> Self {
        Self { bucket, clock, turns: Arc::new(stores.map(|store| (store, Arc::default())).into()) }
    }

    /// Waits until no other upload of this web server decides about this store. Hold the guard while [`Self::read`] and
    /// [`Self::add`] decide about an upload.
    pub(crate) async fn turn(&self, store: &str) -> Result<Option<OwnedMutexGuard<()>>, Problem> {
        let Some(turn) = self.turns.get(store) else { return Ok(None) };
        let guard = tokio::time::timeout(MAX_WAIT, Arc::clone(turn).lock_owned()).await;
        guard.map(Some).map_err(|_| too_many())
    }

    /// Adds the claim of an upload to the claims that [`Self::read`] returned with a revision. `None` if another web
    /// server has changed them since: read them again.
    pub(crate) async fn add(
        &self,
        store: &'static str,
        (mut claims, revision): (Claims, u64),
        upload: &Upload,
    ) -> Result<Option<Claim>, Problem> {
        let upload = Upload { until: self.clock.now().plus(CLAIM_LIFE), ..upload.clone() };
        if !claims.add(upload.clone()) {
            return Err(too_many());
        }
        let is_added = self.write(store, &claims, revision).await?;
        Ok(is_added.then(|| Claim { uploads: self.clone(), store, upload }))
    }

    /// The bytes that an attempt has stored.
    pub(crate) async fn stored_by(&self, lease: Lease) -> Result<u64, Problem> {
        Ok(self.stored_entry(&stored_key(lease)).await?.0)
    }

    async fn stored_entry(&self, key: &str) -> Result<(u64, u64), Problem> {
        let entry = self.bucket.entry(key).await.map_err(|e| unavailable(&e))?;
        Ok(entry.map_or((0, 0), |entry| (serde_json::from_slice(&entry.value).unwrap_or(u64::MAX), entry.revision)))
    }

    async fn add_stored(&self, lease: Lease, bytes: u64) -> Result<(), Problem> {
        let key = stored_key(lease);
        for _ in 0..MAX_TRIES {
            let (stored, revision) = self.stored_entry(&key).await?;
            if self.write(&key, &stored.saturating_add(bytes), revision).await? {
                return Ok(());
            }
        }
        Err(busy())
    }

    /// Changes the claims of a store. Waits for its turn among the uploads of this web server, but changes the claims
    /// in any case.
    async fn change(&self, store: &str, change: impl Fn(&mut Claims)) -> Result<(), Problem> {
        let _turn = self.turn(store).await.ok();
        for _ in 0..MAX_TRIES {
            let (mut claims, revision) = self.read(store).await?;
            change(&mut claims);
            if self.write(store, &claims, revision).await? {
                return Ok(());
            }
        }
        Err(busy())
    }

    /// The claims of a store that have not ended, and the revision of their entry.
    pub(crate) async fn read(&self, store: &str) -> Result<(Claims, u64), Problem> {
        let entry = self.bucket.entry(store).await.map_err(|e| unavailable(&e))?;
        // Claims that cannot be read are replaced. They would end within a minute.
        let parse =
            |entry: kv::Entry| (serde_json::from_slice::<Claims>(&entry.value).unwrap_or_default(), entry.revision);
        let (mut claims, revision) = entry.map(parse).unwrap_or_default();
        let now = self.clock.now();
        claims.0.retain(|upload| now < upload.until);
        Ok((claims, revision))
    }

    /// Writes an entry; false if somebody has changed the entry since this revision.
    async fn write(&self, key: &str, value: &impl Serialize, revision: u64) -> Result<bool, Problem> {
        let value = serde_json::to_vec(value).map_err(|e| unavailable(&e))?;
        match self.bucket.update(key, value.into(), revision).await {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == kv::UpdateErrorKind::WrongLastRevision => Ok(false),
            Err(e) => Err(unavailable(&e)),
        }
    }
}

/// The claim of one upload. A claim that is dropped ends within a minute.
#[must_use]
pub(crate) struct Claim {
    uploads: Uploads,
    store: &'static str,
    upload: Upload,
}

impl Claim {
    /// Runs the upload of `bytes` bytes, and renews the claim meanwhile. Afterwards these bytes count for the attempt.
    pub(crate) async fn run<T>(
        self,
        bytes: u64,
        upload: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let mut upload = std::pin::pin!(upload);
        let result = loop {
            tokio::select! {
                result = &mut upload => break result,
                () = tokio::time::sleep(RENEW_EVERY) => self.renew().await,
            }
        };
        if result.is_err() {
            self.release().await;
            return result;
        }
        // The claim may have been for more than these bytes: for the rest of a file.
        let now = self.uploads.clock.now();
        self.warn(self.uploads.change(self.store, |claims| claims.store(&self.upload, bytes, now)).await);
        if let Some(lease) = self.upload.lease {
            self.warn(self.uploads.add_stored(lease, bytes).await);
        }
        result
    }

    /// Ends the claim of an upload that stores nothing.
    pub(crate) async fn release(&self) {
        let id = self.upload.id;
        self.warn(self.uploads.change(self.store, |claims| claims.0.retain(|known| known.id != id)).await);
    }

    /// Renews the claim.
    async fn renew(&self) {
        let upload = Upload { until: self.uploads.clock.now().plus(CLAIM_LIFE), ..self.upload.clone() };
        let change = |claims: &mut Claims| {
            claims.0.retain(|known| known.id != upload.id);
            claims.0.push(upload.clone());
        };
        self.warn(self.uploads.change(self.store, change).await);
    }

    fn warn(&self, changed: Result<(), Problem>) {
        if let Err(problem) = changed {
            warn!(store = self.store, problem = problem.detail, "the claim of an upload could not be changed");
        }
    }
}

/// The first 16 bytes of a SHA-256 in hex.
fn short_hash(text: &str) -> String {
    gpubnb_events::hex(&Sha256::digest(text)[..16])
}

/// The problem if there are too many uploads at once.
pub(crate) fn too_many() -> Problem {
    RpcError::Unavailable("many files are being uploaded: try again".to_owned()).into()
}

fn stored_key(lease: Lease) -> String {
    format!("stored-{}", lease.0)
}

pub(crate) fn busy() -> Problem {
    RpcError::Unavailable("other web servers keep changing the claims of uploads: try again".to_owned()).into()
}

fn unavailable(e: &(dyn std::error::Error + 'static)) -> Problem {
    RpcError::unavailable("the broker cannot count the uploads now; try again", e).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(account: AccountId, has_money: bool) -> Upload {
        Upload::new("file", Owner { account, has_money }, 5, None)
    }

    #[test]
    fn claims_count_for_the_store_the_account_and_the_accounts_without_money() {
        let (rich, poor) = (AccountId::generate(), AccountId::generate());
        let mut claims = Claims::default();
        assert!(claims.add(upload(rich, true)) && claims.add(upload(poor, false)) && claims.add(upload(rich, false)));
        let twice = |bytes| bytes * 2;
        assert_eq!((claims.total(twice), claims.of(rich, twice), claims.without_money(twice)), (30, 20, 20));
        assert!(claims.has("file") && !claims.has("other"));
        assert_eq!(claims.without_stored(), None);
        let now = Timestamp::EPOCH.plus(Millis(100_000));
        let first = claims.0[0].clone();
        claims.store(&first, 3, now);
        assert_eq!(claims.without_stored().unwrap().total(|bytes| bytes), 10);
        assert_eq!(
            (claims.newest_stored(), claims.of(rich, |bytes| bytes)),
            (Some(now), 8),
            "3 of 5 bytes were stored"
        );
    }

    #[test]
    fn stored_files_of_an_account_share_a_claim_and_never_fill_the_entry() {
        let account = AccountId::generate();
        let at = |millis| Timestamp::EPOCH.plus(Millis(millis));
        let mut claims = Claims::default();
        for millis in [1_000, 2_000, 7_000] {
            claims.store(&upload(account, true), 5, at(millis));
        }
        assert_eq!((claims.0.len(), claims.files_of(account), claims.of(account, |bytes| bytes)), (2, 3, 15));
        assert_eq!(claims.newest_stored(), Some(at(7_000)));
        for _ in 0..2 * MAX_STORED {
            claims.store(&upload(AccountId::generate(), true), 5, at(8_000));
        }
        assert_eq!(claims.0.len(), MAX_STORED);
    }

    #[test]
    fn no_account_takes_all_claims() {
        let mut claims = Claims::default();
        let strangers = (0..MAX_CLAIMS).take_while(|_| claims.add(upload(AccountId::generate(), false))).count();
        assert_eq!(strangers, MAX_OWN_CLAIMS);
        let account = AccountId::generate();
        assert_eq!((0..MAX_CLAIMS).take_while(|_| claims.add(upload(account, true))).count(), MAX_OWN_CLAIMS);
        assert!(claims.add(upload(AccountId::generate(), true)));
    }
}
