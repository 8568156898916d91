//! The typical time and cost of a template's jobs: the medians of the newest completed runs.

use std::collections::VecDeque;

use gpubnb_events::{Event, JobId, MicroUsd, Millis, Recorded};
use gpubnb_query::view::TypicalRun;
use gpubnb_store::{StoreError, Table, WriteBatch};
use serde::{Deserialize, Serialize};

use super::{Projection, job_key, key};

/// Rows: `j<job>` → [`OpenRun`], until the job is settled or the batch with these bytes as its id is closed;
/// `t<template>` → [`NewestRuns`].
pub struct TemplateRuns;

/// The number of runs that the medians are of: enough to be steady, and few enough to follow a new price.
const MAX_RUNS: usize = 25;

/// A job that is not settled.
#[derive(Clone, Default, Serialize, Deserialize)]
struct OpenRun {
    /// `None` for a custom image. Such a job has a row, too: only the first submission with an id counts.
    template: Option<String>,
    is_completed: bool,
}

/// The newest completed runs of a template, oldest first.
#[derive(Clone, Default, Serialize, Deserialize)]
struct NewestRuns {
    /// The billed time and the cost of each run.
    runs: VecDeque<(Millis, MicroUsd)>,
    /// All completed runs, also those before the newest.
    total: u64,
}

impl NewestRuns {
    fn push(&mut self, billed: Millis, cost: MicroUsd) {
        self.runs.push_back((billed, cost));
        if self.runs.len() > MAX_RUNS {
            self.runs.pop_front();
        }
        self.total += 1;
    }

    fn typical(&self, template: String) -> TypicalRun {
        let time = median(self.runs.iter().map(|(time, _)| *time));
        let cost = median(self.runs.iter().map(|(_, cost)| *cost));
        TypicalRun { template, runs: self.total, time, cost }
    }
}

/// The lower median: one of the values, never a mean of two.
fn median<T: Ord + Copy + Default>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

fn template_key(template: &str) -> Vec<u8> {
    key(b't', &[template.as_bytes()])
}

/// The typical runs of all templates that had a completed run, in alphabetical order of the templates' ids.
pub fn typical_runs(table: &Table) -> Result<Vec<TypicalRun>, StoreError> {
    let mut found = Vec::new();
    for key in table.scan_prefix(b"t").keys() {
        let key = key?;
        let template = String::from_utf8_lossy(key.get(1..).unwrap_or_default()).into_owned();
        found.extend(gpubnb_store::get::<NewestRuns>(table, &key)?.map(|runs| runs.typical(template)));
    }
    Ok(found)
}

