//! What people and programs send in, and how it becomes a command. Shape only: the rules are the domain's.

use std::collections::BTreeMap;

use gpubnb_events::{
    CommandId, HourlyRate, JobId, MachineId, MicroUsd, Seconds,
    command::{Secret, SubmitJob},
    spec::{Input, JobSpec, Mebibytes, Placement, Requirements, Resources},
    template::{self, Template},
};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::error::Problem;

/// A file that was put before, and where the job finds it.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewInput {
    /// The upload: `PUT /inputs/{id}`.
    #[schema(value_type = String, format = Uuid)]
    pub(crate) input: CommandId,
    /// Path below `/input`.
    pub(crate) path: String,
}

/// How the market chooses a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Strategy {
    /// The lowest price.
    #[default]
    Cheapest,
    /// The fastest GPU, or core for a job without one, by self-test.
    Fastest,
    /// The best record.
    MostReliable,
}

impl Strategy {
    /// Each, its name in forms, and in words.
    pub(crate) const ALL: [(Self, &str, &str); 3] = [
        (Self::Cheapest, "cheapest", "the cheapest that fits"),
        (Self::Fastest, "fastest", "the fastest that fits"),
        (Self::MostReliable, "most_reliable", "the most reliable that fits"),
    ];

    fn under(self, requirements: Requirements) -> Placement {
        match self {
            Self::Cheapest => Placement::Cheapest { requirements },
            Self::Fastest => Placement::Fastest { requirements },
            Self::MostReliable => Placement::MostReliable { requirements },
        }
    }
}

impl std::str::FromStr for Strategy {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.iter().find(|(_, known, _)| *known == name).map(|(strategy, ..)| *strategy).ok_or(())
    }
}

/// A job as it is asked for: `POST /api/v1/jobs`, and the form.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewJob {
    /// Its id, a UUID of version 7; made by the server if missing. The same id again is the same job.
    #[serde(default)]
    pub(crate) job: Option<JobId>,
    /// A name for people.
    #[serde(default)]
    pub(crate) name: Option<String>,
    /// An approved template.
    #[serde(default)]
    pub(crate) template: Option<String>,
    /// The template's choices.
    #[serde(default)]
    pub(crate) parameters: BTreeMap<String, String>,
    /// A custom image, pinned by digest.
    #[serde(default)]
    pub(crate) image: Option<String>,
    /// Arguments for a custom image.
    #[serde(default)]
    pub(crate) command: Vec<String>,
    /// CPU, thousandths of a core.
    #[serde(default)]
    pub(crate) cpu_millis: Option<u32>,
    /// Memory, MiB.
    #[serde(default)]
    pub(crate) memory_mib: Option<u64>,
    /// Room for output, MiB.
    #[serde(default)]
    pub(crate) output_mib: Option<u64>,
    /// GPUs.
    #[serde(default)]
    pub(crate) gpus: Option<u32>,
    /// Memory of each GPU, MiB.
    #[serde(default)]
    pub(crate) vram_mib: Option<u64>,
    /// Whether it needs the network.
    #[serde(default)]
    pub(crate) egress: bool,
    /// A machine; else the market chooses.
    #[serde(default)]
    pub(crate) machine: Option<MachineId>,
    /// Most it may cost per hour, dollars.
    #[serde(default)]
    pub(crate) price_cap_usd: Option<String>,
    /// Part of a GPU model's name.
    #[serde(default)]
    pub(crate) gpu_model: Option<String>,
    /// A region.
    #[serde(default)]
    pub(crate) region: Option<String>,
    /// How the market chooses where none is named; the cheapest, if missing.
    #[serde(default)]
    pub(crate) strategy: Option<Strategy>,
    /// Least share of its attempts that ended without a fault of the machine, percent.
    #[serde(default)]
    pub(crate) min_reliability: Option<u32>,
    /// Whether every check of its self-test must have passed.
    #[serde(default)]
    pub(crate) verified: bool,
    /// Whether simulated GPUs will do.
    #[serde(default)]
    pub(crate) allow_simulated: bool,
    /// Time limit, seconds.
    #[serde(default)]
    pub(crate) time_seconds: Option<u64>,
    /// Budget, dollars.
    #[serde(default)]
    pub(crate) budget_usd: Option<String>,
    /// How often it may start.
    #[serde(default)]
    pub(crate) max_attempts: Option<u32>,
    /// How long it may wait, seconds.
    #[serde(default)]
    pub(crate) queue_seconds: Option<u64>,
    /// Its environment. The values are secrets: they are given to the machine that runs the job, and to nobody else.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub(crate) env: BTreeMap<String, Secret>,
    /// Files it is given, below `/input`.
    #[serde(default)]
    pub(crate) inputs: Vec<NewInput>,
}

impl NewInput {
    /// As in a specification, but for what only the store knows of it.
    fn undescribed(self) -> Input {
        Input { input: self.input, path: self.path, bytes: 0, sha256: String::new() }
    }
}

