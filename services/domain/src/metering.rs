//! Metering and the bill. Anybody can compute the bill again from the events that `Settled` cites.

use gpubnb_events::{
    AccountId, MicroUsd,
    event::Settled,
    ledger::{LedgerAccount, Posting},
    spec::Metering,
};

use super::{
    Decision, Refusal,
    job::{Attempt, Ending, Job, Phase},
};

/// Settles an ended job, with one event that has all the postings.
pub(crate) fn settle(job: &Job) -> Result<Decision, Refusal> {
    if let Some(seq) = job.settled {
        return Ok(Decision::Already(seq));
    }
    let (Phase::Ended, Some(ending)) = (job.phase, &job.ending) else {
        return Err(Refusal::WrongState("The job has not ended."));
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

/// The number of the billing rule. Rule 2 bills no time that no machine reported, and ends the time at `Exited`.
const RULE: u32 = 2;

/// The metered time: the least of the broker's time, the worker's time, the time limit, and the time that the budget
/// pays for. `None` if no machine reported that the job's code ran, or if the ending is not the consumer's to pay.
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

/// The postings: the hold is released, the consumer debited, provider and platform credited. Their sum is zero.
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

    fn settled(w: &mut Given, job: gpubnb_events::JobId) -> Settled {
        w.when(Actor::Platform, Command::Settle(job)).appended();
        match w.last_event() {
            Event::Settled(e) => e.clone(),
            other => panic!("expected Settled, got {other:?}"),
        }
    }

    #[test]
    fn the_smallest_time_is_billed_and_the_postings_sum_to_zero() {
        let mut w = given();
        let job = w.submitted();
        let lease = w.assigned(job);
        w.accepted(job, lease);
        w.started(job, lease);
        w.time_passes(Millis(90_000));
        w.completed(job, lease, Millis(72_000));
        let bill = settled(&mut w, job);
        let metering = bill.metering.clone().expect("it ran");
        assert_eq!(metering.billed, Millis(72_000));
        assert!(metering.broker >= Millis(90_000));
        assert_eq!(bill.cost, w.offer().price.cost_of(Millis(72_000)));
        assert_eq!(bill.fee + bill.earned, bill.cost);
        assert_eq!(bill.postings.iter().map(|p| p.amount).sum::<MicroUsd>(), MicroUsd::ZERO);
        assert_eq!(w.account(w.consumer).held, MicroUsd::ZERO);
        assert_eq!(w.account(w.provider).available, bill.earned);
        assert!(matches!(w.when(Actor::Platform, Command::Settle(job)).refused(), Refusal::UnknownJob));
    }

    #[test]
    fn a_fault_of_the_provider_costs_nothing_and_frees_the_hold() {
        let mut w = given();
        let before = w.account(w.consumer).available;
        let mut submit = w.a_submission();
        submit.max_attempts = Some(1);
        let job = w.submit(submit);
        let lease = w.assigned(job);
        w.accepted(job, lease);
        w.started(job, lease);
        w.time_passes(Millis(50_000));
        let lost = w.report(job, lease, Outcome::Failed { reason: Reason::Preempted, detail: String::new() });
        w.when(w.as_machine(), lost).appended();
        let bill = settled(&mut w, job);
        assert_eq!((bill.cost, bill.metering), (MicroUsd::ZERO, None));
        assert_eq!(w.account(w.consumer).available, before);
    }

    #[test]
    fn a_cancelled_job_is_billed_up_to_the_request() {
        let mut w = given();
        let job = w.submitted();
        let lease = w.assigned(job);
        w.accepted(job, lease);
        w.started(job, lease);
        w.time_passes(Millis(10_000));
        w.when(w.as_consumer(), Command::Cancel(job)).appended();
        w.time_passes(Millis(20_000));
        let stopped = w.report_after(job, lease, Outcome::Cancelled, Millis(30_000));
        w.when(w.as_machine(), stopped).appended();
        let metering = settled(&mut w, job).metering.expect("it ran");
        assert!((Millis(10_000)..Millis(11_000)).contains(&metering.billed), "{metering:?}");
    }

    #[test]
    fn time_that_no_machine_reported_is_not_billed() {
        let mut w = given();
        let job = w.submitted();
        let lease = w.assigned(job);
        w.accepted(job, lease);
        w.started(job, lease);
        w.time_passes(Millis(10_000));
        w.when(w.as_consumer(), Command::Cancel(job)).appended();
        w.time_passes(Millis(31_000));
        w.when(Actor::Platform, Command::Expire(job)).appended();
        let bill = settled(&mut w, job);
        assert_eq!((bill.cost, bill.metering, bill.rule), (MicroUsd::ZERO, None, 2));
    }

    #[test]
    fn carrying_files_away_is_not_billed() {
        let mut w = given();
        let job = w.submitted();
        let lease = w.assigned(job);
        w.accepted(job, lease);
        w.started(job, lease);
        w.time_passes(Millis(2_000));
        let exited = w.exited(job, lease, Millis(1_500));
        w.time_passes(Millis(600_000));
        // A machine cannot change its mind about the time when the files have arrived.
        w.completed(job, lease, Millis(500_000));
        let metering = settled(&mut w, job).metering.expect("it ran");
        assert_eq!((metering.billed, metering.ended), (Millis(1_500), exited));
        assert!(metering.broker < Millis(3_000));
    }
}