impl Projection for TemplateRuns {
    fn name(&self) -> &'static str {
        "template_runs"
    }

    fn version(&self) -> u32 {
        2
    }

    fn apply(&self, rows: &mut WriteBatch<'_>, _: &Recorded, event: &Event) -> Result<(), StoreError> {
        let open_key = |job: JobId| job_key(b'j', job);
        match event {
            Event::JobSubmitted(e) => {
                // Only the first submission with a job's id counts (docs/adr/0003).
                if rows.get::<OpenRun>(&open_key(e.job))?.is_none() {
                    rows.put(&open_key(e.job), OpenRun { template: e.spec.template.clone(), is_completed: false });
                }
                Ok(())
            }
            Event::BatchSubmitted(e) => {
                let run = OpenRun { template: e.spec.template.clone(), is_completed: false };
                if rows.get::<OpenRun>(&open_key(e.batch.as_job()))?.is_none() {
                    rows.put(&open_key(e.batch.as_job()), run);
                }
                Ok(())
            }
            Event::TasksOpened(e) => {
                let Some(run) = rows.get::<OpenRun>(&open_key(e.batch.as_job()))? else { return Ok(()) };
                e.tasks().for_each(|(_, job)| rows.put(&open_key(job), run.clone()));
                Ok(())
            }
            Event::BatchClosed(e) => {
                rows.remove(&open_key(e.batch.as_job()));
                Ok(())
            }
            Event::Completed(e) => rows.update::<OpenRun>(&open_key(e.job), |run| run.is_completed = true),
            Event::Settled(e) => {
                let Some(run) = rows.get::<OpenRun>(&open_key(e.job))? else { return Ok(()) };
                rows.remove(&open_key(e.job));
                match (&e.metering, &run.template) {
                    (Some(metering), Some(template)) if run.is_completed => {
                        rows.upsert::<NewestRuns>(&template_key(template), |r| r.push(metering.billed, e.cost))
                    }
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{BILLED, COST, History, account, job, machine};

    fn typical(history: &History) -> Vec<TypicalRun> {
        typical_runs(&history.fold(&TemplateRuns)).unwrap()
    }

    /// A completed job of a template, with a time and a cost.
    fn run(history: &mut History, number: u16, template: Option<&str>, seconds: u64) {
        history.submitted_with(account(1), job(number), |e| e.spec.template = template.map(str::to_owned));
        let lease = history.assigned(job(number), machine(1));
        history.completed(job(number), lease);
        history.settled_with(job(number), account(1), Some((account(2), lease)), |e| {
            if let Some(metering) = &mut e.metering {
                metering.billed = Millis(seconds * 1_000);
            }
            e.cost = MicroUsd(i64::try_from(seconds).unwrap());
        });
    }

    #[test]
    fn a_template_has_the_medians_of_its_completed_runs() {
        let mut history = History::default();
        for (number, seconds) in [(1, 30), (2, 10), (3, 900)] {
            run(&mut history, number, Some("render"), seconds);
        }
        run(&mut history, 4, Some("count"), 5);
        run(&mut history, 5, None, 7);
        let expected = |template: &str, runs, seconds: u32| TypicalRun {
            template: template.to_owned(),
            runs,
            time: Millis(u64::from(seconds) * 1_000),
            cost: MicroUsd(i64::from(seconds)),
        };
        assert_eq!(typical(&history), [expected("count", 1, 5), expected("render", 3, 30)]);
    }

    #[test]
    fn a_lost_submission_with_the_same_id_gives_a_job_no_template() {
        let mut history = History::default();
        history.submitted_with(account(1), job(1), |e| e.spec.template = None);
        history.submitted_with(account(3), job(1), |e| e.spec.template = Some("render".to_owned()));
        let lease = history.assigned(job(1), machine(1));
        history.completed(job(1), lease);
        history.settled(job(1), account(1), Some((account(2), lease)));
        assert_eq!(typical(&history), []);
    }

    #[test]
    fn only_the_newest_runs_count() {
        let mut history = History::default();
        for number in 0..25 {
            run(&mut history, number, Some("render"), 100);
        }
        for number in 25..50 {
            run(&mut history, number, Some("render"), 20);
        }
        assert_eq!(typical(&history)[0].runs, 50);
        assert_eq!(typical(&history)[0].time, Millis(20_000));
    }

    #[test]
    fn a_run_that_failed_or_was_cancelled_is_not_typical() {
        let mut history = History::default();
        history.submitted_with(account(1), job(1), |e| e.spec.template = Some("render".to_owned()));
        let lease = history.assigned(job(1), machine(1));
        history.cancelled(job(1), Some(lease));
        history.settled(job(1), account(1), Some((account(2), lease)));
        assert_eq!(typical(&history), []);
        let mut history = History::default();
        history.submitted_with(account(1), job(1), |e| e.spec.template = Some("render".to_owned()));
        let lease = history.assigned(job(1), machine(1));
        history.completed(job(1), lease);
        history.settled(job(1), account(1), Some((account(2), lease)));
        let [only] = typical(&history).try_into().unwrap();
        assert_eq!((only.time, only.cost), (BILLED, COST));
    }
}
