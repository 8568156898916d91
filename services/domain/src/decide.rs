//! Decisions: from the state and a command to one event, or to a named refusal.
//!
//! Belongs here: which rule answers which command. Must not come here: the rules themselves, which stand with the
//! aggregate that they are about.

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, Actor, Aggregate, MachineId, Seq, Timestamp,
    command::{Quote, SubmitJob},
    event::AccountOpened,
    message::{EventId, Proposal},
    spec::Terms,
};

use crate::{
    Command, Decision, Refusal, Settings, World,
    authorise::authorise,
    job::{Job, Phase},
    machine::{Machine, Presence},
    metering, placement, submission,
};

impl World {
    /// Decides a command. If the command's job has left memory, `absent` is that job, loaded from the log.
    pub fn decide(
        &self,
        actor: Actor,
        command: &Command,
        absent: Option<&Job>,
        now: Timestamp,
        settings: &Settings,
    ) -> Result<Decision, Refusal> {
        let job = command.job().and_then(|id| self.job(id)).or(absent);
        authorise(self, job, actor, command, settings)?;
        let decision = self.decide_allowed(command, job, now, settings)?;
        Ok(self.past_strays(decision))
    }

    /// Raises the guard of a proposal over quarantined messages, which the broker counts. Otherwise a single such
    /// message would block its aggregate for ever.
    ///
    /// A job keeps its guard itself. A job that was loaded from the log may be older than this world; a stray that only
    /// the world has seen would lift the guard over events that the loaded job has not seen.
    fn past_strays(&self, decision: Decision) -> Decision {
        match decision {
            Decision::Append(mut proposal) => {
                let aggregate = proposal.event.aggregate();
                if !matches!(aggregate, Aggregate::Job(_)) {
                    proposal.expected = proposal.expected.max(self.stray(aggregate));
                }
                Decision::Append(proposal)
            }
            already @ Decision::Already(_) => already,
        }
    }

    fn decide_allowed(
        &self,
        command: &Command,
        job: Option<&Job>,
        now: Timestamp,
        settings: &Settings,
    ) -> Result<Decision, Refusal> {
        let job = || job.ok_or(Refusal::UnknownJob);
        let machine = |id: MachineId| self.machine(id).ok_or(Refusal::UnknownMachine);
        let account = |id: AccountId| self.account(id).ok_or(Refusal::UnknownAccount);
        match command {
            Command::OpenAccount(id) => Ok(self.open(*id)),
            Command::Deposit(id, c) => account(*id)?.deposit(*id, c),
            Command::RequestPayout(id, c) => account(*id)?.request_payout(*id, c),
            Command::ClosePayout(c) => account(c.account)?.close_payout(c),
            Command::SetSuspension(c) => Ok(account(c.account)?.set_suspension(c)),
            Command::Submit(id, c) => submission::submit(self, *id, c, now, settings),
            Command::Cancel(_) => job()?.cancel(),
            Command::ListMachine(id, c) => {
                account(c.owner)?;
                Machine::list(self.machine(*id), *id, c)
            }
            Command::ChangeMachine(c) => machine(c.machine)?.change(c.machine, c.wish),
            Command::RecordTest(id, c) => machine(*id)?.record_test(*id, c),
            Command::Accept(id, c) => job()?.accept(*id, *c),
            Command::Decline(id, c) => job()?.decline(*id, c),
            Command::Start(id, c) => job()?.start(*id, c),
            Command::Exit(id, c) => job()?.exit(*id, c),
            Command::Report(id, c) => job()?.report(*id, c, now, settings),
            Command::Assign(_) => self.assign(job()?, now, settings),
            Command::Expire(_) => {
                let expired = job()?.expire(now, Timestamp::EPOCH, settings);
                expired.ok_or(Refusal::WrongState("Nothing took too long."))
            }
            Command::Abandon(_) => self.abandon(job()?, now, settings),
            Command::Settle(_) => metering::settle(job()?),
            Command::Suspect(id) => Ok(machine(*id)?.suspect(*id)),
            Command::Lose(id) => machine(*id)?.lose(*id),
            Command::Recover(id) => Ok(machine(*id)?.recover(*id)),
        }
    }

    fn open(&self, id: AccountId) -> Decision {
        match self.account(id) {
            Some(account) => Decision::Already(account.opened),
            None => Decision::Append(Proposal {
                event: AccountOpened { account: id }.into(),
                id: EventId(format!("{id}.opened")),
                expected: Seq::ZERO,
                cause: None,
            }),
        }
    }

    /// Takes a job from its machine, if that machine is lost.
    fn abandon(&self, job: &Job, now: Timestamp, settings: &Settings) -> Result<Decision, Refusal> {
        let holder = job.attempt.as_ref().and_then(|attempt| self.machine(attempt.machine));
        if holder.is_none_or(|machine| machine.presence != Presence::Lost) {
            return Err(Refusal::WrongState("The job's machine is not lost."));
        }
        job.abandon(now, settings)
    }

    fn assign(&self, job: &Job, now: Timestamp, settings: &Settings) -> Result<Decision, Refusal> {
        if job.phase != Phase::Queued {
            return Err(Refusal::WrongState("The job does not wait for a machine."));
        }
        let choice = placement::choose(self, &placement::Request::of(job), now);
        let id = choice.machine.ok_or(Refusal::NoMachineNow)?;
        let machine = self.machine(id).ok_or(Refusal::NoMachineNow)?;
        let terms =
            Terms { price: machine.offer.price, fee_basis_points: settings.fee_basis_points, provider: machine.owner };
        job.assign(id, terms, choice.explanation)
    }

    /// A preview of a submission: the machine, the price and the hold, if the job were submitted now.
    pub fn quote(&self, id: AccountId, c: &SubmitJob, now: Timestamp, settings: &Settings) -> Result<Quote, Refusal> {
        let account = self.account(id).ok_or(Refusal::UnknownAccount)?;
        submission::check(c, settings)?;
        let avoid = BTreeMap::new();
        let request = placement::Request { spec: &c.spec, placement: &c.placement, avoid: &avoid, not_before: None };
        let choice = placement::choose(self, &request, now);
        let machine = choice.machine.and_then(|id| self.machine(id));
        Ok(Quote {
            machine: choice.machine,
            machine_name: machine.map(|m| m.offer.name.clone()),
            price: machine.map(|m| m.offer.price),
            hold: submission::hold(self, c, now, settings)?,
            available: account.available,
            start: placement::start(self, &request, &choice, now),
            waiting: u32::try_from(self.queued.len()).unwrap_or(u32::MAX),
            placement: choice.explanation,
        })
    }
}
