//! Images as people name them: a tag becomes the digest that the tag stands for now, before anything is quoted or
//! submitted. The name enters the log with its digest, so a replay never asks a registry.
//!
//! Belongs here: whom to ask, how often, and what is remembered. Must not come here: the protocol of registries
//! (`gpubnb-registry`), or the rule which images a job may have (`services/domain`).

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::StatusCode;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use gpubnb_dialer::Dialer;
use gpubnb_events::{AccountId, Clock, Millis, Timestamp, spec::ImageName};
use gpubnb_registry::{Pinned, Registries, RegistryError, pin};
use tokio::{sync::Semaphore, time::timeout};
use tracing::debug;

use crate::{error::Problem, keyed_limit::KeyedLimit};

/// Longest time for the answer of a registry, with its tokens and redirects.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Questions at once; of one account.
const AT_ONCE: (usize, u64) = (32, 3);
/// Questions of one account in a minute. A registry counts the questions of all accounts together.
const A_MINUTE: NonZeroU32 = NonZeroU32::new(20).unwrap();
/// Names of hosts that are resolved at once for one account. A lookup that hangs then delays nobody else.
const LOOKUPS: usize = 2;
/// An account without a question for this time is forgotten. Each of its lookups has ended by then.
const FORGET: Millis = Millis(180_000);
/// A registry that limits this server is not asked for this time.
const PAUSE: Millis = Millis(60_000);
/// A found digest is remembered for this time, so that a submission gets the image that its quote showed. A failure is
/// remembered for a shorter time: the person may mend it.
const REMEMBERED: (Millis, Millis) = (Millis(5 * 60_000), Millis(20_000));
/// Most names that are remembered.
const MAX_NAMES: usize = 1_000;

/// An image with the digest that its tag stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PinnedImage {
    /// The name with the digest: `python:3.12@sha256:…`.
    pub(crate) name: String,
    /// The architectures of its variants, such as `amd64`; empty if the registry's answer does not name them.
    pub(crate) architectures: Vec<String>,
}

impl PinnedImage {
    /// The name with the beginning of the digest, for people.
    pub(crate) fn short(&self) -> String {
        const SHOWN: usize = 12;
        match self.name.rsplit_once(':') {
            Some((name, digest)) => format!("{name}:{}…", digest.chars().take(SHOWN).collect::<String>()),
            None => self.name.clone(),
        }
    }
}

/// Why there is no digest, for people.
#[derive(Debug, Clone)]
struct Unresolved {
    why: String,
    /// True if another try may succeed.
    may_pass: bool,
}

impl From<Unresolved> for Problem {
    fn from(Unresolved { why, may_pass }: Unresolved) -> Self {
        let problem = Self::invalid("image", why);
        // Programs repeat a request that was answered with 503.
        if may_pass { Self { status: StatusCode::SERVICE_UNAVAILABLE.as_u16(), ..problem } } else { problem }
    }
}

/// The digest behind a name of an image, or why there is none, and until when the answer is remembered.
type Remembered = (Result<PinnedImage, Unresolved>, Timestamp);

/// Finds the digests of images.
pub(crate) struct ImageNames {
    registries: Registries,
    /// Names that the services approve as they are. Only machines may have such an image.
    approved: Vec<String>,
    remembered: Mutex<HashMap<String, Remembered>>,
    /// The registries that limit this server, and until when they are not asked.
    paused: Mutex<HashMap<String, Timestamp>>,
    questions: Semaphore,
    questions_of: KeyedLimit<AccountId>,
    rate: DefaultKeyedRateLimiter<AccountId>,
    /// The dialer of each account, and when it was used last.
    dialers: Mutex<HashMap<AccountId, (Dialer, Timestamp)>>,
    clock: Arc<dyn Clock>,
}

impl ImageNames {
    pub(crate) fn new(registries: Registries, approved: Vec<String>, clock: Arc<dyn Clock>) -> Self {
        Self {
            registries,
            approved,
            remembered: Mutex::default(),
            paused: Mutex::default(),
            questions: Semaphore::new(AT_ONCE.0),
            questions_of: KeyedLimit::default(),
            rate: RateLimiter::keyed(Quota::per_minute(A_MINUTE)),
            dialers: Mutex::default(),
            clock,
        }
    }

    /// The image by its digest. `None` for a name that has a digest already, that is approved as it is, or that is no
    /// name of an image.
    pub(crate) async fn pin(&self, account: AccountId, image: &str) -> Result<Option<PinnedImage>, Problem> {
        let Some(name) = ImageName::parse(image).filter(|name| name.digest.is_none()) else { return Ok(None) };
        if self.approved.iter().any(|approved| approved == image) {
            return Ok(None);
        }
        let now = self.clock.now();
        let known = lock(&self.remembered).get(image).filter(|(_, until)| *until > now).map(|(found, _)| found.clone());
        let found = match known {
            Some(found) => found,
            None => self.ask(account, image, &name).await?,
        };
        Ok(Some(found?))
    }

