//! Large files, which are put in parts, so that one which breaks off goes on where it was. Each part is an object of its own
//! beside the file's name; with the last one, the name itself gets an empty object that says how many there are, and what
//! they are together. Until then there is no file.

use std::collections::HashMap;

use async_nats::jetstream::object_store::{ObjectInfo, ObjectMetadata, ObjectStore};
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
const PARTS: &str = "parts";
const BYTES: &str = "bytes";
const SHA256: &str = "sha256";

/// The object of one part. No file of a job can have this name: a path has no part that is a dot.
pub(super) fn name_of(file: &str, part: u32) -> String {
    format!("{file}/./{part}")
}

/// The object that says what the parts up to this one are together.
fn sum_of(file: &str, part: u32) -> String {
    format!("{file}/./{part}/sum")
}

/// What the parts up to one of them are together: kept with it, so that whoever gets the next can go on.
#[derive(Clone, Default)]
pub(super) struct Sum {
    pub(super) bytes: u64,
    pub(super) hasher: Sha256,
}

impl Sum {
    /// What is kept with a part; `None` where that is not there, or not whole.
    pub(super) async fn at(store: &ObjectStore, file: &str, part: u32) -> Option<Self> {
        let info = present(store, &sum_of(file, part)).await?;
        let state = data_encoding::HEXLOWER.decode(info.metadata.get(STATE)?.as_bytes()).ok()?;
        let state = SerializedState::<Sha256>::try_from(state.as_slice()).ok()?;
        let hasher = Sha256::deserialize(&state).ok()?;
        Some(Self { bytes: info.metadata.get(BYTES)?.parse().ok()?, hasher })
    }

    /// Keeps it with its part, which is whole now.
    pub(super) async fn keep(&self, store: &ObjectStore, file: &str, part: u32) -> Result<(), Problem> {
        let state = gpubnb_events::hex(self.hasher.serialize());
        say(store, sum_of(file, part), [(STATE, state), (BYTES, self.bytes.to_string())].into()).await
    }

    /// All parts are there: from now on the file is.
    pub(super) async fn seal(self, store: &ObjectStore, file: &str, parts: u32) -> Result<(), Problem> {
        let sha256 = gpubnb_events::hex(self.hasher.finalize());
        let metadata = [(PARTS, parts.to_string()), (BYTES, self.bytes.to_string()), (SHA256, sha256)];
        say(store, file.to_owned(), metadata.into()).await
    }
}

/// An object that has nothing but what is said of it. (The client's `update_metadata` would say it of the part itself, but
/// forgets everything except name and description.)
async fn say(store: &ObjectStore, name: String, metadata: HashMap<&str, String>) -> Result<(), Problem> {
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let object = ObjectMetadata { name, metadata, ..Default::default() };
    store.put(object, &mut tokio::io::empty()).await.map_err(unavailable)?;
    Ok(())
}

/// What is known of an object that is there.
pub(super) async fn present(store: &ObjectStore, name: &str) -> Option<ObjectInfo> {
    store.info(name).await.ok().filter(|info| !info.deleted)
}

/// How many parts of a file are there, from the first one on.
pub(super) async fn count(store: &ObjectStore, file: &str) -> u32 {
    let (mut low, mut high) = (0, MOST_PARTS);
    while low < high {
        let middle = low.midpoint(high);
        if Sum::at(store, file, middle).await.is_some() {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// What a sealed file is: its parts, bytes and hash. `None` for one that was put as a whole.
pub(super) fn sealed(metadata: &HashMap<String, String>) -> Option<(u32, u64, String)> {
    let number = |key| metadata.get(key).and_then(|text| text.parse::<u64>().ok());
    let parts = u32::try_from(number(PARTS)?).ok().filter(|parts| *parts <= MOST_PARTS)?;
    Some((parts, number(BYTES)?, metadata.get(SHA256)?.clone()))
}

/// The objects that hold a file from some byte on, and how much of the first comes before it.
pub(super) fn from(file: &str, parts: Option<u32>, first: u64) -> (Vec<String>, u64) {
    let Some(parts) = parts else { return (vec![file.to_owned()], first) };
    let skipped = u32::try_from(first / PART_BYTES).unwrap_or(u32::MAX);
    ((skipped..parts).map(|part| name_of(file, part)).collect(), first % PART_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_begins_in_the_part_where_the_byte_is() {
        assert_eq!(from("f", None, 7), (vec!["f".to_owned()], 7));
        let names = |parts: &[u32]| parts.iter().map(|part| name_of("f", *part)).collect::<Vec<_>>();
        assert_eq!(from("f", Some(3), 0), (names(&[0, 1, 2]), 0));
        assert_eq!(from("f", Some(3), PART_BYTES + 5), (names(&[1, 2]), 5));
        assert_eq!(from("f", Some(3), 2 * PART_BYTES - 1), (names(&[1, 2]), PART_BYTES - 1));
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
}
