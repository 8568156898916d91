//! Conversion between the HTML form of a job and a [`JobRequest`]. The form has the same fields as the request, with
//! the same names and units. Only the lists and maps of the request have their own syntax in the form (see
//! [`from_form`]).

use std::collections::BTreeMap;

use gpubnb_events::{
    JobId, MicroUsd,
    command::Secret,
    job_request::{self, DatasetRequest, InputRequest, JobRequest},
};
use serde_json::{Map, Value};

use crate::{access::CSRF_FIELD, error::Problem, templates::Templates};

/// The maximum number of fields in a form. It leaves space for a hundred files.
const MAX_FIELDS: usize = 200;
/// The unit suffixes of field names. An error names the field without the suffix: `memory` for `memory_mib`.
const UNIT_SUFFIXES: [&str; 4] = ["_millis", "_mib", "_seconds", "_usd"];

/// Reads an amount in dollars, such as `12.50`.
pub(crate) fn dollars(field: &str, text: &str) -> Result<MicroUsd, Problem> {
    let amount = job_request::dollars(field, Some(text)).map_err(Problem::from)?;
    amount.ok_or_else(|| Problem::invalid(field, "An amount is missing: write dollars, such as 12.50."))
}

/// Reads a form. Empty fields are ignored. These fields have their own syntax:
/// - `parameter.<name>`: a parameter of the template;
/// - `command`: a command line, as a shell reads it;
/// - `env`: one variable `NAME=value` in each line;
/// - `input`: one field for each file, `<id of the input> <path in the job>`;
/// - `dataset`: one field for each dataset, `<name or id>`, `<name or id> <directory>` or `<name or id> <directory>
/// rw`;
/// - `secrets`: one field for each name of a stored secret.
pub(crate) fn from_form(fields: Vec<(String, String)>) -> Result<JobRequest, Problem> {
    let mut simple = Map::new();
    let mut lists = JobRequest::default();
    for (name, value) in fields.into_iter().take(MAX_FIELDS) {
        if value.trim().is_empty() || name == CSRF_FIELD {
            continue;
        }
        if let Some(parameter) = name.strip_prefix("parameter.") {
            lists.parameters.insert(parameter.to_owned(), value.trim().to_owned());
            continue;
        }
        match name.as_str() {
            "command" => lists.command = split_command(&value)?,
            "env" => lists.env = parse_env(&value)?,
            "input" => lists.inputs.push(parse_input(&value)?),
            "dataset" => lists.datasets.push(parse_dataset(&value)),
            "secrets" => lists.secrets.push(value.trim().to_owned()),
            // The spaces of a job's name are part of the name.
            "name" => drop(simple.insert(name, value.into())),
            _ => drop(simple.insert(name, value.trim().into())),
        }
    }
    let request: JobRequest = serde_path_to_error::deserialize(Value::Object(simple)).map_err(unreadable_field)?;
    let JobRequest { parameters, command, env, secrets, inputs, datasets, .. } = lists;
    Ok(JobRequest { parameters, command, env, secrets, inputs, datasets, ..request })
}

/// The error for a field that cannot be read.
fn unreadable_field(e: serde_path_to_error::Error<serde_json::Error>) -> Problem {
    let path = e.path().to_string();
    Problem::invalid(field_of(&path), format!("This cannot be read: {}.", e.inner()))
}

/// The problems of all fields of a form, each in the order in which the form is read; empty if every field can be read.
/// A field that cannot be read is left out, so that the next one is found.
pub(crate) fn problems(templates: &Templates, mut fields: Vec<(String, String)>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for _ in 0..MAX_FIELDS {
        let command = |request: JobRequest| {
            let template = request.template.as_deref().and_then(|id| templates.find(id));
            let command = request.into_command(JobId::generate(), template.as_deref(), Vec::new(), Vec::new());
            command.map_err(Problem::from)
        };
        let Err(problem) = from_form(fields.clone()).and_then(command) else { break };
        // A field that is missing cannot be left out.
        if problems.iter().any(|known: &Problem| known.field == problem.field) {
            break;
        }
        let count = fields.len();
        if let Some(field) = &problem.field {
            fields.retain(|(name, _)| field_of(name) != field);
        }
        problems.push(problem);
        if fields.len() == count {
            break;
        }
    }
    problems
}

