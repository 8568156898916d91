//! The images that were pulled for jobs, how large they are and when they were used last; and the removal of those that are
//! too old or too many. Other images on this machine are not ours to remove.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bollard::{Docker, errors::Error, query_parameters::RemoveImageOptionsBuilder};
use gpubnb_events::{Clock as _, Millis, SystemClock, Timestamp};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

const FILE: &str = "images.json";
/// An image that is used all the time is not written down each time.
const NOTED: Millis = Millis(60_000);

/// What was pulled, by the name that a job gave it. Kept on disk: after a restart it is still known what may be removed. Not by
/// the image's id: the owner may have the same image under another name.
pub(super) struct Cache {
    path: PathBuf,
    limits: CacheLimits,
    kept: Mutex<BTreeMap<String, Kept>>,
}

/// How much of it is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CacheLimits {
    /// Bytes in all.
    pub(crate) bytes: u64,
    /// How long one is kept that nobody uses.
    pub(crate) unused: Millis,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Kept {
    bytes: u64,
    used: Timestamp,
}

impl Cache {
    /// What was known in this directory. Where that cannot be read, those images stay until somebody removes them.
    pub(super) fn open(state: &Path, limits: CacheLimits) -> Self {
        let path = state.join(FILE);
        let kept = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(e) => Err(e),
        };
        let kept = kept.unwrap_or_else(|e| {
            warn!(path = %path.display(), error = %e, "which images were pulled is not known any more: they stay");
            BTreeMap::new()
        });
        Self { path, limits, kept: Mutex::new(kept) }
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        // A map is whole after a panic, too.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One was pulled.
    pub(super) fn add(&self, name: &str, bytes: u64) {
        self.kept().insert(name.to_owned(), Kept { bytes, used: SystemClock.now() });
        self.write();
    }

    /// A job runs with it.
    pub(super) fn used(&self, name: &str) {
        let now = SystemClock.now();
        let noted = match self.kept().get_mut(name) {
            Some(kept) if now.since(kept.used) > NOTED => {
                kept.used = now;
                true
            }
            _ => false,
        };
        if noted {
            self.write();
        }
    }

    fn write(&self) {
        let text = serde_json::to_vec(&*self.kept());
        let partial = self.path.with_extension("partial");
        let written = text.map_err(io::Error::other).and_then(|text| {
            fs::write(&partial, text)?;
            fs::rename(&partial, &self.path)
        });
        if let Err(e) = written {
            warn!(path = %self.path.display(), error = %e, "which images were pulled is not written down");
        }
    }

    /// Those that go, the one that was used longest ago first.
    fn superfluous(&self, keep: &str, now: Timestamp) -> Vec<String> {
        let kept = self.kept();
        let mut all: Vec<_> = kept.iter().map(|(id, kept)| (kept.used, id, kept.bytes)).collect();
        all.sort();
        let mut sum: u64 = all.iter().map(|(.., bytes)| bytes).sum();
        let mut go = Vec::new();
        for (used, id, bytes) in all {
            let too_old = now.since(used) > self.limits.unused;
            if id != keep && (too_old || sum > self.limits.bytes) {
                sum -= bytes;
                go.push(id.clone());
            }
        }
        go
    }

    /// Removes what is too old or too much, but not the one that is about to be used. One that a container uses stays.
    pub(super) async fn evict(&self, docker: &Docker, keep: &str) {
        for name in self.superfluous(keep, SystemClock.now()) {
            // Takes the name away, and the image if it has no other and no container uses it.
            let options = RemoveImageOptionsBuilder::default().force(false).build();
            match docker.remove_image(&name, Some(options), None).await {
                Ok(_) | Err(Error::DockerResponseServerError { status_code: 404, .. }) => {
                    info!(name, "an image that was used long ago is removed");
                    self.kept().remove(&name);
                }
                Err(e) => warn!(name, error = %e, "an image stays"),
            }
        }
        self.write();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first_and_the_one_in_hand_stays() {
        let dir = tempfile::tempdir().unwrap();
        let limits = CacheLimits { bytes: 10, unused: Millis(100) };
        let cache = Cache::open(dir.path(), limits);
        for (id, bytes, used) in [("a", 4, 10), ("b", 4, 30), ("c", 4, 20)] {
            cache.kept().insert(id.to_owned(), Kept { bytes, used: Timestamp::from_millis(used) });
        }
        let go = |keep, now| cache.superfluous(keep, Timestamp::from_millis(now));
        assert_eq!(go("b", 40), ["a"], "one makes room enough");
        assert_eq!(go("a", 40), ["c"], "the one in hand stays");
        assert_eq!(go("b", 125), ["a", "c"], "too old is too old");
        cache.write();
        assert_eq!(Cache::open(dir.path(), limits).kept().len(), 3, "it is known after a restart");
        fs::write(dir.path().join(FILE), "half a f").unwrap();
        assert!(Cache::open(dir.path(), limits).kept().is_empty());
    }
}
