//! Files that are uploaded in parts, so that an interrupted upload can resume.
//!
//! Each part is stored as an object with a unique name, so no other upload can change the part. After each part except
//! the last, an empty object is stored whose metadata describe the parts that are stored (see [`PartialFile`]). After
//! the last part, an empty object with the name of the file is stored. Its metadata list all parts, the size and the
//! hash. The file exists only when this object exists. For example, the file `F` in two parts has these objects:
//!
//! ```text
//! F/./0/3f0a9c51e7d2   the first part
//! F/./0/sum            the metadata of the first part
//! F/./1/b81d60427fce   the last part
//! F                    the metadata of the complete file
//! ```

use std::collections::HashMap;

use gpubnb_events::transfer::PART_BYTES;
use gpubnb_files::{Files, NewFile, Owner};
use sha2::{
    Digest as _, Sha256,
    digest::common::hazmat::{SerializableState as _, SerializedState},
};

use super::store::unavailable;
use crate::error::Problem;

/// The maximum number of parts in one file.
pub(super) const MAX_PARTS: u32 = 4_096;

/// The keys of the metadata: the state of the hash function, the objects of the parts, the size in bytes, and the hash.
const STATE: &str = "state";
const OBJECTS: &str = "objects";
const BYTES: &str = "bytes";
const SHA256: &str = "sha256";
/// The character between the names of two objects in `OBJECTS`.
const SEPARATOR: &str = "\n";

/// A unique name for the object of one part. No file can have this name, because the path of a file must not contain
/// the segment `.`.
pub(super) fn new_object(file: &str, part: u32) -> String {
    let id = gpubnb_events::CommandId::generate().to_string();
    // The last 12 digits of a UUID of version 7 are random.
    format!("{file}/./{part}/{}", &id[id.len() - 12..])
}

/// The name of the object that describes the parts up to the given part.
fn partial_name(file: &str, part: u32) -> String {
    format!("{file}/./{part}/sum")
}

/// The first parts of a file that is not complete. A `PartialFile` is stored after each part, so any replica of the web
/// server can receive the next part.
#[derive(Clone, Default)]
pub(super) struct PartialFile {
    objects: Vec<String>,
    bytes: u64,
    /// The hash function after the bytes of these parts.
    hasher: Sha256,
}

impl PartialFile {
    /// Reads the `PartialFile` that was stored after a part. `None` if the part is not stored.
    pub(super) async fn read(store: &Files, file: &str, part: u32) -> Result<Option<Self>, Problem> {
        let Some(info) = store.info(&partial_name(file, part)).await.map_err(unavailable)? else { return Ok(None) };
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

    /// The bytes of the parts.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Removes the parts, and their descriptions: the file will not be completed.
    pub(super) async fn remove(&self, store: &Files, file: &str) -> Result<(), Problem> {
        for (part, object) in (0..).zip(&self.objects) {
            store.delete(&partial_name(file, part)).await.map_err(unavailable)?;
            store.delete(object).await.map_err(unavailable)?;
        }
        Ok(())
    }

    /// Counts and hashes a piece of the next part.
    pub(super) fn update(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        self.hasher.update(piece);
    }

    /// Adds the object of the next part, when the part is complete.
    pub(super) fn add_object(&mut self, object: String) {
        self.objects.push(object);
    }

    /// Stores this `PartialFile` after its last part, `part`.
    pub(super) async fn save(&self, store: &Files, owner: Owner, file: &str, part: u32) -> Result<(), Problem> {
        let state = gpubnb_events::hex(self.hasher.serialize());
        let metadata = [(STATE, state), (BYTES, self.bytes.to_string()), (OBJECTS, self.objects.join(SEPARATOR))];
        put_metadata(store, owner, partial_name(file, part), metadata.into()).await
    }

    /// Creates the file, when all parts are stored.
    pub(super) async fn complete(self, store: &Files, owner: Owner, file: &str) -> Result<(), Problem> {
        let sha256 = gpubnb_events::hex(self.hasher.finalize());
        let metadata = [(OBJECTS, self.objects.join(SEPARATOR)), (BYTES, self.bytes.to_string()), (SHA256, sha256)];
        put_metadata(store, owner, file.to_owned(), metadata.into()).await
    }
}

/// The objects of the parts that the metadata list.
fn objects(metadata: &HashMap<String, String>) -> Option<Vec<String>> {
    Some(metadata.get(OBJECTS)?.split(SEPARATOR).map(ToOwned::to_owned).collect())
}

/// Stores an empty file with metadata.
async fn put_metadata(
    store: &Files,
    owner: Owner,
    name: String,
    metadata: HashMap<&str, String>,
) -> Result<(), Problem> {
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    store.describe(NewFile { name, owner, metadata }).await.map_err(unavailable)
}

/// The number of stored parts. Parts are stored in order, so a binary search finds the last part.
pub(super) async fn count(store: &Files, file: &str) -> Result<u32, Problem> {
    let (mut low, mut high) = (0, MAX_PARTS);
    while low < high {
        let middle = low.midpoint(high);
        if store.info(&partial_name(file, middle)).await.map_err(unavailable)?.is_some() {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// The objects, the size and the hash of a complete file. `None` for a file that was not uploaded in parts.
pub(super) fn complete_file(metadata: &HashMap<String, String>) -> Option<(Vec<String>, u64, String)> {
    Some((objects(metadata)?, metadata.get(BYTES)?.parse().ok()?, metadata.get(SHA256)?.clone()))
}

/// The objects that contain the bytes of a file from the offset `first`, and the number of bytes to skip in the first
/// of these objects.
pub(super) fn objects_from(mut objects: Vec<String>, first: u64) -> (Vec<String>, u64) {
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
    fn reading_begins_in_the_part_that_contains_the_first_byte() {
        let objects = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(
            objects_from(objects(&["f"]), PART_BYTES + 7),
            (objects(&["f"]), PART_BYTES + 7),
            "a single object may have any size"
        );
        let three = || objects(&["a", "b", "c"]);
        assert_eq!(objects_from(three(), 0), (three(), 0));
        assert_eq!(objects_from(three(), PART_BYTES + 5), (objects(&["b", "c"]), 5));
        assert_eq!(objects_from(three(), 2 * PART_BYTES - 1), (objects(&["b", "c"]), PART_BYTES - 1));
        assert_eq!(objects_from(three(), 9 * PART_BYTES), (objects(&[]), 0));
    }

    #[test]
    fn a_stored_hash_state_can_be_continued() {
        let mut first = Sha256::new();
        first.update(b"one part, ");
        let stored = first.serialize();
        let mut second = Sha256::deserialize(&stored).unwrap();
        second.update(b"and another");
        assert_eq!(second.finalize(), Sha256::digest(b"one part, and another"));
    }

    #[test]
    fn two_uploads_of_the_same_part_have_different_objects() {
        assert_ne!(new_object("f", 0), new_object("f", 0));
    }
}
