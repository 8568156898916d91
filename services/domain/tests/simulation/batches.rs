//! The checker's facts about batches, and the checks of their events.

use gpubnb_events::{
    AccountId, Actor, BatchId, Event, JobId, Seq,
    event::{BatchClosed, BatchSubmitted, CloseReason, JobSubmitted, TasksOpened},
};

use super::{
    checker::{Checker, Entry, Verdict, Violation, ensure},
    facts::JobFacts,
};

/// The checker's facts about a batch.
#[derive(Debug)]
pub(crate) struct BatchFacts {
    submission: Seq,
    pub(crate) submitted: BatchSubmitted,
    opened: u32,
    pub(crate) failed: u32,
    pub(crate) closed: bool,
}

impl Checker {
    /// True if the id is that of a task of a batch.
    pub(crate) fn is_in_batch(&self, job: JobId) -> bool {
        BatchId::of_task(job).is_some_and(|(batch, _)| self.batches.contains_key(&batch))
    }

    pub(crate) fn is_suspended(&self, account: AccountId) -> bool {
        self.accounts.get(&account).is_some_and(|account| account.suspended)
    }

    pub(crate) fn check_batch(&mut self, entry: &Entry<'_>) -> Verdict {
        match entry.event {
            Event::BatchSubmitted(e) => self.check_batch_submission(entry, e),
            Event::TasksOpened(e) => self.check_opened(entry, e),
            Event::BatchClosed(e) => self.check_closed(entry, e),
            _ => Err(Violation("not an event of a batch".to_owned())),
        }
    }

    fn check_batch_submission(&mut self, entry: &Entry<'_>, e: &BatchSubmitted) -> Verdict {
        ensure(entry.envelope.actor == Actor::Account(e.account), || "submitted by another".to_owned())?;
        let account =
            self.accounts.get_mut(&e.account).ok_or_else(|| Violation("the account is not open".to_owned()))?;
        ensure(!account.suspended, || "the account is suspended".to_owned())?;
        ensure(account.jobs.insert(e.batch.as_job()), || "submitted twice by one account".to_owned())?;
        let hold = e.hold.0 * i64::from(e.tasks.count);
        ensure(hold >= 0 && e.limits.budget == e.hold, || "the hold is not the budget".to_owned())?;
        account.open_holds += i128::from(hold);
        if self.batches.contains_key(&e.batch) || self.jobs.range(e.batch.range()).next().is_some() {
            self.stranded.insert(entry.seq, (e.account, hold));
        } else {
            let (submission, submitted) = (entry.seq, e.clone());
            self.batches.insert(e.batch, BatchFacts { submission, submitted, opened: 0, failed: 0, closed: false });
        }
        Ok(())
    }

    fn check_opened(&mut self, entry: &Entry<'_>, e: &TasksOpened) -> Verdict {
        ensure(entry.envelope.actor == Actor::Platform, || "only the platform may open tasks".to_owned())?;
        let batch = self.batches.get_mut(&e.batch).ok_or_else(|| Violation("never submitted".to_owned()))?;
        ensure(!batch.closed, || "the batch is closed".to_owned())?;
        ensure(e.submission == batch.submission, || "the event names another submission".to_owned())?;
        ensure(e.first == batch.opened && e.first < e.up_to, || "a task is opened twice or never".to_owned())?;
        ensure(e.up_to <= batch.submitted.tasks.count, || "there is no such task".to_owned())?;
        batch.opened = e.up_to;
        for (number, job) in e.tasks() {
            let submitted = &batch.submitted;
            let spec = submitted.task_spec(number).ok_or_else(|| Violation("there is no such task".to_owned()))?;
            let (placement, limits, hold) = (submitted.placement.clone(), submitted.limits.clone(), submitted.hold);
            let task = JobSubmitted { account: submitted.account, job, spec, placement, limits, hold };
            let is_new = self.jobs.insert(job, JobFacts::new(batch.submission, entry.at, &task)).is_none();
            ensure(is_new, || format!("task {job} is a job already"))?;
        }
        Ok(())
    }

    fn check_closed(&mut self, entry: &Entry<'_>, e: &BatchClosed) -> Verdict {
        let actor = entry.envelope.actor;
        let batch = self.batches.get_mut(&e.batch).ok_or_else(|| Violation("never submitted".to_owned()))?;
        ensure(!batch.closed, || "closed twice".to_owned())?;
        let account = batch.submitted.account;
        let is_allowed = match e.reason {
            CloseReason::Cancelled => matches!(actor, Actor::Operator(_)) || actor == Actor::Account(account),
            _ => actor == Actor::Platform,
        };
        ensure(is_allowed, || format!("{actor} was not allowed"))?;
        let (count, opened) = (batch.submitted.tasks.count, batch.opened);
        let tasks = || self.jobs.range(e.batch.range());
        let is_right = match e.reason {
            CloseReason::Finished => opened == count && tasks().all(|(_, task)| task.settled.is_some()),
            CloseReason::TooManyFailures => batch.failed > batch.submitted.max_failures,
            CloseReason::Cancelled | CloseReason::TooOld => true,
        };
        ensure(is_right, || format!("the reason {:?} is wrong", e.reason))?;
        let released = batch.submitted.hold.0 * i64::from(count - opened);
        ensure((e.opened, e.released.0, e.account) == (opened, released, account), || "a wrong release".to_owned())?;
        batch.closed = true;
        self.jobs.range_mut(e.batch.range()).for_each(|(_, task)| task.batch_is_closed = true);
        self.accounts.entry(account).or_default().open_holds -= i128::from(released);
        Ok(())
    }
}
