//! A batch: many tasks with one submission and one hold. A batch opens its tasks a few at a time; an open task is a job
//! (`job.rs`). A batch is *closed* when it opens no more tasks, and leaves the state when its open tasks are settled,
//! too.
//!
//! The number of tasks that machines have at the same time is not guarded: while two replicas lead for a moment, it can
//! be exceeded.

use std::collections::BTreeSet;

use gpubnb_events::{
    BatchId, Event, JobId, Seq, Timestamp,
    batch::{ITEM, MAX_AGE, MAX_LIST, MAX_NAME, MAX_PARAMETERS, MAX_TASKS, MAX_VALUE, Task, TaskList},
    command::SubmitBatch,
    event::{BatchClosed, BatchSubmitted, CloseReason, TasksOpened},
    message::{EventId, Proposal},
};
use serde::{Deserialize, Serialize};

use crate::{
    Decision, DomainError,
    daily_bytes::size_of,
    job::{Job, Phase},
    rules::{MAX_ARGUMENT, check_range},
};

/// Most tasks of a batch that machines have at the same time, if the consumer names no other number.
const DEFAULT_RUNNING: u32 = 100;
/// The largest number that the consumer may name.
const MAX_RUNNING: u32 = 1_000;
/// Most tasks of a batch that wait for machines at the same time, so that other jobs need not wait behind all of them.
const MAX_WAITING: u32 = 16;
/// Most batches of one account that are not over, and most bytes of their submissions.
pub(crate) const MAX_OPEN: u32 = 100;
pub(crate) const MAX_OPEN_BYTES: u64 = 4 << 20;

/// The state of one batch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Batch {
    /// The sequence of `BatchSubmitted`.
    pub submission: Seq,
    /// The broker's time of the submission.
    pub submitted_at: Timestamp,
    /// The submission.
    pub submitted: BatchSubmitted,
    /// The bytes of the submission's event.
    pub(crate) bytes: u64,
    /// The same, until a task is paid for. They count for the account until then (`daily_bytes.rs`).
    pub(crate) unpaid_bytes: u64,
    /// The sequence of the last event of the batch, which is the guard of the next event. Zero before the first.
    pub last: Seq,
    /// The number of tasks that are open or were open.
    pub opened: u32,
    /// The number of open tasks that wait for a machine.
    pub waiting: u32,
    /// The number of open tasks that machines have.
    pub running: u32,
    /// The broker's time from which no machine has had a task of this batch.
    pub idle_since: Timestamp,
    /// The number of tasks that failed.
    pub failed: u32,
    /// The number of tasks that are settled.
    pub settled: u32,
    /// The sequence of `BatchClosed`; `None` before.
    pub closed: Option<Seq>,
}

impl Batch {
    pub(crate) fn new(submission: Seq, at: Timestamp, e: &BatchSubmitted) -> Self {
        Self {
            submission,
            submitted_at: at,
            submitted: e.clone(),
            bytes: size_of(e),
            unpaid_bytes: size_of(e),
            last: Seq::ZERO,
            opened: 0,
            waiting: 0,
            running: 0,
            idle_since: at,
            failed: 0,
            settled: 0,
            closed: None,
        }
    }

    fn id(&self) -> BatchId {
        self.submitted.batch
    }

    fn propose(&self, event: impl Into<Event>, id: String) -> Decision {
        let cause = Some(self.last.max(self.submission));
        Decision::Append(Proposal { event: event.into(), id: EventId(id), expected: self.last, cause })
    }

    /// The number of tasks to open now. Tasks are opened when half of those that may wait are gone, so that not every
    /// task needs an event of its own.
    fn tasks_to_open(&self) -> u32 {
        // A task that may not start yet would only wait.
        let most = MAX_WAITING.min(self.submitted.max_running.saturating_sub(self.running));
        let left = self.submitted.tasks.count.saturating_sub(self.opened);
        if self.closed.is_some() || self.waiting > most / 2 { 0 } else { left.min(most - self.waiting) }
    }

    /// Opens the next tasks: at most `room`, the jobs that the account may still have.
    pub(crate) fn open(&self, room: u32) -> Result<Decision, DomainError> {
        let number = self.tasks_to_open().min(room);
        if number == 0 {
            return Err(DomainError::WrongState("The batch opens no task now."));
        }
        let (batch, submission, first) = (self.id(), self.submission, self.opened);
        let event = TasksOpened { batch, submission, first, up_to: first + number };
        Ok(self.propose(event, format!("{batch}.opened.{first}")))
    }

