//! The market of one history: broker, replicas, judge, people and machines. Each step is one of a few small things that
//! can happen anywhere at any time, drawn from one word of the tape.

use std::panic::{AssertUnwindSafe, catch_unwind};

use gpubnb_domain::{Command, Settings, World};
use gpubnb_events::{AccountId, Actor, CommandId, JobId, MachineId, MicroUsd, Millis, Recorded, Seq, Timestamp};

use super::{
    answers,
    broker::Broker,
    checker::{Checker, Held, Rules, Violation, holds},
    ending,
    op::{Answer, Caller, Op, Progress, Replica},
    people::People,
    tally::Tally,
    tape::Dice,
    worker::Worker,
};

/// Most commands on their way at once.
const IN_FLIGHT: usize = 10;
/// How far a replica's clock may be wrong, milliseconds.
const SKEW: u64 = 20_000;
/// How far the broker's clock may be behind, milliseconds.
const BROKER_SKEW: u64 = 200;
/// Most characters that are printed of a message of a broken history.
const LINE: usize = 300;
/// The time at which every history begins.
const START: Timestamp = Timestamp::EPOCH;

/// A command that was granted, and the sequence of its event.
#[derive(Clone)]
pub(crate) struct Said {
    pub(crate) actor: Actor,
    pub(crate) command: Command,
    pub(crate) seq: Seq,
}

/// The whole market of a history.
pub(crate) struct Market {
    pub(crate) settings: Settings,
    pub(crate) now: Timestamp,
    pub(crate) broker: Broker,
    pub(crate) checker: Checker,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) people: People,
    pub(crate) workers: Vec<Worker>,
    pub(crate) said: Vec<Said>,
    pub(crate) tally: Tally,
    ops: Vec<Op>,
    unknown: Vec<Op>,
    ids: u64,
}

/// The way in which a history went wrong.
pub(crate) struct Failure {
    pub(crate) violation: Violation,
    pub(crate) log: String,
}

/// Runs one history from its beginning to its end.
pub(crate) fn run(setup: u64, tape: &[u64]) -> Result<Market, Failure> {
    let mut market = Market::new(setup);
    let ended = catch_unwind(AssertUnwindSafe(|| {
        market.open()?;
        for word in tape {
            market.step(&mut Dice::new(*word))?;
        }
        ending::rest(&mut market)
    }));
    let violation = match ended {
        Ok(Ok(())) => return Ok(market),
        Ok(Err(violation)) => violation,
        Err(panic) => Violation(format!("the domain panicked: {:?}", panic.downcast_ref::<String>())),
    };
    let line = |r: &Recorded| match &r.entry {
        Ok((envelope, event)) => format!("{:>4} {} {}: {event:?}", r.seq.0, r.at, envelope.actor),
        Err(why) => format!("{:>4} {} {why} on {:?}", r.seq.0, r.at, r.aggregate),
    };
    let short = |line: String| line.chars().take(LINE).collect::<String>();
    let log = market.broker.log().iter().map(line).map(short).collect::<Vec<_>>().join("\n");
    Err(Failure { violation, log })
}

/// The state as it comes out of a snapshot.
fn kept(world: &World) -> World {
    let text = serde_json::to_string(world).expect("a world can be written");
    serde_json::from_str(&text).expect("and read")
}

impl Market {
    fn new(setup: u64) -> Self {
        let mut dice = Dice::new(setup);
        let fee = dice.of(&[1_000, 0, 1_234, 10_000]);
        let test_funds = dice.one_in(4);
        let settings = Settings { fee_basis_points: fee, test_funds, ..Settings::default() };
        let rules = Rules {
            fee,
            test_funds,
            accept_within: settings.accept_within,
            grace: settings.grace,
            skew: Millis(SKEW + BROKER_SKEW),
        };
        let skew = |dice: &mut Dice| i64::try_from(dice.below(2 * SKEW)).unwrap_or(0) - SKEW.cast_signed();
        let replicas = (0..2 + dice.below(2)).map(|_| Replica { world: World::default(), skew: skew(&mut dice) });
        Self {
            settings,
            now: START.plus(Millis(1_770_000_000_000)),
            broker: Broker::default(),
            checker: Checker::new(rules),
            replicas: replicas.collect(),
            people: People::default(),
            workers: Vec::new(),
            said: Vec::new(),
            tally: Tally::default(),
            ops: Vec::new(),
            unknown: Vec::new(),
            ids: setup,
        }
    }

    /// A market in which nothing has happened yet.
    pub(crate) fn begun(setup: u64) -> Held<Self> {
        let mut market = Self::new(setup);
        market.open()?;
        Ok(market)
    }

    /// Moves the command that began last one stage further.
    pub(crate) fn one_stage(&mut self) -> Held {
        self.ops.pop().map_or(Ok(()), |op| self.advance(op, 1, None))
    }

