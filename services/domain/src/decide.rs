//! Decisions: a state and a command give one event, or an error.
//!
//! This file calls the rule of each command. The rules themselves are in the file of their aggregate, such as `job.rs`.

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, Actor, Aggregate, BatchId, MachineId, MicroUsd, Seq, Timestamp,
    command::{BatchQuote, ChangeMachine, CloseAccount, MachineChange, Quote, SubmitBatch, SubmitJob},
    event::{AccountOpened, HoldReleased},
    message::{EventId, Proposal},
    spec::Terms,
};

use crate::{
    Command, Decision, DomainError, Settings, World,
    account::Account,
    authorise::authorise,
    batch::{self, Batch},
    daily_bytes::{MAX_OF_ACCOUNT, MAX_OF_MACHINE, RESERVE_OF_MACHINE},
    hold,
    job::{Job, Phase},
    machine::{Availability, Machine, Presence},
    metering, placement,
    state::LostSubmission,
    submission,
};

impl World {
    /// Decides a command. `absent` is the command's job, loaded from the log, if this state does not have the job any
    /// more: jobs leave the state when they are settled.
    pub fn decide(
        &self,
        actor: Actor,
        command: &Command,
        absent: Option<&Job>,
        now: Timestamp,
        settings: &Settings,
    ) -> Result<Decision, DomainError> {
        let job = command.job().and_then(|id| self.job(id)).or(absent);
        authorise(self, job, actor, command, settings)?;
        let decision = self.decide_allowed(command, job, now, settings)?;
        if matches!(decision, Decision::Append(_)) {
            self.check_daily_bytes(actor, command, now)?;
        }
        Ok(self.raise_guard(decision))
    }

    /// Raises the guard of a proposal to the last stray of its aggregate, if that is later than the last event. A stray
    /// is a message on the aggregate's subject that is not a valid event. The broker's guard counts strays, too:
    /// without this step, one stray would block its aggregate for ever. For example, an account's last event is 40 and
    /// a stray is at 57. The guard of the next event must then be 57.
    ///
    /// A job has a guard of its own, which this function leaves alone. Reason: a job that was loaded from the log may
    /// be older than this state. A stray from this state would raise its guard over events that the loaded job has not
    /// seen.
    fn raise_guard(&self, decision: Decision) -> Decision {
        match decision {
            Decision::Append(mut proposal) => {
                let aggregate = proposal.event.aggregate();
                if !matches!(aggregate, Aggregate::Job(_)) {
                    proposal.expected = proposal.expected.max(self.last_stray(aggregate));
                }
                Decision::Append(proposal)
            }
            done @ Decision::AlreadyDone(_) => done,
        }
    }

