//! `gpubnb.toml`: the request for a job, in a file beside the code. The fields are those of `JobRequest`, with the same
//! names and units. Only `env` and `inputs` are written as on the command line. Options of the command line win, or are
//! added where a field is a list.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use gpubnb_events::job_request::JobRequest;
use serde_json::{Map, Value};

/// The name of the file.
pub(crate) const PROJECT_FILE: &str = "gpubnb.toml";

/// The content of a `gpubnb.toml`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Project {
    /// The request, without the files that must be uploaded first.
    pub(crate) request: JobRequest,
    /// Input files, as `--input` takes them. Their paths begin at the directory of the file.
    pub(crate) inputs: Vec<String>,
    /// The names of variables that are passed on from the person's own environment.
    pub(crate) env: Vec<String>,
}

impl Project {
    /// Reads the file in a directory; `None` if there is none.
    pub(crate) fn read(directory: &Path) -> anyhow::Result<Option<Self>> {
        let path = directory.join(PROJECT_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
        };
        let mut project = parse(&text).with_context(|| format!("reading {}", path.display()))?;
        for input in &mut project.inputs {
            *input = directory.join(&input).to_string_lossy().into_owned();
        }
        Ok(Some(project))
    }
}

fn parse(text: &str) -> anyhow::Result<Project> {
    let mut table: Map<String, Value> = toml::from_str(text)?;
    let words = |value: Option<Value>, name: &str| -> anyhow::Result<Vec<String>> {
        let value = value.unwrap_or_else(|| Value::Array(Vec::new()));
        serde_json::from_value(value).with_context(|| format!("`{name}` is a list of texts"))
    };
    let env = words(table.remove("env"), "env")?;
    if let Some(value) = env.iter().find(|name| name.contains('=')) {
        // The file is sent to the machine with the code.
        let name = value.split('=').next().unwrap_or_default();
        bail!("`env` has names alone, such as {name:?}: the values come from your own environment, or use `secrets`");
    }
    let inputs = words(table.remove("inputs"), "inputs")?;
    ensure!(!table.contains_key("job"), "`job` cannot be in the file: every run is another job");
    let request = serde_path_to_error::deserialize(Value::Object(table)).map_err(|e| {
        let field = e.path().to_string();
        anyhow::Error::new(e.into_inner()).context(format!("the field `{field}`"))
    })?;
    Ok(Project { request, inputs, env })
}

/// The conditions for the machine, which exclude a named one.
const CONDITIONS: &[&str] =
    &["strategy", "min_reliability", "verified", "gpu_model", "min_cuda", "region", "allow_simulated"];

/// The request of the command line, with the fields of the file that the command line does not set.
pub(crate) fn merge(file: JobRequest, options: JobRequest) -> anyhow::Result<JobRequest> {
    let as_map = |request: &JobRequest| -> anyhow::Result<BTreeMap<String, Value>> {
        Ok(serde_json::from_value(serde_json::to_value(request)?)?)
    };
    let chosen = as_map(&options)?;
    let mut merged = as_map(&file)?;
    // A template and an image exclude each other, and so do a machine and the conditions for one.
    let excluded: [(&[&str], &[&str]); 4] = [
        (&["template"], &["image"]),
        (&["image"], &["template", "parameters"]),
        (&["machine"], CONDITIONS),
        (CONDITIONS, &["machine"]),
    ];
    for (given, excluded) in excluded {
        if given.iter().any(|name| chosen.contains_key(*name)) {
            merged.retain(|name, _| !excluded.contains(&name.as_str()));
        }
    }
    for (name, value) in chosen {
        match (merged.get_mut(&name), value) {
            // The pairs of both, for `parameters` and `env`.
            (Some(Value::Object(known)), Value::Object(given)) => known.extend(given),
            // The elements of both, for `secrets` and `datasets`. A command and a list of hosts are meant as a whole.
            (Some(Value::Array(known)), Value::Array(given)) if !["command", "egress"].contains(&name.as_str()) => {
                known.extend(given);
            }
            (_, value) => drop(merged.insert(name, value)),
        }
    }
    Ok(serde_json::from_value(serde_json::to_value(merged)?)?)
}

