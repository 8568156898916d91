//! Finds the image of a job by its name. Refuses an image that the owner does not allow, and pulls an image that is not
//! on this machine.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bollard::{
    Docker,
    errors::Error,
    models::CreateImageInfo,
    query_parameters::{CreateImageOptionsBuilder, RemoveImageOptions},
};
use futures_util::StreamExt;
use gpubnb_events::{event::Reason, template};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    Problem,
    context::AttemptContext,
    image_cache::{CacheLimits, ImageCache},
    publish::publish_progress,
};
use crate::{config::ImagePolicy, docker::LocalImage};

/// Longest time to pull an image.
const PULL_TIMEOUT: Duration = Duration::from_secs(1_800);
/// Time for which the id of a name is cached. After that the id is looked up again, because a name may refer to another
/// image, though that is rare.
const CACHE_TIME: Duration = Duration::from_secs(30);
/// Most images that are cached.
const MAX_CACHED: usize = 256;
/// Time between two messages with the progress of a pull.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(2);

/// The owner's rules for images.
#[derive(Debug, Clone)]
pub(crate) struct ImageRules {
    pub(crate) policy: ImagePolicy,
    /// The hosts of the allowed registries, such as `ghcr.io`. Used with `ImagePolicy::Registries`.
    pub(crate) registries: Vec<String>,
    /// Largest image, bytes.
    pub(crate) largest: u64,
    /// The limits of the cache of images that were pulled for jobs.
    pub(crate) cache: CacheLimits,
}

/// The images on this machine.
pub(crate) struct Images {
    rules: ImageRules,
    /// The cached image of each name, and when Docker was asked for it. The cache saves milliseconds for each of many
    /// similar jobs.
    recent: Mutex<HashMap<String, (LocalImage, Instant)>>,
    pulled: ImageCache,
}

impl ImageRules {
    fn allows(&self, name: &str) -> bool {
        let approved = template::ALL.iter().any(|t| t.image == name);
        let listed = || self.registries.iter().any(|registry| registry == registry_of(name));
        match self.policy {
            ImagePolicy::Any => true,
            ImagePolicy::Registries => approved || listed(),
            ImagePolicy::Templates => approved,
        }
    }
}

/// The host of the registry in an image's name: `docker.io` for `debian`.
fn registry_of(name: &str) -> &str {
    match name.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => "docker.io",
    }
}

impl Images {
    /// Reads the list of the images that were pulled for jobs from the directory `state`.
    pub(crate) fn new(state: &Path, rules: ImageRules) -> Self {
        Self { pulled: ImageCache::open(state, rules.cache), rules, recent: Mutex::default() }
    }

    /// The image of a job. Pulls the image if it is not on this machine, and publishes the progress of the pull.
    pub(super) async fn resolve(&self, name: &str, context: &AttemptContext) -> Result<LocalImage, Problem> {
        if !self.rules.allows(name) {
            let detail = "this machine's owner does not allow this image (--images)";
            return Err(Problem::new(Reason::BadImage, detail));
        }
        if let Some((image, at)) = self.recent().get(name)
            && at.elapsed() < CACHE_TIME
        {
            return Ok(image.clone());
        }
        let image = match context.tools.docker.inspect_image(name).await {
            Ok(found) => found.into(),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => self.pull(name, context).await?,
            Err(e) => return Err(Problem::of_docker(e)),
        };
        self.pulled.note_use(name);
        let mut recent = self.recent();
        if recent.len() >= MAX_CACHED {
            recent.clear();
        }
        recent.insert(name.to_owned(), (image.clone(), Instant::now()));
        Ok(image)
    }

    /// Removes pulled images until the cache is within its limits.
    pub(crate) async fn evict_old(&self, docker: &Docker) {
        self.pulled.evict(docker, "").await;
    }

