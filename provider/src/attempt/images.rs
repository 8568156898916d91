//! Images: which a job may bring, from the name it gives to the id of what is here, pulled where it is not.

use std::{
    collections::{BTreeMap, HashMap},
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
use tracing::info;

use super::{
    Problem,
    cache::{Cache, CacheLimits},
    container::problem,
    output::Of,
};
use crate::config::ImagePolicy;

/// How long pulling an image may take.
const PULL: Duration = Duration::from_secs(1_800);
/// How long a name is taken to mean the same image. Names move, though seldom.
const KNOWN: Duration = Duration::from_secs(30);
/// Most names remembered.
const MOST: usize = 256;
/// How often a pull says how far it is.
const SAY: Duration = Duration::from_secs(2);

/// What the owner allows of images.
#[derive(Debug, Clone)]
pub(crate) struct Allowed {
    pub(crate) policy: ImagePolicy,
    pub(crate) registries: Vec<String>,
    /// Largest image, bytes.
    pub(crate) largest: u64,
    /// Which images of former jobs are kept.
    pub(crate) cache: CacheLimits,
}

/// Which image each name meant a moment ago: jobs come in rows, and Docker takes milliseconds to say it again.
pub(crate) struct Images {
    allowed: Allowed,
    known: Mutex<HashMap<String, (String, Instant)>>,
    pulled: Cache,
}

impl Allowed {
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

/// The registry that an image's name leads to.
fn registry_of(name: &str) -> &str {
    match name.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => "docker.io",
    }
}

impl Images {
    /// What is known of them in this directory.
    pub(crate) fn new(state: &Path, allowed: Allowed) -> Self {
        Self { pulled: Cache::open(state, allowed.cache), allowed, known: Mutex::default() }
    }

    /// The id of a job's image; pulled where it is not here. It is said how far that is.
    pub(super) async fn resolve(&self, docker: &Docker, name: &str, of: Of<'_>) -> Result<String, Problem> {
        if !self.allowed.allows(name) {
            let detail = "this machine's owner does not allow images from there (--images)";
            return Err(Problem::new(Reason::BadImage, detail));
        }
        if let Some((id, at)) = self.known().get(name)
            && at.elapsed() < KNOWN
        {
            return Ok(id.clone());
        }
        let id = match docker.inspect_image(name).await {
            Ok(found) => found.id.unwrap_or_default(),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => self.pull(docker, name, of).await?,
            Err(e) => return Err(problem(e)),
        };
        self.pulled.used(name);
        let mut known = self.known();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(name.to_owned(), (id.clone(), Instant::now()));
        Ok(id)
    }

    /// Removes what is too old or too much.
    pub(crate) async fn tidy(&self, docker: &Docker) {
        self.pulled.evict(docker, "").await;
    }

    /// It is not here any more.
    pub(super) fn forget(&self, name: &str) {
        self.known().remove(name);
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, (String, Instant)>> {
        // A map of names is whole after a panic, too.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pull(&self, docker: &Docker, name: &str, of: Of<'_>) -> Result<String, Problem> {
        info!(image = name, "pulling");
        let pulled = tokio::time::timeout(PULL, self.pull_all(docker, name, of)).await;
        let slow = || Problem::new(Reason::RuntimeMisconfigured, format!("pulling {name} took too long"));
        let (id, bytes) = pulled.map_err(|_| slow())??;
        self.pulled.add(name, bytes);
        self.pulled.evict(docker, name).await;
        Ok(id)
    }

    async fn pull_all(&self, docker: &Docker, name: &str, of: Of<'_>) -> Result<(String, u64), Problem> {
        let options = CreateImageOptionsBuilder::default().from_image(name).build();
        let mut steps = docker.create_image(Some(options), None, None);
        let (mut progress, mut said) = (Progress::default(), Instant::now());
        while let Some(step) = steps.next().await {
            progress.take(step.map_err(not_pulled)?);
            if progress.total > self.allowed.largest {
                return Err(too_large(progress.total, self.allowed.largest));
            }
            if said.elapsed() > SAY {
                said = Instant::now();
                of.say_progress(progress.fraction(), progress.words()).await;
            }
        }
        let found = docker.inspect_image(name).await.map_err(not_pulled)?;
        let (id, bytes) = (found.id.unwrap_or_default(), u64::try_from(found.size.unwrap_or(0)).unwrap_or(0));
        if bytes > self.allowed.largest {
            drop(docker.remove_image(&id, None::<RemoveImageOptions>, None).await);
            return Err(too_large(bytes, self.allowed.largest));
        }
        Ok((id, bytes))
    }
}

/// Whose fault it is that an image was not pulled: where its registry says no, nobody else will get it either.
fn not_pulled(e: Error) -> Problem {
    const NO: [&str; 6] = [
        "manifest unknown",
        "pull access denied",
        "access to the resource is denied",
        "unauthorized:",
        "filesystem layer verification failed",
        "no matching manifest",
    ];
    let words = e.to_string();
    let not_found = words.contains("manifest for ") && words.contains(" not found");
    if not_found || NO.iter().any(|no| words.contains(no)) { Problem::new(Reason::BadImage, words) } else { problem(e) }
}

fn too_large(bytes: u64, largest: u64) -> Problem {
    let gib = |bytes: u64| bytes >> 30;
    let detail = format!("it has {} GiB and more, and {} are allowed here", gib(bytes), gib(largest));
    Problem::new(Reason::BadImage, detail)
}

/// How far a pull is: bytes of each layer.
#[derive(Default)]
struct Progress {
    layers: BTreeMap<String, (u64, u64)>,
    total: u64,
    unpacks: bool,
}

impl Progress {
    fn take(&mut self, step: CreateImageInfo) {
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
        // Of what is known so far; drawn, and not reckoned with.
        #[allow(clippy::cast_precision_loss)]
        let share = self.done() as f32 / self.total.max(1) as f32;
        share
    }

    fn words(&self) -> String {
        if self.unpacks {
            return "unpacking the image".to_owned();
        }
        format!("pulling the image: {} of {} MiB", self.done() >> 20, self.total >> 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_says_where_images_may_come_from() {
        let allowed = |policy, registries: &[&str]| Allowed {
            policy,
            registries: registries.iter().map(|r| (*r).to_owned()).collect(),
            largest: 1,
            cache: CacheLimits { bytes: 1, unused: gpubnb_events::Millis(1) },
        };
        let template = template::ALL[0].image;
        let custom = "ghcr.io/someone/thing@sha256:0";
        for (allowed, expected) in [
            (allowed(ImagePolicy::Any, &[]), [true, true, true]),
            (allowed(ImagePolicy::Templates, &["ghcr.io"]), [true, false, false]),
            (allowed(ImagePolicy::Registries, &["ghcr.io"]), [true, true, false]),
            (allowed(ImagePolicy::Registries, &["docker.io"]), [true, false, true]),
        ] {
            let got = [template, custom, "debian@sha256:0"].map(|name| allowed.allows(name));
            assert_eq!(got, expected, "{allowed:?}");
        }
    }
}
