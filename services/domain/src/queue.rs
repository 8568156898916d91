//! The queue: the jobs that wait for a machine, and the order in which the scheduler looks at them.
//!
//! Accounts share the machines by what they use now. The next job is the oldest one of the account whose running jobs
//! cost the least for each dollar that the market holds for it. So a job of an account that runs nothing comes before
//! the next task of a large batch, and who holds more money gets more machines. Splitting the work among several
//! accounts gains nothing, because their money is split, too.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, BinaryHeap, btree_set::Range},
    ops::Bound,
};

use gpubnb_events::{AccountId, JobId, MicroUsd, Seq};
use serde::{Deserialize, Serialize};

use crate::{World, batch::Batch, job::Job};

/// A place in the queue: that of the job with this id, which an event with this sequence made.
pub type QueuePlace = (Seq, JobId);

/// The place before the oldest job.
pub(crate) const QUEUE_START: QueuePlace = (Seq::ZERO, JobId::MIN);

/// The place after which the next pass goes on, for each account whose queue the last pass did not finish.
pub type ResumePlaces = BTreeMap<AccountId, QueuePlace>;

/// The jobs that wait for a machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Queue(BTreeMap<AccountId, BTreeSet<QueuePlace>>);

impl Queue {
    pub(crate) fn insert(&mut self, account: AccountId, place: QueuePlace) {
        self.0.entry(account).or_default().insert(place);
    }

    pub(crate) fn remove(&mut self, account: AccountId, place: QueuePlace) {
        if let Some(places) = self.0.get_mut(&account) {
            places.remove(&place);
            if places.is_empty() {
                self.0.remove(&account);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.values().map(BTreeSet::len).sum()
    }

    /// All places, oldest first.
    pub(crate) fn places(&self) -> BTreeSet<QueuePlace> {
        self.0.values().flatten().copied().collect()
    }
}

/// An account with the next of its waiting jobs.
struct Share<'a> {
    /// The cost of one hour of the account's running jobs, and of those that this pass has chosen. Each counts a
    /// millionth of a dollar more, so that jobs on machines that cost nothing count, too.
    usage: u128,
    /// The money that is held for the account, and at least a millionth of a dollar.
    weight: u128,
    next: &'a Job,
    account: AccountId,
    rest: Range<'a, QueuePlace>,
}

impl Share<'_> {
    fn place(&self) -> QueuePlace {
        (self.next.opened, self.next.id)
    }
}

impl Ord for Share<'_> {
    /// The greatest share is served first: that with the least usage for each dollar, and then the oldest job.
    fn cmp(&self, other: &Self) -> Ordering {
        let (own, theirs) = (self.usage.saturating_mul(other.weight), other.usage.saturating_mul(self.weight));
        theirs.cmp(&own).then_with(|| other.place().cmp(&self.place()))
    }
}

impl PartialOrd for Share<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Share<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Share<'_> {}

fn amount(money: MicroUsd) -> u128 {
    u128::try_from(money.0).unwrap_or(0)
}

/// The most that a job costs in an hour: its hold over its time limit.
fn hourly_cost(job: &Job) -> u128 {
    amount(job.hold).saturating_mul(3_600) / u128::from(job.limits.time.0.max(1)) + 1
}

impl World {
    /// The next jobs to look at, at most `most`, in the order of fair shares, and where the next pass goes on. Passes
    /// make rounds: in each round, every waiting job has its turn once, so no order of shares can starve anybody.
    pub(crate) fn fair_order(&self, resume: &ResumePlaces, most: usize) -> (Vec<JobId>, ResumePlaces) {
        let mut shares: BinaryHeap<Share<'_>> = self.queue.0.keys().filter_map(|id| self.share(*id, resume)).collect();
        if shares.is_empty() && !resume.is_empty() {
            return self.fair_order(&ResumePlaces::new(), most);
        }
        let (mut jobs, mut places) = (Vec::new(), resume.clone());
        places.retain(|account, _| self.queue.0.contains_key(account));
        while jobs.len() < most {
            // The round is over: the next one begins with the oldest job of each account.
            let Some(mut share) = shares.pop() else { return (jobs, ResumePlaces::new()) };
            jobs.push(share.next.id);
            // An account whose queue is finished keeps its last place until the round is over.
            places.insert(share.account, share.place());
            share.usage += hourly_cost(share.next);
            if let Some(next) = self.next_startable(&mut share.rest) {
                shares.push(Share { next, ..share });
            }
        }
        (jobs, places)
    }