    /// Decides a command that `authorise` allowed.
    fn decide_allowed(
        &self,
        command: &Command,
        job: Option<&Job>,
        now: Timestamp,
        settings: &Settings,
    ) -> Result<Decision, DomainError> {
        let job = || job.ok_or(DomainError::UnknownJob);
        let machine = |id: MachineId| self.machine(id).ok_or(DomainError::UnknownMachine);
        let account = |id: AccountId| self.account(id).ok_or(DomainError::UnknownAccount);
        let batch = |id: BatchId| self.batch(id).ok_or(DomainError::UnknownBatch);
        match command {
            Command::OpenAccount(id) => Ok(self.open_account(*id)),
            Command::Deposit(id, c) => account(*id)?.deposit(*id, c),
            Command::RequestPayout(id, c) => account(*id)?.request_payout(*id, c),
            Command::ClosePayout(c) => account(c.account)?.close_payout(c),
            Command::SetSuspension(c) => account(c.account)?.set_suspension(c),
            Command::CloseAccount(id, c) => self.close_account(account(*id)?, *id, *c),
            Command::ReleaseHold(id, submission) => self.release_hold(*id, *submission),
            Command::Submit(id, c) => submission::submit_job(self, *id, c, now, settings),
            Command::SubmitBatch(id, c) => submission::submit_batch(self, *id, c, now, settings),
            Command::CancelBatch(id) => Ok(batch(*id)?.cancel()),
            Command::OpenTasks(id) => self.open_tasks(batch(*id)?, now, settings),
            Command::EndBatch(id) => batch(*id)?.end(now),
            Command::Cancel(_) => job()?.cancel(),
            Command::ListMachine(id, c) => {
                account(c.owner)?.check_not_closed()?;
                Machine::list(self.machine(*id), *id, c)
            }
            Command::ChangeMachine(c) => machine(c.machine)?.change(c.machine, c.change.clone()),
            Command::RecordTest(id, c) => machine(*id)?.record_test(*id, c),
            Command::Accept(id, c) => job()?.accept(*id, *c),
            Command::Decline(id, c) => job()?.decline(*id, c),
            Command::Start(id, c) => job()?.start(*id, c),
            Command::Exit(id, c) => job()?.exit(*id, c),
            Command::Report(id, c) => job()?.report(*id, c, now, settings),
            Command::Assign(_) => self.assign(job()?, now, settings),
            Command::Expire(_) => {
                let job = job()?;
                if self.may_wait(job, now) {
                    return Err(DomainError::WrongState("Machines work on the job's batch."));
                }
                let expired = job.expire(now, Timestamp::EPOCH, settings);
                expired.ok_or(DomainError::WrongState("The job has exceeded no limit of time."))
            }
            Command::Abandon(_) => self.abandon(job()?, now, settings),
            Command::Settle(_) => metering::settle(job()?),
            Command::Suspect(id) => Ok(machine(*id)?.suspect(*id)),
            Command::Lose(id) => machine(*id)?.lose(*id),
            Command::Recover(id) => Ok(machine(*id)?.recover(*id)),
        }
    }

    /// Fails if the account or the machine has used up its bytes of today (`daily_bytes.rs`). A job can always be
    /// cancelled, money can always be paid out, and an operator can do everything. Commands that list a machine or take
    /// it off the market may use a reserve: a machine that used up its bytes with self-tests can still be paused.
    fn check_daily_bytes(&self, actor: Actor, command: &Command, now: Timestamp) -> Result<(), DomainError> {
        use MachineChange::{Back, Configure, Reprice, Resume};
        let (machine, most) = match command {
            _ if matches!(actor, Actor::Operator(_)) => return Ok(()),
            Command::Submit(id, _) | Command::SubmitBatch(id, _) | Command::Deposit(id, _) => {
                return self.account(*id).map_or(Ok(()), |account| account.daily_bytes.check(now, MAX_OF_ACCOUNT));
            }
            Command::RecordTest(id, _) => (id, MAX_OF_MACHINE),
            Command::ChangeMachine(ChangeMachine { machine, change: Back | Configure(_) | Reprice(_) | Resume }) => {
                (machine, MAX_OF_MACHINE)
            }
            Command::ListMachine(id, _) | Command::ChangeMachine(ChangeMachine { machine: id, .. }) => {
                (id, MAX_OF_MACHINE + RESERVE_OF_MACHINE)
            }
            _ => return Ok(()),
        };
        self.machine(*machine).map_or(Ok(()), |machine| machine.daily_bytes.check(now, most))
    }

    fn open_account(&self, id: AccountId) -> Decision {
        match self.account(id) {
            Some(account) => Decision::AlreadyDone(account.opened),
            None => Decision::Append(Proposal {
                event: AccountOpened { account: id }.into(),
                id: EventId(format!("{id}.opened")),
                expected: Seq::ZERO,
                cause: None,
            }),
        }
    }

    fn close_account(&self, account: &Account, id: AccountId, c: CloseAccount) -> Result<Decision, DomainError> {
        let has_machines =
            self.machines().any(|(_, machine)| machine.owner == id && machine.availability != Availability::Delisted);
        account.close(id, c, has_machines)
    }

    /// Opens the next tasks of a batch.
    pub(crate) fn open_tasks(
        &self,
        batch: &Batch,
        now: Timestamp,
        settings: &Settings,
    ) -> Result<Decision, DomainError> {
        let account = self.account(batch.submitted.account).ok_or(DomainError::UnknownAccount)?;
        if let Some(why) = &account.suspended {
            return Err(DomainError::Suspended(why.clone()));
        }
        account.daily_bytes.check(now, MAX_OF_ACCOUNT)?;
        batch.open(settings.max_open_jobs.saturating_sub(account.open_jobs))
    }

