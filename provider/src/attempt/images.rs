//! Images: from the name a job gives to the id of what is here, pulled where it is not.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bollard::{Docker, errors::Error, models::ImageInspect, query_parameters::CreateImageOptionsBuilder};
use futures_util::StreamExt;
use gpubnb_events::event::Reason;
use tokio::time::Instant;
use tracing::info;

use super::{Problem, container::problem};

/// How long pulling an image may take.
const PULL: Duration = Duration::from_secs(1_800);
/// How long a name is taken to mean the same image. Names move, though seldom.
const KNOWN: Duration = Duration::from_secs(30);
/// Most names remembered.
const MOST: usize = 256;

/// Which image each name meant a moment ago: jobs come in rows, and Docker takes milliseconds to say it again.
#[derive(Default)]
pub(crate) struct Images(Mutex<HashMap<String, (String, Instant)>>);

impl Images {
    /// The id of a job's image; pulled where it is not here.
    pub(super) async fn resolve(&self, docker: &Docker, name: &str) -> Result<String, Problem> {
        if let Some((id, at)) = self.known().get(name)
            && at.elapsed() < KNOWN
        {
            return Ok(id.clone());
        }
        let id = match docker.inspect_image(name).await {
            Ok(found) => found.id.unwrap_or_default(),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => pull(docker, name).await?,
            Err(e) => return Err(problem(e)),
        };
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn pull(docker: &Docker, name: &str) -> Result<String, Problem> {
    info!(image = name, "pulling");
    let options = CreateImageOptionsBuilder::default().from_image(name).build();
    let pull = async {
        let mut steps = docker.create_image(Some(options), None, None);
        while let Some(step) = steps.next().await {
            step?;
        }
        docker.inspect_image(name).await
    };
    match tokio::time::timeout(PULL, pull).await {
        Ok(Ok(ImageInspect { id, .. })) => Ok(id.unwrap_or_default()),
        Ok(Err(Error::DockerResponseServerError { status_code: 404, message })) => {
            Err(Problem::new(Reason::BadImage, message))
        }
        Ok(Err(e)) => Err(Problem::new(Reason::RuntimeMisconfigured, format!("pulling {name}: {e}"))),
        Err(_) => Err(Problem::new(Reason::RuntimeMisconfigured, format!("pulling {name} took too long"))),
    }
}