    /// The reason to close the batch now; `None` while it may go on.
    fn reason_to_end(&self, now: Timestamp) -> Option<CloseReason> {
        if self.closed.is_some() {
            None
        } else if self.settled == self.submitted.tasks.count {
            Some(CloseReason::Finished)
        } else if self.failed > self.submitted.max_failures {
            Some(CloseReason::TooManyFailures)
        } else {
            (now.since(self.submitted_at) > MAX_AGE.millis()).then_some(CloseReason::TooOld)
        }
    }

    /// Closes a batch that is finished, that has too many failed tasks, or that is too old.
    pub(crate) fn end(&self, now: Timestamp) -> Result<Decision, DomainError> {
        let reason = self.reason_to_end(now);
        reason.map(|reason| self.close(reason)).ok_or(DomainError::WrongState("The batch goes on."))
    }

    /// Closes the batch for its consumer.
    pub(crate) fn cancel(&self) -> Decision {
        self.closed.map_or_else(|| self.close(CloseReason::Cancelled), Decision::AlreadyDone)
    }

    fn close(&self, reason: CloseReason) -> Decision {
        let (batch, submission, opened, account) = (self.id(), self.submission, self.opened, self.submitted.account);
        let released = self.submitted.hold_of(self.submitted.tasks.count.saturating_sub(opened));
        let event = BatchClosed { batch, submission, reason, opened, account, released };
        self.propose(event, format!("{batch}.closed"))
    }

    /// True if a task may wait longer, although its own limit is over: machines work on the batch, or have done so
    /// within the time that a task may wait.
    pub(crate) fn may_wait(&self, now: Timestamp) -> bool {
        self.running > 0 || now.since(self.idle_since) <= self.submitted.limits.queue.millis()
    }

    /// True if machines have as many tasks as the consumer allowed.
    pub fn is_full(&self) -> bool {
        self.running >= self.submitted.max_running
    }

    /// True if the batch is closed and its last open task is settled.
    pub fn is_over(&self) -> bool {
        self.closed.is_some() && self.settled >= self.opened
    }

    /// The ids of the tasks that are open or were open.
    pub(crate) fn opened_tasks(&self) -> std::ops::RangeInclusive<JobId> {
        let batch = self.id();
        let last = self.opened.checked_sub(1).and_then(|number| batch.task(number));
        batch.as_job()..=last.unwrap_or(batch.as_job())
    }

    /// Folds one of the batch's own events.
    pub(crate) fn apply(&mut self, seq: Seq, event: &Event) {
        self.last = seq;
        match event {
            Event::TasksOpened(e) => {
                self.waiting += e.up_to.saturating_sub(e.first);
                self.opened = e.up_to;
            }
            Event::BatchClosed(_) => self.closed = Some(seq),
            _ => {}
        }
    }

    /// Counts a change of a task. `before` is the task's phase before the event.
    pub(crate) fn count(&mut self, before: Phase, task: &Job, at: Timestamp, event: &Event) {
        if before.is_live() && !task.phase.is_live() && self.running == 1 {
            self.idle_since = at;
        }
        let change = |count: &mut u32, was: bool, is: bool| {
            *count = (*count + u32::from(is)).saturating_sub(u32::from(was));
        };
        change(&mut self.waiting, before == Phase::Queued, task.phase == Phase::Queued);
        change(&mut self.running, before.is_live(), task.phase.is_live());
        change(&mut self.settled, before == Phase::Settled, task.phase == Phase::Settled);
        self.failed += u32::from(matches!(event, Event::Failed(_)));
    }
}

/// The numbers of a submission, with the defaults for the missing ones: the most tasks that run at the same time, and
/// the failed tasks after which no other task starts (a tenth of the tasks, and at least ten).
pub(crate) fn bounds(c: &SubmitBatch) -> (u32, u32) {
    let running = c.max_running.unwrap_or(DEFAULT_RUNNING);
    (running, c.max_failures.unwrap_or_else(|| (c.tasks.count / 10).max(10)).min(c.tasks.count))
}

/// Checks the rules that depend only on the submission. The rules for the job are in `submission.rs`.
pub(crate) fn check(c: &SubmitBatch) -> Result<(), DomainError> {
    if c.job.job != c.batch.as_job() {
        return Err(DomainError::field("batch", "The job of a batch has the id of the batch."));
    }
    check_range("tasks", u64::from(c.tasks.count), 1, u64::from(MAX_TASKS), "tasks")?;
    check_range("max_running", u64::from(bounds(c).0), 1, u64::from(MAX_RUNNING), "tasks")?;
    check_tasks(&c.tasks)?;
    check_commands(c)
}

