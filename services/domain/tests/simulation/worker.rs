//! The machines. An honest worker counts its slots, runs a program only after the start was granted, and reports the
//! truth, however late. The other worker reports anything about anybody's attempts.

use std::collections::BTreeMap;

use gpubnb_domain::Command;
use gpubnb_events::{
    AccountId, Actor, Event, JobId, Lease, MachineId, Millis, Recorded, Timestamp,
    command::{Accept, Decline, DesiredLease, Exit, Outcome, Report, Start},
    event::{DeclineReason, Reason},
    spec::{Offer, Usage},
};

use super::{market::Market, op::Caller, tape::Dice};

/// The stage of an attempt, as its worker sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The worker gave a command about the attempt and waits for the answer.
    Waiting,
    /// The job is prepared.
    Accepted,
    /// The program has run since then.
    Running(Timestamp),
    /// The program ran for so long. Its files are on their way.
    Exited(Millis),
    /// The attempt has to stop, or was not allowed to start.
    Stopping,
}

/// A machine and its attempts.
#[derive(Clone)]
pub(crate) struct Worker {
    pub(crate) machine: MachineId,
    pub(crate) owner: AccountId,
    pub(crate) offer: Offer,
    pub(crate) honest: bool,
    pub(crate) runs: BTreeMap<Lease, (JobId, State)>,
    /// The last sequence up to which the machine has fetched its job messages.
    heard: usize,
}

impl Worker {
    pub(crate) fn new(machine: MachineId, owner: AccountId, offer: Offer, honest: bool) -> Self {
        Self { machine, owner, offer, honest, runs: BTreeMap::new(), heard: 0 }
    }

    /// The worker gets an answer.
    pub(crate) fn hears(&mut self, command: &Command, lease: Lease, done: bool, now: Timestamp) {
        let Some((_, state)) = self.runs.get_mut(&lease) else { return };
        match (command, done) {
            (Command::Accept(..), true) => *state = State::Accepted,
            (Command::Start(..), true) => *state = State::Running(now),
            (Command::Exit(_, exit), true) => *state = State::Exited(exit.usage.run),
            // The job is being cancelled or is over. In either case, "cancelled" is a report that the platform expects.
            (Command::Start(..), false) => *state = State::Stopping,
            _ => _ = self.runs.remove(&lease),
        }
    }
}

impl Market {
    /// An honest worker fetches a message, goes on with an attempt, compares its leases with the platform's, or
    /// restarts.
    pub(crate) fn worker(&mut self, dice: &mut Dice) {
        let honest: Vec<usize> = (0..self.workers.len()).filter(|w| self.workers[*w].honest).collect();
        let worker = dice.of(&honest);
        let runs: Vec<Lease> = self.workers[worker].runs.keys().copied().collect();
        match dice.below(12) {
            0..=3 => {
                if let Some((job, lease)) = self.next_message(worker, dice) {
                    let (caller, actor, command) = self.take(worker, job, lease, dice.one_in(12));
                    self.say(caller, actor, command, dice);
                }
            }
            4 => {
                let replica = dice.index(self.replicas.len());
                self.sync(worker, replica);
            }
            5 if dice.one_in(3) => self.restart(worker, dice),
            _ => {
                if let Some(lease) = dice.pick(&runs)
                    && let Some((actor, command)) = self.get_on(worker, lease, dice)
                {
                    self.say(Caller::Worker(worker, lease), actor, command, dice);
                }
            }
        }
    }

    /// Fetches the next job message, or one that is delivered again.
    pub(crate) fn next_message(&mut self, worker: usize, dice: &mut Dice) -> Option<(JobId, Lease)> {
        let own = &mut self.workers[worker];
        if dice.one_in(10) {
            own.heard = dice.index(own.heard + 1);
        }
        for recorded in self.broker.log().iter().skip(own.heard) {
            own.heard += 1;
            if let Some(Event::JobAssigned(e)) = recorded.event()
                && e.machine == own.machine
                && !own.runs.contains_key(&Lease(recorded.seq))
            {
                return Some((e.job, Lease(recorded.seq)));
            }
        }
        None
    }

    /// Accepts a job, or declines it: because no slot is free, or for no reason.
    pub(crate) fn take(&mut self, worker: usize, job: JobId, lease: Lease, whim: bool) -> (Caller, Actor, Command) {
        let own = &mut self.workers[worker];
        let full = own.runs.len() >= own.offer.slots as usize;
        let (machine, actor) = (own.machine, Actor::Machine(own.machine));
        if full || whim {
            let reason = if full { DeclineReason::NoFreeSlot } else { DeclineReason::Paused };
            return (Caller::Anyone, actor, Command::Decline(machine, Decline { job, lease, reason }));
        }
        own.runs.insert(lease, (job, State::Waiting));
        (Caller::Worker(worker, lease), actor, Command::Accept(machine, Accept { job, lease }))
    }

