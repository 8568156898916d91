//! The page to submit a job: a form with the fields of a job template, a quote beside the form, and errors beside their
//! fields.

use std::{collections::BTreeSet, sync::Arc};

use askama::Template;
use axum::{
    extract::State,
    http::StatusCode,
    response::{Html, IntoResponse, Redirect, Response},
};
use gpubnb_events::{
    AccountId, Actor, Chain, JobId, MachineId, Seq, Timestamp,
    command::{BatchQuote, ListSecrets, Quote, StoredSecret, Submitted, SubmittedBatch},
    dataset::DatasetId,
    template::{OWN_IMAGE, Template as JobTemplate, Values},
};
use gpubnb_query::view::{MachineState, MachineView, TypicalRun};
use gpubnb_runtime::rpc::RpcError;
use tracing::warn;

use super::{
    Layout,
    many_tasks::{self, WAYS},
    render_fragment, render_page, resubmit,
};
use crate::{
    access::{SignedIn, Viewer},
    app::App,
    batches::BatchSubmission,
    error::{PageError, Problem},
    extract::{Form, Origin, Query},
    image_names::PinnedImage,
    input, snippets,
    submission::Submission,
};

/// The presets of the form that a link contains as query parameters.
#[derive(Debug, Default)]
pub(crate) struct FormPreset {
    /// The id of a job template, by default `train`. Any other text, such as `custom`, means a custom image.
    template: Option<String>,
    machine: Option<MachineId>,
}

impl FormPreset {
    /// The presets in these fields: those of a link, of a submitted form, or of a previous job.
    fn from_fields(fields: &[(String, String)]) -> Self {
        let field = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        Self { template: field("template"), machine: field("machine").and_then(|m| m.parse().ok()) }
    }

    /// The presets that give a submitted form the same template and machine again. A form without a template has a
    /// custom image.
    fn of_form(fields: &[(String, String)]) -> Self {
        let preset = Self::from_fields(fields);
        Self { template: preset.template.or(Some(String::new())), ..preset }
    }
}

/// Maximum number of machines in the form's list.
const MAX_MACHINES: usize = 200;

#[derive(Template)]
#[template(path = "new_job.html")]
struct NewJobPage {
    layout: Layout,
    templates: Arc<[Arc<JobTemplate>]>,
    typical_runs: Vec<TypicalRun>,
    /// The person's datasets with names, and those that the form names: the value of the form field `dataset`.
    datasets: Vec<String>,
    /// The names of the person's stored secrets, and those that the form names.
    secrets: Vec<String>,
    /// `None` for a custom image.
    chosen: Option<Arc<JobTemplate>>,
    /// The chosen machine; `None` if the market chooses.
    machine: Option<Arc<MachineView>>,
    machines: Vec<Arc<MachineView>>,
    /// The form fields of a refused submission or of a previous job, as (name, value).
    fields: Vec<(String, String)>,
    /// The reasons why the submission was refused.
    problems: Vec<Problem>,
    job: JobId,
}

impl NewJobPage {
    /// The value of the form field, or the default.
    fn value(&self, name: &str, default: &str) -> String {
        let value = self.fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        value.unwrap_or_else(|| default.to_owned())
    }

    fn parameter(&self, name: &str, default: &str) -> String {
        self.value(&format!("parameter.{name}"), default)
    }

    /// The error message of a field; empty for a valid field.
    fn error_of(&self, field: &str) -> String {
        let problem = self.problems.iter().find(|p| p.field.as_deref() == Some(field));
        problem.map(|p| p.detail.clone()).unwrap_or_default()
    }

    /// The attributes of an input that connect it with its error message; empty for a valid field.
    fn invalid(&self, field: &str) -> String {
        if self.error_of(field).is_empty() {
            return String::new();
        }
        format!("aria-invalid=\"true\" aria-describedby=\"error-{field}\"")
    }

    /// The usual time and cost of the template's jobs; `None` before the first completed run.
    fn typical_run(&self, t: &JobTemplate) -> Option<&TypicalRun> {
        self.typical_runs.iter().find(|run| run.template == t.id)
    }