impl NewJob {
    /// As a command, with `job` as its id where none was given.
    pub(crate) fn into_command(self, job: JobId) -> Result<SubmitJob, Problem> {
        let template = self.template.as_deref().map(find_template).transpose()?;
        let base = template.map_or_else(custom_resources, |t| t.resources.clone());
        let resources = Resources {
            cpu_millis: self.cpu_millis.unwrap_or(base.cpu_millis),
            memory: self.memory_mib.map_or(base.memory, Mebibytes),
            output: self.output_mib.map_or(base.output, Mebibytes),
            gpus: self.gpus.unwrap_or(base.gpus),
            vram: self.vram_mib.map_or(base.vram, Mebibytes),
        };
        let command = match template {
            Some(template) => arguments(template, &self.parameters)?,
            None => self.command,
        };
        let image = match (template, self.image) {
            (Some(template), _) => template.image.to_owned(),
            (None, Some(image)) => image,
            (None, None) => return Err(Problem::invalid("image", "Choose a template, or name an image.")),
        };
        let name = self.name.filter(|n| !n.trim().is_empty());
        let price_cap = amount("price_cap_usd", self.price_cap_usd)?.map(HourlyRate);
        let (gpu_model, region) = (not_blank(self.gpu_model), not_blank(self.region));
        let placement = match self.machine {
            // What it is, one sees before one names it; what it costs may change until then.
            Some(_) if gpu_model.is_some() || region.is_some() || self.min_reliability.is_some() || self.verified => {
                let detail = "You named a machine: leave out what any other must have, or let the market choose.";
                return Err(Problem::invalid("machine", detail));
            }
            Some(machine) => Placement::Machine { machine, price_cap },
            None => self.strategy.unwrap_or_default().under(Requirements {
                price_cap,
                gpu_model,
                region,
                allow_simulated: self.allow_simulated,
                reliability: self.min_reliability,
                verified: self.verified,
            }),
        };
        Ok(SubmitJob {
            job: self.job.unwrap_or(job),
            spec: JobSpec {
                name: name.unwrap_or_else(|| template.map_or("Custom image", |t| t.title).to_owned()),
                template: template.map(|t| t.id.to_owned()),
                image,
                command,
                resources,
                egress: self.egress,
                env: self.env.keys().cloned().collect(),
                inputs: self.inputs.into_iter().map(NewInput::undescribed).collect(),
            },
            placement,
            time: Seconds(self.time_seconds.unwrap_or_else(|| template.map_or(3_600, |t| t.seconds))),
            budget: amount("budget", self.budget_usd)?,
            max_attempts: self.max_attempts,
            queue: self.queue_seconds.map(Seconds),
            env: self.env,
        })
    }
}

fn find_template(id: &str) -> Result<&'static Template, Problem> {
    template::find(id).ok_or_else(|| {
        let known: Vec<_> = template::ALL.iter().map(|t| t.id).collect();
        Problem::invalid("template", format!("There is no such template. There are: {}.", known.join(", ")))
    })
}

fn custom_resources() -> Resources {
    Resources { cpu_millis: 1_000, memory: Mebibytes(1_024), output: Mebibytes(1_024), gpus: 0, vram: Mebibytes(0) }
}

fn not_blank(text: Option<String>) -> Option<String> {
    text.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
}

fn amount(field: &str, text: Option<String>) -> Result<Option<MicroUsd>, Problem> {
    not_blank(text).map(|text| dollars(field, &text)).transpose()
}

/// An amount in dollars, as people and programs write it.
pub(crate) fn dollars(field: &str, text: &str) -> Result<MicroUsd, Problem> {
    text.parse().map_err(|e: gpubnb_events::money::BadAmount| Problem::invalid(field, e.to_string()))
}

/// The arguments of a template: its own, and `--name value` for each of its fields.
fn arguments(template: &Template, parameters: &BTreeMap<String, String>) -> Result<Vec<String>, Problem> {
    if let Some(unknown) = parameters.keys().find(|name| !template.fields.iter().any(|f| f.name == *name)) {
        let known: Vec<_> = template.fields.iter().map(|f| f.name).collect();
        let detail = format!("`{unknown}` is not a choice of this template. It has: {}.", known.join(", "));
        return Err(Problem::invalid("parameters", detail));
    }
    let mut arguments: Vec<String> = template.command.iter().map(|a| (*a).to_owned()).collect();
    for field in template.fields {
        let value = parameters.get(field.name).map_or(field.default, |v| v.trim());
        let number: Option<u32> = value.parse().ok();
        let fits = number.is_some_and(|n| field.least.is_none_or(|l| n >= l) && field.most.is_none_or(|m| n <= m));
        if !fits {
            let range = format!(
                "{} must be a whole number from {} to {}.",
                field.label,
                field.least.unwrap_or(0),
                field.most.unwrap_or(u32::MAX)
            );
            return Err(Problem::invalid(field.name, range));
        }
        arguments.push(format!("--{}", field.name));
        arguments.push(value.to_owned());
    }
    Ok(arguments)
}

