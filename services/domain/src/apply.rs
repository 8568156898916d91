//! The fold: how events change the state.

use gpubnb_events::{Aggregate, Event, JobId, Recorded, Seq, Timestamp, event::JobSubmitted, ledger, record};

use crate::{
    Settings, World,
    job::{Job, Phase},
    machine::Machine,
};

impl World {
    /// Folds the next message. A quarantined message changes nothing but the guard of its aggregate.
    pub fn apply(&mut self, recorded: &Recorded, settings: &Settings) {
        debug_assert!(recorded.seq > self.applied);
        if let Some(event) = recorded.event() {
            self.apply_event(recorded.seq, recorded.at, event, settings);
        } else if let Some(aggregate) = recorded.aggregate {
            self.strays.insert(aggregate, recorded.seq);
            if let Aggregate::Job(id) = aggregate
                && let Some(job) = self.jobs.get_mut(&id)
            {
                job.guard = recorded.seq;
            }
        }
        self.applied = recorded.seq;
    }

    fn apply_event(&mut self, seq: Seq, at: Timestamp, event: &Event, settings: &Settings) {
        for posting in ledger::postings(event) {
            if let ledger::LedgerAccount::Available(id) | ledger::LedgerAccount::Held(id) = posting.account {
                self.accounts.entry(id).or_default().post(&posting);
            }
        }
        match event.aggregate() {
            Aggregate::Account(id) => {
                self.accounts.entry(id).or_default().apply(seq, event);
                if let Event::JobSubmitted(e) = event {
                    self.submitted(seq, at, e);
                }
            }
            Aggregate::Machine(_) => Machine::apply(&mut self.machines, seq, event),
            Aggregate::Job(id) => self.job_event(id, seq, at, event, settings),
        }
    }

    fn submitted(&mut self, seq: Seq, at: Timestamp, e: &JobSubmitted) {
        // If two accounts submit the same id at the same time, the first submission makes the job. The second one only
        // holds money of its account. See docs/adr/0003.
        if self.submissions.get(e.job).is_none() {
            let mut job = Job::submitted(seq, at, e);
            job.guard = self.stray(Aggregate::Job(e.job));
            self.jobs.insert(e.job, job);
            self.queued.insert((seq, e.job));
        }
        self.submissions.apply(seq, at, e);
    }

    fn job_event(&mut self, id: JobId, seq: Seq, at: Timestamp, event: &Event, settings: &Settings) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let before = job.attempt.as_ref().map(|a| a.machine);
        job.apply(seq, at, event, settings);
        let holder = job.attempt.as_ref().filter(|_| job.phase.is_live()).map(|a| (a.machine, a.lease));
        if let Some(machine) = before.and_then(|m| self.machines.get_mut(&m)) {
            machine.leases.remove(&id);
            if let Some(mark) = record::mark(event) {
                machine.record.count(mark);
            }
        }
        if let Some((machine, lease)) = holder
            && let Some(machine) = self.machines.get_mut(&machine)
        {
            machine.leases.insert(id, lease);
        }
        let place = (job.submission, id);
        if job.phase == Phase::Queued {
            self.queued.insert(place)
        } else {
            self.queued.remove(&place)
        };
        if job.phase == Phase::Ended {
            self.ended.insert(id)
        } else {
            self.ended.remove(&id)
        };
        if job.phase == Phase::Settled {
            self.jobs.remove(&id);
        }
    }
}

/// Rebuilds a job that has left memory from its submission and its own messages.
pub fn rebuild(submission: &Recorded, own: &[Recorded], settings: &Settings) -> Option<Job> {
    let Some(Event::JobSubmitted(e)) = submission.event() else { return None };
    let mut job = Job::submitted(submission.seq, submission.at, e);
    for recorded in own {
        if let Some(event) = recorded.event() {
            job.apply(recorded.seq, recorded.at, event, settings);
        }
        job.guard = recorded.seq;
    }
    Some(job)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gpubnb_events::{
        CommandId, MicroUsd, Millis,
        command::{Outcome, RequestPayout},
        event::Reason,
    };
    use serde_json::Value;

    use super::*;
    use crate::testing::given;
    use crate::{Command, state::VERSION};

    /// Every place in a text, without ids and indices.
    fn places(value: &Value, at: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| {
                let name = if key.starts_with(|c: char| c.is_ascii_digit()) { "*" } else { key };
                places(value, &format!("{at}.{name}"), found);
            }),
            Value::Array(all) => all.iter().for_each(|value| places(value, &format!("{at}[]"), found)),
            _ => drop(found.insert(at.to_owned())),
        }
    }

    #[test]
    fn a_world_that_is_kept_is_the_same_and_its_form_is_of_its_version() {
        let mut w = given();
        let first = w.machine;
        let payout = RequestPayout { payout: CommandId::generate(), amount: MicroUsd(1) };
        w.when(w.as_consumer(), Command::RequestPayout(w.consumer, payout)).appended();
        // Three jobs: the first failed on one machine and is being cancelled on another, the second ended, the third
        // waits.
        let job = w.submitted();
        let lease = w.assigned(job);
        w.accepted(job, lease);
        w.started(job, lease);
        let failed = Outcome::Failed { reason: Reason::GpuLost, detail: String::new() };
        w.when(w.as_machine(), w.report(job, lease, failed)).appended();
        w.machine = w.listed(w.offer());
        let lease = w.assigned(job);
        w.accepted(job, lease);
        w.started(job, lease);
        w.when(w.as_consumer(), Command::Cancel(job)).appended();
        let ended = w.submitted();
        w.machine = first;
        let lease = w.assigned(ended);
        w.accepted(ended, lease);
        w.started(ended, lease);
        w.exited(ended, lease, Millis(5));
        w.completed(ended, lease, Millis(5));
        w.submitted();
        w.world.strays.insert(Aggregate::Account(w.consumer), Seq(1));

        let text = serde_json::to_value(&w.world).unwrap();
        let again: World = serde_json::from_value(text.clone()).unwrap();
        assert_eq!(serde_json::to_value(&again).unwrap(), text);
        let mut found = BTreeSet::new();
        places(&text, "world", &mut found);
        let form: Vec<String> =
            std::iter::once(format!("version {VERSION}")).chain(found).map(|line| line + "\n").collect();
        assert_eq!(
            form.concat(),
            include_str!("world.form"),
            "what is kept of a world has another form: raise VERSION, and write the form anew"
        );
    }
}
