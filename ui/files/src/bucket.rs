//! Files in a directory or in a store that speaks S3.
//!
//! A file is two objects. The object with the bytes has the owner in its name, so that a listing of names and sizes
//! tells how much each account takes. The object with the description is written last: a file without a description
//! does not exist. In a name, `paid` means that the account had money when the file was stored, and `free` that it had
//! none.
//!
//! ```text
//! artifacts/data/paid/<account>/<id>          the bytes
//! artifacts/about/<SHA-256 of the name>       name, object, size, hash and metadata, as JSON
//! ```

use std::{
    collections::HashMap,
    fs::{DirBuilder, Permissions},
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::PathBuf,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use futures_util::TryStreamExt as _;
use gpubnb_events::{AccountId, CommandId, Millis, Timestamp};
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    buffered::BufWriter,
    local::LocalFileSystem,
    path::Path,
    prefix::PrefixStore,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWriteExt as _};
use tokio_util::io::{InspectReader, StreamReader};
use tracing::warn;
use url::Url;

use crate::{FileInfo, FileReader, FilesError, NOBODY, NewFile, Owner, Usage};

/// Bytes that are in memory for each upload. S3 takes parts of 5 MiB and more.
const PART_BYTES: usize = 8 << 20;
const DATA: &str = "data";
const ABOUT: &str = "about";
const PAID: &str = "paid";
const FREE: &str = "free";

/// A store in a directory or in S3.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    store: Arc<dyn ObjectStore>,
    /// The directory; `None` for S3.
    directory: Option<PathBuf>,
    /// The room for all files together, in bytes. Callers keep to it (see [`crate::Files::at`]).
    most: u64,
    /// The time after which a file is removed.
    kept: Millis,
}

/// The description of a file.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    name: String,
    /// The object with the bytes; `None` for a file without bytes.
    object: Option<String>,
    bytes: u64,
    sha256: String,
    metadata: HashMap<String, String>,
}

