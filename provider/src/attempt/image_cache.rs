//! The images that were pulled for jobs: their sizes, when each was used last, and the removal of those that are too
//! old or too many. Other images on this machine are the owner's, and are never removed.

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
/// The last use of an image is noted with this precision, so that the file is not written for every job.
const USE_PRECISION: Millis = Millis(60_000);

/// The images that were pulled for jobs, by the names that the jobs gave. The list is kept on disk, so that after a
/// restart it is known which images may be removed. Ids would not do: the owner may have the same image under another
/// name.
pub(super) struct ImageCache {
    path: PathBuf,
    limits: CacheLimits,
    images: Mutex<BTreeMap<String, CachedImage>>,
}

/// How many images are kept, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CacheLimits {
    /// Bytes in all.
    pub(crate) bytes: u64,
    /// How long an image is kept that no job uses.
    pub(crate) unused: Millis,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct CachedImage {
    bytes: u64,
    /// When a job used the image last.
    used: Timestamp,
}

impl ImageCache {
    /// Reads the list in this directory. Where it cannot be read, the images on it stay until somebody removes them.
    pub(super) fn open(state: &Path, limits: CacheLimits) -> Self {
        let path = state.join(FILE);
        let read = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(e) => Err(e),
        };
        let images = read.unwrap_or_else(|e| {
            warn!(path = %path.display(), error = %e, "the list of pulled images cannot be read: the images stay");
            BTreeMap::new()
        });
        Self { path, limits, images: Mutex::new(images) }
    }

    fn images(&self) -> MutexGuard<'_, BTreeMap<String, CachedImage>> {
        // A panic elsewhere cannot leave a map half written.
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an image that was pulled.
    pub(super) fn add(&self, name: &str, bytes: u64) {
        self.images().insert(name.to_owned(), CachedImage { bytes, used: SystemClock.now() });
        self.write();
    }

    /// Notes that a job uses an image.
    pub(super) fn note_use(&self, name: &str) {
        let now = SystemClock.now();
        let is_noted = match self.images().get_mut(name) {
            Some(image) if now.since(image.used) > USE_PRECISION => {
                image.used = now;
                true
            }
            _ => false,
        };
        if is_noted {
            self.write();
        }
    }

    fn write(&self) {
        let text = serde_json::to_vec(&*self.images());
        let partial = self.path.with_extension("partial");
        let written = text.map_err(io::Error::other).and_then(|text| {
            fs::write(&partial, text)?;
            fs::rename(&partial, &self.path)
        });
        if let Err(e) = written {
            warn!(path = %self.path.display(), error = %e, "the list of pulled images cannot be written");
        }
    }

    /// The names of the images to be removed: the one that was used longest ago comes first.
    fn superfluous(&self, keep: &str, now: Timestamp) -> Vec<String> {
        let images = self.images();
        let mut all: Vec<_> = images.iter().map(|(name, image)| (image.used, name, image.bytes)).collect();
        all.sort();
        let mut sum: u64 = all.iter().map(|(.., bytes)| bytes).sum();
        let mut superfluous = Vec::new();
        for (used, name, bytes) in all {
            let is_too_old = now.since(used) > self.limits.unused;
            if name != keep && (is_too_old || sum > self.limits.bytes) {
                sum -= bytes;
                superfluous.push(name.clone());
            }
        }
        superfluous
    }

    /// Removes images that are too old or too many, but not `keep`, which is about to be used. Docker keeps an image
    /// that a container uses.
    pub(super) async fn evict(&self, docker: &Docker, keep: &str) {
        for name in self.superfluous(keep, SystemClock.now()) {
            // Removes the name, and the image where it has no other name and no container uses it.
            let options = RemoveImageOptionsBuilder::default().force(false).build();
            match docker.remove_image(&name, Some(options), None).await {
                Ok(_) | Err(Error::DockerResponseServerError { status_code: 404, .. }) => {
                    info!(name, "an image of former jobs is removed");
                    self.images().remove(&name);
                }
                Err(e) => warn!(name, error = %e, "an image of former jobs cannot be removed"),
            }
        }
        self.write();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first_and_the_one_about_to_be_used_stays() {
        let dir = tempfile::tempdir().unwrap();
        let limits = CacheLimits { bytes: 10, unused: Millis(100) };
        let cache = ImageCache::open(dir.path(), limits);
        for (id, bytes, used) in [("a", 4, 10), ("b", 4, 30), ("c", 4, 20)] {
            cache.images().insert(id.to_owned(), CachedImage { bytes, used: Timestamp::from_millis(used) });
        }
        let go = |keep, now| cache.superfluous(keep, Timestamp::from_millis(now));
        assert_eq!(go("b", 40), ["a"], "one makes room enough");
        assert_eq!(go("a", 40), ["c"], "the one about to be used stays");
        assert_eq!(go("b", 125), ["a", "c"], "too old is too old");
        cache.write();
        assert_eq!(ImageCache::open(dir.path(), limits).images().len(), 3, "the list outlives a restart");
        fs::write(dir.path().join(FILE), "half a f").unwrap();
        assert!(ImageCache::open(dir.path(), limits).images().is_empty());
    }
}