/// The field that an error names for this field of the form: `memory` for `memory_mib`, `epochs` for
/// `parameter.epochs`.
fn field_of(name: &str) -> &str {
    if let Some(parameter) = name.strip_prefix("parameter.") {
        return parameter;
    }
    match name {
        "input" => "inputs",
        "dataset" => "datasets",
        "min_reliability" => "reliability",
        _ => UNIT_SUFFIXES.iter().find_map(|unit| name.strip_suffix(unit)).unwrap_or(name),
    }
}

/// The label of a field of the form, such as `Memory` for `memory_mib`.
pub(crate) fn label_of_form_field(name: &str) -> &str {
    label(field_of(name))
}

/// The label that a page shows for the field that an error names.
pub(crate) fn label(field: &str) -> &str {
    match field {
        "name" => "Name",
        "template" => "Template",
        "image" => "Image",
        "tasks" => "Tasks",
        "max_running" => "At the same time",
        "max_failures" => "Stop after more failures than",
        "command" => "Command",
        "inputs" => "Files for the job",
        "datasets" => "Datasets",
        "cpu" => "CPU",
        "memory" => "Memory",
        "output" => "Output",
        "disk" => "Disk",
        "pids" => "Processes and threads",
        "open_files" => "Open files per process",
        "shm" => "Shared memory",
        "workdir" => "Working directory",
        "gpus" => "GPUs",
        "vram" => "VRAM",
        "max_attempts" => "Attempts",
        "env" => "Environment",
        "secrets" => "Secrets",
        "egress" => "Internet access",
        "machine" => "Machine",
        "strategy" => "If the market chooses",
        "price_cap" => "Max price",
        "region" => "Region",
        "gpu_model" => "GPU model",
        "min_cuda" => "CUDA version",
        "reliability" => "Min reliability",
        "time" => "Time limit",
        "queue" => "Waits at most",
        "budget" => "Budget",
        other => other,
    }
}

/// The fields of a form that [`from_form`] reads as this request. The values of environment variables are secret, so
/// they are left out.
pub(crate) fn to_form(request: &JobRequest) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let mut set = |name: &str, value: String| fields.push((name.to_owned(), value));
    let Ok(Value::Object(members)) = serde_json::to_value(request) else { return fields };
    for (name, value) in members {
        match value {
            Value::String(text) => set(&name, text),
            Value::Number(number) => set(&name, number.to_string()),
            Value::Bool(true) => set(&name, "on".to_owned()),
            // Lists and maps are written below.
            _ => {}
        }
    }
    for (name, value) in &request.parameters {
        set(&format!("parameter.{name}"), value.clone());
    }
    if let Ok(line) = shlex::try_join(request.command.iter().map(String::as_str))
        && !line.is_empty()
    {
        set("command", line);
    }
    if !request.env.is_empty() {
        set("env", request.env.keys().map(|name| format!("{name}=")).collect::<Vec<_>>().join("\n"));
    }
    if !request.egress.is_none() {
        set("egress", request.egress.patterns().join(" "));
    }
    for name in &request.secrets {
        set("secrets", name.clone());
    }
    for dataset in &request.datasets {
        set("dataset", dataset_field(dataset));
    }
    for input in &request.inputs {
        set("input", format!("{} {}", input.input, input.path));
    }
    fields
}

/// The value of the form field `dataset`.
fn dataset_field(request: &DatasetRequest) -> String {
    let DatasetRequest { dataset, directory, writable } = request;
    match (directory, writable) {
        (Some(directory), true) => format!("{dataset} {directory} rw"),
        (Some(directory), false) => format!("{dataset} {directory}"),
        (None, false) => dataset.clone(),
        // The form has no field for a copy without a directory.
        (None, true) => format!("{dataset} {dataset} rw"),
    }
}

