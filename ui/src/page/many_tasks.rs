//! The section *Run it many times* in the form of a job: from its fields to the request for a batch.

use std::collections::BTreeMap;

use gpubnb_events::{
    BatchId, JobId,
    batch::MAX_PARAMETERS,
    batch_request::{BatchRequest, parse_sweep},
    job_request::JobRequest,
};

use crate::error::Problem;

/// The fields of the section.
const FIELDS: [&str; 5] = ["tasks_as", "tasks", "max_running", "max_failures", "many"];

/// The ways in which the field `tasks` is read, each with its words.
pub(super) const WAYS: [(&str, &str); 3] = [
    ("items", "one task for each line"),
    ("sweep", "one task for each combination of values"),
    ("array", "one task for each index"),
];

/// The fields of the section, for a form that names tasks.
pub(super) struct ManyTasks {
    way: String,
    text: String,
    max_running: String,
    max_failures: String,
}

/// Takes the fields of the section out of a form. `None` for a form that names no tasks.
pub(super) fn split(fields: Vec<(String, String)>) -> (Vec<(String, String)>, Option<ManyTasks>) {
    let (own, rest): (Vec<_>, Vec<_>) = fields.into_iter().partition(|(name, _)| FIELDS.contains(&name.as_str()));
    let value = |wanted: &str| {
        let found = own.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.trim().to_owned());
        found.unwrap_or_default()
    };
    let many = ManyTasks {
        way: value("tasks_as"),
        text: value("tasks"),
        max_running: value("max_running"),
        max_failures: value("max_failures"),
    };
    (rest, Some(many).filter(|many| !many.text.is_empty()))
}

/// The same problem at the field of the form: the form has one field for all ways of naming tasks.
pub(super) fn at_its_field(problem: Problem) -> Problem {
    let is_about_tasks = matches!(problem.field.as_deref(), Some("array" | "items" | "sweep" | "indices"));
    if is_about_tasks { Problem { field: Some("tasks".to_owned()), ..problem } } else { problem }
}

fn number(field: &'static str, text: &str) -> Result<Option<u32>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| Problem::invalid(field, "Write a whole number."))
}

impl ManyTasks {
    /// The request for the batch. The batch has an id that begins like that of the form's job, so that a form that is
    /// sent twice is one batch.
    pub(super) fn request(&self, job: JobRequest) -> Result<BatchRequest, Problem> {
        let batch = BatchId::beginning_like(job.job.unwrap_or_else(JobId::generate));
        let request = BatchRequest {
            batch: Some(batch),
            job: JobRequest { job: None, ..job },
            max_running: number("max_running", &self.max_running)?,
            max_failures: number("max_failures", &self.max_failures)?,
            ..BatchRequest::default()
        };
        let lines = self.text.lines().map(str::trim).filter(|line| !line.is_empty());
        Ok(match self.way.as_str() {
            "array" => BatchRequest { array: Some(self.text.clone()), ..request },
            "sweep" if lines.clone().count() > MAX_PARAMETERS => {
                return Err(Problem::invalid("tasks", format!("A task has at most {MAX_PARAMETERS} parameters.")));
            }
            "sweep" => {
                let pairs: Result<Vec<_>, _> = lines.map(parse_sweep).collect();
                let pairs = pairs.map_err(|refusal| Problem::from(refusal.with_field("tasks")))?;
                let (named, sweep) = (pairs.len(), pairs.into_iter().collect::<BTreeMap<_, _>>());
                if sweep.len() < named {
                    return Err(Problem::invalid(
                        "tasks",
                        "A parameter is named twice: write all of its values in one line.",
                    ));
                }
                BatchRequest { sweep, ..request }
            }
            _ => BatchRequest { items: lines.map(ToOwned::to_owned).collect(), ..request },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(way: &str, text: &str) -> BatchRequest {
        let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let fields = vec![field("image", "a"), field("tasks_as", way), field("tasks", text), field("max_running", "5")];
        let (rest, many) = split(fields);
        assert_eq!(rest, [field("image", "a")]);
        many.unwrap().request(JobRequest { job: Some(JobId::generate()), ..JobRequest::default() }).unwrap()
    }

    #[test]
    fn each_way_of_naming_tasks_is_read() {
        assert_eq!(request("items", "a\r\n\r\n b\n").items, ["a", "b"]);
        assert_eq!(request("array", "0-9").array.as_deref(), Some("0-9"));
        let sweep = request("sweep", "lr=0.1,0.2\nseed=1-3");
        assert_eq!((sweep.task_list().unwrap().count, sweep.max_running), (6, Some(5)));
        assert!(sweep.job.job.is_none() && sweep.batch.is_some());
        assert!(split(vec![("tasks".to_owned(), "  ".to_owned())]).1.is_none());
    }
}