    /// Removes the cached image of a name, because the image was removed from this machine.
    pub(super) fn forget(&self, name: &str) {
        self.recent().remove(name);
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, HashMap<String, (LocalImage, Instant)>> {
        // A poisoned lock is used anyway: a panic of another thread cannot leave the map half written.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pull(&self, name: &str, context: &AttemptContext) -> Result<LocalImage, Problem> {
        info!(image = name, "pulling an image");
        let docker = &context.tools.docker;
        let pulled = tokio::time::timeout(PULL_TIMEOUT, self.pull_all(docker, name, context)).await;
        let too_slow = || Problem::new(Reason::RegistryUnavailable, format!("pulling {name} took too long"));
        let (image, bytes) = pulled.map_err(|_| too_slow())??;
        self.pulled.add(name, bytes);
        self.pulled.evict(docker, name).await;
        Ok(image)
    }

    /// Pulls all layers of an image. Returns the image, and its size in bytes.
    async fn pull_all(
        &self,
        docker: &Docker,
        name: &str,
        context: &AttemptContext,
    ) -> Result<(LocalImage, u64), Problem> {
        let options = CreateImageOptionsBuilder::default().from_image(name).build();
        let mut steps = docker.create_image(Some(options), None, None);
        let (mut progress, mut published) = (PullProgress::default(), Instant::now());
        while let Some(step) = steps.next().await {
            progress.update(step.map_err(pull_problem)?);
            if progress.total > self.rules.largest {
                return Err(too_large(progress.total, self.rules.largest));
            }
            if published.elapsed() > PUBLISH_INTERVAL {
                published = Instant::now();
                publish_progress(context, progress.fraction(), progress.to_string()).await;
            }
        }
        let found = docker.inspect_image(name).await.map_err(pull_problem)?;
        let bytes = u64::try_from(found.size.unwrap_or(0)).unwrap_or(0);
        let image = LocalImage::from(found);
        if bytes > self.rules.largest {
            if let Err(e) = docker.remove_image(&image.id, None::<RemoveImageOptions>, None).await {
                warn!(image = name, error = %e, "an image that is too large cannot be removed");
            }
            return Err(too_large(bytes, self.rules.largest));
        }
        Ok((image, bytes))
    }
}

/// A failure to pull an image. Docker reports all of them as texts.
///
/// - The registry has no such image, or gives it to nobody without a right: the job is at fault, on every machine.
/// - The machine has no room for the image: the machine is at fault.
/// - Anything else, such as a registry that is away or asks to wait: nobody is at fault, and another try may help. A
///   machine whose own network fails also ends here: what cannot be told apart is nobody's fault.
fn pull_problem(e: Error) -> Problem {
    const REFUSALS: [&str; 12] = [
        "manifest unknown",
        "manifest_unknown",
        "name unknown",
        "name_unknown",
        "repository name not known",
        "pull access denied",
        "access to the resource is denied",
        "unauthorized",
        "authentication required",
        "invalid reference format",
        "filesystem layer verification failed",
        "no matching manifest",
    ];
    let text = e.to_string().to_lowercase();
    let is_missing = text.contains("manifest for ") && text.contains(" not found");
    let is_limited = text.contains("toomanyrequests") || text.contains("too many requests");
    let is_refused = is_missing || REFUSALS.iter().any(|refusal| text.contains(refusal));
    let reason = match () {
        () if text.contains("no space left on device") => Reason::DiskFull,
        () if is_refused && !is_limited => Reason::BadImage,
        () => Reason::RegistryUnavailable,
    };
    Problem::caused(reason, e)
}

fn too_large(bytes: u64, largest: u64) -> Problem {
    let gib = |bytes: u64| bytes >> 30;
    let detail = format!("the image has {} GiB or more, and this machine allows {}", gib(bytes), gib(largest));
    Problem::new(Reason::BadImage, detail)
}

/// The progress of a pull.
#[derive(Default)]
struct PullProgress {
    /// The downloaded bytes and all bytes of each layer, by the layer's id.
    layers: BTreeMap<String, (u64, u64)>,
    /// All bytes of all known layers.
    total: u64,
    is_unpacking: bool,
}

impl PullProgress {
    fn update(&mut self, step: CreateImageInfo) {
        let (Some(id), Some(detail)) = (step.id, step.progress_detail) else { return };
        let bytes = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
        self.is_unpacking = step.status.as_deref() == Some("Extracting");
        if step.status.as_deref() == Some("Downloading")
            && let (Some(done), Some(total)) = (bytes(detail.current), bytes(detail.total))
        {
            self.layers.insert(id, (done, total));
            self.total = self.layers.values().map(|(_, total)| total).sum();
        }
    }

