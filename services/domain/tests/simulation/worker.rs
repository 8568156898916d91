//! The workers on the machines. An honest worker keeps to its number of slots, runs a program only after its `Start`
//! was granted, and reports the truth, perhaps late. One worker lies: it sends false commands about all attempts.

use std::collections::BTreeMap;

use gpubnb_domain::Command;
use gpubnb_events::{
    AccountId, Actor, Event, JobId, Lease, MachineId, Millis, Recorded, Timestamp,
    command::{Accept, Decline, DesiredLeaseState, Exit, Outcome, Report, Start},
    event::{DeclineReason, Reason},
    spec::{Offer, Usage},
};

use super::{market::Market, op::Caller, tape::Dice};

/// The state of an attempt, as its worker knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttemptState {
    /// The worker has sent a command about the attempt, and waits for the answer.
    Waiting,
    /// The job is accepted and not started.
    Accepted,
    /// The program has run since this time.
    Running(Timestamp),
    /// The program ran for this time, and its files are being uploaded.
    Exited(Millis),
    /// The attempt must stop, or may not start.
    Stopping,
}

/// A worker: a machine and the attempts on it.
#[derive(Clone)]
pub(crate) struct Worker {
    pub(crate) machine: MachineId,
    pub(crate) owner: AccountId,
    pub(crate) offer: Offer,
    pub(crate) honest: bool,
    pub(crate) attempts: BTreeMap<Lease, (JobId, AttemptState)>,
    /// Number of log messages that the worker has searched for assignments.
    fetched: usize,
}

impl Worker {
    pub(crate) fn new(machine: MachineId, owner: AccountId, offer: Offer, honest: bool) -> Self {
        Self { machine, owner, offer, honest, attempts: BTreeMap::new(), fetched: 0 }
    }

    /// The worker gets the answer to a command. `done` is false if the command was refused.
    pub(crate) fn receive_answer(&mut self, command: &Command, lease: Lease, done: bool, now: Timestamp) {
        let Some((_, state)) = self.attempts.get_mut(&lease) else { return };
        match (command, done) {
            (Command::Accept(..), true) => *state = AttemptState::Accepted,
            (Command::Start(..), true) => *state = AttemptState::Running(now),
            (Command::Exit(_, exit), true) => *state = AttemptState::Exited(exit.usage.run),
            // The job is being cancelled, or the attempt is over. The worker reports `Cancelled` in both cases.
            (Command::Start(..), false) => *state = AttemptState::Stopping,
            _ => _ = self.attempts.remove(&lease),
        }
    }
}

impl Market {
    /// An honest worker does one thing. It fetches an assignment, continues an attempt, compares its leases with the
    /// platform's state, or restarts.
    pub(crate) fn act_as_worker(&mut self, dice: &mut Dice) {
        let honest: Vec<usize> = (0..self.workers.len()).filter(|w| self.workers[*w].honest).collect();
        let worker = dice.choose(&honest);
        let attempts: Vec<Lease> = self.workers[worker].attempts.keys().copied().collect();
        match dice.below(12) {
            0..=3 => {
                if let Some((job, lease)) = self.next_message(worker, dice) {
                    let (caller, actor, command) = self.accept_or_decline(worker, job, lease, dice.one_in(12));
                    self.issue(caller, actor, command, dice);
                }
            }
            4 => {
                let replica = dice.index(self.replicas.len());
                self.sync(worker, replica);
            }
            5 if dice.one_in(3) => self.restart(worker, dice),
            _ => {
                if let Some(lease) = dice.pick(&attempts)
                    && let Some((actor, command)) = self.next_command(worker, lease, dice)
                {
                    self.issue(Caller::Worker(worker, lease), actor, command, dice);
                }
            }
        }
    }