/// Reads the form field `dataset`.
fn parse_dataset(value: &str) -> DatasetRequest {
    let mut words = value.split_whitespace().map(ToOwned::to_owned);
    let dataset = words.next().unwrap_or_default();
    DatasetRequest { dataset, directory: words.next(), writable: words.next().is_some_and(|word| word == "rw") }
}

/// Reads the field `input`, which names a file that the page has already uploaded.
fn parse_input(value: &str) -> Result<InputRequest, Problem> {
    let (input, path) = value.split_once(' ').unwrap_or_default();
    let input = input.parse().map_err(|_| Problem::invalid("inputs", "A file of the form has no valid id."))?;
    Ok(InputRequest { input, path: path.to_owned() })
}

/// Reads lines of `NAME=value`. The value is exactly what follows the equals sign. A value of several lines stands
/// between `NAME=<<WORD` and a line `WORD`, as in a shell:
///
/// ```text
/// KEY=<<END
/// -----BEGIN PRIVATE KEY-----
/// …
/// -----END PRIVATE KEY-----
/// END
/// ```
fn parse_env(text: &str) -> Result<BTreeMap<String, Secret>, Problem> {
    let mut variables = BTreeMap::new();
    read_env(text, &mut variables)?;
    Ok(variables)
}

/// The names of the variables in the field `env`, as far as the field can be read. The values are secrets: a line of a
/// value may look like a name.
pub(crate) fn env_names(text: &str) -> Vec<String> {
    let mut variables = BTreeMap::new();
    // The problem is shown where the form is refused.
    let _ = read_env(text, &mut variables);
    variables.into_keys().filter(|name| is_word(name)).collect()
}

/// True for a word that may be a variable's name, or may end a value of several lines.
fn is_word(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn read_env(text: &str, variables: &mut BTreeMap<String, Secret>) -> Result<(), Problem> {
    let invalid = |message: String| Problem::invalid("env", message);
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim().is_empty() {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            let message = "Write one variable in each line: NAME=value. A value of several lines stands between \
                           NAME=<<END and a line END.";
            return Err(invalid(message.to_owned()));
        };
        let name = name.trim().to_owned();
        let value = match value.strip_prefix("<<").filter(|end| is_word(end)) {
            None => value.to_owned(),
            Some(end) => {
                let mut several: Vec<&str> = Vec::new();
                loop {
                    match lines.next() {
                        Some(line) if line == end => break,
                        Some(line) => several.push(line),
                        None => return Err(invalid(format!("The value of {name} has no last line {end}."))),
                    }
                }
                several.join("\n")
            }
        };
        if variables.insert(name.clone(), Secret(value)).is_some() {
            return Err(invalid(format!("The variable {name} is given twice.")));
        }
    }
    Ok(())
}

