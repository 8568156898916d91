//! Submitting: a form made from a template's fields, a quote before, errors at the field.

use std::sync::Arc;

use askama::Template;
use axum::{
    extract::State,
    http::StatusCode,
    response::{Html, IntoResponse, Redirect, Response},
};
use gpubnb_events::{
    AccountId, JobId, MachineId, Seq, Timestamp,
    command::{Quote, SubmitJob, Submitted},
    template::{self, Template as JobTemplate},
};
use gpubnb_query::view::{MachineState, MachineView};
use serde::Deserialize;

use super::{Chrome, fragment, html, resubmit};
use crate::{
    access::{SignedIn, Viewer},
    app::App,
    error::{PageError, Problem},
    extract::{Form, Query},
    input, transfer,
};

/// The fields that a link into the form may preset.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Preset {
    #[serde(default)]
    template: Option<String>,
    #[serde(default)]
    machine: Option<MachineId>,
    /// A job whose form is filled in anew.
    #[serde(default)]
    again: Option<JobId>,
}

impl Preset {
    /// As the fields of a form have it.
    fn of(fields: &[(String, String)]) -> Self {
        let typed = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        Self {
            template: typed("template").or(Some(String::new())),
            machine: typed("machine").and_then(|m| m.parse().ok()),
            again: None,
        }
    }
}

/// Machines in the list of the form.
const MOST_OFFERED: usize = 200;

#[derive(Template)]
#[template(path = "new_job.html")]
struct NewJobPage {
    chrome: Chrome,
    templates: &'static [JobTemplate],
    chosen: Option<&'static JobTemplate>,
    machine: Option<Arc<MachineView>>,
    machines: Vec<Arc<MachineView>>,
    typed: Vec<(String, String)>,
    problem: Option<Problem>,
    job: JobId,
}

impl NewJobPage {
    /// The value that was typed, or else the usual one.
    fn value(&self, name: &str, usual: &str) -> String {
        let typed = self.typed.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        typed.unwrap_or_else(|| usual.to_owned())
    }

    fn parameter(&self, name: &str, usual: &str) -> String {
        self.value(&format!("parameter.{name}"), usual)
    }

    /// The problem with a field, if that is where it is.
    fn wrong(&self, field: &str) -> String {
        let problem = self.problem.as_ref().filter(|p| p.field.as_deref() == Some(field));
        problem.map(|p| p.detail.clone()).unwrap_or_default()
    }

    fn is_chosen(&self, t: &JobTemplate) -> bool {
        self.chosen.is_some_and(|chosen| chosen.id == t.id)
    }

    fn is_machine(&self, m: &MachineView) -> bool {
        self.machine.as_ref().is_some_and(|chosen| chosen.listed.machine == m.listed.machine)
    }

    /// Files that were put already: as the form says them, and where the job finds them.
    fn inputs(&self) -> Vec<(&str, &str)> {
        let inputs = self.typed.iter().filter(|(name, _)| name == "input");
        inputs.filter_map(|(_, value)| Some((value.as_str(), value.split_once(' ')?.1))).collect()
    }

    /// The time limit that is usual, seconds.
    fn seconds(&self) -> String {
        self.chosen.map_or(3_600, |t| t.seconds).to_string()
    }

    /// The variables that were named, one a line. Their values are secrets, and stand on no page.
    fn variables(&self) -> String {
        let typed = self.value("env", "");
        let names = typed.lines().filter_map(|line| Some(format!("{}=", line.split_once('=')?.0)));
        names.collect::<Vec<_>>().join("\n")
    }
}

async fn render(
    app: &App,
    signed_in: SignedIn,
    preset: Preset,
    typed: Vec<(String, String)>,
    problem: Option<Problem>,
) -> Result<Html<String>, Problem> {
    let mut machines = app.machines.machines().await;
    machines.sort_by_key(|m| m.listed.offer.price);
    let machine = preset.machine.and_then(|id| machines.iter().find(|m| m.listed.machine == id).cloned());
    let offered =
        |m: &Arc<MachineView>| m.listed.state() == MachineState::Online || Some(m.listed.machine) == preset.machine;
    machines.retain(offered);
    // A list that nobody could read: whoever wants another comes by its own page.
    machines.truncate(MOST_OFFERED);
    machines.extend(machine.clone().filter(|m| machines.iter().all(|other| other.listed.machine != m.listed.machine)));
    let id = preset.template.as_deref().unwrap_or("train");
    html(&NewJobPage {
        chrome: Chrome::new("New job", "new", signed_in.viewer),
        templates: template::ALL,
        chosen: template::find(id),
        machine,
        machines,
        typed,
        problem,
        // Made with the form: sending the form twice is one job.
        job: JobId::generate(),
    })
}

pub(crate) async fn page(
    State(app): State<App>,
    viewer: Viewer,
    Query(preset): Query<Preset>,
) -> Result<Html<String>, PageError> {
    let account = viewer.account.ok_or_else(Problem::sign_in_needed)?;
    let signed_in = SignedIn { viewer, account };
    let Some(again) = preset.again else { return Ok(render(&app, signed_in, preset, Vec::new(), None).await?) };
    let fields = resubmit::fields(&app.queries.job(signed_in.actor(), again, Seq::ZERO).await?);
    let preset = Preset::of(&fields);
    Ok(render(&app, signed_in, preset, fields, None).await?)
}

/// The command that the form asks for, with the size and hash of its files from the store.
async fn command(app: &App, account: AccountId, fields: Vec<(String, String)>) -> Result<SubmitJob, Problem> {
    let request = input::from_form(fields)?;
    let inputs = transfer::describe(app, account, &request.inputs).await?;
    Ok(request.into_command(JobId::generate(), inputs)?)
}

pub(crate) async fn submit(
    State(app): State<App>,
    signed_in: SignedIn,
    Form(fields): Form<Vec<(String, String)>>,
) -> Result<Response, PageError> {
    let command = command(&app, signed_in.account, fields.clone()).await;
    let submitted: Result<Submitted, Problem> = match command {
        Ok(command) => app.job_command("submit", signed_in.actor(), command.job, &command).await.map_err(Problem::from),
        Err(problem) => Err(problem),
    };
    match submitted {
        Ok(Submitted { job, seq }) => Ok(Redirect::to(&format!("/jobs/{job}?seq={seq}")).into_response()),
        Err(problem) => {
            let preset = Preset::of(&fields);
            let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_REQUEST);
            let page = render(&app, signed_in, preset, fields, Some(problem)).await?;
            Ok((status, page).into_response())
        }
    }
}

#[derive(Template)]
#[template(path = "quote.html")]
struct QuoteCard {
    quote: Option<Quote>,
    problem: Option<Problem>,
    now: Timestamp,
}

/// The quote beside the form: asked for at every change.
pub(crate) async fn quote(
    State(app): State<App>,
    signed_in: SignedIn,
    Form(fields): Form<Vec<(String, String)>>,
) -> Result<Html<String>, PageError> {
    let command = command(&app, signed_in.account, fields).await;
    let quote: Result<Quote, Problem> = match command {
        Ok(command) => app.command("market", "quote", signed_in.actor(), &command).await.map_err(Problem::from),
        Err(problem) => Err(problem),
    };
    let now = app.now();
    let card = match quote {
        Ok(quote) => QuoteCard { quote: Some(quote), problem: None, now },
        Err(problem) => QuoteCard { quote: None, problem: Some(problem), now },
    };
    Ok(Html(fragment(&card)?))
}