    /// Asks the registry, and remembers the answer.
    async fn ask(
        &self,
        account: AccountId,
        image: &str,
        name: &ImageName<'_>,
    ) -> Result<Result<PinnedImage, Unresolved>, Problem> {
        let busy = || Problem::too_many("Too many names of images are looked up now.", 5);
        self.rate.check_key(&account).map_err(|_| busy())?;
        let _share = self.questions_of.take(account, 1, AT_ONCE.1).ok_or_else(busy)?;
        let _permit = self.questions.try_acquire().map_err(|_| busy())?;
        let now = self.clock.now();
        if lock(&self.paused).get(name.registry()).is_some_and(|until| *until > now) {
            return Ok(Err(explain(image, &RegistryError::Limited(name.registry().to_owned()))));
        }
        let registries = Registries { dialer: self.dialer_of(account, now), ..self.registries.clone() };
        let asked = async { pin(&mut registries.open(name)?, name.tag.unwrap_or("latest")).await };
        let found = match timeout(TIMEOUT, asked).await {
            Ok(Ok(pinned)) => Ok(with_digest(image, name, pinned)),
            Ok(Err(e)) => {
                if matches!(e, RegistryError::Limited(_)) {
                    self.pause(name.registry(), now);
                }
                Err(explain(image, &e))
            }
            Err(_) => {
                let why = format!("The registry {} did not answer in time: try again.", name.registry());
                Err(Unresolved { why, may_pass: true })
            }
        };
        self.remember(image, found.clone());
        Ok(found)
    }

    fn dialer_of(&self, account: AccountId, now: Timestamp) -> Dialer {
        let mut dialers = lock(&self.dialers);
        dialers.retain(|_, (_, used)| now.since(*used) < FORGET);
        self.rate.retain_recent();
        let new = || (self.registries.dialer.with_own_lookups(LOOKUPS), now);
        let (dialer, used) = dialers.entry(account).or_insert_with(new);
        *used = now;
        dialer.clone()
    }

    fn pause(&self, registry: &str, now: Timestamp) {
        let mut paused = lock(&self.paused);
        paused.retain(|_, until| *until > now);
        paused.insert(registry.to_owned(), now.plus(PAUSE));
    }

    fn remember(&self, image: &str, found: Result<PinnedImage, Unresolved>) {
        let life = if found.is_ok() { REMEMBERED.0 } else { REMEMBERED.1 };
        let now = self.clock.now();
        let mut remembered = lock(&self.remembered);
        if remembered.len() >= MAX_NAMES {
            remembered.retain(|_, (_, until)| *until > now);
        }
        if remembered.len() >= MAX_NAMES {
            let oldest = remembered.iter().min_by_key(|(_, (_, until))| *until).map(|(name, _)| name.clone());
            oldest.and_then(|name| remembered.remove(&name));
        }
        remembered.insert(image.to_owned(), (found, now.plus(life)));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name with its tag and its digest.
fn with_digest(image: &str, name: &ImageName<'_>, Pinned { digest, architectures }: Pinned) -> PinnedImage {
    let tag = if name.tag.is_some() { "" } else { ":latest" };
    PinnedImage { name: format!("{image}{tag}@sha256:{digest}"), architectures }
}

/// The failure of a registry, in words that tell a person what to do.
fn explain(image: &str, e: &RegistryError) -> Unresolved {
    debug!(image, error = ?e, "the digest of an image was not found");
    let may_pass = e.may_pass();
    let why = match e {
        RegistryError::NoSuchImage(registry) => {
            format!("The registry {registry} has no public image {image}. Check the name and the tag.")
        }
        RegistryError::Limited(registry)
        | RegistryError::Unavailable(registry)
        | RegistryError::BrokenOff { registry, .. } => {
            format!(
                "The registry {registry} does not answer for {image} now: try again, or name the image by its digest."
            )
        }
        other => format!("The digest of {image} was not found: {other}."),
    };
    Unresolved { why, may_pass }
}

/// The problem of a refused image: why its tag could not be resolved, if that is the cause.
pub(crate) fn explain_refusal(refused: Problem, unresolved: Option<Problem>) -> Problem {
    match unresolved {
        Some(why)
            if refused.field.as_deref() == Some("image") && refused.status == StatusCode::UNPROCESSABLE_ENTITY =>
        {
            why
        }
        _ => refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_image_keeps_its_tag() {
        let pinned = |image: &str| {
            let pinned = Pinned { digest: "0a".repeat(32), architectures: Vec::new() };
            with_digest(image, &ImageName::parse(image).unwrap(), pinned).name
        };
        let digest = "0a".repeat(32);
        assert_eq!(pinned("python:3.12"), format!("python:3.12@sha256:{digest}"));
        assert_eq!(pinned("ghcr.io/team/tool"), format!("ghcr.io/team/tool:latest@sha256:{digest}"));
        assert!(ImageName::parse(&pinned("localhost:5000/a")).unwrap().digest.is_some());
    }
}
