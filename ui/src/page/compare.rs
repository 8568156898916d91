//! The pages that show up to four machines, or four jobs of the viewer, side by side.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use askama::Template;
use axum::{
    extract::State,
    response::{Html, IntoResponse, Redirect, Response},
};
use gpubnb_events::{JobId, MachineId, Seq, Timestamp};
use gpubnb_query::view::{JobState, JobView, MachineView};

use super::{Layout, render_page, resubmit};
use crate::{
    access::{SignedIn, Viewer},
    app::App,
    error::PageError,
    extract::{Form, Query},
    format, hardware, input,
    live::log,
};

/// The maximum number of things on one page.
const MAX_COMPARED: usize = 4;

#[derive(Template)]
#[template(path = "compare.html")]
struct ComparePage {
    layout: Layout,
    /// The list from which the compared things come: name and address.
    back: (&'static str, &'static str),
    subjects: Vec<Subject>,
    rows: Vec<Row>,
}

/// One of the things that are compared, which has a column.
struct Subject {
    name: String,
    address: String,
    /// The address of this page without the column.
    without: String,
}

/// A property of the compared things.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    label: String,
    /// The value of each thing; empty if a thing does not have the property.
    values: Vec<String>,
    /// The columns with the best value; empty if no value is better, or all are the same.
    best: Vec<usize>,
}

impl Row {
    /// A row in which no value is better than another.
    fn plain(label: impl Into<String>, values: Vec<String>) -> Self {
        Self { label: label.into(), values, best: Vec::new() }
    }

    /// A row in which the lowest `rank` is the best. A thing without a rank is not compared.
    fn ranked<K: Ord>(label: impl Into<String>, values: Vec<(String, Option<K>)>) -> Self {
        let best = values.iter().filter_map(|(_, rank)| rank.as_ref()).min();
        let is_best = |rank: &Option<K>| rank.is_some() && rank.as_ref() == best;
        let columns: Vec<_> = (0..values.len()).filter(|column| is_best(&values[*column].1)).collect();
        let values: Vec<_> = values.into_iter().map(|(text, _)| text).collect();
        let row = Self { label: label.into(), values, best: Vec::new() };
        let is_better = columns.len() < row.values.len() && !row.is_same();
        Self { best: if is_better { columns } else { Vec::new() }, ..row }
    }

    // askama passes references.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn is_best(&self, column: &usize) -> bool {
        self.best.contains(column)
    }

    /// True if all things have the same value.
    fn is_same(&self) -> bool {
        self.values.windows(2).all(|pair| pair[0] == pair[1])
    }
}

/// The ids of the query parameters with this name, each once.
fn ids<T: std::str::FromStr + PartialEq>(parameters: &[(String, String)], name: &str) -> Vec<T> {
    let mut ids = Vec::new();
    for id in parameters.iter().filter(|(n, _)| n == name).filter_map(|(_, value)| value.parse().ok()) {
        if !ids.contains(&id) && ids.len() < MAX_COMPARED {
            ids.push(id);
        }
    }
    ids
}

/// The address of the page that compares these things.
fn address<T: ToString>(path: &str, name: &str, ids: impl IntoIterator<Item = T>) -> String {
    let parameters: Vec<_> = ids.into_iter().map(|id| format!("{name}={}", id.to_string())).collect();
    format!("{path}?{}", parameters.join("&"))
}

fn subject<T: ToString + PartialEq + Copy>(
    path: &str,
    name: &str,
    ids: &[T],
    id: T,
    title: String,
    own: String,
) -> Subject {
    let others = ids.iter().copied().filter(|other| *other != id);
    Subject { name: title, address: own, without: address(path, name, others) }
}

