//! The same job as a command of the client, as a request with curl, and as a program in Python, ready to copy.
//!
//! Belongs here: one request in three languages. Must not come here: a secret. The values of environment variables are
//! left out: the command and Python take them from the caller's own environment, and curl has empty texts in their
//! place.

use std::collections::BTreeMap;

use askama::Template;
use gpubnb_events::{
    batch_request::BatchRequest,
    command::Secret,
    job_request::{DatasetRequest, JobRequest},
};
use serde_json::Value;

use crate::error::Problem;

/// One request in three languages.
#[derive(Template)]
#[template(path = "snippets.html")]
struct Snippets {
    command: String,
    curl: String,
    python: String,
}

/// The snippets for a request to the market whose address is `market`, as HTML.
pub(crate) fn html(request: JobRequest, market: &str) -> Result<String, Problem> {
    let snippets = Snippets::new(request, market).map_err(|e| Problem::internal(&e))?;
    snippets.render().map_err(|e| Problem::internal(&e))
}

/// The snippets for a batch, as HTML.
pub(crate) fn of_batch(mut request: BatchRequest, market: &str) -> Result<String, Problem> {
    request.batch = None;
    let job = Snippets::new(request.job.clone(), market).map_err(|e| Problem::internal(&e))?;
    for value in request.job.env.values_mut() {
        *value = Secret(String::new());
    }
    let body = serde_json::to_string_pretty(&request).map_err(|e| Problem::internal(&e))?;
    let snippets = Snippets {
        command: with_tasks(&job.command, &request),
        curl: curl(&body, market).replace("/api/v1/jobs", "/api/v1/batches"),
        python: python_batch(&request, market).map_err(|e| Problem::internal(&e))?,
    };
    snippets.render().map_err(|e| Problem::internal(&e))
}

/// The most items that a snippet shows.
const MAX_ITEMS: usize = 20;
/// The line after the items of a snippet.
const END_OF_ITEMS: &str = "ITEMS";

/// The command for one job with the options that name the tasks.
fn with_tasks(command: &str, request: &BatchRequest) -> String {
    let mut options: Vec<String> = request.array.iter().map(|array| format!("--array={}", quoted(array))).collect();
    let sweep = |(name, values): (&String, &Vec<String>)| {
        format!("--sweep={}", quoted(&format!("{name}={}", values.join(","))))
    };
    options.extend(request.sweep.iter().map(sweep));
    let is_short = request.items.len() <= MAX_ITEMS && !request.items.iter().any(|item| item == END_OF_ITEMS);
    if !request.items.is_empty() {
        options.push(if is_short { "--each-line=-" } else { "--each-line=items.txt" }.to_owned());
    }
    options.extend(request.max_running.map(|number| format!("--max-running={number}")));
    options.extend(request.max_failures.map(|number| format!("--max-failures={number}")));
    let separator = " \\\n  ";
    let options = options.join(separator);
    // The options stand before the command of the job.
    let command = match command.split_once(&format!("{separator}-- ")) {
        Some((before, words)) => format!("{before}{separator}{options}{separator}-- {words}"),
        None => format!("{command}{separator}{options}"),
    };
    match (request.items.is_empty(), is_short) {
        (true, _) => command,
        (false, true) => format!("{command} <<'{END_OF_ITEMS}'\n{}\n{END_OF_ITEMS}", request.items.join("\n")),
        (false, false) => format!("# First write the items into items.txt, one in each line.\n{command}"),
    }
}

impl Snippets {
    fn new(mut request: JobRequest, market: &str) -> Result<Self, serde_json::Error> {
        // With the same id, a second request would be the same job.
        request.job = None;
        for value in request.env.values_mut() {
            *value = Secret(String::new());
        }
        let body = serde_json::to_string_pretty(&request)?;
        Ok(Self { command: command(&request)?, curl: curl(&body, market), python: python(&request, market)? })
    }
}

/// A word as the shell reads it. A NUL cannot be in a word; the form refuses it in every field.
fn quoted(word: &str) -> String {
    shlex::try_quote(word).map_or_else(|_| "''".to_owned(), std::borrow::Cow::into_owned)
}