    /// Gives the next command about an attempt.
    pub(crate) fn get_on(&mut self, worker: usize, lease: Lease, dice: &mut Dice) -> Option<(Actor, Command)> {
        let now = self.now;
        let own = &mut self.workers[worker];
        let machine = own.machine;
        let (job, state) = own.runs.get_mut(&lease)?;
        let (job, was) = (*job, *state);
        let (outcome, usage) = match was {
            State::Waiting => return None,
            State::Accepted if !dice.one_in(8) => {
                *state = State::Waiting;
                let start = Start { job, lease, image_digest: "sha256:0".to_owned() };
                return Some((Actor::Machine(machine), Command::Start(machine, start)));
            }
            State::Accepted => (failed(dice), None),
            State::Stopping => (Outcome::Cancelled, None),
            State::Running(since) if dice.one_in(3) => {
                *state = State::Waiting;
                let exit = Exit { job, lease, usage: Usage { run: now.since(since) } };
                return Some((Actor::Machine(machine), Command::Exit(machine, exit)));
            }
            State::Exited(run) => {
                let outcome = if dice.one_in(2) { Outcome::Completed } else { failed(dice) };
                (outcome, Some(Usage { run }))
            }
            State::Running(since) => {
                let outcome = if dice.one_in(2) { Outcome::Completed } else { failed(dice) };
                (outcome, Some(Usage { run: now.since(since) }))
            }
        };
        *state = State::Waiting;
        let report = Report { job, lease, outcome, outputs: Vec::new(), usage, occurred_at: now, signature: None };
        Some((Actor::Machine(machine), Command::Report(machine, report)))
    }

    /// Compares the worker's leases with the newest state.
    pub(crate) fn sync(&mut self, worker: usize, replica: usize) {
        self.replicas[replica].catch_up(&self.broker, self.broker.last_seq(), &self.settings);
        let own = &mut self.workers[worker];
        let (machine, world) = (own.machine, &self.replicas[replica].world);
        own.runs.retain(|lease, (job, state)| {
            if *state == State::Waiting {
                return true;
            }
            let wish = match world.job(*job) {
                Some(job) => job.wish(machine, *lease),
                None => self.broker.load(*job, &self.settings).map_or(DesiredLease::Keep, |j| j.wish(machine, *lease)),
            };
            if wish == DesiredLease::Cancel {
                *state = State::Stopping;
            }
            wish != DesiredLease::Abandon
        });
    }

    /// A worker that was away continues its attempts: it accepts and starts them a second time.
    fn restart(&mut self, worker: usize, dice: &mut Dice) {
        let machine = self.workers[worker].machine;
        let mut again = Vec::new();
        for (lease, (job, state)) in &mut self.workers[worker].runs {
            if *state != State::Waiting {
                *state = State::Waiting;
                again.push(Accept { job: *job, lease: *lease });
            }
        }
        for accept in again {
            let caller = Caller::Worker(worker, accept.lease);
            self.say(caller, Actor::Machine(machine), Command::Accept(machine, accept), dice);
        }
    }

    /// A worker lies about its own attempts and others', in its own name and in others'.
    pub(crate) fn mallory(&mut self, dice: &mut Dice) {
        let Some(own) = self.workers.iter().find(|w| !w.honest).map(|w| w.machine) else { return };
        let assigned = |r: &Recorded| match r.event()? {
            Event::JobAssigned(e) => Some((e.job, Lease(r.seq), e.machine)),
            _ => None,
        };
        let leases: Vec<_> = self.broker.log().iter().filter_map(assigned).collect();
        let Some((job, lease, holder)) = dice.pick(&leases) else { return };
        let name = if dice.one_in(6) { holder } else { own };
        let command = match dice.below(7) {
            0 | 1 => Command::Accept(name, Accept { job, lease }),
            2 => Command::Decline(name, Decline { job, lease, reason: DeclineReason::Draining }),
            4 => Command::Exit(name, Exit { job, lease, usage: Usage { run: Millis(dice.word()) } }),
            3 => Command::Start(name, Start { job, lease, image_digest: String::new() }),
            _ => {
                let outcome = match dice.below(4) {
                    0 => Outcome::Completed,
                    1 => Outcome::Cancelled,
                    _ => Outcome::Failed { reason: any_reason(dice), detail: String::new() },
                };
                let usage = dice.one_in(2).then(|| Usage { run: Millis(dice.word()) });
                let report =
                    Report { job, lease, outcome, outputs: Vec::new(), usage, occurred_at: self.now, signature: None };
                Command::Report(name, report)
            }
        };
        self.say(Caller::Anyone, Actor::Machine(own), command, dice);
    }
}

fn failed(dice: &mut Dice) -> Outcome {
    let reasons = [
        Reason::NonZeroExit { code: 1 },
        Reason::OutOfMemory,
        Reason::TimeLimit,
        Reason::BadImage,
        Reason::Preempted,
        Reason::Preempted,
        Reason::GpuLost,
        Reason::DiskFull,
        Reason::RegistryUnavailable,
        Reason::InputUnavailable,
    ];
    Outcome::Failed { reason: dice.of(&reasons), detail: String::new() }
}

fn any_reason(dice: &mut Dice) -> Reason {
    dice.of(&[
        Reason::NonZeroExit { code: 0 },
        Reason::BudgetExhausted,
        Reason::ProviderLost,
        Reason::AssignTimeout,
        Reason::NoMachine,
        Reason::Internal,
        Reason::RuntimeMisconfigured,
        Reason::GpuLost,
    ])
}
