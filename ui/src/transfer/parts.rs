//! The files of attempts, which are put in parts, so that a large one which breaks off goes on where it was. Each part that is
//! put is an object of its own, under a name that no other has: what somebody else puts, or what is left of a put that broke
//! off, changes nothing. Beside each but the last lies the sum up to there: which objects, and the state of the hash. With the
//! last one the file's name gets an empty object that says which objects it is, and what they are together. Until then there
//! is no file.

use std::collections::HashMap;

use async_nats::jetstream::object_store::{InfoErrorKind, ObjectInfo, ObjectMetadata, ObjectStore};
use gpubnb_events::transfer::PART_BYTES;
use sha2::{
    Digest as _, Sha256,
    digest::common::hazmat::{SerializableState as _, SerializedState},
};

use super::unavailable;
use crate::error::Problem;

/// Most parts of one file.
pub(super) const MOST_PARTS: u32 = 4_096;

const STATE: &str = "state";
const OBJECTS: &str = "objects";
const SEPARATOR: &str = "\n";
const BYTES: &str = "bytes";
const SHA256: &str = "sha256";

/// A name for the object of one part, which no other has. No file of a job can have it: a path has no part that is a dot.
pub(super) fn new_object(file: &str, part: u32) -> String {
    let id = gpubnb_events::CommandId::generate().to_string();
    // The end of it is chance.
    format!("{file}/./{part}/{}", &id[id.len() - 12..])
}

/// The object that says what the parts up to this one are together.
fn sum_of(file: &str, part: u32) -> String {
    format!("{file}/./{part}/sum")
}

/// What the parts up to one of them are together: kept with it, so that whoever gets the next can go on.
#[derive(Clone, Default)]
pub(super) struct Sum {
    objects: Vec<String>,
    bytes: u64,
    hasher: Sha256,
}

impl Sum {
    /// What is kept with a part; `None` where that is not there.
    pub(super) async fn at(store: &ObjectStore, file: &str, part: u32) -> Result<Option<Self>, Problem> {
        let Some(info) = present(store, &sum_of(file, part)).await? else { return Ok(None) };
        let read = |metadata: &HashMap<String, String>| {
            let state = data_encoding::HEXLOWER.decode(metadata.get(STATE)?.as_bytes()).ok()?;
            let hasher = Sha256::deserialize(&SerializedState::<Sha256>::try_from(state.as_slice()).ok()?).ok()?;
            let (bytes, objects) = (metadata.get(BYTES)?.parse().ok()?, objects(metadata)?);
            Some(Self { objects, bytes, hasher })
        };
        read(&info.metadata).map(Some).ok_or_else(|| Problem::internal(&"the sum of a part cannot be read"))
    }

    /// A piece of the next part.
    pub(super) fn take_in(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        self.hasher.update(piece);
    }

    /// The next part is whole, and is this object.
    pub(super) fn add(&mut self, object: String) {
        self.objects.push(object);
    }

    /// Keeps it with its last part.
    pub(super) async fn keep(&self, store: &ObjectStore, file: &str, part: u32) -> Result<(), Problem> {
        let state = gpubnb_events::hex(self.hasher.serialize());
        let metadata = [(STATE, state), (BYTES, self.bytes.to_string()), (OBJECTS, self.objects.join(SEPARATOR))];
        say(store, sum_of(file, part), metadata.into()).await
    }

    /// All parts are there: from now on the file is.
    pub(super) async fn seal(self, store: &ObjectStore, file: &str) -> Result<(), Problem> {
        let sha256 = gpubnb_events::hex(self.hasher.finalize());
        let metadata = [(OBJECTS, self.objects.join(SEPARATOR)), (BYTES, self.bytes.to_string()), (SHA256, sha256)];
        say(store, file.to_owned(), metadata.into()).await
    }
}

/// The objects that something said of them names.
fn objects(metadata: &HashMap<String, String>) -> Option<Vec<String>> {
    Some(metadata.get(OBJECTS)?.split(SEPARATOR).map(ToOwned::to_owned).collect())
}

/// An object that has nothing but what is said of it. (The client's `update_metadata` would say it of the part itself, but
/// forgets everything except name and description.)
async fn say(store: &ObjectStore, name: String, metadata: HashMap<&str, String>) -> Result<(), Problem> {
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let object = ObjectMetadata { name, metadata, ..Default::default() };
    store.put(object, &mut tokio::io::empty()).await.map_err(unavailable)?;
    Ok(())
}

/// What is known of an object; `None` where it is not there. That the store does not answer is something else.
pub(super) async fn present(store: &ObjectStore, name: &str) -> Result<Option<ObjectInfo>, Problem> {
    match store.info(name).await {
        Ok(info) => Ok(Some(info).filter(|info| !info.deleted)),
        Err(e) if e.kind() == InfoErrorKind::NotFound => Ok(None),
        Err(e) => Err(unavailable(e)),
    }
}

/// How many parts of a file are there, from the first one on.
pub(super) async fn count(store: &ObjectStore, file: &str) -> Result<u32, Problem> {
    let (mut low, mut high) = (0, MOST_PARTS);
    while low < high {
        let middle = low.midpoint(high);
        if present(store, &sum_of(file, middle)).await?.is_some() {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// What a sealed file is: its objects, bytes and hash. `None` for one that is an object itself.
pub(super) fn sealed(metadata: &HashMap<String, String>) -> Option<(Vec<String>, u64, String)> {
    Some((objects(metadata)?, metadata.get(BYTES)?.parse().ok()?, metadata.get(SHA256)?.clone()))
}

/// The objects that hold a file from some byte on, and how much of the first comes before it.
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
