//! Files that are uploaded in parts, so that an upload that breaks off can resume.
//!
//! Each part is an object with a unique name, so neither an upload at the same time nor the rest of one that broke off
//! can change it. Beside each part except the last lies an empty object whose metadata lists the parts so far and holds
//! the state of the hash (see [`PartialFile`]). When the last part is stored, the file's own name gets an empty object
//! whose metadata lists all parts, the size and the hash. Until then the file does not exist.

use std::collections::HashMap;

use async_nats::jetstream::object_store::{InfoErrorKind, ObjectInfo, ObjectMetadata, ObjectStore};
use gpubnb_events::transfer::PART_BYTES;
use sha2::{
    Digest as _, Sha256,
    digest::common::hazmat::{SerializableState as _, SerializedState},
};

use super::store::unavailable;
use crate::error::Problem;

/// Most parts of one file.
pub(super) const MOST_PARTS: u32 = 4_096;

const STATE: &str = "state";
const OBJECTS: &str = "objects";
const SEPARATOR: &str = "\n";
const BYTES: &str = "bytes";
const SHA256: &str = "sha256";

/// A unique name for the object of one part. No file of a job can have this name, because its path must not contain `.`
/// as a segment.
pub(super) fn new_object(file: &str, part: u32) -> String {
    let id = gpubnb_events::CommandId::generate().to_string();
    // The end of a UUID of version 7 is random.
    format!("{file}/./{part}/{}", &id[id.len() - 12..])
}

/// The name of the object that describes the parts up to this one.
fn partial_name(file: &str, part: u32) -> String {
    format!("{file}/./{part}/sum")
}

/// The parts of a file up to one of them. It is stored beside that part, so that any replica can take the next one.
#[derive(Clone, Default)]
pub(super) struct PartialFile {
    objects: Vec<String>,
    bytes: u64,
    hasher: Sha256,
}

impl PartialFile {
    /// Reads what is stored beside a part; `None` if the part is not there.
    pub(super) async fn at(store: &ObjectStore, file: &str, part: u32) -> Result<Option<Self>, Problem> {
        let Some(info) = present(store, &partial_name(file, part)).await? else { return Ok(None) };
        let read = |metadata: &HashMap<String, String>| {
            let state = data_encoding::HEXLOWER.decode(metadata.get(STATE)?.as_bytes()).ok()?;
            let hasher = Sha256::deserialize(&SerializedState::<Sha256>::try_from(state.as_slice()).ok()?).ok()?;
            let (bytes, objects) = (metadata.get(BYTES)?.parse().ok()?, objects(metadata)?);
            Some(Self { objects, bytes, hasher })
        };
        read(&info.metadata)
            .map(Some)
            .ok_or_else(|| Problem::internal(&"the description of a partial file cannot be read"))
    }

    /// Hashes and counts a piece of the next part.
    pub(super) fn take_in(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        self.hasher.update(piece);
    }

    /// The next part is complete and is this object.
    pub(super) fn add(&mut self, object: String) {
        self.objects.push(object);
    }

    /// Stores this beside its last part.
    pub(super) async fn keep(&self, store: &ObjectStore, file: &str, part: u32) -> Result<(), Problem> {
        let state = gpubnb_events::hex(self.hasher.serialize());
        let metadata = [(STATE, state), (BYTES, self.bytes.to_string()), (OBJECTS, self.objects.join(SEPARATOR))];
        put_metadata(store, partial_name(file, part), metadata.into()).await
    }

    /// All parts are stored: creates the file.
    pub(super) async fn seal(self, store: &ObjectStore, file: &str) -> Result<(), Problem> {
        let sha256 = gpubnb_events::hex(self.hasher.finalize());
        let metadata = [(OBJECTS, self.objects.join(SEPARATOR)), (BYTES, self.bytes.to_string()), (SHA256, sha256)];
        put_metadata(store, file.to_owned(), metadata.into()).await
    }
}

/// The parts that metadata list.
fn objects(metadata: &HashMap<String, String>) -> Option<Vec<String>> {
    Some(metadata.get(OBJECTS)?.split(SEPARATOR).map(ToOwned::to_owned).collect())
}

/// Stores an empty object with metadata. (The client's `update_metadata` could add them to the part itself, but it
/// drops everything except name and description.)
async fn put_metadata(store: &ObjectStore, name: String, metadata: HashMap<&str, String>) -> Result<(), Problem> {
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let object = ObjectMetadata { name, metadata, ..Default::default() };
    store.put(object, &mut tokio::io::empty()).await.map_err(unavailable)?;
    Ok(())
}

/// The description of an object; `None` if there is none. If the store does not answer, that is an error.
pub(super) async fn present(store: &ObjectStore, name: &str) -> Result<Option<ObjectInfo>, Problem> {
    match store.info(name).await {
        Ok(info) => Ok(Some(info).filter(|info| !info.deleted)),
        Err(e) if e.kind() == InfoErrorKind::NotFound => Ok(None),
        Err(e) => Err(unavailable(e)),
    }
}

/// The number of parts that are stored, counted from the first one. Parts come in order, so a binary search finds it.
pub(super) async fn count(store: &ObjectStore, file: &str) -> Result<u32, Problem> {
    let (mut low, mut high) = (0, MOST_PARTS);
    while low < high {
        let middle = low.midpoint(high);
        if present(store, &partial_name(file, middle)).await?.is_some() {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// The parts of a complete file, its size and its hash. `None` for a file that was not uploaded in parts.
pub(super) fn sealed(metadata: &HashMap<String, String>) -> Option<(Vec<String>, u64, String)> {
    Some((objects(metadata)?, metadata.get(BYTES)?.parse().ok()?, metadata.get(SHA256)?.clone()))
}

/// The objects that hold a file's bytes beginning with byte `first`, and the number of bytes before it in the first
/// object.
pub(super) fn from(mut objects: Vec<String>, first: u64) -> (Vec<String>, u64) {
    if objects.len() < 2 {
        return (objects, first);
    }
    let skipped = usize::try_from(first / PART_BYTES).unwrap_or(usize::MAX).min(objects.len());
    (objects.split_off(skipped), first % PART_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_begins_in_the_part_where_the_byte_is() {
        let objects = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(from(objects(&["f"]), PART_BYTES + 7), (objects(&["f"]), PART_BYTES + 7), "one may be of any size");
        let three = || objects(&["a", "b", "c"]);
        assert_eq!(from(three(), 0), (three(), 0));
        assert_eq!(from(three(), PART_BYTES + 5), (objects(&["b", "c"]), 5));
        assert_eq!(from(three(), 2 * PART_BYTES - 1), (objects(&["b", "c"]), PART_BYTES - 1));
        assert_eq!(from(three(), 9 * PART_BYTES), (objects(&[]), 0));
    }

    #[test]
    fn a_hash_goes_on_where_it_was_left() {
        let mut first = Sha256::new();
        first.update(b"one part, ");
        let kept = first.serialize();
        let mut again = Sha256::deserialize(&kept).unwrap();
        again.update(b"and another");
        assert_eq!(again.finalize(), Sha256::digest(b"one part, and another"));
    }

    #[test]
    fn no_two_puts_have_the_same_object() {
        assert_ne!(new_object("f", 0), new_object("f", 0));
    }
}