    /// Opens a few accounts and lists a few machines, so that already the first step of a tape can matter.
    fn open(&mut self) -> Held {
        let mut dice = Dice::new(self.ids);
        for (actor, command) in self.newcomers(&mut dice) {
            self.say_at_once(Caller::Anyone, actor, command)?;
        }
        Ok(())
    }

    fn step(&mut self, dice: &mut Dice) -> Held {
        self.now = self.now.plus(Millis(dice.below(40)));
        let busy = self.ops.len() >= IN_FLIGHT;
        match dice.below(100) {
            0..=39 => return self.advance_some(dice),
            _ if busy => return self.advance_some(dice),
            40..=47 => self.catch_up(dice),
            48 => self.crash(dice),
            49..=57 => self.consumer(dice),
            58..=73 => self.worker(dice),
            74..=76 => self.mallory(dice),
            77..=78 => self.owner(dice),
            79..=89 => self.manager(dice),
            90..=91 => {
                let seconds = dice.of(&[1, 1, 5, 5, 5, 31, 61, 61, 600, 3_700, 90_000]);
                self.now = self.now.plus(Millis(seconds * 1_000));
            }
            92..=93 => self.stray(dice),
            94..=95 => self.retry(dice),
            _ => self.repeat(dice),
        }
        Ok(())
    }

    /// A replica folds a little more of the log.
    fn catch_up(&mut self, dice: &mut Dice) {
        let replica = dice.index(self.replicas.len());
        let to = Seq(self.replicas[replica].world.applied().0 + 1 + dice.below(12));
        self.replicas[replica].catch_up(&self.broker, to, &self.settings);
    }

    /// A replica crashes: its callers get no answer, but appends on their way may still reach the broker. The replica
    /// begins again from nothing or from a snapshot.
    fn crash(&mut self, dice: &mut Dice) {
        self.tally.count("crash");
        let replica = dice.index(self.replicas.len());
        let world = &mut self.replicas[replica].world;
        *world = if dice.one_in(2) { World::default() } else { kept(world) };
        for op in std::mem::take(&mut self.ops) {
            if op.replica == replica {
                self.give_up(op, dice);
            } else {
                self.ops.push(op);
            }
        }
    }

    fn give_up(&mut self, op: Op, dice: &mut Dice) {
        if op.caller == Caller::Nobody {
            return;
        }
        self.tally.count("lost answer");
        self.ops.extend(op.ghost().filter(|_| dice.one_in(2)));
        self.unknown.push(op);
    }

    /// Somebody writes a message that nobody can read, mostly to an aggregate that has just changed.
    fn stray(&mut self, dice: &mut Dice) {
        self.tally.count("stray");
        let at = self.broker_time(dice);
        let recent = self.broker.log().len().saturating_sub(if dice.one_in(3) { usize::MAX } else { 4 });
        let recorded = dice.pick(&self.broker.log()[recent..]).and_then(|r| r.aggregate);
        let aggregate = if dice.one_in(16) { None } else { recorded };
        self.broker.stray(aggregate, at);
    }

    /// A caller without an answer repeats the command, at the same replica or another.
    fn retry(&mut self, dice: &mut Dice) {
        if !self.unknown.is_empty() {
            let op = self.unknown.swap_remove(dice.index(self.unknown.len()));
            self.ops.push(op.again(dice.index(self.replicas.len())));
        }
    }

    /// A command that was granted, mostly not long ago, is repeated by the same actor or another.
    fn repeat(&mut self, dice: &mut Dice) {
        let recent = self.said.len().saturating_sub(if dice.one_in(3) { usize::MAX } else { 8 });
        let Some(said) = dice.pick(&self.said[recent..]) else { return };
        let actor = if dice.one_in(4) { self.somebody(dice) } else { said.actor };
        self.say(Caller::Anyone, actor, said.command, dice);
    }

    /// A command begins.
    pub(crate) fn say(&mut self, caller: Caller, actor: Actor, command: Command, dice: &mut Dice) {
        let replica = dice.index(self.replicas.len());
        self.say_to(replica, caller, actor, command);
    }

    /// A command begins at this replica.
    pub(crate) fn say_to(&mut self, replica: usize, caller: Caller, actor: Actor, command: Command) {
        self.ops.push(Op::new(caller, actor, command, replica));
    }

    fn advance_some(&mut self, dice: &mut Dice) -> Held {
        if self.ops.is_empty() {
            self.manager(dice);
            return Ok(());
        }
        let op = self.ops.swap_remove(dice.index(self.ops.len()));
        let stages = 1 + dice.below(6);
        if dice.one_in(24) {
            self.give_up(op, dice);
            return Ok(());
        }
        self.advance(op, stages, Some(dice))
    }