/// `GET /market/compare?machine=…&machine=…`.
pub(crate) async fn machines(
    State(app): State<App>,
    viewer: Viewer,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Html<String>, PageError> {
    let ids: Vec<MachineId> = ids(&parameters, "machine");
    let machines: Vec<_> = ids.iter().filter_map(|id| app.machines.machine(*id)).collect();
    let ids: Vec<_> = machines.iter().map(|m| m.listed.machine).collect();
    let subjects = machines.iter().map(|m| {
        let id = m.listed.machine;
        let (title, own) = (m.listed.offer.name.clone(), format!("/machines/{id}"));
        subject("/market/compare", "machine", &ids, id, title, own)
    });
    Ok(render_page(&ComparePage {
        layout: Layout::new("Compare machines", "market", viewer),
        back: ("Market", "/market?view=table"),
        subjects: subjects.collect(),
        rows: machine_rows(&machines),
    })?)
}

fn machine_rows(machines: &[Arc<MachineView>]) -> Vec<Row> {
    let plain = |label: &str, value: &dyn Fn(&MachineView) -> String| {
        Row::plain(label, machines.iter().map(|m| value(m)).collect())
    };
    // Ranks are whole numbers, of which the lowest is the best.
    let ranked = |label: &str, value: &dyn Fn(&MachineView) -> (String, Option<i64>)| {
        Row::ranked(label, machines.iter().map(|m| value(m)).collect())
    };
    let most = |amount: u64| Some(-i64::try_from(amount).unwrap_or(i64::MAX));
    vec![
        plain("State", &|m| m.listed.state().name().to_owned()),
        plain("GPU", &|m| hardware::gpus(&m.listed)),
        ranked("VRAM", &|m| {
            let sum: u64 = m.listed.offer.hardware.gpus.iter().map(|gpu| gpu.memory.0).sum();
            (hardware::vram(&m.listed).unwrap_or_default(), most(sum))
        }),
        ranked("Price", &|m| (m.listed.offer.price.to_string(), Some(m.listed.offer.price.0.0))),
        ranked("Speed per $/h", &|m| match hardware::score(&m.listed) {
            // Thousandths of a TFLOPS per dollar are exact enough for an order.
            #[allow(clippy::cast_possible_truncation)]
            Some(score) => (score.per_dollar_text, Some(-((score.per_dollar * 1_000.0) as i64))),
            None => (String::new(), None),
        }),
        plain("Speed", &|m| hardware::score(&m.listed).map(|score| score.text).unwrap_or_default()),
        plain("CPU", &|m| m.listed.offer.hardware.cpu_model.clone()),
        ranked("Cores", &|m| {
            let cores = m.listed.offer.hardware.cpu_cores;
            (cores.to_string(), most(u64::from(cores)))
        }),
        ranked("RAM", &|m| {
            let memory = m.listed.offer.hardware.memory;
            (format::mebibytes(&memory), most(memory.0))
        }),
        ranked("Disk", &|m| (format::mebibytes(&m.listed.offer.hardware.disk), most(m.listed.offer.hardware.disk.0))),
        plain("Down / up", &|m| hardware::network_text(&m.listed).unwrap_or_default()),
        plain("Region", &|m| m.listed.offer.region.clone()),
        ranked("Reliability", &|m| match m.listed.reliability() {
            Some(record) => (format::reliability(&record), Some(-i64::from(record.0))),
            None => ("no attempt yet".to_owned(), None),
        }),
        plain("Self-test", &|m| hardware::test_result(&m.listed)),
        plain("Jobs at a time", &|m| m.listed.offer.slots.to_string()),
        plain("Internet access", &|m| m.listed.offer.policy.egress.to_string()),
        plain("Owner", &|m| m.listed.offer.policy.description()),
        plain("Images", &|m| m.listed.offer.policy.images()),
    ]
}

/// `POST /jobs/compare`: the selected rows of the list. The form of the list has the secret of the session, which must
/// not be in an address, so the page has an address of its own.
pub(crate) async fn selected_jobs(
    _signed_in: SignedIn,
    Form(fields): Form<Vec<(String, String)>>,
) -> Result<Response, PageError> {
    let ids: Vec<JobId> = ids(&fields, "job");
    Ok(Redirect::to(&address("/jobs/compare", "job", ids)).into_response())
}

/// `GET /jobs/compare?job=…&job=…`.
pub(crate) async fn jobs(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Html<String>, PageError> {
    let ids: Vec<JobId> = ids(&parameters, "job");
    let mut runs = Vec::new();
    for id in &ids {
        let job = app.queries.job(signed_in.actor(), *id, Seq::ZERO).await?;
        let metrics = log::last_metrics(&app, &job).await?;
        let machine = job.attempts.last().and_then(|attempt| app.machines.machine(attempt.machine));
        let machine = machine.map(|m| m.listed.offer.name.clone()).unwrap_or_default();
        let fields = resubmit::fields(&app, &job).into_iter().collect();
        runs.push(Run { job, machine, metrics, fields });
    }
    let subjects = runs.iter().map(|run| {
        let id = run.job.job;
        subject("/jobs/compare", "job", &ids, id, run.job.spec.name.clone(), format!("/jobs/{id}"))
    });
    Ok(render_page(&ComparePage {
        layout: Layout::new("Compare jobs", "jobs", signed_in.viewer),
        back: ("Jobs", "/jobs"),
        subjects: subjects.collect(),
        rows: job_rows(&runs, app.now()),
    })?)
}

/// A job with what is shown of its last attempt.
struct Run {
    job: JobView,
    machine: String,
    /// The last value of each measurement.
    metrics: BTreeMap<String, f64>,
    /// The form fields that submit the job again.
    fields: BTreeMap<String, String>,
}

fn job_rows(runs: &[Run], now: Timestamp) -> Vec<Row> {
    let plain = |label: &str, value: &dyn Fn(&Run) -> String| Row::plain(label, runs.iter().map(value).collect());
    let is_completed = |run: &Run| run.job.state == JobState::Completed;
    let time = |run: &Run| {
        let time = run.job.run_time(now);
        (format::duration(time), is_completed(run).then_some(time.0))
    };
    let cost = |run: &Run| {
        let text = run.job.cost.map_or_else(|| format!("{} set aside", run.job.hold), |cost| cost.to_string());
        (text, run.job.cost.filter(|_| is_completed(run)))
    };
    let mut rows = vec![
        plain("State", &|run| format::job_state(&run.job)),
        Row::ranked("Run time", runs.iter().map(time).collect()),
        Row::ranked("Cost", runs.iter().map(cost).collect()),
        plain("Machine", &|run| run.machine.clone()),
        plain("Attempts", &|run| run.job.attempts.len().to_string()),
        plain("Files", &|run| {
            let bytes: u64 = run.job.outputs.iter().map(|file| file.bytes).sum();
            format!("{}, {}", run.job.outputs.len(), format::bytes(bytes))
        }),
    ];
    rows.extend(union(runs.iter().map(|run| run.metrics.keys().cloned())).into_iter().map(|name| {
        let last = |run: &Run| run.metrics.get(&name).map(ToString::to_string).unwrap_or_default();
        Row::plain(format!("Last {name}"), runs.iter().map(last).collect())
    }));
    rows.extend(union(runs.iter().map(|run| run.fields.keys().cloned())).into_iter().map(|field| {
        let value = |run: &Run| run.fields.get(&field).cloned().unwrap_or_default();
        Row::plain(input::label_of_form_field(&field), runs.iter().map(value).collect())
    }));
    rows
}

/// All names, each once and in order.
fn union(names: impl Iterator<Item = impl Iterator<Item = String>>) -> BTreeSet<String> {
    names.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_value_of_a_row_is_the_lowest_rank_unless_all_are_the_same() {
        let row =
            |ranks: &[Option<i32>]| Row::ranked("x", ranks.iter().map(|rank| (format!("{rank:?}"), *rank)).collect());
        assert_eq!(row(&[Some(2), Some(1), None, Some(1)]).best, [1, 3]);
        assert!(row(&[Some(1), Some(1)]).best.is_empty());
        assert!(row(&[None, None]).best.is_empty());
        assert_eq!(row(&[None, Some(5)]).best, [1]);
        let rounded = Row::ranked("x", [1, 2].map(|rank| ("23 GiB".to_owned(), Some(rank))).into());
        assert!(rounded.best.is_empty() && rounded.is_same(), "the eye sees no difference");
    }

    #[test]
    fn at_most_four_different_ids_are_compared() {
        let of = |texts: &[&str]| -> Vec<u32> {
            ids(&texts.iter().map(|text| ("n".to_owned(), (*text).to_owned())).collect::<Vec<_>>(), "n")
        };
        assert_eq!(of(&["1", "x", "1", "2", "3", "4", "5"]), [1, 2, 3, 4]);
        assert_eq!(address("/p", "n", [1, 2]), "/p?n=1&n=2");
    }
}