    /// Fetches the next assignment. Sometimes an old assignment is delivered a second time.
    pub(crate) fn next_message(&mut self, worker: usize, dice: &mut Dice) -> Option<(JobId, Lease)> {
        let this = &mut self.workers[worker];
        if dice.one_in(10) {
            this.fetched = dice.index(this.fetched + 1);
        }
        for recorded in self.broker.log().iter().skip(this.fetched) {
            this.fetched += 1;
            if let Some(Event::JobAssigned(e)) = recorded.event()
                && e.machine == this.machine
                && !this.attempts.contains_key(&Lease(recorded.seq))
            {
                return Some((e.job, Lease(recorded.seq)));
            }
        }
        None
    }

    /// Accepts a job. Declines it if no slot is free, or if `declines_anyway` is true.
    pub(crate) fn accept_or_decline(
        &mut self,
        worker: usize,
        job: JobId,
        lease: Lease,
        declines_anyway: bool,
    ) -> (Caller, Actor, Command) {
        let this = &mut self.workers[worker];
        let full = this.attempts.len() >= this.offer.slots as usize;
        let (machine, actor) = (this.machine, Actor::Machine(this.machine));
        if full || declines_anyway {
            let reason = if full { DeclineReason::NoFreeSlot } else { DeclineReason::Paused };
            return (Caller::Client, actor, Command::Decline(machine, Decline { job, lease, reason }));
        }
        this.attempts.insert(lease, (job, AttemptState::Waiting));
        (Caller::Worker(worker, lease), actor, Command::Accept(machine, Accept { job, lease }))
    }

    /// The next command about an attempt; `None` while the worker waits for an answer.
    pub(crate) fn next_command(&mut self, worker: usize, lease: Lease, dice: &mut Dice) -> Option<(Actor, Command)> {
        let now = self.now;
        let this = &mut self.workers[worker];
        let machine = this.machine;
        let (job, state) = this.attempts.get_mut(&lease)?;
        let (job, old_state) = (*job, *state);
        let (outcome, usage) = match old_state {
            AttemptState::Waiting => return None,
            AttemptState::Accepted if !dice.one_in(8) => {
                *state = AttemptState::Waiting;
                let start = Start { job, lease, image_digest: "sha256:0".to_owned() };
                return Some((Actor::Machine(machine), Command::Start(machine, start)));
            }
            AttemptState::Accepted => (random_failure_before_start(dice), None),
            AttemptState::Stopping => (Outcome::Cancelled, None),
            AttemptState::Running(since) if dice.one_in(3) => {
                *state = AttemptState::Waiting;
                let exit = Exit { job, lease, usage: Usage { run: now.since(since) } };
                return Some((Actor::Machine(machine), Command::Exit(machine, exit)));
            }
            AttemptState::Exited(run) => {
                let outcome = if dice.one_in(2) { Outcome::Completed } else { random_failure(dice) };
                (outcome, Some(Usage { run }))
            }
            AttemptState::Running(since) => {
                let outcome = if dice.one_in(2) { Outcome::Completed } else { random_failure(dice) };
                (outcome, Some(Usage { run: now.since(since) }))
            }
        };
        *state = AttemptState::Waiting;
        let report = report_without_files(job, lease, outcome, usage, now);
        Some((Actor::Machine(machine), Command::Report(machine, report)))
    }

    /// Compares the worker's attempts with the newest state, and stops or forgets attempts as the platform wants.
    pub(crate) fn sync(&mut self, worker: usize, replica: usize) {
        self.replicas[replica].catch_up(&self.broker, self.broker.last_seq(), &self.settings);
        let this = &mut self.workers[worker];
        let (machine, world) = (this.machine, &self.replicas[replica].world);
        this.attempts.retain(|lease, (job, state)| {
            if *state == AttemptState::Waiting {
                return true;
            }
            let desired = match world.job(*job) {
                Some(job) => job.desired_lease_state(machine, *lease),
                None => self
                    .broker
                    .load_job(*job, &self.settings)
                    .map_or(DesiredLeaseState::Keep, |j| j.desired_lease_state(machine, *lease)),
            };
            if desired == DesiredLeaseState::Cancel {
                *state = AttemptState::Stopping;
            }
            desired != DesiredLeaseState::Abandon
        });
    }