fn check_tasks(tasks: &TaskList) -> Result<(), DomainError> {
    let refuse = |message: String| Err(DomainError::field("tasks", message));
    let is_name = |name: &String| {
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic());
        starts_well && name.len() <= MAX_NAME && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let mut variables: Vec<String> = tasks.names.iter().map(|name| name.to_ascii_uppercase()).collect();
    variables.sort_unstable();
    variables.dedup();
    let are_names = tasks.names.len() <= MAX_PARAMETERS && tasks.names.iter().all(is_name);
    if !are_names || variables.len() < tasks.names.len() || variables.iter().any(|name| name == "INDEX") {
        return refuse(format!(
            "A task has at most {MAX_PARAMETERS} parameters. Their names have letters, digits and _, at most \
             {MAX_NAME}, and differ in more than capital letters; `index` is taken."
        ));
    }
    let count = tasks.count as usize;
    let (rows, indices) = (if tasks.names.is_empty() { 0 } else { count }, tasks.indices.len());
    if tasks.rows.len() != rows || (indices > 0 && indices != count) {
        return refuse("Each task needs one row of parameters, and one index or none.".to_owned());
    }
    if tasks.indices.iter().collect::<BTreeSet<_>>().len() < indices {
        return refuse("Two tasks have the same index.".to_owned());
    }
    let is_value = |value: &String| value.len() <= MAX_VALUE && !value.chars().any(char::is_control);
    if !tasks.rows.iter().all(|row| row.len() == tasks.names.len() && row.iter().all(is_value)) {
        return refuse(format!(
            "Each task needs one value for each parameter, of at most {MAX_VALUE} bytes and without line breaks."
        ));
    }
    let bytes = size_of(tasks);
    if bytes > MAX_LIST {
        return refuse(format!(
            "The parameters have {} KiB, and may have {} KiB. Put them into a file of a dataset, and let each task \
             read the line of its index.",
            bytes >> 10,
            MAX_LIST >> 10
        ));
    }
    Ok(())
}

