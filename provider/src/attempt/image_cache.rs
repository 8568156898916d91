//! The cache of images that were pulled for jobs. The worker removes an image that was not used for too long, and the
//! least recently used images while the cache is too large. Other images on this machine belong to the owner, and are
//! never removed.

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

/// The file of the list of images, in the worker's directory.
const FILE: &str = "images.json";
/// The last use of an image is saved with this precision, so that the file is not written for every job.
const USE_PRECISION: Millis = Millis(60_000);

/// The images that were pulled for jobs, by name. The list is saved in a file, so that the worker knows after a restart
/// which images it may remove. The list has names and not ids, because the owner may have the same image under another
/// name.
pub(super) struct ImageCache {
    path: PathBuf,
    limits: CacheLimits,
    images: Mutex<BTreeMap<String, CachedImage>>,
}

/// The limits of the cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CacheLimits {
    /// Largest sum of the sizes of all images, bytes.
    pub(crate) bytes: u64,
    /// Longest time that an image is kept after its last use.
    pub(crate) unused: Millis,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct CachedImage {
    bytes: u64,
    /// When a job used the image last.
    used: Timestamp,
}

impl ImageCache {
    /// Reads the list from the directory `state`. If the list cannot be read, the worker begins a new list, and never
    /// removes the images of the lost list.
    pub(super) fn open(state: &Path, limits: CacheLimits) -> Self {
        let path = state.join(FILE);
        let read = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(e) => Err(e),
        };
        let images = read.unwrap_or_else(|e| {
            warn!(path = %path.display(), error = %e, "the list of pulled images cannot be read: they are not removed");
            BTreeMap::new()
        });
        Self { path, limits, images: Mutex::new(images) }
    }

    fn images(&self) -> MutexGuard<'_, BTreeMap<String, CachedImage>> {
        // A poisoned lock is used anyway: a panic of another thread cannot leave the map half written.
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an image that was pulled.
    pub(super) fn add(&self, name: &str, bytes: u64) {
        self.images().insert(name.to_owned(), CachedImage { bytes, used: SystemClock.now() });
        self.write();
    }

    /// Removes an image from the list. The image stays in Docker, if it is there.
    pub(super) fn remove(&self, name: &str) {
        self.images().remove(name);
        self.write();
    }

    /// Saves that a job uses an image now.
    pub(super) fn note_use(&self, name: &str) {
        let now = SystemClock.now();
        let is_changed = match self.images().get_mut(name) {
            Some(image) if now.since(image.used) > USE_PRECISION => {
                image.used = now;
                true
            }
            _ => false,
        };
        if is_changed {
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

    /// The names of the images to remove, the least recently used first. Never contains `keep`.
    fn evictable(&self, keep: &str, now: Timestamp) -> Vec<String> {
        let images = self.images();
        let mut all: Vec<_> = images.iter().map(|(name, image)| (image.used, name, image.bytes)).collect();
        all.sort();
        let mut sum: u64 = all.iter().map(|(.., bytes)| bytes).sum();
        let mut evictable = Vec::new();
        for (used, name, bytes) in all {
            let is_too_old = now.since(used) > self.limits.unused;
            if name != keep && (is_too_old || sum > self.limits.bytes) {
                sum -= bytes;
                evictable.push(name.clone());
            }
        }
        evictable
    }

    /// Removes images until the cache is within its limits. Does not remove the image `keep`, which a job is about to
    /// use. Docker does not remove an image that a container uses.
    pub(super) async fn evict(&self, docker: &Docker, keep: &str) {
        for name in self.evictable(keep, SystemClock.now()) {
            // Docker removes the name. It removes the image only if the image has no other name.
            let options = RemoveImageOptionsBuilder::default().force(false).build();
            match docker.remove_image(&name, Some(options), None).await {
                Ok(_) | Err(Error::DockerResponseServerError { status_code: 404, .. }) => {
                    info!(name, "a cached image was removed");
                    self.images().remove(&name);
                }
                Err(e) => warn!(name, error = %e, "a cached image cannot be removed"),
            }
        }
        self.write();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_image_is_evicted_first_and_the_kept_image_never() {
        let dir = tempfile::tempdir().unwrap();
        let limits = CacheLimits { bytes: 10, unused: Millis(100) };
        let cache = ImageCache::open(dir.path(), limits);
        for (id, bytes, used) in [("a", 4, 10), ("b", 4, 30), ("c", 4, 20)] {
            cache.images().insert(id.to_owned(), CachedImage { bytes, used: Timestamp::from_millis(used) });
        }
        let evicted = |keep, now| cache.evictable(keep, Timestamp::from_millis(now));
        assert_eq!(evicted("b", 40), ["a"], "one removal is enough");
        assert_eq!(evicted("a", 40), ["c"], "the kept image stays");
        assert_eq!(evicted("b", 125), ["a", "c"], "images that are too old");
        cache.write();
        assert_eq!(ImageCache::open(dir.path(), limits).images().len(), 3, "the list survives a restart");
        fs::write(dir.path().join(FILE), "half a f").unwrap();
        assert!(ImageCache::open(dir.path(), limits).images().is_empty());
    }
}