    /// The label of the field at fault.
    fn label(&self, field: &str) -> String {
        let parameters = self.chosen.as_ref().map(|t| t.fields.as_slice()).unwrap_or_default();
        let parameter = parameters.iter().find(|f| f.name == field).map(|f| f.label.as_str());
        parameter.unwrap_or_else(|| input::label(field)).to_owned()
    }

    /// True if the address or an earlier job fills in more than the template, the machine and the template's fields.
    /// The person must see these fields, so their section is open.
    fn has_further_fields(&self) -> bool {
        let in_view = ["template", "machine", "name", "tasks_as", "tasks", "max_running", "max_failures", "many"];
        let is_in_view = |name: &str| in_view.contains(&name) || name.starts_with("parameter.");
        self.fields.iter().any(|(name, _)| !is_in_view(name))
    }

    /// The templates of the form: those of the market's own image, and the chosen one.
    fn shown_templates(&self) -> Vec<&JobTemplate> {
        let is_shown = |t: &&Arc<JobTemplate>| t.image == OWN_IMAGE || self.is_chosen(t);
        self.templates.iter().filter(is_shown).map(AsRef::as_ref).collect()
    }

    fn is_chosen(&self, t: &JobTemplate) -> bool {
        self.chosen.as_ref().is_some_and(|chosen| chosen.id == t.id)
    }

    fn is_chosen_machine(&self, m: &MachineView) -> bool {
        self.machine.as_ref().is_some_and(|chosen| chosen.listed.machine == m.listed.machine)
    }

    /// The uploaded files: the value of the form field `input` (`<upload id> <path>`), and the path alone.
    fn inputs(&self) -> Vec<(&str, &str)> {
        let inputs = self.fields.iter().filter(|(name, _)| name == "input");
        inputs.filter_map(|(_, value)| Some((value.as_str(), value.split_once(' ')?.1))).collect()
    }

    /// True if a field of this name has this value, such as the name of a stored secret.
    fn has_field(&self, field: &str, wanted: &String) -> bool {
        self.fields.iter().any(|(name, value)| name == field && value == wanted)
    }

    /// A dataset for people: its name, or the beginning of its id, and the directory.
    fn dataset_label(&self, field: &str) -> String {
        let (dataset, rest) = field.split_once(' ').map_or((field, ""), |(dataset, rest)| (dataset, rest));
        let short = dataset.parse::<DatasetId>().map_or_else(|_| dataset.to_owned(), |id| id.short().to_owned());
        let directory = rest.strip_suffix(" rw").map_or_else(
            || format!("/data/{}", if rest.is_empty() { &short } else { rest }),
            |directory| format!("/scratch/{directory}, a copy"),
        );
        format!("{short} in {directory}")
    }

    /// The default time limit, seconds.
    fn default_seconds(&self) -> String {
        self.chosen.as_ref().map_or(3_600, |t| t.seconds).to_string()
    }

    /// The environment variables as lines `NAME=`. Their values are secrets, which no page shows.
    fn variable_names(&self) -> String {
        let names = input::env_names(&self.value("env", "")).into_iter().map(|name| format!("{name}="));
        names.collect::<Vec<_>>().join("\n")
    }
}