/// `gpubnb init`: writes a `gpubnb.toml` to begin with. Returns its path, and the program that it names if there is no
/// such file.
pub(crate) fn init(directory: &Path) -> anyhow::Result<(PathBuf, Option<&'static str>)> {
    ensure!(directory.is_dir(), "{} is not a directory", directory.display());
    let path = directory.join(PROJECT_FILE);
    if path.exists() {
        bail!("{} exists already: it is left as it is", path.display());
    }
    let has = |name: &str| directory.join(name).exists();
    let found = ["main.py", "train.py", "run.py", "app.py"].into_iter().find(|name| has(name));
    let program = found.unwrap_or("main.py");
    let (command, egress) = if has("requirements.txt") {
        (format!("[\"sh\", \"-c\", \"pip install -r requirements.txt && python {program}\"]"), "")
    } else {
        (format!("[\"python\", \"{program}\"]"), "# ")
    };
    let text = include_str!("gpubnb.toml").replace("COMMAND", &command).replace("EGRESS ", egress);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok((path, found.is_none().then_some(program)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::{MachineId, job_request::DatasetRequest, spec::Strategy};

    const FILE: &str = "image = 'python:3.12'\ncommand = ['python', 'a.py']\nmemory_mib = 2048\nregion = 'eu'\n\
        secrets = ['T']\negress = ['pypi.org']\nenv = ['HOME']\ninputs = ['a.csv:data/a.csv']\n\
        [[datasets]]\ndataset = 'mnist'\n";

    #[test]
    fn options_win_and_elements_of_lists_are_added() {
        let file = parse(FILE).unwrap();
        assert_eq!((file.inputs, file.env), (vec!["a.csv:data/a.csv".to_owned()], vec!["HOME".to_owned()]));
        let dataset = |name: &str| DatasetRequest { dataset: name.to_owned(), directory: None, writable: false };
        let options = JobRequest {
            memory_mib: Some(64),
            command: vec!["ls".to_owned()],
            secrets: vec!["U".to_owned()],
            egress: "github.com".parse().unwrap(),
            datasets: vec![dataset("words")],
            ..JobRequest::default()
        };
        let expected = JobRequest {
            secrets: vec!["T".to_owned(), "U".to_owned()],
            datasets: vec![dataset("mnist"), dataset("words")],
            image: file.request.image.clone(),
            region: file.request.region.clone(),
            ..options.clone()
        };
        assert_eq!(merge(file.request, options).unwrap(), expected);
    }

    #[test]
    fn what_an_option_excludes_is_taken_out_of_the_file() {
        let merged = |options| merge(parse(FILE).unwrap().request, options).unwrap();
        let template = merged(JobRequest { template: Some("noop".to_owned()), ..JobRequest::default() });
        assert_eq!((template.image, template.template.as_deref()), (None, Some("noop")));
        let machine = merged(JobRequest { machine: Some(MachineId::generate()), ..JobRequest::default() });
        assert!(machine.region.is_none() && machine.machine.is_some());
        let file = parse("template = 'noop'\nparameters = { a = '1' }\n").unwrap().request;
        let file = JobRequest { machine: Some(MachineId::generate()), ..file };
        let options =
            JobRequest { image: Some("a".to_owned()), strategy: Some(Strategy::Fastest), ..JobRequest::default() };
        assert_eq!(merge(file, options.clone()).unwrap(), options);
    }

    #[test]
    fn a_wrong_field_is_named() {
        let error = |text: &str| format!("{:#}", parse(text).unwrap_err());
        assert!(error("imgae = 'a'").contains("imgae"));
        assert!(error("job = 'a'").contains("every run is another job"));
        assert!(error("env = { A = 'b' }").contains("`env` is a list of texts"));
        assert!(error("env = ['TOKEN=abc']").contains("\"TOKEN\"") && !error("env = ['TOKEN=abc']").contains("abc"));
        assert!(error("memory_mib = 'many'").contains("memory_mib"));
        assert!(error("command = 'python a.py'").contains("`command`"));
        assert!(error("datasets = ['mnist']").contains("`datasets[0]`"));
    }

    #[test]
    fn the_first_file_of_init_is_a_valid_one() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(init(directory.path()).unwrap().1, Some("main.py"), "there is no such program");
        assert!(init(directory.path()).unwrap_err().to_string().contains("exists already"));
        fs::remove_file(directory.path().join(PROJECT_FILE)).unwrap();
        fs::write(directory.path().join("train.py"), "").unwrap();
        assert_eq!(init(directory.path()).unwrap().1, None);
        let read = || Project::read(directory.path()).unwrap().unwrap().request;
        assert_eq!((read().command, read().egress.is_none()), (vec!["python".to_owned(), "train.py".to_owned()], true));
        fs::remove_file(directory.path().join(PROJECT_FILE)).unwrap();
        fs::write(directory.path().join("requirements.txt"), "").unwrap();
        init(directory.path()).unwrap();
        assert!(read().command[2].starts_with("pip install") && !read().egress.is_none());
    }
}
