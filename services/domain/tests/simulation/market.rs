//! The market of one history: the broker, the replicas, the checker, the people and the machines. One word (a random
//! number) of the tape decides each step, for example that a replica crashes or that a consumer submits a job.

use std::panic::{AssertUnwindSafe, catch_unwind};

use gpubnb_domain::{Command, Settings, World};
use gpubnb_events::{AccountId, Actor, CommandId, JobId, MachineId, MicroUsd, Millis, Recorded, Seq, Timestamp};

use super::{
    answers,
    broker::Broker,
    checker::{Checker, Rules, Verdict, Violation, ensure},
    ending,
    op::{Answer, Caller, Op, Progress, Replica},
    people::People,
    tally::Tally,
    tape::Dice,
    worker::Worker,
};

/// Most commands that are on their way at the same time.
const IN_FLIGHT: usize = 10;
/// Greatest error of a replica's clock, milliseconds.
const MAX_REPLICA_SKEW: u64 = 20_000;
/// Greatest delay of the broker's clock, milliseconds.
const MAX_BROKER_DELAY: u64 = 200;
/// Most characters that are printed of one message, when a history breaks a promise.
const MAX_LINE: usize = 300;
/// The time at which every history begins.
const START: Timestamp = Timestamp::EPOCH;

/// A command that was granted, and the sequence of its event.
#[derive(Clone)]
pub(crate) struct GrantedCommand {
    pub(crate) actor: Actor,
    pub(crate) command: Command,
    pub(crate) seq: Seq,
}

/// The whole market of a history.
pub(crate) struct Market {
    pub(crate) settings: Settings,
    /// The real time. The clocks of the replicas and of the broker differ from it.
    pub(crate) now: Timestamp,
    pub(crate) broker: Broker,
    pub(crate) checker: Checker,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) people: People,
    pub(crate) workers: Vec<Worker>,
    /// The commands that were granted so far.
    pub(crate) granted: Vec<GrantedCommand>,
    pub(crate) tally: Tally,
    /// Operations that are on their way.
    ops: Vec<Op>,
    /// Operations whose callers got no answer. The callers retry later.
    unanswered: Vec<Op>,
    last_id: u64,
}

/// A history that broke a promise.
pub(crate) struct BrokenHistory {
    pub(crate) violation: Violation,
    pub(crate) log: String,
}

/// Runs one history. `setup` decides the settings of the market, and each word of the tape decides a step.
pub(crate) fn run(setup: u64, tape: &[u64]) -> Result<Market, BrokenHistory> {
    let mut market = Market::new(setup);
    let result = catch_unwind(AssertUnwindSafe(|| {
        market.add_participants()?;
        for word in tape {
            market.step(&mut Dice::new(*word))?;
        }
        ending::finish(&mut market)
    }));
    let violation = match result {
        Ok(Ok(())) => return Ok(market),
        Ok(Err(violation)) => violation,
        Err(panic) => Violation(format!("the domain panicked: {:?}", panic.downcast_ref::<String>())),
    };
    let describe = |r: &Recorded| match &r.entry {
        Ok((envelope, event)) => format!("{:>4} {} {}: {event:?}", r.seq.0, r.at, envelope.actor),
        Err(why) => format!("{:>4} {} {why} on {:?}", r.seq.0, r.at, r.aggregate),
    };
    let truncate = |line: String| line.chars().take(MAX_LINE).collect::<String>();
    let log = market.broker.log().iter().map(describe).map(truncate).collect::<Vec<_>>().join("\n");
    Err(BrokenHistory { violation, log })
}

/// Writes a state to a snapshot, and reads it back.
fn restore_from_snapshot(world: &World) -> World {
    let text = serde_json::to_string(world).expect("a world can be written");
    serde_json::from_str(&text).expect("and read")
}