async fn render(
    app: &App,
    signed_in: SignedIn,
    preset: FormPreset,
    fields: Vec<(String, String)>,
    problems: Vec<Problem>,
) -> Result<Html<String>, Problem> {
    let mut machines = app.machines.machines().await;
    machines.sort_by_key(|m| m.listed.offer.price);
    let machine = preset.machine.and_then(|id| machines.iter().find(|m| m.listed.machine == id).cloned());
    let is_offered =
        |m: &Arc<MachineView>| m.listed.state() == MachineState::Online || Some(m.listed.machine) == preset.machine;
    machines.retain(is_offered);
    // A longer list would be unreadable. A machine's own page has a link to this form that presets the machine.
    machines.truncate(MAX_MACHINES);
    machines.extend(machine.clone().filter(|m| machines.iter().all(|other| other.listed.machine != m.listed.machine)));
    let id = preset.template.as_deref().unwrap_or("train");
    // Without these answers the form still works, and what a person typed is not lost.
    let missing = |e: &RpcError| warn!(error = %Chain(e), "the form of a job shows less");
    let actor = signed_in.actor();
    let typical_runs = app.queries.typical_runs(actor).await.inspect_err(missing).unwrap_or_default();
    let stored: Result<Vec<StoredSecret>, _> = app.command("account", "secrets", actor, &ListSecrets {}).await;
    let stored = stored.inspect_err(missing).unwrap_or_default();
    // A name that has no secret any more is shown, too: the market says what is wrong with it.
    let named = fields.iter().filter(|(name, _)| name == "secrets").map(|(_, value)| value.clone());
    let secrets: BTreeSet<String> = stored.into_iter().map(|secret| secret.name).chain(named).collect();
    let known = app.datasets.of(signed_in.account, app.now()).await.unwrap_or_else(|problem| {
        warn!(problem = problem.detail, "the form of a job shows less");
        Vec::new()
    });
    let named = fields.iter().filter(|(name, _)| name == "dataset").map(|(_, value)| value.clone());
    let datasets: BTreeSet<String> = known.into_iter().filter_map(|dataset| dataset.name).chain(named).collect();
    render_page(&NewJobPage {
        layout: Layout::new("New job", "new", signed_in.viewer),
        templates: app.templates.all(),
        typical_runs,
        datasets: datasets.into_iter().collect(),
        secrets: secrets.into_iter().collect(),
        chosen: app.templates.find(id),
        machine,
        machines,
        fields,
        problems,
        // The job id is part of the form, so submitting the form twice creates one job.
        job: JobId::generate(),
    })
}

