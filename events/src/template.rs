//! The templates: jobs that a market has approved and offers to everybody. The web form is made from a template's
//! fields.
//!
//! Belongs here: the description of a template, the way from its fields to the arguments of a job and back, and the
//! templates of the market's own image. Must not come here: the files with the other templates (`ui/src/templates.rs`).

use std::{collections::BTreeMap, sync::LazyLock};

use serde::{Deserialize, Serialize};

use crate::{
    refusal::{Refusal, invalid},
    spec::{CudaVersion, Egress, JobSpec, Mebibytes, Resources},
    text::is_plain,
};

/// The image of the market's own jobs, which `deploy/images.sh` builds.
pub const OWN_IMAGE: &str = "gpubnb/workloads:1";

/// An approved job.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Template {
    /// The id, in requests and events.
    pub id: String,
    /// The title for people.
    pub title: String,
    /// A sentence about the job.
    pub about: String,
    /// The picture in the form: the name of a symbol in `ui/assets/icons.svg`, without `picture-`.
    pub picture: String,
    /// The image as people name it, such as `python:3.12-slim`.
    pub image_name: String,
    /// The container image: the market's own, or an image with its digest.
    pub image: String,
    /// The arguments of the job. `{name}` stands for the value of a field.
    pub command: Vec<String>,
    /// The values that a person may choose.
    pub fields: Vec<Field>,
    /// The files that the job needs, in a sentence for people: it takes at least one input file or dataset. `None` for
    /// a job that needs none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// The hosts of the internet that the job needs, for example for the weights of a model. The hosts of a request are
    /// added to them.
    #[serde(skip_serializing_if = "Egress::is_none")]
    pub egress: Egress,
    /// The oldest CUDA version that a machine's driver must support, if the request names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub min_cuda: Option<CudaVersion>,
    /// The resources, if the request names none.
    pub resources: Resources,
    /// The time limit in seconds, if the request names none.
    pub seconds: u64,
}

/// A value that a person may choose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = TemplateField)]
pub struct Field {
    /// Name of the value, in requests and in the command.
    pub name: String,
    /// The label in the form.
    pub label: String,
    /// The value if the request has none.
    pub default: String,
    /// The values that are allowed.
    #[serde(flatten)]
    pub values: Values,
}

/// The values that a field allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "values")]
#[schema(as = FieldValues)]
pub enum Values {
    /// Whole numbers.
    Number {
        /// Least value.
        least: u32,
        /// Greatest value.
        most: u32,
    },
    /// One of some texts.
    Choice {
        /// The texts.
        choices: Vec<String>,
    },
    /// A text of letters, digits and `._/:@-`, which begins with a letter or a digit: the name of a model, of a column
    /// or of a language, but no option of a program.
    Text {
        /// The most characters.
        longest: u32,
    },
}

impl Field {
    /// Refuses a value that the field does not allow. The error is a sentence for people.
    pub fn check(&self, value: &str) -> Result<(), String> {
        let label = &self.label;
        match &self.values {
            Values::Number { least, most } => match value.parse::<u32>() {
                // `+5` and `05` are numbers, too, but a program may read them otherwise.
                Ok(number) if (*least..=*most).contains(&number) && number.to_string() == value => Ok(()),
                _ => Err(format!("{label} must be a whole number from {least} to {most}.")),
            },
            Values::Choice { choices } if choices.iter().any(|choice| choice == value) => Ok(()),
            Values::Choice { choices } => Err(format!("{label} must be one of: {}.", choices.join(", "))),
            Values::Text { longest } => {
                let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._/:@-".contains(&b);
                let begins_well = value.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
                if begins_well && value.bytes().all(is_plain) && value.len() <= *longest as usize {
                    return Ok(());
                }
                let signs = "letters, digits, ., _, /, :, @ and -, and begin with a letter or a digit";
                Err(format!("{label} must have up to {longest} {signs}."))
            }
        }
    }
}

impl Template {
    /// The specification of a job of this template, with the default of each field.
    pub fn spec(&self, name: &str) -> JobSpec {
        let command = self.arguments(&BTreeMap::new()).unwrap_or_default();
        let spec = JobSpec::for_image(name, &self.image, command, self.resources.clone());
        JobSpec { template: Some(self.id.clone()), egress: self.egress.clone(), ..spec }
    }