    /// A worker restarts. It accepts its attempts a second time.
    fn restart(&mut self, worker: usize, dice: &mut Dice) {
        let machine = self.workers[worker].machine;
        let mut accepts = Vec::new();
        for (lease, (job, state)) in &mut self.workers[worker].attempts {
            if *state != AttemptState::Waiting {
                *state = AttemptState::Waiting;
                accepts.push(Accept { job: *job, lease: *lease });
            }
        }
        for accept in accepts {
            let caller = Caller::Worker(worker, accept.lease);
            self.issue(caller, Actor::Machine(machine), Command::Accept(machine, accept), dice);
        }
    }

    /// The lying worker sends a false command about any attempt. The command names the worker's own machine, or the
    /// machine that has the attempt.
    pub(crate) fn act_as_lying_worker(&mut self, dice: &mut Dice) {
        let Some(own_machine) = self.workers.iter().find(|w| !w.honest).map(|w| w.machine) else { return };
        let assigned = |r: &Recorded| match r.event()? {
            Event::JobAssigned(e) => Some((e.job, Lease(r.seq), e.machine)),
            _ => None,
        };
        let leases: Vec<_> = self.broker.log().iter().filter_map(assigned).collect();
        let Some((job, lease, holder)) = dice.pick(&leases) else { return };
        let claimed = if dice.one_in(6) { holder } else { own_machine };
        let command = match dice.below(7) {
            0 | 1 => Command::Accept(claimed, Accept { job, lease }),
            2 => Command::Decline(claimed, Decline { job, lease, reason: DeclineReason::Draining }),
            4 => Command::Exit(claimed, Exit { job, lease, usage: Usage { run: Millis(dice.next_word()) } }),
            3 => Command::Start(claimed, Start { job, lease, image_digest: String::new() }),
            _ => {
                let outcome = match dice.below(4) {
                    0 => Outcome::Completed,
                    1 => Outcome::Cancelled,
                    _ => Outcome::Failed { reason: any_reason(dice), detail: String::new() },
                };
                let usage = dice.one_in(2).then(|| Usage { run: Millis(dice.next_word()) });
                let report = report_without_files(job, lease, outcome, usage, self.now);
                Command::Report(claimed, report)
            }
        };
        self.issue(Caller::Client, Actor::Machine(own_machine), command, dice);
    }
}

/// A failure that an honest worker may report before the program started.
fn random_failure_before_start(dice: &mut Dice) -> Outcome {
    let reasons =
        [Reason::BadImage, Reason::Preempted, Reason::DiskFull, Reason::RegistryUnavailable, Reason::InputUnavailable];
    Outcome::Failed { reason: dice.choose(&reasons), detail: String::new() }
}

/// A failure that an honest worker may report.
fn random_failure(dice: &mut Dice) -> Outcome {
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
        Reason::Internal,
    ];
    Outcome::Failed { reason: dice.choose(&reasons), detail: String::new() }
}

/// A reason that the lying worker reports, whether or not a worker may report it.
fn any_reason(dice: &mut Dice) -> Reason {
    dice.choose(&[
        Reason::NonZeroExit { code: 0 },
        Reason::BudgetExhausted,
        Reason::ProviderLost,
        Reason::AssignTimeout,
        Reason::NoMachine,
        Reason::RuntimeMisconfigured,
        Reason::GpuLost,
    ])
}

fn report_without_files(
    job: JobId,
    lease: Lease,
    outcome: Outcome,
    usage: Option<Usage>,
    occurred_at: Timestamp,
) -> Report {
    Report {
        job,
        lease,
        outcome,
        outputs: Vec::new(),
        left_out: Vec::new(),
        usage,
        traffic: None,
        occurred_at,
        signature: None,
        log: None,
    }
}