impl Bucket {
    pub(crate) fn open(
        address: &str,
        name: &str,
        most: u64,
        kept: Millis,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, FilesError> {
        let unknown = || FilesError::Address(address.to_owned());
        let url = Url::parse(address).map_err(|_| unknown())?;
        let store: Arc<dyn ObjectStore> = match url.scheme() {
            "file" => {
                let root = url.to_file_path().map_err(|()| unknown())?;
                // The directory is not created here: it may belong to a file system that is not mounted.
                if !root.is_dir() {
                    return Err(FilesError::Missing(root));
                }
                let below = root.join(name);
                let made = DirBuilder::new().mode(0o700).create(&below);
                made.or_else(|e| if e.kind() == ErrorKind::AlreadyExists { Ok(()) } else { Err(e) })?;
                std::fs::set_permissions(&below, Permissions::from_mode(0o700))?;
                let store = Arc::new(LocalFileSystem::new_with_prefix(&below)?.with_automatic_cleanup(true));
                return Ok(Self { store, directory: Some(below), most, kept });
            }
            "s3" => {
                // An error means that a provider of cryptography is installed already, which is good too.
                drop(rustls::crypto::ring::default_provider().install_default());
                let bucket = AmazonS3Builder::new().with_client_options(client_options()).with_retry(retries());
                let bucket = environment.fold(bucket, with_variable);
                let bucket = bucket.with_bucket_name(url.host_str().ok_or_else(unknown)?);
                let prefix = Path::from_url_path(url.path()).map_err(|_| unknown())?.join(name);
                Arc::new(PrefixStore::new(bucket.build()?, prefix))
            }
            _ => return Err(unknown()),
        };
        Ok(Self { store, directory: None, most, kept })
    }

    pub(crate) fn most(&self) -> u64 {
        self.most
    }

    pub(crate) async fn put(
        &self,
        file: NewFile,
        content: impl AsyncRead + Send + Unpin,
    ) -> Result<FileInfo, FilesError> {
        let NewFile { name, owner, metadata } = file;
        let (class, id) = (if owner.has_money { PAID } else { FREE }, CommandId::generate());
        let object = Path::from(format!("{DATA}/{class}/{}/{id}", owner.account));
        let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
        let mut content = InspectReader::new(content, |piece| {
            hash.update(piece);
            bytes += piece.len() as u64;
        });
        let mut writer =
            BufWriter::with_capacity(Arc::clone(&self.store), object.clone(), PART_BYTES).with_max_concurrency(1);
        if let Err(e) = tokio::io::copy(&mut content, &mut writer).await {
            // Otherwise the store would keep the parts that have arrived.
            drop(writer.abort().await);
            return Err(e.into());
        }
        drop(content);
        // Also an empty file has an object, which counts in the share of its owner.
        writer.shutdown().await?;
        let sha256 = gpubnb_events::hex(hash.finalize());
        let object = Some(object.to_string());
        let replaced = self.description(&name).await?;
        let description = Description { name, object, bytes, sha256, metadata };
        if let Err(e) = self.save(&description).await {
            self.delete_object(description.object.as_deref()).await?;
            return Err(e);
        }
        self.delete_object(replaced.and_then(|replaced| replaced.object).as_deref()).await?;
        Ok(info(description))
    }

    pub(crate) async fn describe(&self, file: NewFile) -> Result<(), FilesError> {
        let NewFile { name, metadata, .. } = file;
        let sha256 = gpubnb_events::hex(Sha256::digest(b""));
        self.save(&Description { name, object: None, bytes: 0, sha256, metadata }).await
    }

    async fn save(&self, description: &Description) -> Result<(), FilesError> {
        self.store.put(&about(&description.name), serde_json::to_vec(description)?.into()).await?;
        Ok(())
    }

    async fn description(&self, name: &str) -> Result<Option<Description>, FilesError> {
        match self.store.get(&about(name)).await {
            Ok(found) => Ok(Some(serde_json::from_slice(&found.bytes().await?)?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    pub(crate) async fn info(&self, name: &str) -> Result<Option<FileInfo>, FilesError> {
        Ok(self.description(name).await?.map(info))
    }

    pub(crate) async fn read(&self, name: &str, first: u64) -> Result<Option<FileReader>, FilesError> {
        let Some(found) = self.description(name).await? else { return Ok(None) };
        let Some(object) = found.object.filter(|_| first < found.bytes) else {
            return Ok(Some(Box::pin(tokio::io::empty())));
        };
        let range = (first > 0).then_some(GetRange::Offset(first));
        let options = GetOptions { range, ..GetOptions::default() };
        match self.store.get_opts(&Path::from(object), options).await {
            Ok(object) => Ok(Some(Box::pin(StreamReader::new(object.into_stream().map_err(std::io::Error::other))))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    async fn delete_object(&self, object: Option<&str>) -> Result<(), FilesError> {
        let Some(object) = object else { return Ok(()) };
        absent_is_deleted(self.store.delete(&Path::from(object)).await)
    }

    pub(crate) async fn delete(&self, name: &str) -> Result<(), FilesError> {
        let Some(found) = self.description(name).await? else { return Ok(()) };
        absent_is_deleted(self.store.delete(&about(name)).await)?;
        self.delete_object(found.object.as_deref()).await
    }

    pub(crate) async fn usage(&self) -> Result<Usage, FilesError> {
        let mut all = self.store.list(Some(&Path::from(DATA)));
        let mut usage = Usage::default();
        while let Some(object) = all.try_next().await? {
            usage.add(owner_of(&object.location), object.size);
        }
        Ok(usage)
    }

    pub(crate) async fn remove_of(&self, account: AccountId) -> Result<(), FilesError> {
        let mut all = self.store.list(Some(&Path::from(DATA)));
        while let Some(object) = all.try_next().await? {
            if owner_of(&object.location).account == account {
                absent_is_deleted(self.store.delete(&object.location).await)?;
            }
        }
        Ok(())
    }

    pub(crate) async fn check(&self) -> Result<(), FilesError> {
        let probe = Path::from("check");
        self.store.put(&probe, Vec::new().into()).await?;
        absent_is_deleted(self.store.delete(&probe).await)
    }

    pub(crate) async fn remove_expired(&self, now: Timestamp) -> Result<(), FilesError> {
        let is_expired = |modified: i64| {
            let age = now.millis().saturating_sub(modified);
            age > i64::try_from(self.kept.0).unwrap_or(i64::MAX)
        };
        // The descriptions go first: a file without one does not exist.
        for kind in [ABOUT, DATA] {
            let mut all = self.store.list(Some(&Path::from(kind)));
            while let Some(object) = all.try_next().await? {
                if is_expired(object.last_modified.timestamp_millis())
                    && let Err(e) = absent_is_deleted(self.store.delete(&object.location).await)
                {
                    warn!(object = %object.location, error = %e, "an expired object cannot be removed");
                }
            }
        }
        let Some(data) = self.directory.as_ref().map(|directory| directory.join(DATA)) else { return Ok(()) };
        let removing = tokio::task::spawn_blocking(move || remove_unfinished(&data, now));
        Ok(removing.await.map_err(std::io::Error::other)??)
    }
}

/// Time after which an upload that a stopped process left unfinished is removed from a directory.
const UNFINISHED: Millis = Millis(24 * 3_600_000);

/// Removes the files of uploads that never ended. In a directory, an upload has a name such as `<id>#1` until its end,
/// and a listing of the store leaves such names out. In S3, a rule of the operator removes unfinished uploads (see
/// `docs/operating.md`).
fn remove_unfinished(directory: &std::path::Path, now: Timestamp) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            remove_unfinished(&path, now)?;
            continue;
        }
        let is_unfinished = path.file_name().is_some_and(|name| name.to_string_lossy().contains('#'));
        let modified = std::fs::metadata(&path)?.modified()?;
        let modified = modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        if is_unfinished && i128::from(now.millis()) - modified.cast_signed() > i128::from(UNFINISHED.0) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// A download may take as long as its reader needs, but the store must send the next bytes within 30 seconds.
fn client_options() -> ClientOptions {
    ClientOptions::new().with_timeout_disabled().with_read_timeout(Duration::from_secs(30))
}

/// A failed request to the store is repeated for at most 20 seconds, because a client waits for the answer.
fn retries() -> RetryConfig {
    RetryConfig { max_retries: 5, retry_timeout: Duration::from_secs(20), ..RetryConfig::default() }
}

/// Adds a setting of S3, if this environment variable is one, such as `AWS_REGION`. Other variables change nothing.
fn with_variable(bucket: AmazonS3Builder, (name, value): (String, String)) -> AmazonS3Builder {
    let key = name.starts_with("AWS_").then(|| name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>());
    if let Some(Ok(key)) = key { bucket.with_config(key, value) } else { bucket }
}

fn absent_is_deleted(deleted: Result<(), object_store::Error>) -> Result<(), FilesError> {
    match deleted {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The name of the object that describes a file. It contains a hash, because the name of one file may be a directory in
/// the name of another: `F` and `F/./0/sum`.
fn about(name: &str) -> Path {
    Path::from(format!("{ABOUT}/{}", gpubnb_events::hex(Sha256::digest(name))))
}

/// The owner in the name of an object with bytes: `data/paid/<account>/<id>`.
fn owner_of(object: &Path) -> Owner {
    let mut parts = object.parts().skip(1);
    let has_money = parts.next().is_none_or(|class| class.as_ref() != FREE);
    Owner { account: parts.next().and_then(|part| part.as_ref().parse().ok()).unwrap_or(NOBODY), has_money }
}

fn info(description: Description) -> FileInfo {
    let Description { bytes, sha256, metadata, .. } = description;
    FileInfo { bytes, sha256, metadata }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::{Clock as _, SystemClock};
    use tokio::io::AsyncReadExt as _;

    fn bucket(directory: &std::path::Path, kept: Millis) -> Bucket {
        Bucket::open(&format!("file://{}", directory.display()), "inputs", 1 << 20, kept, std::iter::empty()).unwrap()
    }

    fn file(name: &str, owner: Owner) -> NewFile {
        NewFile { name: name.to_owned(), owner, metadata: [("a".to_owned(), "b".to_owned())].into() }
    }

    async fn read(bucket: &Bucket, name: &str, first: u64) -> Option<String> {
        let mut text = String::new();
        bucket.read(name, first).await.unwrap()?.read_to_string(&mut text).await.unwrap();
        Some(text)
    }

    fn owner(has_money: bool) -> Owner {
        Owner { account: CommandId::generate().to_string().parse().unwrap(), has_money }
    }

    #[tokio::test]
    async fn a_file_is_stored_read_from_any_place_replaced_counted_and_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let bucket = bucket(directory.path(), Millis(60_000));
        let (paid, free) = (owner(true), owner(false));
        // One name is the directory of another, and has parts that no file system takes.
        for name in ["F", "F/./0/sum", "F/../ü\n"] {
            let stored = bucket.put(file(name, paid), &b"hello"[..]).await.unwrap();
            assert_eq!((stored.bytes, stored.metadata["a"].as_str()), (5, "b"));
            assert_eq!(bucket.info(name).await.unwrap(), Some(stored), "{name}");
            assert_eq!(read(&bucket, name, 0).await.as_deref(), Some("hello"));
            assert_eq!(read(&bucket, name, 3).await.as_deref(), Some("lo"));
            assert_eq!(read(&bucket, name, 9).await.as_deref(), Some(""));
        }
        bucket.put(file("large", free), tokio::io::repeat(7).take(20 << 20)).await.unwrap();
        bucket.put(file("empty", free), tokio::io::empty()).await.unwrap();
        let usage = bucket.usage().await.unwrap();
        assert_eq!((usage.of(paid.account).files, usage.without_money().bytes), (3, (20 << 20) + 4_096));
        assert_eq!(usage.largest(1)[0].0, free.account);
        bucket.delete("large").await.unwrap();
        bucket.delete("large").await.unwrap();
        assert_eq!((bucket.info("large").await.unwrap(), read(&bucket, "large", 0).await), (None, None));
        assert_eq!(bucket.usage().await.unwrap().without_money().files, 1, "the empty file counts");
        // A replaced file leaves nothing, and a description counts in no share.
        bucket.put(file("F", paid), &b"other"[..]).await.unwrap();
        bucket.describe(file("parts", paid)).await.unwrap();
        assert_eq!(bucket.usage().await.unwrap().of(paid.account).files, 3);
        // Everything of one owner, and nothing of others.
        bucket.put(file("other", free), &b"x"[..]).await.unwrap();
        bucket.remove_of(paid.account).await.unwrap();
        let usage = bucket.usage().await.unwrap();
        assert_eq!((usage.of(paid.account).files, usage.of(free.account).files), (0, 2));
        assert_eq!(read(&bucket, "F", 0).await, None);
        let mode = std::fs::metadata(directory.path().join("inputs")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "nobody else reads the files");
    }

    fn count_files(directory: &std::path::Path) -> usize {
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| if path.is_dir() { count_files(&path) } else { 1 }).sum()
    }

    #[tokio::test]
    async fn a_broken_upload_leaves_nothing_and_old_files_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let bucket = bucket(directory.path(), Millis(0));
        let broken = StreamReader::new(futures_util::stream::iter([
            Ok(bytes::Bytes::from(vec![0; 12 << 20])),
            Err(std::io::Error::other("the line broke")),
        ]));
        assert!(bucket.put(file("broken", owner(true)), broken).await.is_err());
        assert_eq!(bucket.usage().await.unwrap(), Usage::default());
        bucket.put(file("old", owner(true)), &b"hello"[..]).await.unwrap();
        // The part of an upload that a killed process leaves.
        std::fs::write(directory.path().join("inputs/data/paid/a#1"), "part").unwrap();
        bucket.remove_expired(SystemClock.now().plus(Millis(25 * 3_600_000))).await.unwrap();
        assert_eq!((bucket.info("old").await.unwrap(), bucket.usage().await.unwrap()), (None, Usage::default()));
        assert_eq!(count_files(directory.path()), 0, "also no part of an upload");
    }

    #[test]
    fn an_address_of_another_kind_is_refused_by_name() {
        for address in ["ftp://a/b", "/srv/files", "s3://", ""] {
            let refused = Bucket::open(address, "inputs", 1, Millis(0), std::iter::empty()).unwrap_err().to_string();
            assert!(refused.contains("is no store of files"), "{address}: {refused}");
        }
        let missing = Bucket::open("file:///no/such/mount", "inputs", 1, Millis(0), std::iter::empty()).unwrap_err();
        assert!(matches!(missing, FilesError::Missing(_)), "{missing}");
    }
}