    /// The arguments of a job with these values. A field without a value has its default.
    pub fn arguments(&self, parameters: &BTreeMap<String, String>) -> Result<Vec<String>, Refusal> {
        if let Some(unknown) = parameters.keys().find(|name| !self.fields.iter().any(|f| f.name == **name)) {
            let known: Vec<_> = self.fields.iter().map(|f| f.name.as_str()).collect();
            let message = format!("`{unknown}` is not a field of this template. The fields are: {}.", known.join(", "));
            return Err(invalid("parameters", message));
        }
        let mut values = Vec::new();
        for field in &self.fields {
            let value = parameters.get(&field.name).map_or(field.default.as_str(), |value| value.trim());
            field.check(value).map_err(|message| invalid(&field.name, message))?;
            values.push((field.name.as_str(), value));
        }
        Ok(self.command.iter().map(|argument| fill_in(argument, &values)).collect())
    }

    /// The values of the fields in a job's arguments: the inverse of [`Self::arguments`]. `None` if these are no
    /// arguments of this template.
    pub fn parameters(&self, command: &[String]) -> Option<BTreeMap<String, String>> {
        let mut found = BTreeMap::new();
        if command.len() != self.command.len() {
            return None;
        }
        for (pattern, argument) in self.command.iter().zip(command) {
            let field = self.fields.iter().find(|field| pattern.contains(&placeholder(&field.name)));
            let Some(field) = field else { continue };
            let (before, after) = pattern.split_once(&placeholder(&field.name))?;
            let value = argument.strip_prefix(before)?.strip_suffix(after)?;
            found.insert(field.name.clone(), value.to_owned());
        }
        self.arguments(&found).is_ok_and(|arguments| arguments == command).then_some(found)
    }

    /// Refuses to submit a job without the file that it needs. A quote needs no file yet.
    pub fn check_input(&self, spec: &JobSpec) -> Result<(), Refusal> {
        match &self.input {
            Some(needed) if spec.inputs.is_empty() && spec.datasets.is_empty() => {
                Err(invalid("inputs", format!("The job needs a file. {needed}")))
            }
            _ => Ok(()),
        }
    }

    /// Why this is no template that a market may offer; `None` if it is one.
    ///
    /// A placeholder stands in an argument of its own, once, beside letters that no shell reads, and never as the
    /// script of a shell or of Python (`-c`). So a value is one word for the program, and no part of a script, unless
    /// the image's own entry point takes its first argument for a script.
    pub fn fault(&self) -> Option<String> {
        if !is_id(&self.id) {
            return Some(format!("`{}` is no id: an id has up to 40 small letters, digits and dashes", self.id));
        }
        if !is_text(&self.title, 80) || !is_text(&self.about, 300) || !is_id(&self.picture) {
            return Some("the title, the sentence about the job, or the picture is missing or too long".to_owned());
        }
        if self.input.as_deref().is_some_and(|text| !is_text(text, 300)) {
            return Some("`input` must be a sentence".to_owned());
        }
        if self.fields.len() > 16 || self.command.len() > 64 || self.command.iter().any(|a| a.len() > 3_000) {
            return Some("a template has at most 16 fields, and 64 arguments of at most 3,000 bytes".to_owned());
        }
        let Resources { output, disk, shm, memory, gpus, vram, .. } = &self.resources;
        if disk.is_some_and(|disk| disk < *output) || shm.is_some_and(|shm| shm > *memory) || (*gpus == 0 && vram.0 > 0)
        {
            return Some("the disk holds the output, the memory holds shm, and only GPUs have vram".to_owned());
        }
        if !(1..=7 * 86_400).contains(&self.seconds) {
            return Some("`seconds` must be from 1 to 604,800".to_owned());
        }
        self.fields.iter().find_map(|field| self.fault_of(field))
    }