    /// Moves a command some stages further. Without dice, nothing goes wrong.
    fn advance(&mut self, mut op: Op, stages: u64, mut dice: Option<&mut Dice>) -> Held {
        for _ in 0..stages {
            let at = dice.as_deref_mut().map_or(self.now, |dice| self.broker_time(dice));
            let replica = &mut self.replicas[op.replica];
            let waits = dice.as_deref_mut().is_none_or(|dice| !dice.one_in(8));
            match op.advance(&mut self.broker, replica, self.now, at, &self.settings) {
                Progress::On => {}
                Progress::Behind(last) => {
                    self.tally.count("conflict");
                    if waits {
                        replica.catch_up(&self.broker, last, &self.settings);
                    }
                }
                Progress::Appended(seq) => {
                    if waits {
                        replica.catch_up(&self.broker, seq, &self.settings);
                    }
                    self.judge(seq)?;
                    if dice.is_some_and(|dice| dice.one_in(10)) && op.caller != Caller::Nobody {
                        self.tally.count("lost answer");
                        self.unknown.push(op);
                        return Ok(());
                    }
                    return self.answered(op, &Answer::Done(seq));
                }
                Progress::Answered(answer) => return self.answered(op, &answer),
            }
        }
        self.ops.push(op);
        Ok(())
    }

    fn judge(&mut self, seq: Seq) -> Held {
        self.broker.get(seq).map_or(Ok(()), |recorded| self.checker.observe(recorded))
    }

    fn answered(&mut self, op: Op, answer: &Answer) -> Held {
        match answer {
            Answer::Done(seq) => {
                answers::confirm(&self.checker, &self.broker, op.actor, &op.command, *seq)?;
                self.said.push(Said { actor: op.actor, command: op.command.clone(), seq: *seq });
            }
            Answer::Refused => self.tally.count("refusal"),
            Answer::Unknown if op.caller == Caller::Nobody => return Ok(()),
            Answer::Unknown => {
                self.unknown.push(op);
                return Ok(());
            }
        }
        if let Caller::Worker(worker, lease) = op.caller {
            self.workers[worker].hears(&op.command, lease, matches!(answer, Answer::Done(_)), self.now);
        }
        Ok(())
    }

    /// Gives a command and waits for the answer, while nothing goes wrong.
    pub(crate) fn say_at_once(&mut self, caller: Caller, actor: Actor, command: Command) -> Held {
        self.at_once(Op::new(caller, actor, command, 0))
    }

    /// Checks that there is an answer while nothing goes wrong.
    fn at_once(&mut self, op: Op) -> Held {
        let unanswered = self.unknown.len();
        let (actor, command) = (op.actor, op.command.clone());
        self.advance(op, u64::MAX, None)?;
        holds(self.unknown.len() <= unanswered, || format!("{actor} gets no answer to {command:?}"))
    }

    /// Completes all commands that are on their way, and repeats those whose outcome is not known.
    pub(crate) fn settle_down(&mut self) -> Held {
        while let Some(op) = self.ops.pop() {
            self.advance(op, u64::MAX, None)?;
        }
        while let Some(op) = self.unknown.pop() {
            self.at_once(op.again(0))?;
        }
        Ok(())
    }

    /// The broker's clock, which is slightly wrong and sometimes goes back.
    fn broker_time(&self, dice: &mut Dice) -> Timestamp {
        Timestamp::from_millis(self.now.millis() - i64::try_from(dice.below(BROKER_SKEW)).unwrap_or(0))
    }

    /// The sixteen bytes of a new id that was made at this time.
    fn id(&mut self, at: Timestamp) -> [u8; 16] {
        self.ids = self.ids.wrapping_add(1);
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&at.millis().to_be_bytes()[2..]);
        bytes[8..].copy_from_slice(&self.ids.to_be_bytes());
        bytes[6] = 0x70;
        bytes[8] = 0x80;
        bytes
    }

    pub(crate) fn account_id(&mut self) -> AccountId {
        AccountId::from_bytes(self.id(self.now)).expect("version 7")
    }

    pub(crate) fn machine_id(&mut self) -> MachineId {
        MachineId::from_bytes(self.id(self.now)).expect("version 7")
    }

    pub(crate) fn command_id(&mut self) -> CommandId {
        CommandId::from_bytes(self.id(self.now)).expect("version 7")
    }

    pub(crate) fn job_id(&mut self, at: Timestamp) -> JobId {
        JobId::from_bytes(self.id(at)).expect("version 7")
    }

    fn somebody(&self, dice: &mut Dice) -> Actor {
        let account = dice.pick(&self.people.accounts).map(Actor::Account);
        let machine = dice.pick(&self.workers).map(|w| Actor::Machine(w.machine));
        let all = [account, machine, Some(Actor::Platform), Some(Actor::Operator(None))];
        dice.of(&all).unwrap_or(Actor::Operator(None))
    }
}

/// An amount from nothing to a few dollars.
pub(crate) fn some_money(dice: &mut Dice) -> MicroUsd {
    let most = dice.of(&[0, 10, 1_000, 1_000_000, 5_000_000]);
    MicroUsd(i64::try_from(dice.below(most + 1)).unwrap_or(0))
}
