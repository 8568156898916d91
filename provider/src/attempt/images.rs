//! Images: which a job may bring, from the name it gives to the id of what is here, pulled where it is not, and removed
//! again when there are too many.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bollard::{
    Docker,
    errors::Error,
    models::CreateImageInfo,
    query_parameters::{CreateImageOptionsBuilder, RemoveImageOptions, RemoveImageOptionsBuilder},
};
use futures_util::StreamExt;
use gpubnb_events::{event::Reason, template};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Problem, container::problem, output::Of};
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
    /// Images of former jobs that are kept, bytes.
    pub(crate) cache: u64,
}

/// Which image each name meant a moment ago: jobs come in rows, and Docker takes milliseconds to say it again.
pub(crate) struct Images {
    allowed: Allowed,
    known: Mutex<HashMap<String, (String, Instant)>>,
    /// Images that were pulled for jobs, with their sizes and when they were used last. Others are not ours to remove.
    pulled: Mutex<BTreeMap<String, (u64, Instant)>>,
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
    pub(crate) fn new(allowed: Allowed) -> Self {
        Self { allowed, known: Mutex::default(), pulled: Mutex::default() }
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
        if let Some((_, used)) = self.pulled().get_mut(&id) {
            *used = Instant::now();
        }
        let mut known = self.known();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(name.to_owned(), (id.clone(), Instant::now()));
        Ok(id)
    }

    /// It is not here any more.
    pub(super) fn forget(&self, name: &str) {
        self.known().remove(name);
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, (String, Instant)>> {
        // A map of names is whole after a panic, too.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pulled(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (u64, Instant)>> {
        self.pulled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pull(&self, docker: &Docker, name: &str, of: Of<'_>) -> Result<String, Problem> {
        info!(image = name, "pulling");
        let pulled = tokio::time::timeout(PULL, self.pull_all(docker, name, of)).await;
        let slow = || Problem::new(Reason::RuntimeMisconfigured, format!("pulling {name} took too long"));
        let (id, bytes) = pulled.map_err(|_| slow())??;
        self.pulled().insert(id.clone(), (bytes, Instant::now()));
        self.evict(docker, &id).await;
        Ok(id)
    }

    async fn pull_all(&self, docker: &Docker, name: &str, of: Of<'_>) -> Result<(String, u64), Problem> {
        let failed = |e: Error| match e {
            Error::DockerResponseServerError { status_code: 404, message } => Problem::new(Reason::BadImage, message),
            e => problem(e),
        };
        let options = CreateImageOptionsBuilder::default().from_image(name).build();
        let mut steps = docker.create_image(Some(options), None, None);
        let (mut progress, mut said) = (Progress::default(), Instant::now());
        while let Some(step) = steps.next().await {
            progress.take(step.map_err(failed)?);
            if progress.total > self.allowed.largest {
                return Err(too_large(progress.total, self.allowed.largest));
            }
            if said.elapsed() > SAY {
                said = Instant::now();
                of.say_progress(progress.fraction(), progress.words()).await;
            }
        }
        let found = docker.inspect_image(name).await.map_err(failed)?;
        let (id, bytes) = (found.id.unwrap_or_default(), u64::try_from(found.size.unwrap_or(0)).unwrap_or(0));
        if bytes > self.allowed.largest {
            drop(docker.remove_image(&id, None::<RemoveImageOptions>, None).await);
            return Err(too_large(bytes, self.allowed.largest));
        }
        Ok((id, bytes))
    }

    /// Removes the images that were used longest ago, until the others fit. One that is in use stays.
    async fn evict(&self, docker: &Docker, keep: &str) {
        let oldest_first = {
            let pulled = self.pulled();
            let mut all: Vec<_> = pulled.iter().map(|(id, (bytes, used))| (*used, id.clone(), *bytes)).collect();
            all.sort();
            all
        };
        let mut sum: u64 = oldest_first.iter().map(|(.., bytes)| bytes).sum();
        for (_, id, bytes) in oldest_first {
            if sum <= self.allowed.cache {
                return;
            }
            if id == keep {
                continue;
            }
            let options = RemoveImageOptionsBuilder::default().force(false).build();
            match docker.remove_image(&id, Some(options), None).await {
                Ok(_) | Err(Error::DockerResponseServerError { status_code: 404, .. }) => {
                    info!(id, bytes, "an image that was used long ago is removed");
                    self.pulled().remove(&id);
                    sum -= bytes;
                }
                Err(e) => warn!(id, error = %e, "an image stays"),
            }
        }
    }
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
}

impl Progress {
    fn take(&mut self, step: CreateImageInfo) {
        let (Some(id), Some(detail)) = (step.id, step.progress_detail) else { return };
        let bytes = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
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
            cache: 1,
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