    /// Why this is no field of the template; `None` if it is one.
    fn fault_of(&self, field: &Field) -> Option<String> {
        let (name, placeholder) = (&field.name, placeholder(&field.name));
        if let Values::Choice { choices } = &field.values
            && !choices.iter().all(|choice| is_text(choice, 100) && !choice.starts_with('-'))
        {
            return Some(format!("a choice of the field `{name}` is empty, too long, or an option"));
        }
        if !is_id(name) || !is_text(&field.label, 80) {
            return Some(format!("the field `{name}` has no valid name or label"));
        }
        if let Err(message) = field.check(&field.default) {
            return Some(format!("the default of the field `{name}` is not allowed: {message}"));
        }
        let is_safe = |argument: &String| {
            let rest = argument.replacen(&placeholder, "", 1);
            rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"._/:=,-".contains(&b))
        };
        let is_script = self
            .command
            .windows(2)
            .any(|pair| matches!(pair[0].as_str(), "-c" | "-e" | "--eval" | "-lc") && pair[1].contains(&placeholder));
        let mut users = self.command.iter().filter(|argument| argument.contains(&placeholder));
        if users.next().is_none_or(|user| !is_safe(user)) || users.next().is_some() || is_script {
            let example = format!("`--{name}={placeholder}`");
            return Some(format!(
                "`{placeholder}` must stand once in the command, in an argument of its own, such as {example}"
            ));
        }
        None
    }
}

/// True for the id of a template, of a picture, or of a field.
fn is_id(text: &str) -> bool {
    let is_inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=40).contains(&text.len()) && text.bytes().all(is_inner) && !text.starts_with('-')
}

/// True for a text for people of at most `longest` bytes.
fn is_text(text: &str, longest: usize) -> bool {
    !text.trim().is_empty() && text.len() <= longest && text.chars().all(is_plain)
}

fn placeholder(name: &str) -> String {
    format!("{{{name}}}")
}

/// An argument with the values in the place of the placeholders.
fn fill_in(argument: &str, values: &[(&str, &str)]) -> String {
    let used = values.iter().find(|(name, _)| argument.contains(&placeholder(name)));
    used.map_or_else(|| argument.to_owned(), |(name, value)| argument.replacen(&placeholder(name), value, 1))
}

/// A template of the market's own image. Its program has an option for each field.
fn own(id: &str, title: &str, about: &str, fields: Vec<Field>, resources: Resources, seconds: u64) -> Template {
    let options = fields.iter().flat_map(|field| [format!("--{}", field.name), placeholder(&field.name)]);
    Template {
        id: id.to_owned(),
        title: title.to_owned(),
        about: about.to_owned(),
        picture: id.to_owned(),
        image_name: OWN_IMAGE.to_owned(),
        image: OWN_IMAGE.to_owned(),
        command: [id.to_owned()].into_iter().chain(options).collect(),
        fields,
        input: None,
        egress: Egress::default(),
        min_cuda: None,
        resources,
        seconds,
    }
}

fn number(name: &str, label: &str, default: u32, least: u32, most: u32) -> Field {
    let values = Values::Number { least, most };
    Field { name: name.to_owned(), label: label.to_owned(), default: default.to_string(), values }
}

/// One core, with `memory` and `output` in MiB.
const fn small(memory: u64, output: u64) -> Resources {
    Resources::new(1_000, Mebibytes(memory), Mebibytes(output))
}

/// The templates of the market's own image, in the order of the form. A new user's first choice comes first.
pub static OWN: LazyLock<Vec<Template>> = LazyLock::new(|| {
    vec![
        own(
            "train",
            "Train a neural network",
            "Trains a small network on 1,797 real handwritten digits; leaves the model, its metrics and a plot.",
            vec![
                number("epochs", "Epochs", 12, 1, 1_000),
                number("hidden", "Hidden units", 64, 4, 1_024),
                number("seed", "Seed", 7, 0, 1_000_000),
            ],
            small(512, 64),
            600,
        ),
        own(
            "render",
            "Render an image",
            "Traces the light through a small scene and leaves a picture.",
            vec![
                number("width", "Width, pixels", 640, 16, 4_096),
                number("height", "Height, pixels", 360, 16, 4_096),
                number("samples", "Samples a pixel", 32, 1, 4_096),
            ],
            small(512, 64),
            900,
        ),
        own(
            "matmul",
            "Measure matrix multiplication",
            "Multiplies matrices for a while and says how fast.",
            vec![number("size", "Matrix size", 512, 16, 4_096), number("seconds", "Seconds", 5, 1, 600)],
            small(1_024, 16),
            300,
        ),
        own(
            "count",
            "Count lines",
            "Prints numbered lines with a pause between them: to try logs and cancelling.",
            vec![
                number("lines", "Lines", 100, 1, 1_000_000),
                number("interval-ms", "Pause, ms", 100, 0, 60_000),
                number("exit-code", "Exit code", 0, 0, 255),
            ],
            small(64, 16),
            600,
        ),
        own("noop", "Do nothing", "Ends at once: to measure what the market itself costs.", vec![], small(64, 16), 60),
    ]
});

