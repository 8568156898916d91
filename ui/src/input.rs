//! The job's form: from its fields to a request, and from a request to its fields. The fields are those of the request
//! (`gpubnb_events::job_request`), by the same names and in the same units; only what has many parts is written otherwise.

use gpubnb_events::{
    MicroUsd,
    command::Secret,
    job_request::{self, InputRequest, JobRequest},
};
use serde_json::{Map, Value};

use crate::{access::CSRF_FIELD, error::Problem};

/// Most fields of a form: its own, and a hundred files.
const MOST_FIELDS: usize = 200;
/// The suffixes by which the request's fields name their units. A refusal names the field without it.
const UNITS: [&str; 4] = ["_millis", "_mib", "_seconds", "_usd"];

/// An amount in dollars, as people and programs write it.
pub(crate) fn dollars(field: &str, text: &str) -> Result<MicroUsd, Problem> {
    let amount = job_request::dollars(field, Some(text)).map_err(Problem::from)?;
    amount.ok_or_else(|| Problem::invalid(field, "An amount is missing: write dollars, such as 12.50."))
}

/// Reads a form: `parameter.<name>` for a template's choices, `command` as a shell would read it, `env` as lines of
/// `NAME=value`, `input` once for each file (`<upload> <path>`). An empty field counts as not given.
pub(crate) fn from_form(fields: Vec<(String, String)>) -> Result<JobRequest, Problem> {
    let mut plain = Map::new();
    let mut parts = JobRequest::default();
    for (name, value) in fields.into_iter().take(MOST_FIELDS) {
        if value.trim().is_empty() || name == CSRF_FIELD {
            continue;
        }
        if let Some(parameter) = name.strip_prefix("parameter.") {
            parts.parameters.insert(parameter.to_owned(), value.trim().to_owned());
            continue;
        }
        match name.as_str() {
            "command" => parts.command = words(&value)?,
            "env" => parts.env = variables(&value)?,
            "input" => parts.inputs.push(uploaded(&value)?),
            // Every character of a name is meant.
            "name" => drop(plain.insert(name, value.into())),
            _ => drop(plain.insert(name, value.trim().into())),
        }
    }
    let request: JobRequest = serde_path_to_error::deserialize(Value::Object(plain)).map_err(unreadable)?;
    let JobRequest { parameters, command, env, inputs, .. } = parts;
    Ok(JobRequest { parameters, command, env, inputs, ..request })
}

/// The field that could not be read, by the name that refusals use.
fn unreadable(e: serde_path_to_error::Error<serde_json::Error>) -> Problem {
    let path = e.path().to_string();
    let field = UNITS.iter().find_map(|unit| path.strip_suffix(unit)).unwrap_or(&path);
    Problem::invalid(field, format!("This cannot be read: {}.", e.inner()))
}

/// The fields of a request, as a person would have typed them. The values of its environment are left out.
pub(crate) fn to_form(request: &JobRequest) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let mut set = |name: &str, value: String| fields.push((name.to_owned(), value));
    let Ok(Value::Object(whole)) = serde_json::to_value(request) else { return fields };
    for (name, value) in whole {
        match value {
            Value::String(text) => set(&name, text),
            Value::Number(number) => set(&name, number.to_string()),
            Value::Bool(true) => set(&name, "on".to_owned()),
            // Written below, each in its own way.
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
    for input in &request.inputs {
        set("input", format!("{} {}", input.input, input.path));
    }
    fields
}

/// A file that the page has put already: its id, and where the job finds it.
fn uploaded(value: &str) -> Result<InputRequest, Problem> {
    let (input, path) = value.split_once(' ').unwrap_or_default();
    let input = input.parse().map_err(|_| Problem::invalid("inputs", "A file of the form has no valid id."))?;
    Ok(InputRequest { input, path: path.to_owned() })
}

/// Lines of `NAME=value`.
fn variables(text: &str) -> Result<std::collections::BTreeMap<String, Secret>, Problem> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let variable = |line: &str| {
        let (name, value) = line.split_once('=')?;
        Some((name.trim().to_owned(), Secret(value.trim().to_owned())))
    };
    let all: Option<_> = lines.map(variable).collect();
    all.ok_or_else(|| Problem::invalid("env", "Write one variable a line: NAME=value."))
}

/// A command line as a POSIX shell reads it. Browsers send each line's end as two characters.
fn words(line: &str) -> Result<Vec<String>, Problem> {
    shlex::split(&line.replace("\r\n", "\n"))
        .ok_or_else(|| Problem::invalid("command", "A quote is not closed, or the line ends with a backslash."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_split_like_a_shell_would_and_joined_so_that_it_is_read_back() {
        assert_eq!(words("python -c 'print(1, 2)' \"\" x").unwrap(), ["python", "-c", "print(1, 2)", "", "x"]);
        assert!(words("a 'b").is_err());
        let command = ["python", "-c", "print('a b', \"c\")\nexit()", "", "it's", "--x=1", "\\n $HOME"];
        let request = JobRequest { command: command.map(ToOwned::to_owned).to_vec(), ..JobRequest::default() };
        assert_eq!(from_form(to_form(&request)).unwrap().command, command);
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
    fn a_field_that_is_left_empty_is_not_given() {
        let fields = [("cpu_millis", ""), ("name", " "), ("verified", "on"), ("time_seconds", " 90 ")];
        let request = from_form(fields.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec()).unwrap();
        let expected = JobRequest { verified: true, time_seconds: Some(90), ..JobRequest::default() };
        assert_eq!(request, expected);
    }

    /// From a request to the form of its page and back. Values of the environment are secrets, and in no form.
    #[test]
    fn a_form_that_is_filled_in_from_a_request_is_read_as_that_request() {
        let request: JobRequest = serde_json::from_value(serde_json::json!({
            "name": " two  spaces ", "image": "a@sha256:00", "command": ["sh", "-c", "echo \"it's\"\nexit"],
            "cpu_millis": 500, "memory_mib": 64, "output_mib": 1, "gpus": 1, "vram_mib": 8, "egress": true,
            "price_cap_usd": "0.000001", "gpu_model": "RTX 4090", "region": "eu-west", "strategy": "fastest",
            "min_reliability": 90, "verified": true, "allow_simulated": true, "time_seconds": 10, "budget_usd": "1.50",
            "max_attempts": 1, "queue_seconds": 61, "env": { "A": "", "B_2": "" },
            "inputs": [{ "input": "01900000-0000-7000-8000-000000000001", "path": "a b/c" }],
        }))
        .unwrap();
        assert_eq!(from_form(to_form(&request)).unwrap(), request);
        let parameters = [("epochs".to_owned(), "3".to_owned())].into();
        let template = JobRequest { template: Some("train".to_owned()), parameters, ..JobRequest::default() };
        assert_eq!(from_form(to_form(&template)).unwrap(), template);
    }
}
