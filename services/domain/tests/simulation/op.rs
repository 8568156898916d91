//! An operation (`Op`): a command on its way through a replica. It has three stages: load the job, decide the command,
//! append the event. Other things may happen between two stages. The retries follow the rules of the executor
//! (`services/src/execute.rs`).

use gpubnb_domain::{Command, Decision, Settings, World, job::Job};
use gpubnb_events::{Actor, Lease, Proposal, Seq, Timestamp};

use super::broker::{AppendOutcome, Broker};

/// How often a command is decided. After the last conflict, the caller gets an error.
const ATTEMPTS: u32 = 5;

/// The caller that waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A person or a process manager.
    Client,
    /// A worker, with a command about this attempt.
    Worker(usize, Lease),
    /// Nobody. The caller gave up, but the append is still on its way to the broker.
    Nobody,
}

/// The answer to a caller.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The command is done, and its event has this sequence.
    Done(Seq),
    /// The command was refused.
    Refused,
    /// The caller does not know whether the command was granted: too many conflicts, a lost answer, or a crash.
    Unknown,
}

/// A replica of the services: its state of the market, and the error of its clock in milliseconds.
pub(crate) struct Replica {
    pub(crate) world: World,
    pub(crate) skew: i64,
}

impl Replica {
    /// Folds the messages up to this sequence.
    pub(crate) fn catch_up(&mut self, broker: &Broker, to: Seq, settings: &Settings) {
        for recorded in broker.messages_after(self.world.applied()) {
            if recorded.seq > to {
                break;
            }
            self.world.apply(recorded, settings);
        }
    }

    /// The time on the replica's clock.
    pub(crate) fn clock(&self, now: Timestamp) -> Timestamp {
        Timestamp::from_millis(now.millis().saturating_add(self.skew))
    }
}

/// The next stage of an operation, with its input.
#[derive(Debug, Clone)]
enum Stage {
    Load,
    Decide(Option<Box<Job>>),
    Append(Box<Proposal>),
}

/// A command on its way.
#[derive(Debug, Clone)]
pub(crate) struct Op {
    pub(crate) caller: Caller,
    pub(crate) actor: Actor,
    pub(crate) command: Command,
    pub(crate) replica: usize,
    /// Number of conflicts and repeated decisions.
    attempts: u32,
    /// True once the replica has caught up with the log for this command.
    is_on_newest_state: bool,
    stage: Stage,
}

/// The outcome of one stage.
pub(crate) enum Progress {
    /// The next stage follows.
    Continue,
    /// The guard refused the append. The replica must catch up to this sequence and decide again.
    Conflict(Seq),
    /// The event was appended.
    Appended(Seq),
    /// The command has its answer.
    Answered(Answer),
}

impl Op {
    pub(crate) fn new(caller: Caller, actor: Actor, command: Command, replica: usize) -> Self {
        Self { caller, actor, command, replica, attempts: 0, is_on_newest_state: false, stage: Stage::Load }
    }

    /// Begins the same command again, perhaps at another replica.
    pub(crate) fn retry_at(self, replica: usize) -> Self {
        Self::new(self.caller, self.actor, self.command, replica)
    }

    /// The append that is still on its way after the caller gave up. `None` if the command was not decided yet.
    pub(crate) fn orphaned_append(&self) -> Option<Self> {
        matches!(self.stage, Stage::Append(_)).then(|| Self { caller: Caller::Nobody, ..self.clone() })
    }

    /// Runs the next stage. `now` is the real time, and `at` is the time on the broker's clock.
    pub(crate) fn advance(
        &mut self,
        broker: &mut Broker,
        replica: &mut Replica,
        now: Timestamp,
        at: Timestamp,
        settings: &Settings,
    ) -> Progress {
        match &self.stage {
            Stage::Load => {
                let settled = self.command.job().filter(|id| replica.world.job(*id).is_none());
                let absent = settled.and_then(|id| broker.load_job(id, settings));
                self.stage = Stage::Decide(absent.map(Box::new));
                Progress::Continue
            }
            Stage::Decide(absent) => {
                let now = replica.clock(now);
                match replica.world.decide(self.actor, &self.command, absent.as_deref(), now, settings) {
                    Ok(Decision::AlreadyDone(seq)) => Progress::Answered(Answer::Done(seq)),
                    Ok(Decision::Append(proposal)) => {
                        self.stage = Stage::Append(Box::new(proposal));
                        Progress::Continue
                    }
                    Err(_) => self.refuse_on_newest_state(broker, replica, settings),
                }
            }
            Stage::Append(proposal) => match broker.append(proposal, self.actor, at) {
                AppendOutcome::Written(seq) => Progress::Appended(seq),
                AppendOutcome::AlreadyWritten(seq) => Progress::Answered(Answer::Done(seq)),
                AppendOutcome::Conflict(last) => {
                    self.stage = Stage::Load;
                    self.attempts += 1;
                    if self.attempts < ATTEMPTS && self.caller != Caller::Nobody {
                        return Progress::Conflict(last);
                    }
                    Progress::Answered(Answer::Unknown)
                }
            },
        }
    }

    /// Refuses a command. If the replica's state is old, the replica catches up and decides again first.
    fn refuse_on_newest_state(&mut self, broker: &Broker, replica: &mut Replica, settings: &Settings) -> Progress {
        if self.is_on_newest_state || replica.world.applied() >= broker.last_seq() {
            return Progress::Answered(Answer::Refused);
        }
        replica.catch_up(broker, broker.last_seq(), settings);
        self.is_on_newest_state = true;
        self.stage = Stage::Load;
        self.attempts += 1;
        if self.attempts < ATTEMPTS { Progress::Continue } else { Progress::Answered(Answer::Unknown) }
    }
}