impl Market {
    fn new(setup: u64) -> Self {
        let mut dice = Dice::new(setup);
        let fee = dice.choose(&[1_000, 0, 1_234, 10_000]);
        let test_funds = dice.one_in(4);
        let settings = Settings { fee_basis_points: fee, test_funds, ..Settings::default() };
        let rules = Rules {
            fee,
            test_funds,
            accept_within: settings.accept_within,
            grace: settings.grace,
            skew: Millis(MAX_REPLICA_SKEW + MAX_BROKER_DELAY),
        };
        let skew = |dice: &mut Dice| {
            i64::try_from(dice.below(2 * MAX_REPLICA_SKEW)).unwrap_or(0) - MAX_REPLICA_SKEW.cast_signed()
        };
        let replicas = (0..2 + dice.below(2)).map(|_| Replica { world: World::default(), skew: skew(&mut dice) });
        Self {
            settings,
            now: START.plus(Millis(1_770_000_000_000)),
            broker: Broker::default(),
            checker: Checker::new(rules),
            replicas: replicas.collect(),
            people: People::default(),
            workers: Vec::new(),
            granted: Vec::new(),
            tally: Tally::default(),
            ops: Vec::new(),
            unanswered: Vec::new(),
            last_id: setup,
        }
    }

    /// A market with accounts and machines, in which nothing else has happened yet.
    pub(crate) fn with_participants(setup: u64) -> Verdict<Self> {
        let mut market = Self::new(setup);
        market.add_participants()?;
        Ok(market)
    }

    /// Runs one stage of the operation that began last.
    pub(crate) fn advance_newest_by_one_stage(&mut self) -> Verdict {
        self.ops.pop().map_or(Ok(()), |op| self.advance(op, 1, None))
    }

    /// Opens accounts and lists machines, so that the first step of a tape can use them.
    fn add_participants(&mut self) -> Verdict {
        let mut dice = Dice::new(self.last_id);
        for (actor, command) in self.initial_commands(&mut dice) {
            self.issue_and_wait(Caller::Client, actor, command)?;
        }
        Ok(())
    }

    /// Does one random thing.
    fn step(&mut self, dice: &mut Dice) -> Verdict {
        self.now = self.now.plus(Millis(dice.below(40)));
        let busy = self.ops.len() >= IN_FLIGHT;
        match dice.below(100) {
            0..=39 => return self.advance_any(dice),
            _ if busy => return self.advance_any(dice),
            40..=47 => self.catch_up(dice),
            48 => self.crash(dice),
            49..=57 => self.act_as_consumer(dice),
            58..=73 => self.act_as_worker(dice),
            74..=76 => self.act_as_lying_worker(dice),
            77..=78 => self.act_as_owner(dice),
            79..=89 => self.act_as_manager(dice),
            90..=91 => {
                let seconds = dice.choose(&[1, 1, 5, 5, 5, 31, 61, 61, 600, 3_700, 90_000]);
                self.now = self.now.plus(Millis(seconds * 1_000));
            }
            92..=93 => self.write_stray(dice),
            94..=95 => self.retry(dice),
            _ => self.repeat(dice),
        }
        Ok(())
    }

    /// A replica folds some more messages of the log.
    fn catch_up(&mut self, dice: &mut Dice) {
        let replica = dice.index(self.replicas.len());
        let to = Seq(self.replicas[replica].world.applied().0 + 1 + dice.below(12));
        self.replicas[replica].catch_up(&self.broker, to, &self.settings);
    }

    /// A replica crashes. Its callers get no answer, but the appends that it sent may still reach the broker. The
    /// replica restarts from nothing or from a snapshot.
    fn crash(&mut self, dice: &mut Dice) {
        self.tally.count("crash");
        let replica = dice.index(self.replicas.len());
        let world = &mut self.replicas[replica].world;
        *world = if dice.one_in(2) { World::default() } else { restore_from_snapshot(world) };
        for op in std::mem::take(&mut self.ops) {
            if op.replica == replica {
                self.lose_answer(op, dice);
            } else {
                self.ops.push(op);
            }
        }
    }

    /// The caller of an operation gets no answer. If the append was on its way, it may still reach the broker.
    fn lose_answer(&mut self, op: Op, dice: &mut Dice) {
        if op.caller == Caller::Nobody {
            return;
        }
        self.tally.count("lost answer");
        self.ops.extend(op.orphaned_append().filter(|_| dice.one_in(2)));
        self.unanswered.push(op);
    }

