//! The domain under a hostile scheduler: several replicas that lag and crash, lost answers, repeated and late commands,
//! strays in the log, clocks that jump and differ, workers that are slow, and one worker that lies. An independent
//! judge checks every promise at every sequence, and everything must come to rest at the end.
//!
//! `GPUBNB_HISTORIES` sets how many histories are run, and `GPUBNB_SEED` which ones.

// A test fails by panicking, and this one measures how long it takes.
#![allow(clippy::expect_used, clippy::panic, clippy::disallowed_types)]

/// The parts of the simulation.
mod simulation {
    pub(crate) mod answers;
    pub(crate) mod bill;
    pub(crate) mod broker;
    pub(crate) mod checker;
    pub(crate) mod ending;
    pub(crate) mod facts;
    pub(crate) mod managers;
    pub(crate) mod market;
    pub(crate) mod op;
    pub(crate) mod people;
    pub(crate) mod tally;
    pub(crate) mod tape;
    pub(crate) mod worker;
}

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use gpubnb_domain::Command;
use gpubnb_events::{Actor, Aggregate, Event, MachineId, Recorded, message::Envelope};
use proptest::{
    collection::vec,
    prelude::any,
    test_runner::{Config, RngSeed, TestCaseError, TestRunner},
};
use simulation::{
    checker::{Checker, Violation},
    market::{Failure, Market, run},
    op::Caller,
    tally::Tally,
    tape::{LONGEST, shortest, tape},
};

/// Histories per run, if `GPUBNB_HISTORIES` is not set.
const HISTORIES: u64 = 8_000;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs the histories of these seeds on all cores.
fn run_seeds(first: u64, histories: u64) -> Tally {
    let next = AtomicU64::new(first);
    let work = || {
        let mut sum = Tally::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first.saturating_add(histories) {
                return sum;
            }
            let market = run(seed, &tape(seed)).unwrap_or_else(|_| {
                next.store(first.saturating_add(histories), Ordering::Relaxed);
                panic!("{}", shortest_failure(seed))
            });
            sum.count("history");
            sum.add("stranded hold", market.checker.stranded.len() as u64);
            sum.join(&market.tally);
            sum.join(&market.checker.seen);
        }
    };
    let mut sum = Tally::default();
    thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            match thread.join() {
                Ok(tally) => sum.join(&tally),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    sum
}

/// The shortest history of a seed that breaks the same kind of promise, as text.
fn shortest_failure(seed: u64) -> String {
    let tape = shortest(tape(seed), |tape| run(seed, tape).is_err());
    match run(seed, &tape) {
        Err(Failure { violation: Violation(broken), log }) => {
            format!("seed {seed}, {} steps: {broken}\n{log}\ntape: {tape:?}", tape.len())
        }
        Ok(_) => format!("seed {seed} fails now and then: the domain is not deterministic"),
    }
}

#[test]
fn no_history_breaks_a_promise() {
    let histories = setting("GPUBNB_HISTORIES", HISTORIES);
    let begun = Instant::now();
    let sum = run_seeds(setting("GPUBNB_SEED", 0), histories);
    let took = begun.elapsed();
    let pace = u128::from(histories) * 1_000 / took.as_millis().max(1);
    println!("{histories} histories in {took:.1?}: {pace} a second");
    for (what, times) in sum.all() {
        println!("{times:>10} {what}");
    }
    // A simulation in which something never happens proves nothing about it.
    if histories >= HISTORIES {
        let events = Event::WIRE_NAMES.iter().filter_map(|name| name.split('.').next());
        for what in events.chain(["refusal", "conflict", "lost answer", "crash", "stray"]) {
            assert!(sum.of(what) > 0, "there was no {what} in any history");
        }
    }
}

#[test]
fn no_history_that_chance_finds_breaks_a_promise() {
    let cases = u32::try_from(setting("GPUBNB_HISTORIES", HISTORIES) / 4).unwrap_or(u32::MAX);
    let rng_seed = RngSeed::Fixed(setting("GPUBNB_SEED", 0));
    let config = Config { cases, rng_seed, failure_persistence: None, ..Config::default() };
    let histories = (any::<u64>(), vec(any::<u64>(), 0..LONGEST));
    let result = TestRunner::new(config).run(&histories, |(setup, tape)| match run(setup, &tape) {
        Ok(_) => Ok(()),
        Err(Failure { violation: Violation(broken), log }) => Err(TestCaseError::fail(format!("{broken}\n{log}"))),
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

/// A case that chance finds once in millions of histories: a replica that is far behind loads an ended job, and then
/// sees at once that the job was settled and that a stray followed. The stray must not lift the guard of the loaded job
/// over the settlement.
#[test]
fn a_job_that_was_loaded_too_early_is_not_settled_twice() {
    let mut market = Market::begun(0).expect("a market");
    let (actor, submit) = market.a_submission();
    let job = submit.job;
    let Actor::Account(account) = actor else { panic!("a consumer") };
    market.say_at_once(Caller::Anyone, actor, Command::Submit(account, submit)).expect("submitted");
    market.say_at_once(Caller::Anyone, actor, Command::Cancel(job)).expect("cancelled while it waits");
    market.say_to(1, Caller::Anyone, Actor::Platform, Command::Settle(job));
    market.one_stage().expect("loaded, and no more");
    market.say_at_once(Caller::Anyone, Actor::Platform, Command::Settle(job)).expect("settled by another replica");
    market.broker.stray(Some(Aggregate::Job(job)), market.now);
    market.replicas[1].catch_up(&market.broker, market.broker.last_seq(), &market.settings);
    market.settle_down().expect("settled once");
}

/// A test of the judge: each message of a good log is in turn repeated, or given another actor, and the judge must
/// object.
#[test]
fn the_judge_objects_to_a_forged_log() {
    let market = (0..100).find_map(|seed| run(seed, &tape(seed)).ok().filter(|m| m.checker.seen.of("Completed") > 1));
    let market = market.expect("some history has completed jobs");
    let log = market.broker.log();
    let objects = |forged: &[Recorded]| {
        let mut judge = Checker::new(market.checker.rules);
        judge.honest.clone_from(&market.checker.honest);
        forged.iter().any(|recorded| judge.observe(recorded).is_err())
    };
    assert!(!objects(log), "the log as it was is good");
    for (place, recorded) in log.iter().enumerate() {
        let Ok((envelope, event)) = &recorded.entry else { continue };
        let fence = ["JobSubmitted", "JobAssigned", "Accepted", "Started", "Completed", "Settled", "AccountOpened"];
        if !fence.contains(&event.name()) {
            continue;
        }
        let mut twice = log.to_vec();
        twice.insert(place, recorded.clone());
        assert!(objects(&twice), "{} told twice", event.name());
        let mut told = log.to_vec();
        let stranger = Actor::Machine(MachineId::generate());
        told[place].entry = Ok((Envelope { actor: stranger, ..envelope.clone() }, event.clone()));
        assert!(objects(&told), "{} told by a stranger", event.name());
    }
}
