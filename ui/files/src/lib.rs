//! The market's files: the inputs that people upload, and the files that jobs leave. They are in the broker's object
//! store, in a directory, or in a store that speaks S3. The rest of the web server does not know which.
//!
//! Belongs here: storing, reading and counting files. Must not come here: who may do so, and HTTP.

mod bucket;
mod jetstream;
mod usage;

use std::{
    collections::HashMap,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use gpubnb_events::{AccountId, Millis, Timestamp};
use tokio::{io::AsyncRead, time::Instant};

pub use self::usage::{Owner, Usage, UsedBytes};
use self::{bucket::Bucket, jetstream::Jetstream};

/// The description of a stored file: its size, its hash and its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileInfo {
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the bytes, in hex.
    pub sha256: String,
    /// Names and values that belong to the file.
    pub metadata: HashMap<String, String>,
}

/// A store that does not answer or breaks off, or a setting of a store that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The broker's object store.
    #[error("the broker's store of files does not answer")]
    Broker(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The directory or the S3 store.
    #[error("the store of files does not answer")]
    Bucket(#[from] object_store::Error),
    /// The description of a file is damaged.
    #[error("the description of a file cannot be read")]
    Description(#[from] serde_json::Error),
    /// The bytes could not be read from their source or written to the store.
    #[error("a file could not be copied")]
    Copy(#[from] std::io::Error),
    /// The directory is missing.
    #[error("the directory {} is missing: make it, or mount it, and start again", .0.display())]
    Missing(PathBuf),
    /// The address of the store has an unknown form.
    #[error("{0} is no store of files: write file:///a/directory or s3://bucket/prefix")]
    Address(String),
}

/// A file that is about to be stored.
#[derive(Debug, Clone)]
pub struct NewFile {
    /// The name. A file with the same name is replaced.
    pub name: String,
    /// The account whose share the bytes take, and whether it had money.
    pub owner: Owner,
    /// Names and values that belong to the file.
    pub metadata: HashMap<String, String>,
}

/// The bytes of a file.
pub type FileReader = Pin<Box<dyn AsyncRead + Send>>;

/// The room of a store, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The bytes of all files.
    pub used: u64,
    /// The most bytes; `None` if the store has no bound.
    pub most: Option<u64>,
}

/// The time for which a listing of a store is used. Meanwhile this process adds the files that it stores itself. Files
/// that other processes store appear only in the next listing.
const USAGE_AGE: Duration = Duration::from_secs(10);

#[derive(Debug)]
enum Backend {
    Jetstream(Box<Jetstream>),
    Bucket(Bucket),
}

/// A listing of a store, and its time.
type Listing = (Instant, Arc<Usage>);

/// One store of files. Clones share one state.
#[derive(Debug, Clone)]
pub struct Files {
    backend: Arc<Backend>,
    /// The last listing, with the files that this process has stored since.
    listed: Arc<Mutex<Option<Listing>>>,
    /// Requests that need a listing at the same time share one.
    listing: Arc<tokio::sync::Mutex<()>>,
}

impl Files {
    fn new(backend: Backend) -> Self {
        Self { backend: Arc::new(backend), listed: Arc::default(), listing: Arc::default() }
    }

    /// The store of this name in the broker.
    pub async fn in_broker(js: &async_nats::jetstream::Context, name: &str) -> Result<Self, FilesError> {
        Ok(Self::new(Backend::Jetstream(Box::new(Jetstream::open(js, name).await?))))
    }

    /// The store of this name below an address, `file:///a/directory` or `s3://bucket/prefix`. A directory must exist.
    /// `most` is the room in bytes: the store does not refuse more, so callers check [`Self::room`] before they store a
    /// file. [`Self::remove_expired`] removes the files that are older than `kept`. The environment has the keys and
    /// the endpoint of S3, under the names that the tools of S3 use: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
    /// `AWS_ENDPOINT_URL`, `AWS_REGION`.
    pub fn at(
        address: &str,
        name: &str,
        most: u64,
        kept: Millis,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, FilesError> {
        Ok(Self::new(Backend::Bucket(Bucket::open(address, name, most, kept, environment)?)))
    }

    /// Stores a file with the bytes that a reader returns. The file exists only when all its bytes are stored.
    pub async fn put(&self, file: NewFile, content: impl AsyncRead + Send + Unpin) -> Result<FileInfo, FilesError> {
        let owner = file.owner;
        let stored = match &*self.backend {
            Backend::Jetstream(store) => store.put(file, content).await,
            Backend::Bucket(store) => store.put(file, content).await,
        }?;
        if let Some((_, usage)) = &mut *self.listed() {
            Arc::make_mut(usage).add(owner, stored.bytes);
        }
        Ok(stored)
    }

    /// Stores a file that has metadata and no bytes, and counts in no share: it describes other files.
    pub async fn describe(&self, file: NewFile) -> Result<(), FilesError> {
        match &*self.backend {
            Backend::Jetstream(store) => store.describe(file).await,
            Backend::Bucket(store) => store.describe(file).await,
        }
    }

    fn listed(&self) -> std::sync::MutexGuard<'_, Option<Listing>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The description of a file; `None` if there is no such file.
    pub async fn info(&self, name: &str) -> Result<Option<FileInfo>, FilesError> {
        match &*self.backend {
            Backend::Jetstream(store) => store.info(name).await,
            Backend::Bucket(store) => store.info(name).await,
        }
    }

    /// The bytes of a file from an offset on; `None` if there is no such file.
    pub async fn read(&self, name: &str, first: u64) -> Result<Option<FileReader>, FilesError> {
        match &*self.backend {
            Backend::Jetstream(store) => store.read(name, first).await,
            Backend::Bucket(store) => store.read(name, first).await,
        }
    }

    /// Removes a file. A file that does not exist is no error.
    pub async fn delete(&self, name: &str) -> Result<(), FilesError> {
        let deleted = match &*self.backend {
            Backend::Jetstream(store) => store.delete(name).await,
            Backend::Bucket(store) => store.delete(name).await,
        };
        self.forget_usage();
        deleted
    }

    /// The time since the listing began that [`Self::usage`] returns; `None` if the store will be listed anew.
    pub fn usage_age(&self) -> Option<Duration> {
        self.listed().as_ref().map(|(began, _)| began.elapsed())
    }

    /// Makes the next [`Self::usage`] list the store again.
    pub fn forget_usage(&self) {
        self.listed().take();
    }

    /// The bytes of each owner, as the store itself lists them. The listing is up to ten seconds old, and also contains
    /// the files that this process has stored since.
    pub async fn usage(&self) -> Result<Arc<Usage>, FilesError> {
        let known = || self.listed().as_ref().filter(|(at, _)| at.elapsed() < USAGE_AGE).map(|(_, u)| Arc::clone(u));
        if let Some(usage) = known() {
            return Ok(usage);
        }
        let _one = self.listing.lock().await;
        if let Some(usage) = known() {
            return Ok(usage);
        }
        let at = Instant::now();
        let usage = Arc::new(match &*self.backend {
            Backend::Jetstream(store) => store.usage().await?,
            Backend::Bucket(store) => store.usage().await?,
        });
        *self.listed() = Some((at, Arc::clone(&usage)));
        Ok(usage)
    }

    /// The room of the store.
    pub async fn room(&self) -> Result<Room, FilesError> {
        match &*self.backend {
            Backend::Jetstream(store) => store.room().await,
            Backend::Bucket(store) => Ok(Room { used: self.usage().await?.total().bytes, most: Some(store.most()) }),
        }
    }

    /// Fails if files cannot be stored, for example because of a wrong key.
    pub async fn check(&self) -> Result<(), FilesError> {
        match &*self.backend {
            Backend::Jetstream(_) => Ok(()),
            Backend::Bucket(store) => store.check().await,
        }
    }

    /// Removes all files of an account. Files whose descriptions arrive meanwhile stay until their time is over.
    pub async fn remove_of(&self, account: AccountId) -> Result<(), FilesError> {
        self.forget_usage();
        match &*self.backend {
            Backend::Jetstream(store) => store.remove_of(account).await,
            Backend::Bucket(store) => store.remove_of(account).await,
        }
    }

    /// Removes the files whose time is over. The broker does so itself.
    pub async fn remove_expired(&self, now: Timestamp) -> Result<(), FilesError> {
        match &*self.backend {
            Backend::Jetstream(_) => Ok(()),
            Backend::Bucket(store) => store.remove_expired(now).await,
        }
    }
}

/// The owner of a file for which no owner is stored, as earlier versions did.
const NOBODY: AccountId = AccountId::MIN;