    /// A stray is written, mostly to an aggregate that has just changed. A stray is not a valid event.
    fn write_stray(&mut self, dice: &mut Dice) {
        self.tally.count("stray");
        let at = self.broker_time(dice);
        let recent = self.broker.log().len().saturating_sub(if dice.one_in(3) { usize::MAX } else { 4 });
        let recorded = dice.pick(&self.broker.log()[recent..]).and_then(|r| r.aggregate);
        let aggregate = if dice.one_in(16) { None } else { recorded };
        self.broker.write_stray(aggregate, at);
    }

    /// A caller that got no answer repeats the command, at the same replica or at another.
    fn retry(&mut self, dice: &mut Dice) {
        if !self.unanswered.is_empty() {
            let op = self.unanswered.swap_remove(dice.index(self.unanswered.len()));
            self.ops.push(op.retry_at(dice.index(self.replicas.len())));
        }
    }

    /// The same actor or another actor repeats a granted command, mostly a recent one.
    fn repeat(&mut self, dice: &mut Dice) {
        let recent = self.granted.len().saturating_sub(if dice.one_in(3) { usize::MAX } else { 8 });
        let Some(granted) = dice.pick(&self.granted[recent..]) else { return };
        let actor = if dice.one_in(4) { self.random_actor(dice) } else { granted.actor };
        self.issue(Caller::Client, actor, granted.command, dice);
    }

    /// Issues a command at a random replica.
    pub(crate) fn issue(&mut self, caller: Caller, actor: Actor, command: Command, dice: &mut Dice) {
        let replica = dice.index(self.replicas.len());
        self.issue_to(replica, caller, actor, command);
    }

    /// Issues a command at this replica.
    pub(crate) fn issue_to(&mut self, replica: usize, caller: Caller, actor: Actor, command: Command) {
        self.ops.push(Op::new(caller, actor, command, replica));
    }

    /// Advances a random operation. If there is none, a process manager acts.
    fn advance_any(&mut self, dice: &mut Dice) -> Verdict {
        if self.ops.is_empty() {
            self.act_as_manager(dice);
            return Ok(());
        }
        let op = self.ops.swap_remove(dice.index(self.ops.len()));
        let stages = 1 + dice.below(6);
        if dice.one_in(24) {
            self.lose_answer(op, dice);
            return Ok(());
        }
        self.advance(op, stages, Some(dice))
    }

    /// Runs some stages of an operation. Without dice, nothing goes wrong.
    fn advance(&mut self, mut op: Op, stages: u64, mut dice: Option<&mut Dice>) -> Verdict {
        for _ in 0..stages {
            let at = dice.as_deref_mut().map_or(self.now, |dice| self.broker_time(dice));
            let replica = &mut self.replicas[op.replica];
            let catches_up = dice.as_deref_mut().is_none_or(|dice| !dice.one_in(8));
            match op.advance(&mut self.broker, replica, self.now, at, &self.settings) {
                Progress::Continue => {}
                Progress::Conflict(last) => {
                    self.tally.count("conflict");
                    if catches_up {
                        replica.catch_up(&self.broker, last, &self.settings);
                    }
                }
                Progress::Appended(seq) => {
                    if catches_up {
                        replica.catch_up(&self.broker, seq, &self.settings);
                    }
                    self.check(seq)?;
                    if dice.is_some_and(|dice| dice.one_in(10)) && op.caller != Caller::Nobody {
                        self.tally.count("lost answer");
                        self.unanswered.push(op);
                        return Ok(());
                    }
                    return self.deliver(op, &Answer::Done(seq));
                }
                Progress::Answered(answer) => return self.deliver(op, &answer),
            }
        }
        self.ops.push(op);
        Ok(())
    }

    /// Gives the message with this sequence to the checker.
    fn check(&mut self, seq: Seq) -> Verdict {
        self.broker.get(seq).map_or(Ok(()), |recorded| self.checker.observe(recorded))
    }