    fn downloaded(&self) -> u64 {
        self.layers.values().map(|(done, _)| done).sum()
    }

    fn fraction(&self) -> f32 {
        // The fraction is only shown as a bar, so the lost precision does not matter.
        #[allow(clippy::cast_precision_loss)]
        let fraction = self.downloaded() as f32 / self.total.max(1) as f32;
        fraction
    }
}

impl fmt::Display for PullProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_unpacking {
            return f.write_str("unpacking the image");
        }
        write!(f, "pulling the image: {} of {} MiB", self.downloaded() >> 20, self.total >> 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::ProgressDetail;

    #[test]
    fn the_policy_decides_which_images_are_allowed() {
        let rules = |policy, registries: &[&str]| ImageRules {
            policy,
            registries: registries.iter().map(|r| (*r).to_owned()).collect(),
            largest: 1,
            cache: CacheLimits { bytes: 1, unused: gpubnb_events::Millis(1) },
        };
        let template = template::ALL[0].image;
        let custom = "ghcr.io/someone/thing@sha256:0";
        for (rules, expected) in [
            (rules(ImagePolicy::Any, &[]), [true, true, true]),
            (rules(ImagePolicy::Templates, &["ghcr.io"]), [true, false, false]),
            (rules(ImagePolicy::Registries, &["ghcr.io"]), [true, true, false]),
            (rules(ImagePolicy::Registries, &["docker.io"]), [true, false, true]),
        ] {
            let got = [template, custom, "debian@sha256:0"].map(|name| rules.allows(name));
            assert_eq!(got, expected, "{rules:?}");
        }
    }

    #[test]
    fn a_refused_image_is_the_jobs_fault_and_a_registry_that_is_away_is_nobodys() {
        let reason = |text: &str| {
            pull_problem(Error::DockerResponseServerError { status_code: 500, message: text.to_owned() }).reason
        };
        for refusal in [
            "manifest for example.org/a:1 not found",
            "manifest unknown: manifest unknown",
            "repository name not known to registry",
            "NAME_UNKNOWN: repository name not known to registry",
            "pull access denied for a",
            "unauthorized: authentication required",
        ] {
            assert_eq!(reason(refusal), Reason::BadImage, "{refusal}");
        }
        for unavailable in [
            "toomanyrequests: You have reached your unauthenticated pull rate limit",
            "received unexpected HTTP status: 500 Internal Server Error",
            "dial tcp: lookup example.org: no such host",
            "dial tcp 127.0.0.1:5000: connect: connection refused",
            "net/http: TLS handshake timeout",
            "a text that nobody has seen before",
        ] {
            assert_eq!(reason(unavailable), Reason::RegistryUnavailable, "{unavailable}");
        }
        assert_eq!(reason("no space left on device"), Reason::DiskFull);
    }

    #[test]
    fn the_progress_of_a_pull_is_the_share_of_the_known_layers() {
        let mut progress = PullProgress::default();
        let step = |id: &str, status: &str, current: i64, total: i64| CreateImageInfo {
            id: Some(id.to_owned()),
            status: Some(status.to_owned()),
            progress_detail: Some(ProgressDetail { current: Some(current), total: Some(total) }),
            ..Default::default()
        };
        progress.update(step("one", "Downloading", 1 << 20, 4 << 20));
        progress.update(step("two", "Downloading", 3 << 20, 4 << 20));
        assert_eq!(progress.to_string(), "pulling the image: 4 of 8 MiB");
        assert!((progress.fraction() - 0.5).abs() < f32::EPSILON);
        progress.update(step("one", "Extracting", 1, 4));
        assert_eq!(progress.to_string(), "unpacking the image");
    }
}
