//! Metering and the bill of a job. The event `Settled` has the bill, and names the events from which anybody can
//! compute the same bill.

use gpubnb_events::{
    AccountId, MicroUsd,
    event::Settled,
    ledger::{LedgerAccount, Posting},
    spec::Metering,
};

use super::{
    Decision, DomainError,
    job::{Attempt, Ending, Job, Phase},
};

/// Bills an ended job and releases its hold, with one event that has all the postings.
pub(crate) fn settle(job: &Job) -> Result<Decision, DomainError> {
    if let Some(seq) = job.settled {
        return Ok(Decision::AlreadyDone(seq));
    }
    let (Phase::Ended, Some(ending)) = (job.phase, &job.ending) else {
        return Err(DomainError::WrongState("The job has not ended."));
    };
    let metered = job.attempt.as_ref().and_then(|a| Some((a, meter(job, a, ending)?)));
    let cost = metered.as_ref().map_or(MicroUsd::ZERO, |(a, m)| a.terms.price.cost_of(m.billed).min(job.hold));
    let fee = metered.as_ref().map_or(MicroUsd::ZERO, |(a, _)| cost.share(a.terms.fee_basis_points));
    let provider = metered.as_ref().map(|(a, _)| a.terms.provider);
    let event = Settled {
        job: job.id,
        rule: RULE,
        consumer: job.account,
        provider,
        submission: job.submission,
        lease: metered.as_ref().map(|(a, _)| a.lease),
        outcome: ending.seq,
        metering: metered.map(|(_, m)| m),
        cost,
        fee,
        earned: cost - fee,
        postings: postings(job.account, provider, job.hold, cost, fee),
    };
    Ok(job.propose(event, format!("{}.settled", job.id), ending.seq))
}

/// The number of the billing rule (docs/events.md). Rule 2 bills no time that no machine reported, and stops at
/// `Exited`.
const RULE: u32 = 2;

/// The time to bill. It is the least of four times: the time between the broker's times of start and end, the worker's
/// own measurement, the time limit, and the time that the budget pays for. `None` if no machine reported that the job's
/// program ran, or if the job is not billed.
fn meter(job: &Job, attempt: &Attempt, ending: &Ending) -> Option<Metering> {
    let (started, started_at) = attempt.started.filter(|_| ending.billed)?;
    let exited = attempt.exited.map(|(seq, at, _)| (seq, at));
    let cancelled = job.cancel.filter(|_| ending.cancelled);
    let ends = [exited, cancelled, Some((ending.seq, ending.at))];
    let (ended, ended_at) = ends.into_iter().flatten().min_by_key(|(seq, _)| *seq)?;
    let worker = attempt.exited.map(|(_, _, usage)| usage).or(ending.usage)?.run;
    let broker = ended_at.since(started_at);
    let limit = job.limits.time.millis();
    let budget = attempt.terms.price.time_for(job.hold);
    let billed = [Some(broker), Some(worker), Some(limit), budget].into_iter().flatten().min().unwrap_or_default();
    Some(Metering { broker, worker: Some(worker), limit, budget, billed, started, ended })
}