    /// Gives the answer of an operation to its caller.
    fn deliver(&mut self, op: Op, answer: &Answer) -> Verdict {
        match answer {
            Answer::Done(seq) => {
                answers::check_done(&self.checker, &self.broker, op.actor, &op.command, *seq)?;
                self.granted.push(GrantedCommand { actor: op.actor, command: op.command.clone(), seq: *seq });
            }
            Answer::Refused => self.tally.count("refusal"),
            Answer::Unknown if op.caller == Caller::Nobody => return Ok(()),
            Answer::Unknown => {
                self.unanswered.push(op);
                return Ok(());
            }
        }
        if let Caller::Worker(worker, lease) = op.caller {
            self.workers[worker].receive_answer(&op.command, lease, matches!(answer, Answer::Done(_)), self.now);
        }
        Ok(())
    }

    /// Issues a command and waits for the answer. Nothing goes wrong meanwhile.
    pub(crate) fn issue_and_wait(&mut self, caller: Caller, actor: Actor, command: Command) -> Verdict {
        self.complete(Op::new(caller, actor, command, 0))
    }

    /// Runs an operation to its end, and checks that the caller gets an answer. Nothing goes wrong meanwhile.
    fn complete(&mut self, op: Op) -> Verdict {
        let before = self.unanswered.len();
        let (actor, command) = (op.actor, op.command.clone());
        self.advance(op, u64::MAX, None)?;
        ensure(self.unanswered.len() <= before, || format!("{actor} gets no answer to {command:?}"))
    }

    /// Completes all operations that are on their way, and repeats the commands that got no answer.
    pub(crate) fn complete_all(&mut self) -> Verdict {
        while let Some(op) = self.ops.pop() {
            self.advance(op, u64::MAX, None)?;
        }
        while let Some(op) = self.unanswered.pop() {
            self.complete(op.retry_at(0))?;
        }
        Ok(())
    }

    /// The time on the broker's clock, which is slightly late and sometimes goes back.
    fn broker_time(&self, dice: &mut Dice) -> Timestamp {
        Timestamp::from_millis(self.now.millis() - i64::try_from(dice.below(MAX_BROKER_DELAY)).unwrap_or(0))
    }

    /// The sixteen bytes of a new id (a UUID of version 7) with this time in it.
    fn new_id_bytes(&mut self, at: Timestamp) -> [u8; 16] {
        self.last_id = self.last_id.wrapping_add(1);
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&at.millis().to_be_bytes()[2..]);
        bytes[8..].copy_from_slice(&self.last_id.to_be_bytes());
        bytes[6] = 0x70;
        bytes[8] = 0x80;
        bytes
    }

    pub(crate) fn account_id(&mut self) -> AccountId {
        AccountId::from_bytes(self.new_id_bytes(self.now)).expect("version 7")
    }

    pub(crate) fn machine_id(&mut self) -> MachineId {
        MachineId::from_bytes(self.new_id_bytes(self.now)).expect("version 7")
    }

    pub(crate) fn command_id(&mut self) -> CommandId {
        CommandId::from_bytes(self.new_id_bytes(self.now)).expect("version 7")
    }

    pub(crate) fn job_id(&mut self, at: Timestamp) -> JobId {
        JobId::from_bytes(self.new_id_bytes(at)).expect("version 7")
    }

    fn random_actor(&self, dice: &mut Dice) -> Actor {
        let account = dice.pick(&self.people.accounts).map(Actor::Account);
        let machine = dice.pick(&self.workers).map(|w| Actor::Machine(w.machine));
        let all = [account, machine, Some(Actor::Platform), Some(Actor::Operator(None))];
        dice.choose(&all).unwrap_or(Actor::Operator(None))
    }
}

/// An amount from zero to five dollars.
pub(crate) fn random_amount(dice: &mut Dice) -> MicroUsd {
    let most = dice.choose(&[0, 10, 1_000, 1_000_000, 5_000_000]);
    MicroUsd(i64::try_from(dice.below(most + 1)).unwrap_or(0))
}