/// Fields of a form: its own, and a hundred files.
const MOST_FIELDS: usize = 200;

/// The form's fields, all text; empty ones count as not given.
pub(crate) fn from_form(fields: Vec<(String, String)>) -> Result<NewJob, Problem> {
    let mut job = NewJob::default();
    for (name, value) in fields.into_iter().take(MOST_FIELDS) {
        let value = value.trim().to_owned();
        if value.is_empty() {
            continue;
        }
        if let Some(parameter) = name.strip_prefix("parameter.") {
            job.parameters.insert(parameter.to_owned(), value);
            continue;
        }
        match name.as_str() {
            "job" => job.job = Some(number(&name, &value)?),
            "name" => job.name = Some(value),
            "template" => job.template = Some(value),
            "image" => job.image = Some(value),
            "command" => job.command = words(&value)?,
            "cpu" => job.cpu_millis = Some(number::<u32>(&name, &value)?.saturating_mul(1_000)),
            "memory" => job.memory_mib = Some(number(&name, &value)?),
            "output" => job.output_mib = Some(number(&name, &value)?),
            "gpus" => job.gpus = Some(number(&name, &value)?),
            "vram" => job.vram_mib = Some(number(&name, &value)?),
            "egress" => job.egress = true,
            "machine" => job.machine = Some(number(&name, &value)?),
            "price_cap_usd" => job.price_cap_usd = Some(value),
            "gpu_model" => job.gpu_model = Some(value),
            "region" => job.region = Some(value),
            "strategy" => {
                let unknown = |()| Problem::invalid("strategy", "Choose cheapest, fastest or most_reliable.");
                job.strategy = Some(value.parse().map_err(unknown)?);
            }
            "min_reliability" => job.min_reliability = Some(number(&name, &value)?),
            "verified" => job.verified = true,
            "allow_simulated" => job.allow_simulated = true,
            "time" => job.time_seconds = Some(number::<u64>(&name, &value)?.saturating_mul(60)),
            "budget" => job.budget_usd = Some(value),
            "env" => job.env = variables(&value)?,
            "input" => job.inputs.push(uploaded(&value)?),
            crate::access::CSRF_FIELD => {}
            "max_attempts" => job.max_attempts = Some(number(&name, &value)?),
            other => return Err(Problem::invalid(other, "This field is not known.")),
        }
    }
    Ok(job)
}

fn number<T: std::str::FromStr>(field: &str, value: &str) -> Result<T, Problem> {
    value.parse().map_err(|_| Problem::invalid(field, "This must be a whole number, or a valid id."))
}

/// A file that the page has put already: its id, and where the job finds it.
fn uploaded(value: &str) -> Result<NewInput, Problem> {
    let (input, path) = value.split_once(' ').unwrap_or_default();
    Ok(NewInput { input: number("inputs", input)?, path: path.to_owned() })
}

/// Lines of `NAME=value`.
fn variables(text: &str) -> Result<BTreeMap<String, Secret>, Problem> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let variable = |line: &str| {
        let (name, value) = line.split_once('=')?;
        Some((name.trim().to_owned(), Secret(value.trim().to_owned())))
    };
    let all: Option<_> = lines.map(variable).collect();
    all.ok_or_else(|| Problem::invalid("env", "Write one variable a line: NAME=value."))
}

/// A command line as words: spaces separate, quotes hold together.
pub(crate) fn words(line: &str) -> Result<Vec<String>, Problem> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    for c in line.chars() {
        match quote {
            Some(q) if c == q => quote = None,
            Some(_) => word.get_or_insert_default().push(c),
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            None => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if quote.is_some() {
        return Err(Problem::invalid("command", "A quote is not closed."));
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_becomes_arguments_and_its_bounds_are_kept() {
        let job = |value: &str| NewJob {
            template: Some("train".to_owned()),
            parameters: BTreeMap::from([("epochs".to_owned(), value.to_owned())]),
            ..NewJob::default()
        };
        let id = JobId::generate();
        let command = job("3").into_command(id).unwrap().spec.command;
        assert_eq!(command[..3], ["train", "--epochs", "3"]);
        assert_eq!(job("0").into_command(id).unwrap_err().field.as_deref(), Some("epochs"));
        assert_eq!(job("--help").into_command(id).unwrap_err().field.as_deref(), Some("epochs"));
    }

    #[test]
    fn a_command_line_is_split_like_a_shell_would() {
        assert_eq!(words("python -c 'print(1, 2)' \"\" x").unwrap(), ["python", "-c", "print(1, 2)", "", "x"]);
        assert!(words("a 'b").is_err());
        assert!(words("  ").unwrap().is_empty());
    }

    #[test]
    fn unknown_form_fields_are_refused_by_name() {
        let form = vec![("surprise".to_owned(), "x".to_owned())];
        assert_eq!(from_form(form).unwrap_err().field.as_deref(), Some("surprise"));
    }
}
