//! The market of one history: broker, replicas, judge, and everyone who wants something of it. Every step is
//! one of a few small things that can happen anywhere at any time, drawn from one word of the tape.

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
/// How far a replica's clock may be from the truth, in milliseconds.
const SKEW: u64 = 20_000;
/// How far the broker's clock may be behind.
const BROKER_SKEW: u64 = 200;
/// Most that is shown of a message of a broken history.
const LINE: usize = 300;
/// Where the time of every history starts.
const START: Timestamp = Timestamp::EPOCH;

/// A command that was done, and where.
#[derive(Clone)]
pub(crate) struct Said {
    pub(crate) actor: Actor,
    pub(crate) command: Command,
    pub(crate) seq: Seq,
}

/// Everything there is.
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

/// How a history went wrong.
pub(crate) struct Failure {
    pub(crate) violation: Violation,
    pub(crate) log: String,
}

/// Runs one history from its beginning to its rest.
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

/// A world as it comes out of a snapshot.
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

    /// The last command that set out comes one stage further.
    pub(crate) fn one_stage(&mut self) -> Held {
        self.ops.pop().map_or(Ok(()), |op| self.advance(op, 1, None))
    }

    /// A few people and machines, so that the first step of a tape can already matter.
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

    /// A replica sees a little more of the log.
    fn catch_up(&mut self, dice: &mut Dice) {
        let replica = dice.index(self.replicas.len());
        let to = Seq(self.replicas[replica].world.applied().0 + 1 + dice.below(12));
        self.replicas[replica].catch_up(&self.broker, to, &self.settings);
    }

    /// A replica loses its memory, and whoever waits on it hears nothing. What was on its way to the broker may
    /// still arrive. It begins anew from nothing, or from a snapshot that was kept.
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

    /// A message that nobody can read, mostly where something has just happened.
    fn stray(&mut self, dice: &mut Dice) {
        self.tally.count("stray");
        let at = self.broker_time(dice);
        let recent = self.broker.log().len().saturating_sub(if dice.one_in(3) { usize::MAX } else { 4 });
        let recorded = dice.pick(&self.broker.log()[recent..]).and_then(|r| r.aggregate);
        let aggregate = if dice.one_in(16) { None } else { recorded };
        self.broker.stray(aggregate, at);
    }

    /// Who does not know says it again, here or elsewhere.
    fn retry(&mut self, dice: &mut Dice) {
        if !self.unknown.is_empty() {
            let op = self.unknown.swap_remove(dice.index(self.unknown.len()));
            self.ops.push(op.again(dice.index(self.replicas.len())));
        }
    }

    /// Something that was done, mostly not long ago, is said again by the same or by somebody else.
    fn repeat(&mut self, dice: &mut Dice) {
        let recent = self.said.len().saturating_sub(if dice.one_in(3) { usize::MAX } else { 8 });
        let Some(said) = dice.pick(&self.said[recent..]) else { return };
        let actor = if dice.one_in(4) { self.somebody(dice) } else { said.actor };
        self.say(Caller::Anyone, actor, said.command, dice);
    }

    /// A command sets out.
    pub(crate) fn say(&mut self, caller: Caller, actor: Actor, command: Command, dice: &mut Dice) {
        let replica = dice.index(self.replicas.len());
        self.say_to(replica, caller, actor, command);
    }

    /// A command sets out at this replica.
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

    /// Takes an op some stages further. Without dice, everything goes well.
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

    /// Says something and waits for the answer, with nothing going wrong in between.
    pub(crate) fn say_at_once(&mut self, caller: Caller, actor: Actor, command: Command) -> Held {
        self.at_once(Op::new(caller, actor, command, 0))
    }

    /// Where nobody is in the way there must be an answer.
    fn at_once(&mut self, op: Op) -> Held {
        let unanswered = self.unknown.len();
        let (actor, command) = (op.actor, op.command.clone());
        self.advance(op, u64::MAX, None)?;
        holds(self.unknown.len() <= unanswered, || format!("{actor} gets no answer to {command:?}"))
    }

    /// All that is on its way arrives, and all that is not known is asked again.
    pub(crate) fn settle_down(&mut self) -> Held {
        while let Some(op) = self.ops.pop() {
            self.advance(op, u64::MAX, None)?;
        }
        while let Some(op) = self.unknown.pop() {
            self.at_once(op.again(0))?;
        }
        Ok(())
    }

    /// The broker's clock: near the truth, and not always forward.
    fn broker_time(&self, dice: &mut Dice) -> Timestamp {
        Timestamp::from_millis(self.now.millis() - i64::try_from(dice.below(BROKER_SKEW)).unwrap_or(0))
    }

    /// Sixteen bytes of a new id that was made at a time.
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

/// Some money, from nothing to a few dollars.
pub(crate) fn some_money(dice: &mut Dice) -> MicroUsd {
    let most = dice.of(&[0, 10, 1_000, 1_000_000, 5_000_000]);
    MicroUsd(i64::try_from(dice.below(most + 1)).unwrap_or(0))
}