/// `GET /jobs/new`. A link can fill in every field of the form: `?template=render&machine=…`, or `?again=<job>` for the
/// fields of a job of the viewer, of which the other parameters change some (`?again=…&memory_mib=2048`). An empty
/// parameter empties its field.
pub(crate) async fn page(
    State(app): State<App>,
    viewer: Viewer,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Html<String>, PageError> {
    let account = viewer.account.ok_or_else(Problem::sign_in_needed)?;
    let signed_in = SignedIn { viewer, account };
    let (again, changes): (Vec<_>, Vec<_>) = parameters.into_iter().partition(|(name, _)| name == "again");
    let Some((_, previous)) = again.into_iter().next() else {
        return Ok(render(&app, signed_in, FormPreset::from_fields(&changes), changes, Vec::new()).await?);
    };
    let previous: JobId = previous.parse().map_err(|_| Problem::not_found("job"))?;
    let mut fields = resubmit::fields(&app, &app.queries.job(signed_in.actor(), previous, Seq::ZERO).await?);
    fields.retain(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
    fields.extend(changes.into_iter().filter(|(_, value)| !value.is_empty()));
    Ok(render(&app, signed_in, FormPreset::of_form(&fields), fields, Vec::new()).await?)
}

/// A form that is ready to be submitted.
enum Prepared {
    Job(Box<Submission>),
    Batch(Box<BatchSubmission>),
}

/// The submitted form as a job or batch that is ready to be submitted. Returns the problems of all fields.
async fn prepare(app: &App, account: AccountId, fields: Vec<(String, String)>) -> Result<Prepared, Vec<Problem>> {
    let (fields, many) = many_tasks::split(fields);
    let problems = input::problems(&app.templates, fields.clone());
    if !problems.is_empty() {
        return Err(problems);
    }
    let prepared = async {
        let request = input::from_form(fields)?;
        Ok(match many {
            Some(many) => {
                let request = many.request(request)?;
                Prepared::Batch(Box::new(BatchSubmission::prepare(app, account, request).await?))
            }
            None => Prepared::Job(Box::new(Submission::prepare(app, account, request, JobId::generate()).await?)),
        })
    };
    prepared.await.map_err(|problem: Problem| vec![many_tasks::at_its_field(problem)])
}

impl Prepared {
    /// Submits the job or the batch, and returns the address of its page.
    async fn submit(self, app: &App, actor: Actor) -> Result<String, Problem> {
        Ok(match self {
            Self::Job(job) => {
                let Submitted { job, seq } = job.submit(app, actor).await?;
                format!("/jobs/{job}?seq={seq}")
            }
            Self::Batch(batch) => {
                let SubmittedBatch { batch, seq } = batch.submit(app, actor).await?;
                format!("/batches/{batch}?seq={seq}")
            }
        })
    }

    /// The quote of the job, or of each task with the quote of the batch.
    async fn quote(&self, app: &App, actor: Actor) -> Result<(Quote, Option<BatchQuote>), Problem> {
        Ok(match self {
            Self::Job(job) => (job.quote(app, actor).await?, None),
            Self::Batch(batch) => {
                let quote = batch.quote(app, actor).await?;
                (quote.task.clone(), Some(quote))
            }
        })
    }

    fn pinned(&self) -> Option<PinnedImage> {
        match self {
            Self::Job(job) => job.pinned.clone(),
            Self::Batch(batch) => batch.job.pinned.clone(),
        }
    }
}

pub(crate) async fn submit(
    State(app): State<App>,
    signed_in: SignedIn,
    Form(fields): Form<Vec<(String, String)>>,
) -> Result<Response, PageError> {
    let submitted = match prepare(&app, signed_in.account, fields.clone()).await {
        Ok(prepared) => {
            prepared.submit(&app, signed_in.actor()).await.map_err(|problem| vec![many_tasks::at_its_field(problem)])
        }
        Err(problems) => Err(problems),
    };
    match submitted {
        Ok(address) => Ok(Redirect::to(&address).into_response()),
        Err(problems) => {
            let preset = FormPreset::of_form(&fields);
            let status = problems.first().and_then(|problem| StatusCode::from_u16(problem.status).ok());
            let status = status.unwrap_or(StatusCode::BAD_REQUEST);
            let page = render(&app, signed_in, preset, fields, problems).await?;
            Ok((status, page).into_response())
        }
    }
}

#[derive(Template)]
#[template(path = "quote.html")]
struct QuoteCard {
    /// The quote of the job, or of each task.
    quote: Option<Quote>,
    /// The quote of all tasks, if the form names several.
    batch: Option<BatchQuote>,
    /// The image, if the form names it by a tag.
    pinned: Option<PinnedImage>,
    /// The reasons why there is no quote.
    problems: Vec<Problem>,
    now: Timestamp,
    /// The job as a command and as programs; empty for a form that cannot be read.
    snippets: String,
}

/// `POST /jobs/quote`: the quote beside the form. The browser requests a quote after every change of the form.
pub(crate) async fn quote(
    State(app): State<App>,
    signed_in: SignedIn,
    Origin(market): Origin,
    Form(fields): Form<Vec<(String, String)>>,
) -> Result<Html<String>, PageError> {
    let (of_job, many) = many_tasks::split(fields.clone());
    let request = input::from_form(of_job).ok().filter(|r| r.template.is_some() || r.image.is_some());
    let snippets = match (request, many.as_ref()) {
        (Some(request), Some(many)) => {
            many.request(request).map_or(Ok(String::new()), |r| snippets::of_batch(r, &market))?
        }
        (Some(request), None) => snippets::html(request, &market)?,
        (None, _) => String::new(),
    };
    let quoted = async {
        let prepared = prepare(&app, signed_in.account, fields).await?;
        let quoted = prepared.quote(&app, signed_in.actor()).await;
        let (quote, batch) = quoted.map_err(|problem| vec![many_tasks::at_its_field(problem)])?;
        Ok((quote, batch, prepared.pinned()))
    };
    let now = app.now();
    let card = match quoted.await {
        Ok((quote, batch, pinned)) => {
            QuoteCard { quote: Some(quote), batch, pinned, problems: Vec::new(), now, snippets }
        }
        Err(problems) => QuoteCard { quote: None, batch: None, pinned: None, problems, now, snippets },
    };
    Ok(Html(render_fragment(&card)?))
}
