//! A job that a person wants to submit: from the request to the command, for the page and for the API.

use gpubnb_events::{
    AccountId, Actor, JobId, Seconds, Seq,
    command::{Quote, SubmitJob, Submitted},
    dataset::DatasetId,
    job_request::{DatasetRequest, JobRequest},
    spec::{DatasetMount, JobSpec},
};

use gpubnb_runtime::rpc::RpcError;

use crate::{
    app::App,
    error::Problem,
    image_names::{PinnedImage, explain_refusal},
    transfer,
};

/// The seconds for which a job waits, or runs, if its request does not say it: a cautious guess.
const DAY: u64 = 86_400;

/// A job that is ready to be quoted or submitted.
pub(crate) struct Submission {
    command: SubmitJob,
    /// The image, if the request named it by a tag.
    pub(crate) pinned: Option<PinnedImage>,
    /// Why the tag of the image has no digest. The market may approve the image as it is named.
    unresolved: Option<Problem>,
    /// Why the job can be quoted and not submitted: the file that its template needs is missing.
    missing: Option<Problem>,
}

impl Submission {
    /// Finds the digest of the image, and the sizes and hashes of the files and datasets. `job` is the job's id if the
    /// request has none.
    pub(crate) async fn prepare(
        app: &App,
        account: AccountId,
        request: JobRequest,
        job: JobId,
    ) -> Result<Self, Problem> {
        let has_image = request.image.is_some() && request.template.is_none();
        let earlier = match request.job {
            Some(job) if has_image || !request.datasets.is_empty() => {
                app.queries.job(Actor::Account(account), job, Seq::ZERO).await.ok().map(|known| known.spec)
            }
            _ => None,
        };
        Self::prepare_with(app, account, request, (job, Seconds(0)), earlier).await
    }

    /// Like [`Self::prepare`]. The datasets must be kept for the time `least`, and longer if the limits of the job are
    /// longer. `earlier` is the job or batch that was submitted with the same id before: a repeated
    /// submission is the same, also if a tag or a name has moved, or the registry is away.
    pub(crate) async fn prepare_with(
        app: &App,
        account: AccountId,
        mut request: JobRequest,
        (job, least): (JobId, Seconds),
        earlier: Option<JobSpec>,
    ) -> Result<Self, Problem> {
        let template = request.template.as_deref().and_then(|id| app.templates.find(id));
        let template = template.as_deref();
        let inputs = transfer::resolve_inputs(app, account, &request.inputs).await?;
        let image = request.image.as_deref().filter(|_| request.template.is_none()).map(str::trim);
        let datasets =
            if let Some(earlier) = earlier.as_ref().and_then(|spec| datasets_of_earlier_job(spec, &request.datasets)) {
                earlier
            } else {
                let longest = request.queue_seconds.unwrap_or(DAY).saturating_add(request.time_seconds.unwrap_or(DAY));
                let until = app.now().plus(Seconds(longest.max(least.0)).millis());
                transfer::resolve_datasets(app, account, &request.datasets, until).await?
            };
        if let Some(earlier) = earlier.and_then(|spec| image_of_earlier_job(spec, image?)) {
            request.image = Some(earlier);
            let command = request.into_command(job, template, inputs, datasets)?;
            return Ok(Self { command, pinned: None, unresolved: None, missing: None });
        }
        let found = match image {
            None => Ok(None),
            Some(image) => app.image_names.pin(account, image).await,
        };
        let (pinned, unresolved) = found.map_or_else(|problem| (None, Some(problem)), |pinned| (pinned, None));
        if let Some(pinned) = &pinned {
            request.image = Some(pinned.name.clone());
        }
        let command = request.into_command(job, template, inputs, datasets)?;
        let checked = template.map_or(Ok(()), |template| template.check_input(&command.spec));
        let missing = checked.err().map(Problem::from);
        Ok(Self { command, pinned, unresolved, missing })
    }

    /// Refuses a job that can be quoted and not submitted.
    pub(crate) fn check_complete(&self) -> Result<(), Problem> {
        self.missing.clone().map_or(Ok(()), Err)
    }

    pub(crate) async fn submit(self, app: &App, actor: Actor) -> Result<Submitted, Problem> {
        self.check_complete()?;
        let submitted = app.job_command("submit", actor, self.command.job, &self.command).await;
        let submitted: Submitted = submitted.map_err(|refused| self.explain(refused))?;
        self.note(app, actor, submitted.seq);
        Ok(submitted)
    }

    /// Remembers that a job with these datasets was submitted, so that they are not deleted at once.
    pub(crate) fn note(&self, app: &App, actor: Actor, seq: Seq) {
        if let (Actor::Account(account), false) = (actor, self.command.spec.datasets.is_empty()) {
            app.datasets.note_submission(account, seq);
        }
    }

    /// The problem of a refused command, with the reason why the image's tag has no digest.
    pub(crate) fn explain(&self, refused: RpcError) -> Problem {
        explain_refusal(Problem::from(refused), self.unresolved.clone())
    }

    pub(crate) fn command(&self) -> &SubmitJob {
        &self.command
    }

    pub(crate) async fn quote(&self, app: &App, actor: Actor) -> Result<Quote, Problem> {
        let quoted = app.command("market", "quote", actor, &self.command).await;
        quoted.map_err(|refused| self.explain(refused))
    }

    /// The image that the job runs.
    pub(crate) fn image(&self) -> &str {
        &self.command.spec.image
    }
}

/// The image of an earlier job, if that is the named one, with a digest.
fn image_of_earlier_job(spec: JobSpec, image: &str) -> Option<String> {
    let (name, _) = spec.image.split_once("@sha256:")?;
    let is_same = name == image || name.strip_suffix(":latest") == Some(image);
    (is_same && !image.contains('@')).then_some(spec.image)
}

/// The datasets of an earlier job, if they can be those that a request names.
fn datasets_of_earlier_job(spec: &JobSpec, requested: &[DatasetRequest]) -> Option<Vec<DatasetMount>> {
    let is_same = |(mount, request): (&DatasetMount, &DatasetRequest)| {
        let by_id = request.dataset.parse().map_or(true, |id: DatasetId| id == mount.dataset);
        let directory = request.directory.as_ref().unwrap_or(&request.dataset);
        by_id && mount.writable == request.writable && (*directory == mount.directory || request.directory.is_none())
    };
    let are_same = spec.datasets.len() == requested.len() && spec.datasets.iter().zip(requested).all(is_same);
    are_same.then(|| spec.datasets.clone())
}
