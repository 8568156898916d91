//! Finds the image of a job by its name: refuses it where the owner does not allow it, and pulls it where it is not
//! here.

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
use crate::config::ImagePolicy;

/// How long pulling an image may take.
const PULL: Duration = Duration::from_secs(1_800);
/// How long the id of a name is remembered. A name may come to mean another image, though that is rare.
const REMEMBER: Duration = Duration::from_secs(30);
/// Most names that are remembered.
const MOST_NAMES: usize = 256;
/// How often the progress of a pull is published.
const PUBLISH: Duration = Duration::from_secs(2);

/// The owner's rules for images.
#[derive(Debug, Clone)]
pub(crate) struct ImageRules {
    pub(crate) policy: ImagePolicy,
    pub(crate) registries: Vec<String>,
    /// Largest image, bytes.
    pub(crate) largest: u64,
    /// How many images of former jobs are kept, and for how long.
    pub(crate) cache: CacheLimits,
}

/// The images on this machine.
pub(crate) struct Images {
    rules: ImageRules,
    /// The id that each name had, and when that was asked: similar jobs often follow each other, and Docker takes
    /// milliseconds to answer.
    recent: Mutex<HashMap<String, (String, Instant)>>,
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

/// The registry in an image's name.
fn registry_of(name: &str) -> &str {
    match name.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => "docker.io",
    }
}

impl Images {
    /// The images on this machine. The directory has the list of those that were pulled for jobs.
    pub(crate) fn new(state: &Path, rules: ImageRules) -> Self {
        Self { pulled: ImageCache::open(state, rules.cache), rules, recent: Mutex::default() }
    }

    /// The id of a job's image. Pulls the image where it is not here, and publishes the progress of that.
    pub(super) async fn resolve(&self, name: &str, context: &AttemptContext) -> Result<String, Problem> {
        if !self.rules.allows(name) {
            let detail = "this machine's owner does not allow images from there (--images)";
            return Err(Problem::new(Reason::BadImage, detail));
        }
        if let Some((id, at)) = self.recent().get(name)
            && at.elapsed() < REMEMBER
        {
            return Ok(id.clone());
        }
        let id = match context.tools.docker.inspect_image(name).await {
            Ok(found) => found.id.unwrap_or_default(),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => self.pull(name, context).await?,
            Err(e) => return Err(Problem::of_docker(e)),
        };
        self.pulled.note_use(name);
        let mut recent = self.recent();
        if recent.len() >= MOST_NAMES {
            recent.clear();
        }
        recent.insert(name.to_owned(), (id.clone(), Instant::now()));
        Ok(id)
    }

    /// Removes the images of former jobs that are too old or too many.
    pub(crate) async fn tidy(&self, docker: &Docker) {
        self.pulled.evict(docker, "").await;
    }