    /// Releases the hold of a submission that made no job.
    fn release_hold(&self, id: AccountId, submission: Seq) -> Result<Decision, DomainError> {
        let lost = self.lost_submissions.get(&submission).filter(|lost| lost.account == id);
        let LostSubmission { account, job, hold: amount } =
            *lost.ok_or(DomainError::WrongState("The submission made a job, or its hold is released."))?;
        Ok(Decision::Append(Proposal {
            event: HoldReleased { account, job, submission, amount }.into(),
            id: EventId(format!("{submission}.released")),
            expected: self.account(id).ok_or(DomainError::UnknownAccount)?.last,
            cause: Some(submission),
        }))
    }

    /// Ends the job's attempt, if its machine is lost.
    fn abandon(&self, job: &Job, now: Timestamp, settings: &Settings) -> Result<Decision, DomainError> {
        let machine = job.attempt.as_ref().and_then(|attempt| self.machine(attempt.machine));
        if machine.is_none_or(|machine| machine.presence != Presence::Lost) {
            return Err(DomainError::WrongState("The job's machine is not lost."));
        }
        job.abandon(now, settings)
    }

    /// Gives a waiting job to the best machine.
    fn assign(&self, job: &Job, now: Timestamp, settings: &Settings) -> Result<Decision, DomainError> {
        if job.phase != Phase::Queued {
            return Err(DomainError::WrongState("The job does not wait for a machine."));
        }
        if self.batch_of(job).is_some_and(Batch::is_full) {
            return Err(DomainError::WrongState("Machines have as many tasks of the batch as its consumer allowed."));
        }
        let choice = placement::choose(self, &placement::Request::of(job), now);
        let id = choice.machine.ok_or(DomainError::NoMachineNow)?;
        let machine = self.machine(id).ok_or(DomainError::NoMachineNow)?;
        let terms =
            Terms { price: machine.offer.price, fee_basis_points: settings.fee_basis_points, provider: machine.owner };
        job.assign(id, terms, choice.explanation)
    }

    /// A preview of a submission: the machine, the price and the hold that the job would get now. Nothing is written.
    pub fn quote(
        &self,
        id: AccountId,
        c: &SubmitJob,
        now: Timestamp,
        settings: &Settings,
    ) -> Result<Quote, DomainError> {
        let account = self.account(id).ok_or(DomainError::UnknownAccount)?;
        submission::check(c, settings)?;
        let avoid = BTreeMap::new();
        let request = placement::Request::of_submission(c, &avoid);
        let choice = placement::choose(self, &request, now);
        let machine = choice.machine.and_then(|id| self.machine(id));
        let hold = hold::hold(self, c, || choice.clone(), now, settings)?;
        let price = machine.map(|m| m.offer.price);
        // The job will not run on a machine above its price limit.
        let submitted = placement::Request { max_price: hold.max_price, ..request };
        Ok(Quote {
            machine: choice.machine,
            machine_name: machine.map(|m| m.offer.name.clone()),
            price,
            expected: price.map(|price| price.cost_of(c.time.millis()).min(hold.amount)),
            hold: hold.amount,
            max_price: hold.max_price,
            available: account.available,
            start: placement::estimate_start(self, &submitted, &choice, now),
            waiting: u32::try_from(self.queue.len()).unwrap_or(u32::MAX),
            placement: choice.explanation,
        })
    }

    /// A preview of the submission of a batch. Nothing is written.
    pub fn quote_batch(
        &self,
        id: AccountId,
        c: &SubmitBatch,
        now: Timestamp,
        settings: &Settings,
    ) -> Result<BatchQuote, DomainError> {
        submission::check(&c.job, settings)?;
        batch::check(c)?;
        let task = self.quote(id, &c.job, now, settings)?;
        let (tasks, (max_running, max_failures)) = (c.tasks.count, batch::bounds(c));
        let of_all = |amount: MicroUsd| MicroUsd(amount.0.saturating_mul(i64::from(tasks)));
        let (expected, hold) = (task.expected.map(of_all), of_all(task.hold));
        Ok(BatchQuote { task, tasks, expected, hold, max_running, max_failures })
    }
}