    /// The share of an account, with its first waiting job after the place at which the last pass stopped. `None` if no
    /// job of the account may start in this round.
    fn share(&self, account: AccountId, resume: &ResumePlaces) -> Option<Share<'_>> {
        let place = resume.get(&account).copied().unwrap_or(QUEUE_START);
        let mut rest = self.queue.0.get(&account)?.range((Bound::Excluded(place), Bound::Unbounded));
        let next = self.next_startable(&mut rest)?;
        let state = self.accounts.get(&account)?;
        let usage = u128::from(state.running.jobs) + amount(state.running.hourly_price);
        Some(Share { usage, weight: amount(state.held).max(1), next, account, rest })
    }

    /// The next job whose batch may start another task.
    fn next_startable(&self, places: &mut Range<'_, QueuePlace>) -> Option<&Job> {
        let may_start = |job: &&Job| !self.batch_of(job).is_some_and(Batch::is_full);
        places.filter_map(|(_, job)| self.jobs.get(job)).find(may_start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, due, testing::*};
    use gpubnb_events::{
        Actor, CommandId,
        command::{Deposit, SubmitBatch},
    };

    /// The jobs in the order in which the scheduler looks at them.
    fn order(market: &TestMarket) -> Vec<JobId> {
        due::scheduling_pass(&market.world, &ResumePlaces::new()).jobs
    }

    #[test]
    fn a_small_job_comes_before_the_next_task_of_a_large_batch() {
        let mut market = given();
        let deposit = Deposit { deposit: CommandId::generate(), amount: MicroUsd::dollars(1) };
        market.when(market.as_operator(), Command::Deposit(market.provider, deposit)).expect_appended();
        let batch = market.submit_batch(SubmitBatch { max_running: Some(9), ..market.new_batch(100) });
        market.when(Actor::Platform, Command::OpenTasks(batch)).expect_appended();
        let small = market.new_submission();
        let id = small.job;
        market.when(market.as_provider(), Command::Submit(market.provider, small)).expect_appended();
        // Nothing runs: the older task is first, and then it is the other's turn.
        let [first, second] = [0, 1].map(|number| batch.task(number).unwrap());
        assert_eq!(order(&market)[..3], [first, id, second]);
        market.assign(first);
        market.list_machine(market.offer());
        assert_eq!(order(&market)[..2], [id, second], "the batch runs a task already");
    }

    #[test]
    fn the_machines_are_shared_by_the_money_that_is_held_and_splitting_gains_nothing() {
        let mut market = given();
        let deposit = Deposit { deposit: CommandId::generate(), amount: MicroUsd::dollars(1) };
        market.when(market.as_operator(), Command::Deposit(market.provider, deposit)).expect_appended();
        // The consumer holds the money of eight jobs, the other account that of two.
        for _ in 0..8 {
            market.submit(market.new_submission());
        }
        let few: Vec<JobId> = (0..2)
            .map(|_| {
                let job = market.new_submission();
                let id = job.job;
                market.when(market.as_provider(), Command::Submit(market.provider, job)).expect_appended();
                id
            })
            .collect();
        let places: Vec<usize> =
            few.iter().map(|id| order(&market).iter().position(|job| job == id).unwrap()).collect();
        assert_eq!(places, [1, 6], "one in five, after the first of each");
    }

    #[test]
    fn a_pass_goes_on_where_the_last_one_stopped() {
        let mut market = given();
        let jobs: Vec<JobId> = (0..5).map(|_| market.submit(market.new_submission())).collect();
        let (first, places) = market.world.fair_order(&ResumePlaces::new(), 3);
        assert_eq!(first, jobs[..3]);
        let (second, places) = market.world.fair_order(&places, 3);
        assert_eq!((second, places.len()), (jobs[3..].to_vec(), 0));
    }

    #[test]
    fn jobs_that_no_machine_takes_do_not_starve_an_account_that_runs_something() {
        let mut market = given();
        let deposit = Deposit { deposit: CommandId::generate(), amount: MicroUsd::dollars(1) };
        market.when(market.as_operator(), Command::Deposit(market.provider, deposit)).expect_appended();
        // The other account runs a job and has another that waits.
        let [runs, waits] = [(); 2].map(|()| {
            let job = market.new_submission();
            let id = job.job;
            market.when(market.as_provider(), Command::Submit(market.provider, job)).expect_appended();
            id
        });
        market.assign(runs);
        // The other account holds more money and runs nothing, so each pass serves it first.
        let jobs: Vec<JobId> = (0..4).map(|_| market.submit(market.new_submission())).collect();
        let mut places = ResumePlaces::new();
        for expected in jobs.into_iter().chain([waits]) {
            let (pass, next) = market.world.fair_order(&places, 1);
            assert_eq!(pass, [expected]);
            places = next;
        }
    }
}
