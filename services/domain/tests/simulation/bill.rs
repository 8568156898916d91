//! The bill, computed a second time from the events that `Settled` cites, with arithmetic of its own.

use std::collections::BTreeMap;

use gpubnb_events::{Millis, Seq, Timestamp, event::Settled, ledger::LedgerAccount};

use super::{
    checker::{Held, Violation, holds},
    facts::{Ended, JobFacts, LeaseFacts},
};

const MILLIS_PER_HOUR: i128 = 3_600_000;

/// The milliseconds and micro-dollars that should be billed.
struct Bill {
    broker: i128,
    limit: i128,
    budget: Option<i128>,
    billed: i128,
    cost: i128,
}

fn compute(job: &JobFacts, ended: &Ended, attempt: &LeaseFacts) -> Option<Bill> {
    let (_, started) = attempt.started.filter(|_| ended.billed)?;
    let run = i128::from(run_time(ended, attempt)?.0);
    let (_, until) = last(job, ended, attempt);
    let broker = i128::from(until.millis() - started.millis()).max(0);
    let limit = i128::from(job.limits.time.0) * 1_000;
    let (price, hold) = (i128::from(attempt.price.0.0), i128::from(job.hold.0));
    let budget = (price > 0).then(|| hold * MILLIS_PER_HOUR / price);
    let billed = [Some(broker), Some(run), Some(limit), budget].into_iter().flatten().min().unwrap_or(0);
    Some(Bill { broker, limit, budget, billed, cost: (price * billed / MILLIS_PER_HOUR).min(hold) })
}

/// The run time that the machine reported first.
fn run_time(ended: &Ended, attempt: &LeaseFacts) -> Option<Millis> {
    attempt.exited.map(|(_, _, run)| run).or(ended.run)
}

/// The event at which the broker's time ends: the exit, the request to cancel, or the ending, whichever came first.
fn last(job: &JobFacts, ended: &Ended, attempt: &LeaseFacts) -> (Seq, Timestamp) {
    let ending = job.cancel.filter(|_| ended.cancelled).unwrap_or((ended.seq, ended.at));
    attempt.exited.map_or(ending, |(seq, at, _)| if seq < ending.0 { (seq, at) } else { ending })
}

/// Checks that a settlement is the bill that anyone would compute.
pub(crate) fn check(job: &JobFacts, e: &Settled, fee_basis_points: u32) -> Held {
    let ended = job.ended.as_ref().ok_or_else(|| Violation("it has not ended".to_owned()))?;
    let cited = (e.submission, e.outcome, e.consumer) == (job.submission, ended.seq, job.account);
    holds(cited && e.rule == 2, || "it cites other events, or another rule".to_owned())?;
    let bill = ended.attempt.as_ref().and_then(|attempt| Some((attempt, compute(job, ended, attempt)?)));
    let cost = bill.as_ref().map_or(0, |(_, bill)| bill.cost);
    let fee = cost * i128::from(fee_basis_points) / 10_000;
    let hold = i128::from(job.hold.0);
    let said = (i128::from(e.cost.0), i128::from(e.fee.0), i128::from(e.earned.0));
    holds(said == (cost, fee, cost - fee), || format!("billed {said:?} instead of {:?}", (cost, fee, cost - fee)))?;
    holds((0..=hold).contains(&cost) && fee >= 0 && fee <= cost, || format!("{cost} of a hold of {hold}"))?;
    let provider = bill.as_ref().map(|(attempt, _)| attempt.provider);
    let lease = bill.as_ref().map(|(attempt, _)| attempt.lease);
    holds((e.provider, e.lease) == (provider, lease), || "somebody else is paid".to_owned())?;
    metering(job, e, ended, bill.as_ref())?;

    let mut expected = BTreeMap::new();
    let mut post = |account, amount| *expected.entry(account).or_insert(0) += amount;
    post(LedgerAccount::Held(job.account), -hold);
    post(LedgerAccount::Available(job.account), hold - cost);
    if let Some(provider) = provider {
        post(LedgerAccount::Available(provider), cost - fee);
        post(LedgerAccount::Fees, fee);
    }
    let mut posted = BTreeMap::new();
    for posting in &e.postings {
        *posted.entry(posting.account).or_insert(0) += i128::from(posting.amount.0);
    }
    holds(posted == expected, || format!("posted {posted:?} instead of {expected:?}"))
}

fn metering(job: &JobFacts, e: &Settled, ended: &Ended, bill: Option<&(&LeaseFacts, Bill)>) -> Held {
    let (Some(said), Some((attempt, bill))) = (&e.metering, bill) else {
        return holds(e.metering.is_none() && bill.is_none(), || "metered, or not, against the events".to_owned());
    };
    let (until, _) = last(job, ended, attempt);
    let times = (i128::from(said.broker.0), i128::from(said.limit.0), i128::from(said.billed.0));
    let sound = times == (bill.broker, bill.limit, bill.billed)
        && said.budget.map(|b| i128::from(b.0)) == bill.budget
        && said.worker == run_time(ended, attempt)
        && attempt.started.is_some_and(|(seq, _)| seq == said.started)
        && said.ended == until;
    holds(sound, || format!("metered {said:?}"))
}
