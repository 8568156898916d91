//! Finds the image of a job by its name. Refuses an image that the owner does not allow, and fetches an image that is
//! not on this machine.

use std::{
    collections::HashMap,
    convert::Infallible,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bollard::{Docker, errors::Error, query_parameters::RemoveImageOptions};
use gpubnb_events::{
    event::Reason,
    spec::{ImageName, JobSpec, is_in_registries},
};
use tokio::{sync::watch, time::Instant};
use tracing::{info, warn};

use super::{
    Problem,
    context::AttemptContext,
    image_cache::{CacheLimits, ImageCache},
    publish::publish_progress,
};
use crate::{
    docker::LocalImage,
    image_fetch::{FetchError, FetchProgress, ImageFetcher, local_name},
};

/// Time for which the id of a name is cached. After that the id is looked up again, because the name may by then refer
/// to another image, though that is rare.
const CACHE_TIME: Duration = Duration::from_secs(30);
/// Most images that are cached.
const MAX_CACHED: usize = 256;
/// Time between two messages with the progress of a fetch.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(2);

/// The owner's rules for images.
pub(crate) struct ImageRules {
    /// The registries of the images that jobs may use, besides those of templates; `None`: all.
    pub(crate) registries: Option<Vec<String>>,
    pub(crate) fetcher: ImageFetcher,
    /// The limits of the cache of images that were fetched for jobs.
    pub(crate) cache: CacheLimits,
}

impl ImageRules {
    /// True if the owner allows the image. An image that the market's operator has approved, with a template, is
    /// allowed on every machine.
    fn allow(&self, spec: &JobSpec) -> bool {
        spec.template.is_some()
            || self.registries.as_ref().is_none_or(|registries| is_in_registries(&spec.image, registries))
    }
}

/// The images on this machine.
pub(crate) struct Images {
    rules: ImageRules,
    /// The cached image of each name, and when Docker was asked for it. The cache saves milliseconds for each of many
    /// similar jobs.
    recent: Mutex<HashMap<String, (LocalImage, Instant)>>,
    /// A lock for each image that is being fetched, so that two jobs do not fetch the same image.
    fetching: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    fetched: ImageCache,
}

impl Images {
    /// Reads the list of the images that were fetched for jobs from the directory `state`.
    pub(crate) fn new(state: &Path, rules: ImageRules) -> Self {
        let fetched = ImageCache::open(state, rules.cache);
        Self { fetched, rules, recent: Mutex::default(), fetching: Mutex::default() }
    }

    /// The image of a job. Fetches the image if it is not on this machine, and publishes the progress.
    pub(super) async fn resolve(&self, spec: &JobSpec, context: &AttemptContext) -> Result<LocalImage, Problem> {
        let name = spec.image.as_str();
        if !self.rules.allow(spec) {
            // The market knows the owner's rules, so this happens only if they have just changed.
            let detail = "this machine's owner no longer allows this image (--images); another machine may take it";
            return Err(Problem::new(Reason::RegistryUnavailable, detail));
        }
        if let Some((image, at)) = lock(&self.recent).get(name)
            && at.elapsed() < CACHE_TIME
        {
            return Ok(image.clone());
        }
        let image = match inspect(&context.tools.docker, name).await? {
            Some(found) => {
                self.fetched.note_use(name);
                found
            }
            None => self.find_fetched(name, context).await?,
        };
        let mut recent = lock(&self.recent);
        if recent.len() >= MAX_CACHED {
            recent.clear();
        }
        recent.insert(name.to_owned(), (image.clone(), Instant::now()));
        Ok(image)
    }

    /// Removes fetched images until the cache is within its limits.
    pub(crate) async fn evict_old(&self, docker: &Docker) {
        self.fetched.evict(docker, "").await;
    }

    /// Removes the cached image of a name, because the image was removed from this machine.
    pub(super) fn forget(&self, name: &str) {
        lock(&self.recent).remove(name);
    }

    /// The image that was fetched for a job before. Fetches the image if there is none.
    async fn find_fetched(&self, name: &str, context: &AttemptContext) -> Result<LocalImage, Problem> {
        let docker = &context.tools.docker;
        let parsed = ImageName::parse(name).ok_or_else(|| Problem::new(Reason::BadImage, "no name of an image"))?;
        let local = local_name(&parsed);
        let fetch_lock = Arc::clone(lock(&self.fetching).entry(local.clone()).or_default());
        let guard = fetch_lock.lock().await;
        let found = match inspect(docker, &local).await? {
            Some(found) => {
                self.fetched.note_use(&local);
                Ok(found)
            }
            None => self.fetch(&parsed, &local, context).await,
        };
        drop(guard);
        drop(fetch_lock);
        // A lock that only the map holds is of no use any more.
        lock(&self.fetching).retain(|_, waiting| Arc::strong_count(waiting) > 1);
        found
    }

    async fn fetch(&self, name: &ImageName<'_>, local: &str, context: &AttemptContext) -> Result<LocalImage, Problem> {
        info!(image = local, "fetching an image");
        let docker = &context.tools.docker;
        let fetcher = &self.rules.fetcher;
        // The broker tells the machine's address as the broker sees it. A router may lead that address back into the
        // owner's network.
        if let Ok(address) = context.tools.js.client().server_info().client_ip.parse() {
            fetcher.registries.dialer.refuse_own_address(address);
        }
        // Docker may go on loading when the worker stops waiting, so the image is in the cache's list from here on.
        self.fetched.add(local, fetcher.largest);
        let (progress, shown) = watch::channel(FetchProgress::default());
        let fetched = tokio::select! {
            fetched = fetcher.fetch(docker, name, &progress) => fetched,
            never = show_progress(context, shown) => match never {},
        };
        let bytes = match fetched {
            Ok(bytes) => bytes,
            Err(e) => {
                self.fetched.remove(local);
                return Err(fetch_problem(&e, local));
            }
        };
        let found = docker.inspect_image(local).await.map_err(Problem::of_docker)?;
        let size = u64::try_from(found.size.unwrap_or(0)).unwrap_or(0);
        let image = LocalImage::from(found);
        if size > fetcher.largest {
            if let Err(e) = docker.remove_image(local, None::<RemoveImageOptions>, None).await {
                warn!(image = local, error = %e, "an image that is too large cannot be removed");
            }
            self.fetched.remove(local);
            return Err(fetch_problem(&FetchError::UnpackedTooLarge { largest: fetcher.largest }, local));
        }
        self.fetched.add(local, bytes.max(size));
        self.fetched.evict(docker, local).await;
        Ok(image)
    }
}

/// The image of this name on this machine; `None` if there is none.
async fn inspect(docker: &Docker, name: &str) -> Result<Option<LocalImage>, Problem> {
    match docker.inspect_image(name).await {
        Ok(found) => Ok(Some(found.into())),
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(e) => Err(Problem::of_docker(e)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock is used anyway: a panic of another thread cannot leave the values half written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The failure for the market. Its text is the sentence of the error alone. The causes are only logged here, because
/// they may tell of the machine's network.
fn fetch_problem(e: &FetchError, image: &str) -> Problem {
    warn!(image, error = ?e, "an image was not fetched");
    Problem::new(e.reason(), e.to_string())
}

/// Publishes the progress of a fetch until the caller stops waiting.
async fn show_progress(context: &AttemptContext, shown: watch::Receiver<FetchProgress>) -> Infallible {
    loop {
        tokio::time::sleep(PUBLISH_INTERVAL).await;
        let progress = *shown.borrow();
        publish_progress(context, fraction(progress), describe(progress)).await;
    }
}

fn fraction(progress: FetchProgress) -> f32 {
    // The fraction is only shown as a bar, so the lost precision does not matter.
    #[allow(clippy::cast_precision_loss)]
    let fraction = progress.done as f32 / progress.total.max(1) as f32;
    fraction
}

fn describe(progress: FetchProgress) -> String {
    if progress.done == progress.total && progress.total > 0 {
        return "unpacking the image".to_owned();
    }
    format!("pulling the image: {} of {} MiB", progress.done >> 20, progress.total >> 20)
}