/// Splits a command line as a POSIX shell does. Browsers send `\r\n` at the end of a line.
fn split_command(line: &str) -> Result<Vec<String>, Problem> {
    shlex::split(&line.replace("\r\n", "\n"))
        .ok_or_else(|| Problem::invalid("command", "A quote is not closed, or the line ends with a backslash."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_split_as_by_a_shell_and_survives_the_form() {
        assert_eq!(split_command("python -c 'print(1, 2)' \"\" x").unwrap(), ["python", "-c", "print(1, 2)", "", "x"]);
        assert!(split_command("a 'b").is_err());
        let command = ["python", "-c", "print('a b', \"c\")\nexit()", "", "it's", "--x=1", "\\n $HOME"];
        let request = JobRequest { command: command.map(ToOwned::to_owned).to_vec(), ..JobRequest::default() };
        assert_eq!(from_form(to_form(&request)).unwrap().command, command);
    }

    #[test]
    fn a_value_of_a_variable_is_exact_and_may_have_several_lines() {
        let text = "PW= secret \r\nKEY=<<END\r\n--- BEGIN\r\n a=b \r\n\r\nEND\r\nSHIFT=<<\nEMPTY=\n";
        let variables = parse_env(text).unwrap();
        let values: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.0.as_str())).collect();
        let expected = [("EMPTY", ""), ("KEY", "--- BEGIN\n a=b \n"), ("PW", " secret "), ("SHIFT", "<<")];
        assert_eq!(values, expected);
        for (wrong, why) in [("A=1\nA=2", "given twice"), ("A=<<END\n1", "no last line END"), ("A", "NAME=value")] {
            assert!(parse_env(wrong).unwrap_err().detail.contains(why), "{wrong}");
        }
        // A line of a value is no name, also in a field that cannot be read to its end.
        assert_eq!(env_names("KEY=<<END\nMIIEvQ==\nEND\nB=1\nC=<<END\nMIIEvQ=="), ["B", "KEY"]);
    }

    #[test]
    fn unknown_and_unreadable_fields_are_refused_by_name() {
        let refused = |name: &str, value: &str| {
            from_form(vec![(name.to_owned(), value.to_owned())]).unwrap_err().field.unwrap_or_default()
        };
        assert_eq!(refused("surprise", "x"), "surprise");
        assert_eq!(refused("memory_mib", "much"), "memory");
        assert_eq!(refused("machine", "x"), "machine");
        assert_eq!(refused("strategy", "dearest"), "strategy");
        assert_eq!(refused("env", "A"), "env");
    }

    #[test]
    fn each_problem_of_a_form_is_told_once() {
        let fields = [("template", ""), ("image", ""), ("memory_mib", "much")];
        let problems =
            problems(&Templates::open(None), fields.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec());
        let named: Vec<_> = problems.iter().filter_map(|problem| problem.field.as_deref()).collect();
        assert_eq!(named, ["memory", "image"]);
    }

    #[test]
    fn a_dataset_survives_the_form() {
        let dataset = |directory: Option<&str>, writable| DatasetRequest {
            dataset: "mnist".to_owned(),
            directory: directory.map(ToOwned::to_owned),
            writable,
        };
        let datasets = vec![dataset(None, false), dataset(Some("train"), false), dataset(Some("code"), true)];
        let request = JobRequest { datasets: datasets.clone(), ..JobRequest::default() };
        assert_eq!(from_form(to_form(&request)).unwrap().datasets, datasets);
    }

    #[test]
    fn empty_fields_are_ignored() {
        let fields = [("cpu_millis", ""), ("name", " "), ("verified", "on"), ("time_seconds", " 90 ")];
        let request = from_form(fields.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec()).unwrap();
        let expected = JobRequest { verified: true, time_seconds: Some(90), ..JobRequest::default() };
        assert_eq!(request, expected);
    }

    /// The values of environment variables are empty here, because a form does not contain them.
    #[test]
    fn a_form_made_from_a_request_is_read_as_the_same_request() {
        let request: JobRequest = serde_json::from_value(serde_json::json!({
            "name": " two  spaces ", "image": "a@sha256:00", "command": ["sh", "-c", "echo \"it's\"\nexit"],
            "cpu_millis": 500, "memory_mib": 64, "output_mib": 1, "gpus": 1, "vram_mib": 8,
            "egress": ["*.pypi.org", "github.com"],
            "price_cap_usd": "0.000001", "gpu_model": "RTX 4090", "region": "eu-west", "strategy": "fastest",
            "min_reliability": 90, "verified": true, "allow_simulated": true, "time_seconds": 10, "budget_usd": "1.50",
            "max_attempts": 1, "queue_seconds": 61, "env": { "A": "", "B_2": "" }, "secrets": ["HF_TOKEN", "Z"],
            "inputs": [{ "input": "01900000-0000-7000-8000-000000000001", "path": "a b/c" }],
        }))
        .unwrap();
        assert_eq!(from_form(to_form(&request)).unwrap(), request);
        let parameters = [("epochs".to_owned(), "3".to_owned())].into();
        let template = JobRequest { template: Some("train".to_owned()), parameters, ..JobRequest::default() };
        assert_eq!(from_form(to_form(&template)).unwrap(), template);
    }
}
