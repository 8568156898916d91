//! The fold: each event of the log changes the state. Every replica folds the same log and gets the same state.

use gpubnb_events::{
    Aggregate, BatchId, Event, JobId, MicroUsd, Recorded, Seq, Timestamp,
    event::{BatchSubmitted, JobSubmitted},
    ledger, record,
};

use crate::{
    Settings, World,
    batch::Batch,
    daily_bytes,
    job::{Job, Phase},
    machine::Machine,
    state::LostSubmission,
};

impl World {
    /// Folds the next message of the log. A message that is not a valid event (a stray) changes only the guard of its
    /// aggregate.
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
                self.accounts.entry(id).or_default().apply_posting(&posting);
            }
        }
        match event.aggregate() {
            Aggregate::Account(id) => {
                let account = self.accounts.entry(id).or_default();
                account.apply(seq, event);
                if matches!(event, Event::JobSubmitted(_) | Event::BatchSubmitted(_) | Event::FundsDeposited(_)) {
                    account.daily_bytes.add(at, daily_bytes::size_of(event));
                }
                match event {
                    Event::JobSubmitted(e) => self.apply_submission(seq, at, e),
                    Event::BatchSubmitted(e) => self.apply_batch_submission(seq, at, e),
                    Event::HoldReleased(e) => drop(self.lost_submissions.remove(&e.submission)),
                    _ => {}
                }
            }
            Aggregate::Machine(_) => Machine::apply(&mut self.machines, seq, at, event),
            Aggregate::Job(id) => self.apply_job_event(id, seq, at, event, settings),
            Aggregate::Batch(id) => self.apply_batch_event(id, seq, at, event),
        }
    }

    fn apply_submission(&mut self, seq: Seq, at: Timestamp, e: &JobSubmitted) {
        // If two accounts submit the same id at the same time, the first submission makes the job. The second
        // submission only holds money of its account, until the settlement releases the hold. See docs/adr/0003.
        if self.submissions.is_taken(e.job) {
            let lost = LostSubmission { account: e.account, job: e.job, hold: e.hold };
            self.lost_submissions.insert(seq, lost);
            return;
        }
        let mut job = Job::from_submission(seq, at, e);
        job.guard = self.last_stray(Aggregate::Job(e.job));
        self.jobs.insert(e.job, job);
        self.accounts.entry(e.account).or_default().open_jobs += 1;
        self.queue.insert(e.account, (seq, e.job));
        self.submissions.add(seq, at, e);
    }

    fn apply_batch_submission(&mut self, seq: Seq, at: Timestamp, e: &BatchSubmitted) {
        if self.submissions.is_any_taken(e.batch.range()) {
            let (account, job, hold) = (e.account, e.batch.as_job(), e.hold_of(e.tasks.count));
            self.lost_submissions.insert(seq, LostSubmission { account, job, hold });
            return;
        }
        let mut batch = Batch::new(seq, at, e);
        batch.last = self.last_stray(Aggregate::Batch(e.batch));
        let account = self.accounts.entry(e.account).or_default();
        account.open_batches += 1;
        account.open_batch_bytes = account.open_batch_bytes.saturating_add(batch.bytes);
        self.batches.insert(e.batch, batch);
        self.submissions.add_batch(seq, at, e);
    }

    fn apply_batch_event(&mut self, id: BatchId, seq: Seq, at: Timestamp, event: &Event) {
        let Some(batch) = self.batches.get_mut(&id) else { return };
        batch.apply(seq, event);
        if let Event::TasksOpened(e) = event {
            let submitted = &batch.submitted;
            let tasks: Vec<Job> = e
                .tasks()
                .filter_map(|(number, _)| Job::of_task((seq, at), batch.submission, submitted, number))
                .collect();
            let account = self.accounts.entry(submitted.account).or_default();
            for mut task in tasks {
                account.open_jobs += 1;
                account.daily_bytes.add(at, task.unpaid_bytes);
                task.guard = self.strays.get(&Aggregate::Job(task.id)).copied().unwrap_or_default();
                self.queue.insert(task.account, (seq, task.id));
                self.jobs.insert(task.id, task);
            }
        }
        self.remove_batch_if_over(id);
    }

    fn remove_batch_if_over(&mut self, id: BatchId) {
        if let Some(batch) = self.batches.get(&id).filter(|batch| batch.is_over()) {
            let account = self.accounts.entry(batch.submitted.account).or_default();
            account.open_batches = account.open_batches.saturating_sub(1);
            account.open_batch_bytes = account.open_batch_bytes.saturating_sub(batch.bytes);
            self.batches.remove(&id);
        }
    }

    fn apply_job_event(&mut self, id: JobId, seq: Seq, at: Timestamp, event: &Event, settings: &Settings) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let (previous_machine, before) = (job.attempt.as_ref().map(|a| a.machine), job.phase);
        let price_before = job.running_price();
        let batch = job.spec.task.as_ref().map(|task| task.batch);
        job.apply(seq, at, event, settings);
        if let Event::Settled(bill) = event
            && bill.cost > MicroUsd::ZERO
            && let Some(account) = self.accounts.get_mut(&job.account)
        {
            account.daily_bytes.take_back(job.submitted_at, std::mem::take(&mut job.unpaid_bytes));
            if let Some(batch) = batch.and_then(|batch| self.batches.get_mut(&batch)) {
                account.daily_bytes.take_back(batch.submitted_at, std::mem::take(&mut batch.unpaid_bytes));
            }
        }
        if let Some(batch) = batch.and_then(|batch| self.batches.get_mut(&batch)) {
            batch.count(before, job, at, event);
        }
        if let Some(account) = self.accounts.get_mut(&job.account) {
            account.running.change(price_before, job.running_price());
        }
        let live_lease = job.attempt.as_ref().filter(|_| job.phase.is_live()).map(|a| (a.machine, a.lease));
        if let Some(machine) = previous_machine.and_then(|m| self.machines.get_mut(&m)) {
            machine.leases.remove(&id);
            if let Some(result) = record::attempt_result(event) {
                machine.record.count(result);
            }
        }
        if let Some((machine, lease)) = live_lease
            && let Some(machine) = self.machines.get_mut(&machine)
        {
            machine.leases.insert(id, lease);
        }
        let queue_entry = (job.opened, id);
        if job.phase == Phase::Queued {
            self.queue.insert(job.account, queue_entry);
        } else {
            self.queue.remove(job.account, queue_entry);
        }
        if job.phase == Phase::Ended {
            self.ended.insert(id)
        } else {
            self.ended.remove(&id)
        };
        if job.phase == Phase::Settled {
            if let Some(account) = self.accounts.get_mut(&job.account) {
                account.open_jobs = account.open_jobs.saturating_sub(1);
            }
            self.jobs.remove(&id);
        }
        if let Some(batch) = batch {
            self.remove_batch_if_over(batch);
        }
    }
}