/// `gpubnb run` with the options of the request. An option has the name of the field, with few exceptions.
fn command(request: &JobRequest) -> Result<String, serde_json::Error> {
    let fields: BTreeMap<String, Value> = serde_json::from_value(serde_json::to_value(request)?)?;
    let mut options = Vec::new();
    for (name, value) in &fields {
        match (name.as_str(), value) {
            ("job" | "parameters" | "env" | "inputs" | "datasets" | "command", _) | (_, Value::Bool(false)) => {}
            ("egress", Value::Bool(true)) => options.push("--egress=any".to_owned()),
            (name, Value::Bool(true)) => options.push(format!("--{}", option_name(name))),
            (name, Value::Array(words)) => {
                let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
                options.push(format!("--{}={}", option_name(name), quoted(&words.join(","))));
            }
            (name, Value::String(text)) => options.push(format!("--{}={}", option_name(name), quoted(text))),
            (name, other) => options.push(format!("--{}={other}", option_name(name))),
        }
    }
    // The template or the image stands first.
    options.sort_by_key(|option| !(option.starts_with("--template") || option.starts_with("--image")));
    let pair = |(name, value): (&String, &String)| format!("--param={}", quoted(&format!("{name}={value}")));
    let mut lines = vec!["gpubnb run".to_owned()];
    lines.extend(options);
    lines.extend(request.parameters.iter().map(pair));
    lines.extend(request.env.keys().map(|name| format!("--env={}", quoted(name))));
    let input = |path: &str| format!("--input={}", quoted(&format!("{path}:{path}")));
    // The client reads what follows the last colon as the path in the job.
    lines.extend(request.inputs.iter().filter(|file| !file.path.contains(':')).map(|file| input(&file.path)));
    lines.extend(request.datasets.iter().map(|dataset| format!("--data={}", quoted(&dataset_option(dataset)))));
    if !request.command.is_empty() {
        let words: Vec<String> = request.command.iter().map(|word| quoted(word)).collect();
        lines.push(format!("-- {}", words.join(" ")));
    }
    Ok(lines.join(" \\\n  "))
}

/// A dataset as the client's option `--data` takes it.
fn dataset_option(dataset: &DatasetRequest) -> String {
    let mut option = dataset.dataset.clone();
    if dataset.directory.is_some() || dataset.writable {
        option = format!("{option}:{}", dataset.directory.as_deref().unwrap_or_default());
    }
    if dataset.writable { format!("{option}:rw") } else { option }
}

/// The name of the client's option for a field of the request.
fn option_name(field: &str) -> String {
    match field {
        "price_cap_usd" => "price-cap".to_owned(),
        "budget_usd" => "budget".to_owned(),
        field => field.replace('_', "-"),
    }
}

fn curl(body: &str, market: &str) -> String {
    let url = quoted(&format!("{market}/api/v1/jobs"));
    let headers = "-H \"Authorization: Bearer $GPUBNB_TOKEN\" \\\n  -H 'Content-Type: application/json'";
    format!("curl {url} \\\n  {headers} \\\n  -d {}", quoted(body))
}

/// The submission of a job with the Python package.
fn python(request: &JobRequest, market: &str) -> Result<String, serde_json::Error> {
    let Value::Object(fields) = serde_json::to_value(request)? else { return Ok(String::new()) };
    let arguments = fields.iter().map(|(name, value)| format!("    {name}={},\n", field_literal(name, value)));
    Ok(program(request, market, &format!("job = client.run(\n{})\nprint(job.url)\n", arguments.collect::<String>())))
}

/// The submission of a batch with the Python package.
fn python_batch(request: &BatchRequest, market: &str) -> Result<String, serde_json::Error> {
    let Value::Object(mut fields) = serde_json::to_value(request)? else { return Ok(String::new()) };
    let Some(Value::Object(job)) = fields.remove("job") else { return Ok(String::new()) };
    let entry = |(name, value): (&String, &Value), indent: &str| {
        format!("{indent}{}: {},\n", Value::from(name.as_str()), field_literal(name, value))
    };
    let job: String = job.iter().map(|field| entry(field, "        ")).collect();
    let fields: String = fields.iter().map(|field| entry(field, "    ")).collect();
    let statement =
        format!("batch = client.submit_batch({{\n    \"job\": {{\n{job}    }},\n{fields}}})\nprint(batch.url)\n");
    Ok(program(&request.job, market, &statement))
}

/// A program that connects to the market and runs a statement.
fn program(job: &JobRequest, market: &str, statement: &str) -> String {
    let imports = if job.env.is_empty() { "import gpubnb" } else { "import os\n\nimport gpubnb" };
    format!("{imports}\n\nclient = gpubnb.Client({})\n{statement}", Value::from(market))
}