/// The postings of a settlement. They release the hold, debit the consumer, and credit the provider and the platform.
/// Their sum is zero.
fn postings(
    consumer: AccountId,
    provider: Option<AccountId>,
    hold: MicroUsd,
    cost: MicroUsd,
    fee: MicroUsd,
) -> Vec<Posting> {
    use LedgerAccount::{Available, Fees, Held};
    let mut postings = vec![
        Posting { account: Held(consumer), amount: -hold },
        Posting { account: Available(consumer), amount: hold - cost },
    ];
    if let Some(provider) = provider {
        postings.push(Posting { account: Available(provider), amount: cost - fee });
        postings.push(Posting { account: Fees, amount: fee });
    }
    postings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, testing::*};
    use gpubnb_events::{Actor, Event, Millis, command::Outcome, event::Reason};

    fn settled(market: &mut TestMarket, job: gpubnb_events::JobId) -> Settled {
        market.when(Actor::Platform, Command::Settle(job)).expect_appended();
        match market.last_event() {
            Event::Settled(e) => e.clone(),
            other => panic!("expected Settled, got {other:?}"),
        }
    }

    #[test]
    fn the_shortest_of_the_four_times_is_billed_and_the_postings_sum_to_zero() {
        let mut market = given();
        let (job, lease) = market.start_default();
        market.advance_time(Millis(90_000));
        market.complete(job, lease, Millis(72_000));
        let bill = settled(&mut market, job);
        let metering = bill.metering.clone().expect("it ran");
        assert_eq!(metering.billed, Millis(72_000));
        assert!(metering.broker >= Millis(90_000));
        assert_eq!(bill.cost, market.offer().price.cost_of(Millis(72_000)));
        assert_eq!(bill.fee + bill.earned, bill.cost);
        assert_eq!(bill.postings.iter().map(|p| p.amount).sum::<MicroUsd>(), MicroUsd::ZERO);
        assert_eq!(market.account(market.consumer).held, MicroUsd::ZERO);
        assert_eq!(market.account(market.provider).available, bill.earned);
        assert!(matches!(market.when(Actor::Platform, Command::Settle(job)).expect_refused(), DomainError::UnknownJob));
    }

    #[test]
    fn a_job_that_failed_by_a_provider_fault_is_free_and_its_hold_is_released() {
        let mut market = given();
        let before = market.account(market.consumer).available;
        let mut submit = market.new_submission();
        submit.max_attempts = Some(1);
        let job = market.submit(submit);
        let lease = market.assign(job);
        market.accept(job, lease);
        market.start(job, lease);
        market.advance_time(Millis(50_000));
        let lost = market.report(job, lease, Outcome::Failed { reason: Reason::Preempted, detail: String::new() });
        market.when(market.as_machine(), lost).expect_appended();
        let bill = settled(&mut market, job);
        assert_eq!((bill.cost, bill.metering), (MicroUsd::ZERO, None));
        assert_eq!(market.account(market.consumer).available, before);
    }

    #[test]
    fn a_cancelled_job_is_billed_up_to_the_request() {
        let mut market = given();
        let (job, lease) = market.start_default();
        market.advance_time(Millis(10_000));
        market.when(market.as_consumer(), Command::Cancel(job)).expect_appended();
        market.advance_time(Millis(20_000));
        let stopped = market.report_after(job, lease, Outcome::Cancelled, Millis(30_000));
        market.when(market.as_machine(), stopped).expect_appended();
        let metering = settled(&mut market, job).metering.expect("it ran");
        assert!((Millis(10_000)..Millis(11_000)).contains(&metering.billed), "{metering:?}");
    }

    #[test]
    fn time_that_no_machine_reported_is_not_billed() {
        let mut market = given();
        let (job, _) = market.start_default();
        market.advance_time(Millis(10_000));
        market.when(market.as_consumer(), Command::Cancel(job)).expect_appended();
        market.advance_time(Millis(31_000));
        market.when(Actor::Platform, Command::Expire(job)).expect_appended();
        let bill = settled(&mut market, job);
        assert_eq!((bill.cost, bill.metering, bill.rule), (MicroUsd::ZERO, None, 2));
    }

    #[test]
    fn uploading_files_is_not_billed() {
        let mut market = given();
        let (job, lease) = market.start_default();
        market.advance_time(Millis(2_000));
        let exited = market.exit(job, lease, Millis(1_500));
        market.advance_time(Millis(600_000));
        // The run time in `Exited` is billed. A longer run time in the later report changes nothing.
        market.complete(job, lease, Millis(500_000));
        let metering = settled(&mut market, job).metering.expect("it ran");
        assert_eq!((metering.billed, metering.ended), (Millis(1_500), exited));
        assert!(metering.broker < Millis(3_000));
    }
}
