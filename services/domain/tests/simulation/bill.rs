//! The checker's own computation of a bill, from the events that `Settled` names. It shares no code with
//! `gpubnb_domain::metering`.

use std::collections::BTreeMap;

use gpubnb_events::{Millis, Seq, Timestamp, event::Settled, ledger::LedgerAccount};

use super::{
    checker::{Verdict, Violation, ensure},
    facts::{EndFacts, JobFacts, LeaseFacts},
};

const MILLIS_PER_HOUR: i128 = 3_600_000;

/// The expected bill. Times are in milliseconds, and the cost is in millionths of a dollar.
struct Bill {
    broker: i128,
    limit: i128,
    budget: Option<i128>,
    billed: i128,
    cost: i128,
}

/// Computes the expected bill. `None` if the job never started, if no machine reported a run time, or if the ending is
/// not billed.
fn compute(job: &JobFacts, ended: &EndFacts, attempt: &LeaseFacts) -> Option<Bill> {
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
fn run_time(ended: &EndFacts, attempt: &LeaseFacts) -> Option<Millis> {
    attempt.exited.map(|(_, _, run)| run).or(ended.run)
}

/// The event at which the broker's time ends: the exit, the request to cancel, or the ending, whichever came first.
fn last(job: &JobFacts, ended: &EndFacts, attempt: &LeaseFacts) -> (Seq, Timestamp) {
    let ending = job.cancel.filter(|_| ended.cancelled).unwrap_or((ended.seq, ended.at));
    attempt.exited.map_or(ending, |(seq, at, _)| if seq < ending.0 { (seq, at) } else { ending })
}

/// Checks that a settlement has the expected bill.
pub(crate) fn check(job: &JobFacts, e: &Settled, fee_basis_points: u32) -> Verdict {
    let ended = job.ended.as_ref().ok_or_else(|| Violation("the job has not ended".to_owned()))?;
    let names_right_events = (e.submission, e.outcome, e.consumer) == (job.submission, ended.seq, job.account);
    ensure(names_right_events && e.rule == 2, || "the settlement names other events, or another rule".to_owned())?;
    let bill = ended.attempt.as_ref().and_then(|attempt| Some((attempt, compute(job, ended, attempt)?)));
    let cost = bill.as_ref().map_or(0, |(_, bill)| bill.cost);
    let fee = cost * i128::from(fee_basis_points) / 10_000;
    let hold = i128::from(job.hold.0);
    let billed = (i128::from(e.cost.0), i128::from(e.fee.0), i128::from(e.earned.0));
    ensure(billed == (cost, fee, cost - fee), || {
        format!("billed {billed:?} instead of {:?}", (cost, fee, cost - fee))
    })?;
    ensure((0..=hold).contains(&cost) && fee >= 0 && fee <= cost, || format!("{cost} of a hold of {hold}"))?;
    let provider = bill.as_ref().map(|(attempt, _)| attempt.provider);
    let lease = bill.as_ref().map(|(attempt, _)| attempt.lease);
    ensure((e.provider, e.lease) == (provider, lease), || "the wrong provider is paid".to_owned())?;
    check_metering(job, e, ended, bill.as_ref())?;

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
    ensure(posted == expected, || format!("posted {posted:?} instead of {expected:?}"))
}

/// Checks the metered times of a settlement.
fn check_metering(job: &JobFacts, e: &Settled, ended: &EndFacts, bill: Option<&(&LeaseFacts, Bill)>) -> Verdict {
    let (Some(metering), Some((attempt, bill))) = (&e.metering, bill) else {
        return ensure(e.metering.is_none() && bill.is_none(), || "the metering is missing, or should be".to_owned());
    };
    let (until, _) = last(job, ended, attempt);
    let times = (i128::from(metering.broker.0), i128::from(metering.limit.0), i128::from(metering.billed.0));
    let is_right = times == (bill.broker, bill.limit, bill.billed)
        && metering.budget.map(|b| i128::from(b.0)) == bill.budget
        && metering.worker == run_time(ended, attempt)
        && attempt.started.is_some_and(|(seq, _)| seq == metering.started)
        && metering.ended == until;
    ensure(is_right, || format!("metered {metering:?}"))
}