/// Rebuilds a job that is settled, and so no longer part of [`World`], from its submission, or its batch's submission,
/// and its own messages.
pub fn rebuild_job(id: JobId, submission: &Recorded, messages: &[Recorded], settings: &Settings) -> Option<Job> {
    let (seq, at) = (submission.seq, submission.at);
    let mut job = match submission.event()? {
        Event::JobSubmitted(e) => Job::from_submission(seq, at, e),
        Event::BatchSubmitted(e) => Job::of_task((seq, at), seq, e, BatchId::of_task(id)?.1)?,
        _ => return None,
    };
    for recorded in messages {
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
        Actor, CommandId, MicroUsd, Millis,
        command::{Outcome, RequestPayout},
        event::Reason,
        spec::Egress,
    };
    use serde_json::Value;

    use super::*;
    use crate::testing::given;
    use crate::{Command, state::VERSION};

    /// Collects the path of every value in a JSON document, with `*` for ids and `[]` for indices. For example
    /// `world.jobs.*.attempt.lease`.
    fn collect_paths(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| {
                let name = if key.starts_with(|c: char| c.is_ascii_digit()) { "*" } else { key };
                collect_paths(value, &format!("{path}.{name}"), found);
            }),
            Value::Array(all) => all.iter().for_each(|value| collect_paths(value, &format!("{path}[]"), found)),
            _ => drop(found.insert(path.to_owned())),
        }
    }

    #[test]
    fn a_snapshot_restores_the_same_world_and_new_fields_need_a_new_version() {
        let mut market = given();
        let first = market.machine;
        let payout = RequestPayout { payout: CommandId::generate(), amount: MicroUsd(1) };
        market.when(market.as_consumer(), Command::RequestPayout(market.consumer, payout)).expect_appended();
        // The first of three jobs fails on one machine, and is then cancelled while another machine runs it. The second
        // job ends. The third job waits.
        let (job, lease) = market.start_default();
        let failed = Outcome::Failed { reason: Reason::GpuLost, detail: String::new() };
        market.when(market.as_machine(), market.report(job, lease, failed)).expect_appended();
        market.machine = market.list_machine(market.offer());
        let lease = market.assign(job);
        market.accept(job, lease);
        market.start(job, lease);
        market.when(market.as_consumer(), Command::Cancel(job)).expect_appended();
        let ended = market.submit_default();
        market.machine = first;
        let lease = market.assign(ended);
        market.accept(ended, lease);
        market.start(ended, lease);
        market.exit(ended, lease, Millis(5));
        market.complete(ended, lease, Millis(5));
        let mut submission = market.new_submission();
        submission.spec.egress = Egress::any();
        market.submit(submission);
        let batch = market.submit_batch(market.new_batch(2));
        market.when(Actor::Platform, Command::OpenTasks(batch)).expect_appended();
        market.world.strays.insert(Aggregate::Account(market.consumer), Seq(1));

        let json = serde_json::to_value(&market.world).unwrap();
        let restored: World = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(&restored).unwrap(), json);
        let mut found = BTreeSet::new();
        collect_paths(&json, "world", &mut found);
        let fields: Vec<String> =
            std::iter::once(format!("version {VERSION}")).chain(found).map(|line| line + "\n").collect();
        assert_eq!(
            fields.concat(),
            include_str!("world.form"),
            "the fields of World changed: raise VERSION, and update world.form"
        );
    }
}