/// Checks that no argument of any task becomes too long: with the longest value of each parameter.
fn check_commands(c: &SubmitBatch) -> Result<(), DomainError> {
    let longest = |column: usize| c.tasks.rows.iter().filter_map(|row| row.get(column)).max_by_key(|v| v.len());
    let names = c.tasks.names.iter().enumerate();
    let task = Task {
        batch: c.batch,
        index: u32::MAX,
        tasks: c.tasks.count,
        parameters: names.filter_map(|(column, name)| Some((name.clone(), longest(column)?.clone()))).collect(),
    };
    if c.job.spec.command.iter().any(|argument| task.fill_in(argument).len() > MAX_ARGUMENT) {
        let message = format!("With the parameters, an argument has more than {MAX_ARGUMENT} bytes.");
        return Err(DomainError::field("command", message));
    }
    if c.job.spec.template.is_some() && !c.tasks.names.is_empty() {
        let message = "The program of a template does not read the parameters of tasks: name an image, or use indices.";
        return Err(DomainError::field("tasks", message));
    }
    let has_item = c.tasks.names.iter().any(|name| name == ITEM);
    if !has_item && c.job.spec.command.iter().any(|argument| argument == "{}") {
        let message = "The command has a {}, and the tasks have no items: name a parameter instead, such as {lr}.";
        return Err(DomainError::field("command", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, due, testing::*};
    use gpubnb_events::{
        Actor, MicroUsd, Millis,
        command::Outcome,
        event::{Reason, Settled},
    };

    impl TestMarket {
        fn open(&mut self, batch: BatchId) {
            self.when(Actor::Platform, Command::OpenTasks(batch)).expect_appended();
        }

        /// Runs a task to its end and settles it.
        fn run_task(&mut self, task: JobId, outcome: Outcome) -> Settled {
            let lease = self.assign(task);
            self.accept(task, lease);
            self.start(task, lease);
            let report = self.report_after(task, lease, outcome, Millis(1_000));
            self.advance_time(Millis(1_000));
            self.when(self.as_machine(), report).expect_appended();
            self.when(Actor::Platform, Command::Settle(task)).expect_appended();
            match self.last_event() {
                Event::Settled(e) => e.clone(),
                other => panic!("{other:?}"),
            }
        }
    }

    fn failed() -> Outcome {
        Outcome::Failed { reason: Reason::NonZeroExit { code: 1 }, detail: String::new() }
    }

    #[test]
    fn a_batch_holds_for_all_tasks_and_each_settlement_frees_the_share_of_its_task() {
        let mut market = given();
        let before = market.account(market.consumer).available;
        let batch = market.submit_batch(market.new_batch(3));
        let hold = market.batch(batch).submitted.hold;
        assert_eq!(market.account(market.consumer).held, MicroUsd(hold.0 * 3));
        assert!(market.world.queued().next().is_none(), "no task is a job before it is opened");
        market.open(batch);
        let tasks: Vec<JobId> = market.world.queued().collect();
        assert_eq!(tasks, (0..3).filter_map(|number| batch.task(number)).collect::<Vec<_>>());
        let mut cost = MicroUsd::ZERO;
        for (number, task) in tasks.into_iter().enumerate() {
            let bill = market.run_task(task, Outcome::Completed);
            cost += bill.cost;
            assert_eq!(bill.submission, market.batch(batch).submission);
            assert_eq!(market.account(market.consumer).held, MicroUsd(hold.0 * (2 - i64::try_from(number).unwrap())));
        }
        assert!(cost > MicroUsd::ZERO);
        market.when(Actor::Platform, Command::EndBatch(batch)).expect_appended();
        assert!(market.world.batch(batch).is_none());
        let account = market.account(market.consumer);
        assert_eq!((account.available, account.held, account.open_jobs), (before - cost, MicroUsd::ZERO, 0));
    }

    #[test]
    fn tasks_are_opened_a_few_at_a_time_and_no_more_run_than_the_consumer_allowed() {
        let mut market = given();
        let mut offer = market.offer();
        offer.slots = 8;
        market.list_machine(offer);
        let batch = market.submit_batch(SubmitBatch { max_running: Some(4), ..market.new_batch(40) });
        let open = |market: &mut TestMarket| market.when(Actor::Platform, Command::OpenTasks(batch)).refused();
        assert_eq!(open(&mut market), None);
        assert!(matches!(open(&mut market), Some(DomainError::WrongState(_))));
        let tasks = [0, 1, 2, 3].map(|number| batch.task(number).unwrap());
        market.assign(tasks[0]);
        market.assign(tasks[1]);
        market.assign(tasks[2]);
        assert!(open(&mut market).is_some(), "one may still start, and one waits");
        market.assign(tasks[3]);
        assert!(open(&mut market).is_some(), "no other task may start");
        assert_eq!((market.batch(batch).running, market.batch(batch).opened), (4, 4));
        // A task that waits may wait longer than its own limit while machines work on the batch.
        assert!(market.batch(batch).is_full() && market.batch(batch).may_wait(market.now.plus(MAX_AGE.millis())));
    }

    #[test]
    fn too_many_failures_close_a_batch_and_cancel_its_open_tasks() {
        let mut market = given();
        let batch = market.submit_batch(SubmitBatch { max_failures: Some(0), ..market.new_batch(30) });
        let hold = market.batch(batch).submitted.hold;
        market.open(batch);
        let first = batch.task(0).unwrap();
        assert!(market.when(Actor::Platform, Command::EndBatch(batch)).refused().is_some());
        assert!(market.when(Actor::Platform, Command::Cancel(first)).refused().is_some(), "the batch is not closed");
        let bill = market.run_task(first, failed());
        market.when(Actor::Platform, Command::EndBatch(batch)).expect_appended();
        let Event::BatchClosed(closed) = market.last_event().clone() else { panic!("{:?}", market.last_event()) };
        assert_eq!((closed.reason, closed.opened), (CloseReason::TooManyFailures, 16));
        assert_eq!(closed.released, MicroUsd(hold.0 * 14));
        let rest = due::due_batches(&market.world, market.now, &market.settings);
        assert_eq!(rest.len(), 15);
        for command in rest {
            let Command::Cancel(task) = command else { panic!("{command:?}") };
            market.when(Actor::Platform, command).expect_appended();
            market.when(Actor::Platform, Command::Settle(task)).expect_appended();
        }
        assert!(market.world.batch(batch).is_none());
        assert_eq!(market.account(market.consumer).held, MicroUsd::ZERO);
        assert_eq!(market.account(market.provider).available, bill.earned);
    }

    #[test]
    fn only_the_consumer_cancels_a_batch_and_a_machine_is_asked_to_stop_its_task() {
        let mut market = given();
        let batch = market.submit_batch(market.new_batch(5));
        market.open(batch);
        let first = batch.task(0).unwrap();
        let lease = market.assign(first);
        market.accept(first, lease);
        market.start(first, lease);
        let refusal = market.when(market.as_provider(), Command::CancelBatch(batch)).expect_refused();
        assert_eq!(refusal, DomainError::UnknownBatch);
        let closed = market.when(market.as_consumer(), Command::CancelBatch(batch)).expect_appended();
        assert_eq!(market.when(market.as_consumer(), Command::CancelBatch(batch)).expect_already_done(), closed);
        for command in due::due_batches(&market.world, market.now, &market.settings) {
            market.when(Actor::Platform, command).expect_appended();
        }
        assert!(market.job(first).cancel.is_some());
        assert_eq!(market.world.ended().count(), 4);
        assert!(due::due_batches(&market.world, market.now, &market.settings).is_empty());
    }

    #[test]
    fn a_repeated_batch_is_one_batch_and_the_ids_of_its_tasks_are_taken() {
        let mut market = given();
        let submit = market.new_batch(2);
        let first = market.when(market.as_consumer(), Command::SubmitBatch(market.consumer, submit.clone()));
        let seq = first.expect_appended();
        let again = Command::SubmitBatch(market.consumer, submit.clone());
        assert_eq!(market.when(market.as_consumer(), again).expect_already_done(), seq);
        let mut other = submit.clone();
        other.max_failures = Some(1);
        let refusal = market.when(market.as_consumer(), Command::SubmitBatch(market.consumer, other)).expect_refused();
        assert_eq!(refusal, DomainError::IdReused("batch"));
        let mut job = market.new_submission();
        job.job = submit.batch.task(9_999).unwrap();
        let refusal = market.when(market.as_consumer(), Command::Submit(market.consumer, job)).expect_refused();
        assert_eq!(refusal, DomainError::IdReused("job"));
        // The other way round: a job has an id that a task of the batch would get.
        let mut job = market.new_submission();
        let batch = BatchId::beginning_like(job.job);
        job.job = batch.task(3).unwrap();
        market.submit(job);
        let mut late = market.new_batch(2);
        (late.batch, late.job.job) = (batch, batch.as_job());
        let refusal = market.when(market.as_consumer(), Command::SubmitBatch(market.consumer, late)).expect_refused();
        assert_eq!(refusal, DomainError::IdReused("batch"));
    }

    #[test]
    fn each_broken_rule_of_a_batch_names_its_field_and_nothing_is_held() {
        type Change = fn(&mut SubmitBatch);
        let rows = |values: &[&str]| values.iter().map(|value| vec![(*value).to_owned()]).collect::<Vec<_>>();
        let mut market = given();
        let cases: [(&str, Change); 12] = [
            ("tasks", |s| s.tasks.count = 0),
            ("tasks", |s| s.tasks.count = 1_000_000),
            ("tasks", |s| s.tasks.names = vec!["1x".to_owned()]),
            ("tasks", |s| s.tasks.names = vec!["a".to_owned(), "A".to_owned()]),
            ("tasks", |s| s.tasks.names = vec!["index".to_owned()]),
            ("tasks", |s| s.tasks.rows.truncate(1)),
            ("tasks", |s| s.tasks.rows[0] = vec!["a\nb".to_owned()]),
            ("tasks", |s| s.tasks.indices = vec![1]),
            ("max_running", |s| s.max_running = Some(0)),
            ("command", |s| s.job.spec.command = vec!["{x}".repeat(4_000)]),
            ("command", |s| s.job.spec.command = vec!["{}".to_owned()]),
            ("batch", |s| s.job.job = JobId::generate()),
        ];
        for (field, change) in cases {
            let mut submit = market.new_batch(2);
            (submit.tasks.names, submit.tasks.rows) = (vec!["x".to_owned()], rows(&["a", "bb"]));
            submit.job.spec = gpubnb_events::spec::JobSpec {
                template: None,
                image: format!("ghcr.io/a/b@sha256:{}", "0".repeat(64)),
                ..submit.job.spec
            };
            change(&mut submit);
            let command = Command::SubmitBatch(market.consumer, submit);
            let refusal = market.when(market.as_consumer(), command).expect_refused();
            assert!(
                matches!(&refusal, DomainError::InvalidField { field: named, .. } if *named == field),
                "{field}: {refusal:?}"
            );
        }
        let poor = SubmitBatch { max_running: None, ..market.new_batch(10_000) };
        let command = Command::SubmitBatch(market.consumer, poor);
        let refusal = market.when(market.as_consumer(), command).expect_refused();
        assert!(matches!(refusal, DomainError::InsufficientFunds { .. }), "{refusal:?}");
        assert_eq!(market.account(market.consumer).held, MicroUsd::ZERO);
    }
}
