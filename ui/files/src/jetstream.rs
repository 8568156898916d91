//! Files in the object store of the broker.

use std::{collections::HashMap, io};

use async_nats::jetstream::{
    Context,
    object_store::{DeleteErrorKind, GetErrorKind, InfoErrorKind, ObjectInfo, ObjectMetadata, ObjectStore},
};
use bytes::{Bytes, BytesMut};
use data_encoding::BASE64URL;
use futures_util::TryStreamExt as _;
use gpubnb_events::AccountId;
use gpubnb_log::{message, stream::store_stream};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::{FileInfo, FileReader, FilesError, NOBODY, NewFile, Owner, Room, Usage};

/// The keys of the metadata: the account, `true` if the account had money, and `true` for a file that describes others.
const OWNER: &str = "owner";
const HAS_MONEY: &str = "has_money";
const DESCRIBES: &str = "describes";

/// Most bytes and chunks of a file that is read without a consumer.
const MAX_SMALL: usize = 8 << 20;
const MAX_SMALL_CHUNKS: usize = 1_024;

/// A store in the broker.
#[derive(Clone)]
pub(crate) struct Jetstream {
    js: Context,
    name: String,
    store: ObjectStore,
}

impl std::fmt::Debug for Jetstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jetstream").field("name", &self.name).finish_non_exhaustive()
    }
}

fn broker(e: impl std::error::Error + Send + Sync + 'static) -> FilesError {
    FilesError::Broker(Box::new(e))
}

impl Jetstream {
    pub(crate) async fn open(js: &Context, name: &str) -> Result<Self, FilesError> {
        let store = js.get_object_store(name).await.map_err(broker)?;
        Ok(Self { js: js.clone(), name: name.to_owned(), store })
    }

    pub(crate) async fn put(
        &self,
        file: NewFile,
        mut content: impl AsyncRead + Send + Unpin,
    ) -> Result<FileInfo, FilesError> {
        let NewFile { name, owner, mut metadata } = file;
        metadata.insert(OWNER.to_owned(), owner.account.to_string());
        metadata.insert(HAS_MONEY.to_owned(), owner.has_money.to_string());
        let object = ObjectMetadata { name, metadata, ..ObjectMetadata::default() };
        Ok(file_info(self.store.put(object, &mut content).await.map_err(broker)?))
    }

    pub(crate) async fn describe(&self, mut file: NewFile) -> Result<(), FilesError> {
        file.metadata.insert(DESCRIBES.to_owned(), true.to_string());
        self.put(file, tokio::io::empty()).await.map(drop)
    }

    pub(crate) async fn info(&self, name: &str) -> Result<Option<FileInfo>, FilesError> {
        match self.store.info(name).await {
            Ok(info) => Ok(Some(info).filter(|info| !info.deleted).map(file_info)),
            Err(e) if e.kind() == InfoErrorKind::NotFound => Ok(None),
            Err(e) => Err(broker(e)),
        }
    }

    pub(crate) async fn read(&self, name: &str, first: u64) -> Result<Option<FileReader>, FilesError> {
        if let Some(content) = self.read_small(name).await? {
            let first = usize::try_from(first).unwrap_or(usize::MAX).min(content.len());
            return Ok(Some(Box::pin(io::Cursor::new(content.slice(first..)))));
        }
        let mut object = match self.store.get(name).await {
            Ok(object) => object,
            Err(e) if e.kind() == GetErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(broker(e)),
        };
        // The store cannot read from the middle of an object, so the bytes before `first` are read and dropped.
        tokio::io::copy(&mut (&mut object).take(first), &mut tokio::io::sink()).await?;
        Ok(Some(Box::pin(object)))
    }

    /// The bytes of a file of few chunks; `None` for another file, and for none. The store's own reader makes a
    /// consumer for each file, of which the broker allows some hundred, and a dataset may have thousands of small
    /// files.
    async fn read_small(&self, name: &str) -> Result<Option<Bytes>, FilesError> {
        let info = match self.store.info(name).await {
            Ok(info) if !info.deleted && info.chunks <= MAX_SMALL_CHUNKS && info.size <= MAX_SMALL => info,
            Ok(_) => return Ok(None),
            Err(e) if e.kind() == InfoErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(broker(e)),
        };
        let stream = self.js.get_stream_no_info(store_stream(&self.name)).await.map_err(broker)?;
        let subject = format!("$O.{}.C.{}", self.name, info.nuid);
        let (mut content, mut from) = (BytesMut::with_capacity(info.size), 1);
        for _ in 0..info.chunks {
            let next = message::next_at_leader(&stream, &subject, from).await.map_err(broker)?;
            let gone = || io::Error::new(io::ErrorKind::NotFound, "a piece of the file is not stored");
            let chunk = next.ok_or_else(gone)?;
            from = chunk.sequence + 1;
            content.extend_from_slice(&chunk.payload);
        }
        Ok(Some(content.freeze()))
    }

    pub(crate) async fn delete(&self, name: &str) -> Result<(), FilesError> {
        match self.store.delete(name).await {
            Err(e) if e.kind() == DeleteErrorKind::NotFound => Ok(()),
            deleted => deleted.map_err(broker),
        }
    }

    pub(crate) async fn usage(&self) -> Result<Usage, FilesError> {
        let mut all = self.store.list().await.map_err(broker)?;
        let mut usage = Usage::default();
        while let Some(info) = all.try_next().await.map_err(broker)? {
            if !info.metadata.contains_key(DESCRIBES) {
                usage.add(owner_of(&info.metadata), info.size as u64);
            }
        }
        Ok(usage)
    }

    pub(crate) async fn remove_of(&self, account: AccountId) -> Result<(), FilesError> {
        let mut all = self.store.list().await.map_err(broker)?;
        while let Some(info) = all.try_next().await.map_err(broker)? {
            if !info.metadata.contains_key(DESCRIBES) && owner_of(&info.metadata).account == account {
                self.delete(&info.name).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn room(&self) -> Result<Room, FilesError> {
        let stream = self.js.get_stream(store_stream(&self.name)).await.map_err(broker)?;
        let info = stream.cached_info();
        // Zero or less means that the store has no limit.
        let most = u64::try_from(info.config.max_bytes).ok().filter(|most| *most > 0);
        Ok(Room { used: info.state.bytes, most })
    }
}

/// The owner in an object's metadata. A file that an earlier version stored has no owner. Such a file counts for
/// [`NOBODY`], as a file of an account with money.
fn owner_of(metadata: &HashMap<String, String>) -> Owner {
    Owner {
        account: metadata.get(OWNER).and_then(|account| account.parse().ok()).unwrap_or(NOBODY),
        has_money: metadata.get(HAS_MONEY).is_none_or(|has_money| has_money != "false"),
    }
}

fn file_info(info: ObjectInfo) -> FileInfo {
    let digest = info.digest.as_deref().and_then(|digest| digest.strip_prefix("SHA-256="));
    let digest = digest.and_then(|digest| BASE64URL.decode(digest.as_bytes()).ok()).unwrap_or_default();
    FileInfo { bytes: info.size as u64, sha256: gpubnb_events::hex(digest), metadata: info.metadata }
}