    /// Forgets the id of a name, because the image is not here any more.
    pub(super) fn forget(&self, name: &str) {
        self.recent().remove(name);
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, HashMap<String, (String, Instant)>> {
        // A panic elsewhere cannot leave a map half written.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pull(&self, name: &str, context: &AttemptContext) -> Result<String, Problem> {
        info!(image = name, "pulling");
        let docker = &context.tools.docker;
        let pulled = tokio::time::timeout(PULL, self.pull_all(docker, name, context)).await;
        let too_slow = || Problem::new(Reason::RuntimeMisconfigured, format!("pulling {name} took too long"));
        let (id, bytes) = pulled.map_err(|_| too_slow())??;
        self.pulled.add(name, bytes);
        self.pulled.evict(docker, name).await;
        Ok(id)
    }

    /// Returns the image's id and size, bytes.
    async fn pull_all(&self, docker: &Docker, name: &str, context: &AttemptContext) -> Result<(String, u64), Problem> {
        let options = CreateImageOptionsBuilder::default().from_image(name).build();
        let mut steps = docker.create_image(Some(options), None, None);
        let (mut progress, mut published) = (PullProgress::default(), Instant::now());
        while let Some(step) = steps.next().await {
            progress.update(step.map_err(not_pulled)?);
            if progress.total > self.rules.largest {
                return Err(too_large(progress.total, self.rules.largest));
            }
            if published.elapsed() > PUBLISH {
                published = Instant::now();
                publish_progress(context, progress.fraction(), progress.to_string()).await;
            }
        }
        let found = docker.inspect_image(name).await.map_err(not_pulled)?;
        let (id, bytes) = (found.id.unwrap_or_default(), u64::try_from(found.size.unwrap_or(0)).unwrap_or(0));
        if bytes > self.rules.largest {
            if let Err(e) = docker.remove_image(&id, None::<RemoveImageOptions>, None).await {
                warn!(image = name, error = %e, "an image that is too large cannot be removed");
            }
            return Err(too_large(bytes, self.rules.largest));
        }
        Ok((id, bytes))
    }
}

/// A failure to pull an image. Where the registry refuses the image, no other machine will get it either, and the job
/// is at fault.
fn not_pulled(e: Error) -> Problem {
    const REFUSALS: [&str; 6] = [
        "manifest unknown",
        "pull access denied",
        "access to the resource is denied",
        "unauthorized:",
        "filesystem layer verification failed",
        "no matching manifest",
    ];
    let text = e.to_string();
    let not_found = text.contains("manifest for ") && text.contains(" not found");
    let refused = not_found || REFUSALS.iter().any(|refusal| text.contains(refusal));
    if refused { Problem::caused(Reason::BadImage, e) } else { Problem::of_docker(e) }
}

fn too_large(bytes: u64, largest: u64) -> Problem {
    let gib = |bytes: u64| bytes >> 30;
    let detail = format!("the image has {} GiB or more, and {} are allowed here", gib(bytes), gib(largest));
    Problem::new(Reason::BadImage, detail)
}

/// How far a pull is.
#[derive(Default)]
struct PullProgress {
    /// Bytes of each layer: those that are here, and all.
    layers: BTreeMap<String, (u64, u64)>,
    total: u64,
    unpacks: bool,
}

impl PullProgress {
    fn update(&mut self, step: CreateImageInfo) {
        let (Some(id), Some(detail)) = (step.id, step.progress_detail) else { return };
        let bytes = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
        self.unpacks = step.status.as_deref() == Some("Extracting");
        if step.status.as_deref() == Some("Downloading")
            && let (Some(done), Some(total)) = (bytes(detail.current), bytes(detail.total))
        {
            self.layers.insert(id, (done, total));
            self.total = self.layers.values().map(|(_, total)| total).sum();
        }
    }

    fn done(&self) -> u64 {
        self.layers.values().map(|(done, _)| done).sum()
    }

    fn fraction(&self) -> f32 {
        // Only shown as a bar: the precision that is lost does not matter.
        #[allow(clippy::cast_precision_loss)]
        let share = self.done() as f32 / self.total.max(1) as f32;
        share
    }
}

impl fmt::Display for PullProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.unpacks {
            return f.write_str("unpacking the image");
        }
        write!(f, "pulling the image: {} of {} MiB", self.done() >> 20, self.total >> 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::ProgressDetail;

    #[test]
    fn the_owner_says_where_images_may_come_from() {
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
    fn an_image_that_its_registry_refuses_is_the_jobs_fault() {
        let refused = |text: &str| {
            not_pulled(Error::DockerResponseServerError { status_code: 500, message: text.to_owned() }).reason
        };
        assert_eq!(refused("manifest for example.org/a:1 not found"), Reason::BadImage);
        assert_eq!(refused("pull access denied for a"), Reason::BadImage);
        assert_eq!(refused("dial tcp: lookup example.org: no such host"), Reason::RuntimeMisconfigured);
        assert_eq!(refused("no space left on device"), Reason::DiskFull);
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