/// The template of the market's own image with this id.
pub fn find(id: &str) -> Option<&'static Template> {
    OWN.iter().find(|t| t.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(command: &[&str], fields: Vec<Field>) -> Template {
        let command = command.iter().map(|argument| (*argument).to_owned()).collect();
        Template { command, fields, ..OWN[0].clone() }
    }

    fn text(name: &str) -> Field {
        let values = Values::Text { longest: 10 };
        Field { name: name.to_owned(), label: name.to_owned(), default: "base".to_owned(), values }
    }

    fn parameters(values: &[(&str, &str)]) -> BTreeMap<String, String> {
        values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_values_of_the_fields_go_into_the_command_and_back() {
        for template in OWN.iter() {
            assert_eq!(template.fault(), None, "{}", template.id);
        }
        let template = with(&["sh", "-c", "run \"$1\"", "run", "m={model}"], vec![text("model")]);
        assert_eq!(template.fault(), None);
        let command = template.arguments(&parameters(&[("model", " a/b:1 ")])).unwrap();
        assert_eq!(command, ["sh", "-c", "run \"$1\"", "run", "m=a/b:1"]);
        assert_eq!(template.parameters(&command), Some(parameters(&[("model", "a/b:1")])));
        assert_eq!(template.spec("x").command.last().unwrap(), "m=base");
        for other in
            [&command[1..], &["sh".to_owned(), "-c".to_owned(), String::new(), String::new(), "m=a".to_owned()]]
        {
            assert_eq!(template.parameters(other), None);
        }
    }

    #[test]
    fn values_that_a_field_does_not_allow_are_refused_by_its_name() {
        let choice = Field { values: Values::Choice { choices: vec!["base".to_owned()] }, ..text("size") };
        let template = with(&["{n}", "{text}", "{size}"], vec![number("n", "N", 2, 1, 3), text("text"), choice]);
        assert_eq!(template.fault(), None);
        let long = "a".repeat(11);
        for (name, value) in [
            ("n", "0"),
            ("n", "4"),
            ("n", "+2"),
            ("n", "02"),
            ("n", "1.5"),
            ("n", ""),
            ("text", ""),
            ("text", "-rf"),
            ("text", "a b"),
            ("text", "$(id)"),
            ("text", "a;b"),
            ("text", &long),
            ("size", "small"),
        ] {
            assert_eq!(
                template.arguments(&parameters(&[(name, value)])).unwrap_err().field.as_deref(),
                Some(name),
                "{value:?}"
            );
        }
        assert_eq!(template.arguments(&parameters(&[("x", "1")])).unwrap_err().field.as_deref(), Some("parameters"));
        // A value that looks like a placeholder stays a value.
        assert!(template.arguments(&parameters(&[("text", "{n}")])).is_err());
    }

    #[test]
    fn a_template_whose_values_could_become_a_script_is_none() {
        let fault = |command: &[&str]| with(command, vec![text("model")]).fault();
        assert_eq!(fault(&["run", "{model}"]), None);
        for command in [
            &["sh", "-c", "run {model}"][..],
            &["sh", "-c", "{model};ls"],
            &["sh", "-c", "{model}"],
            &["run"],
            &["run", "{model}", "{model}"],
            &["run", "{model}{model}"],
        ] {
            assert!(fault(command).is_some(), "{command:?}");
        }
        assert!(with(&["{m}"], vec![Field { default: "-".to_owned(), ..text("m") }]).fault().is_some());
        assert!(Template { id: "A b".to_owned(), ..OWN[0].clone() }.fault().is_some());
        assert!(Template { about: String::new(), ..OWN[0].clone() }.fault().is_some());
    }
}
