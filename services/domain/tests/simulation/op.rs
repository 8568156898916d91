//! A command on its way through a replica, in the stages between which anything may happen: load, decide, append. The
//! rules for retries are those of the executor (services/src/execute.rs).

use gpubnb_domain::{Command, Decision, Settings, World, job::Job};
use gpubnb_events::{Actor, Lease, Proposal, Seq, Timestamp};

use super::broker::{Appended, Broker};

/// How often a command is decided before the conflict is the answer.
const ATTEMPTS: u32 = 5;

/// The caller that waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A person, or a process manager.
    Anyone,
    /// A worker, with a command about this attempt.
    Worker(usize, Lease),
    /// Nobody: the caller gave up, while the append is still on its way to the broker.
    Nobody,
}

/// The answer to a caller.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The event has this sequence.
    Done(Seq),
    /// The command was refused.
    Refused,
    /// Nobody knows whether the command was granted, because of too many conflicts, a lost answer or a crash.
    Unknown,
}

/// A replica of the services: its state of the market, and the error of its clock in milliseconds.
pub(crate) struct Replica {
    pub(crate) world: World,
    pub(crate) skew: i64,
}

impl Replica {
    /// Folds up to a sequence, as far as it is in the log.
    pub(crate) fn catch_up(&mut self, broker: &Broker, to: Seq, settings: &Settings) {
        for recorded in broker.after(self.world.applied()) {
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
    attempts: u32,
    fresh: bool,
    stage: Stage,
}

/// The outcome of one stage.
pub(crate) enum Progress {
    /// The next stage follows.
    On,
    /// The guard refused the append: the replica waits for this sequence and decides again.
    Behind(Seq),
    /// The event was appended.
    Appended(Seq),
    /// The command has its answer.
    Answered(Answer),
}

impl Op {
    pub(crate) fn new(caller: Caller, actor: Actor, command: Command, replica: usize) -> Self {
        Self { caller, actor, command, replica, attempts: 0, fresh: false, stage: Stage::Load }
    }

    /// The same command from the beginning, perhaps at another replica.
    pub(crate) fn again(self, replica: usize) -> Self {
        Self::new(self.caller, self.actor, self.command, replica)
    }

    /// The append that may still reach the broker after the caller gave up, if the command was decided by then.
    pub(crate) fn ghost(&self) -> Option<Self> {
        matches!(self.stage, Stage::Append(_)).then(|| Self { caller: Caller::Nobody, ..self.clone() })
    }

    /// Takes the next stage.
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
                let gone = self.command.job().filter(|id| replica.world.job(*id).is_none());
                let absent = gone.and_then(|id| broker.load(id, settings));
                self.stage = Stage::Decide(absent.map(Box::new));
                Progress::On
            }
            Stage::Decide(absent) => {
                let now = replica.clock(now);
                match replica.world.decide(self.actor, &self.command, absent.as_deref(), now, settings) {
                    Ok(Decision::Already(seq)) => Progress::Answered(Answer::Done(seq)),
                    Ok(Decision::Append(proposal)) => {
                        self.stage = Stage::Append(Box::new(proposal));
                        Progress::On
                    }
                    Err(_) => self.refused(broker, replica, settings),
                }
            }
            Stage::Append(proposal) => match broker.append(proposal, self.actor, at) {
                Appended::Now(seq) => Progress::Appended(seq),
                Appended::Before(seq) => Progress::Answered(Answer::Done(seq)),
                Appended::Conflict(last) => {
                    self.stage = Stage::Load;
                    self.attempts += 1;
                    if self.attempts < ATTEMPTS && self.caller != Caller::Nobody {
                        return Progress::Behind(last);
                    }
                    Progress::Answered(Answer::Unknown)
                }
            },
        }
    }

    /// Refuses a command, but only on the newest state.
    fn refused(&mut self, broker: &Broker, replica: &mut Replica, settings: &Settings) -> Progress {
        if self.fresh || replica.world.applied() >= broker.last_seq() {
            return Progress::Answered(Answer::Refused);
        }
        replica.catch_up(broker, broker.last_seq(), settings);
        self.fresh = true;
        self.stage = Stage::Load;
        self.attempts += 1;
        if self.attempts < ATTEMPTS { Progress::On } else { Progress::Answered(Answer::Unknown) }
    }
}