/// A field of a request in Python. The values of environment variables are those of the caller.
fn field_literal(name: &str, value: &Value) -> String {
    match value {
        Value::Object(variables) if name == "env" => {
            let variable = |name: &String| format!("{0}: os.environ[{0}]", Value::from(name.as_str()));
            format!("{{{}}}", variables.keys().map(variable).collect::<Vec<_>>().join(", "))
        }
        value => literal(value),
    }
}

/// A JSON value as Python reads it. The texts of JSON are texts of Python, too.
fn literal(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Array(items) => format!("[{}]", items.iter().map(literal).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let field =
                |(name, value): (&String, &Value)| format!("{}: {}", Value::from(name.as_str()), literal(value));
            format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(", "))
        }
        Value::Number(_) | Value::String(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snippets(request: JobRequest) -> Snippets {
        Snippets::new(request, "https://market.example").unwrap()
    }

    #[test]
    fn the_tasks_of_a_batch_are_options_before_the_command() {
        let job = JobRequest {
            image: Some("a".to_owned()),
            command: ["run", "{lr}"].map(ToOwned::to_owned).to_vec(),
            ..JobRequest::default()
        };
        let sweep = [("lr".to_owned(), vec!["0.1".to_owned(), "0.2".to_owned()])].into();
        let request = BatchRequest { job: job.clone(), sweep, max_running: Some(3), ..BatchRequest::default() };
        let command = with_tasks(&snippets(job).command, &request);
        let words = shlex::split(&command.replace("\\\n", "")).unwrap();
        assert_eq!(words, ["gpubnb", "run", "--image=a", "--sweep=lr=0.1,0.2", "--max-running=3", "--", "run", "{lr}"]);
    }

    #[test]
    fn datasets_are_options_of_the_client() {
        let dataset = |directory: Option<&str>, writable| DatasetRequest {
            dataset: "mnist".to_owned(),
            directory: directory.map(ToOwned::to_owned),
            writable,
        };
        let datasets = vec![dataset(None, false), dataset(Some("train"), false), dataset(Some("code"), true)];
        let command = snippets(JobRequest { image: Some("a".to_owned()), datasets, ..JobRequest::default() }).command;
        let options: Vec<_> = command.split_whitespace().filter(|word| word.starts_with("--data")).collect();
        assert_eq!(options, ["--data=mnist", "--data=mnist:train", "--data=mnist:code:rw"]);
    }

    #[test]
    fn every_language_keeps_words_that_it_would_read_otherwise() {
        let request = JobRequest {
            image: Some("a@sha256:00".to_owned()),
            command: ["sh", "-c", "echo \"it's $HOME\" \\ \"\"\""].map(ToOwned::to_owned).to_vec(),
            ..JobRequest::default()
        };
        let snippets = snippets(request.clone());
        let words = shlex::split(&snippets.command.replace("\\\n", "")).unwrap();
        assert_eq!(words[words.len() - 3..], request.command);
        let body = shlex::split(&snippets.curl.replace(" \\\n", " ")).unwrap().pop().unwrap();
        assert_eq!(serde_json::from_str::<JobRequest>(&body).unwrap(), request);
        let line = snippets.python.lines().find_map(|line| line.trim().strip_prefix("command=")).unwrap();
        let words: Vec<String> = serde_json::from_str(line.trim_end_matches(',')).unwrap();
        assert_eq!(words, request.command);
    }

    #[test]
    fn each_run_of_a_snippet_is_a_new_job_with_all_its_hosts() {
        let request = JobRequest {
            template: Some("noop".to_owned()),
            job: Some(gpubnb_events::JobId::generate()),
            name: Some("-fast".to_owned()),
            egress: gpubnb_events::spec::Egress::any(),
            ..JobRequest::default()
        };
        let Snippets { command, curl, python } = snippets(request);
        assert!(command.contains("--egress=any") && command.contains("--name=-fast"), "{command}");
        assert!(![curl, python].iter().any(|text| text.contains("\"job\":")));
    }

    #[test]
    fn no_secret_is_shown() {
        let mut request = JobRequest { template: Some("noop".to_owned()), ..JobRequest::default() };
        request.env.insert("TOKEN".to_owned(), Secret("hunter2".to_owned()));
        let Snippets { command, curl, python } = snippets(request);
        assert!(command.ends_with("--env=TOKEN"), "{command}");
        assert!(curl.contains("\"TOKEN\": \"\"") && python.contains("env={\"TOKEN\": os.environ[\"TOKEN\"]}"));
        assert!(![command, curl, python].iter().any(|text| text.contains("hunter2")));
    }
}
