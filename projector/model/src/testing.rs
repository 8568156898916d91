//! Builds event histories for tests, and folds a model over a history.
//!
//! The bodies of the events come from `events/fixtures`; only ids and amounts are replaced. A test can change other
//! fields: `history.submitted_with(account(1), job(1), |e| e.limits.time = Seconds(5))`.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "only tests use this module")]

use std::{fmt, str::FromStr};

use gpubnb_events::{
    AccountId, Actor, BatchId, CommandId, Event, JobId, Lease, MachineId, MicroUsd, Millis, Recorded, Seq, Timestamp,
    batch::TaskList,
    event::{
        Accepted, BatchSubmitted, Cancelled, Check, Completed, Declined, Failed, FundsDeposited, JobAssigned,
        JobSubmitted, MachineListed, MachineTested, Reason, Requeued, Settled, Started, TasksOpened,
    },
    ledger::{LedgerAccount, Posting},
    message::{Envelope, EventId, Quarantined},
};
use gpubnb_store::{Database, Table, WriteBatch};

use crate::Projection;

/// The length of a day.
pub const DAY: Millis = Millis(86_400_000);
/// Every history begins at midnight (UTC) of this day, which is counted in days since 1970-01-01.
pub const FIRST_DAY: u32 = 20_000;
/// The amount that is held for each job.
pub const HOLD: MicroUsd = MicroUsd(60_000);
/// The cost of each billed job.
pub const COST: MicroUsd = MicroUsd(290);
/// The platform's share of the cost.
pub const FEE: MicroUsd = MicroUsd(29);
/// The provider's share of the cost.
pub const EARNED: MicroUsd = MicroUsd(261);
/// The billed time of each billed job.
pub const BILLED: Millis = Millis(2_908);

/// The number of messages in one write batch. A history of more messages tests both kinds of reads: from the batch and
/// from the table.
const BATCH_LENGTH: usize = 7;

/// An id of one kind (account, machine or job) that ends in a number. Ids of a kind sort by this number.
fn id<I: FromStr<Err: fmt::Debug>>(kind: char, number: u16) -> I {
    format!("01900000-0000-7000-8000-{kind}{kind}{kind}{kind}0000{number:04x}").parse().unwrap()
}

/// The account id with this number.
pub fn account(number: u16) -> AccountId {
    id('a', number)
}

/// The machine id with this number.
pub fn machine(number: u16) -> MachineId {
    id('c', number)
}

/// The job id with this number.
pub fn job(number: u16) -> JobId {
    id('d', number)
}

/// The batch id with this number.
pub fn batch(number: u16) -> BatchId {
    format!("01900000-0000-7000-8000-bbb{number:04x}00000").parse().unwrap()
}

/// The fixture of an event type, for example `events/fixtures/Started.v1.json` for `Started`.
macro_rules! fixture {
    ($event:ident) => {{
        let text = include_str!(concat!("../../../events/fixtures/", stringify!($event), ".v1.json"));
        serde_json::from_str::<$event>(text).unwrap()
    }};
}

/// The messages of a log. Each message is recorded one second after the previous message.
pub struct History {
    messages: Vec<Recorded>,
    now: Timestamp,
}

impl Default for History {
    fn default() -> Self {
        let midnight = i64::from(FIRST_DAY) * 86_400_000;
        Self { messages: Vec::new(), now: Timestamp::from_millis(midnight) }
    }
}

impl History {
    /// All messages.
    pub fn messages(&self) -> &[Recorded] {
        &self.messages
    }

    /// The last message.
    pub fn last(&self) -> &Recorded {
        self.messages.last().unwrap()
    }

    /// The time of the next message.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Moves the clock forward before the next message.
    pub fn advance_time(&mut self, time: Millis) {
        self.now = self.now.plus(time);
    }

    /// Folds all messages with one model into a new table.
    pub fn fold(&self, model: &impl Projection) -> Table {
        let table = Database::temporary(8).unwrap().table(model.name()).unwrap();
        for batch in self.messages.chunks(BATCH_LENGTH) {
            let mut rows = WriteBatch::new(&table);
            for recorded in batch {
                match recorded.event() {
                    Some(event) => model.apply(&mut rows, recorded, event).unwrap(),
                    None => model.quarantined(&mut rows, recorded).unwrap(),
                }
            }
            rows.commit(batch.last().unwrap().seq).unwrap();
        }
        table
    }

    /// Records an event. Its actor is the platform.
    pub fn record(&mut self, event: impl Into<Event>) -> Seq {
        let event = event.into();
        let aggregate = event.aggregate();
        let id = EventId(format!("{}", self.messages.len()));
        let envelope = Envelope { id, actor: Actor::Platform, cause: None, correlation: event.job() };
        self.push(Some(aggregate), Ok((envelope, event)))
    }

    /// Records a quarantined message: a message that is no valid event.
    pub fn quarantined(&mut self) -> Seq {
        self.push(None, Err(Quarantined("no event".to_owned())))
    }

    fn push(
        &mut self,
        aggregate: Option<gpubnb_events::Aggregate>,
        entry: Result<(Envelope, Event), Quarantined>,
    ) -> Seq {
        let seq = Seq(self.messages.len() as u64 + 1);
        let mut leaf = [7; 32];
        leaf[..8].copy_from_slice(&seq.0.to_be_bytes());
        self.messages.push(Recorded { seq, at: self.now, aggregate, entry, leaf });
        self.advance_time(Millis(1_000));
        seq
    }

    /// An account deposits money.
    pub fn deposited(&mut self, account: AccountId, amount: MicroUsd) -> Seq {
        self.record(FundsDeposited { account, deposit: id::<CommandId>('e', 1), amount })
    }

    /// An account submits a job, for which [`HOLD`] is held.
    pub fn submitted(&mut self, account: AccountId, job: JobId) -> Seq {
        self.submitted_with(account, job, |_| {})
    }

    /// An account submits a job. `change` changes the event first.
    pub fn submitted_with(&mut self, account: AccountId, job: JobId, change: impl FnOnce(&mut JobSubmitted)) -> Seq {
        let mut event = JobSubmitted { account, job, hold: HOLD, ..fixture!(JobSubmitted) };
        change(&mut event);
        self.record(event)
    }

    /// An account submits a batch of tasks that differ only in their index. [`HOLD`] is held for each.
    pub fn batch_submitted(&mut self, account: AccountId, batch: BatchId, count: u32) -> Seq {
        let tasks = TaskList { count, indices: Vec::new(), names: Vec::new(), rows: Vec::new() };
        self.record(BatchSubmitted { account, batch, hold: HOLD, tasks, ..fixture!(BatchSubmitted) })
    }

    /// The market opens tasks of a batch.
    pub fn tasks_opened(&mut self, batch: BatchId, first: u32, up_to: u32) -> Seq {
        self.record(TasksOpened { batch, first, up_to, ..fixture!(TasksOpened) })
    }

    /// A machine is listed, with one GPU and one slot.
    pub fn listed(&mut self, owner: AccountId, machine: MachineId) -> Seq {
        self.listed_with(owner, machine, |_| {})
    }

    /// A machine is listed. `change` changes the event first.
    pub fn listed_with(
        &mut self,
        owner: AccountId,
        machine: MachineId,
        change: impl FnOnce(&mut MachineListed),
    ) -> Seq {
        let mut event = MachineListed { machine, owner, ..fixture!(MachineListed) };
        change(&mut event);
        self.record(event)
    }

    /// A machine reports the checks of a self-test.
    pub fn tested(&mut self, machine: MachineId, checks: Vec<Check>) -> Seq {
        let fixture = include_str!("../../../events/fixtures/MachineTested.v2.json");
        let test: MachineTested = serde_json::from_str(fixture).unwrap();
        self.record(MachineTested { machine, checks, ..test })
    }

    /// A job is assigned to a machine.
    pub fn assigned(&mut self, job: JobId, machine: MachineId) -> Lease {
        Lease(self.record(JobAssigned { job, machine, ..fixture!(JobAssigned) }))
    }

    /// The machine declines the job.
    pub fn declined(&mut self, job: JobId, lease: Lease, machine: MachineId) -> Seq {
        self.record(Declined { job, lease, machine, ..fixture!(Declined) })
    }

    /// The machine accepts the job.
    pub fn accepted(&mut self, job: JobId, lease: Lease) -> Seq {
        self.record(Accepted { job, lease })
    }

    /// The job's code starts.
    pub fn started(&mut self, job: JobId, lease: Lease) -> Seq {
        self.record(Started { job, lease, ..fixture!(Started) })
    }

    /// The attempt fails and the job is queued again.
    pub fn requeued(&mut self, job: JobId, lease: Lease, excluded: MachineId, reason: Reason) -> Seq {
        let (fault, detail) = (reason.fault(), "requeued".to_owned());
        self.record(Requeued { job, lease, reason, fault, excluded, until: None, detail })
    }

    /// The job completes.
    pub fn completed(&mut self, job: JobId, lease: Lease) -> Seq {
        self.record(Completed { job, lease, ..fixture!(Completed) })
    }

    /// The job fails. `lease` is `None` if the job was on no machine.
    pub fn failed(&mut self, job: JobId, lease: Option<Lease>, reason: Reason) -> Seq {
        self.record(Failed { job, lease, reason, fault: reason.fault(), ..fixture!(Failed) })
    }

    /// The job is cancelled. `lease` is `None` if the job was on no machine.
    pub fn cancelled(&mut self, job: JobId, lease: Option<Lease>) -> Seq {
        self.record(Cancelled::unreported(job, lease))
    }

    /// The job is settled. `billed` has the provider and the billed lease; if it is `None`, the job costs nothing.
    pub fn settled(&mut self, job: JobId, consumer: AccountId, billed: Option<(AccountId, Lease)>) -> Seq {
        self.settled_with(job, consumer, billed, |_| {})
    }

    /// Like [`Self::settled`], with changed fields.
    pub fn settled_with(
        &mut self,
        job: JobId,
        consumer: AccountId,
        billed: Option<(AccountId, Lease)>,
        change: impl FnOnce(&mut Settled),
    ) -> Seq {
        let posting = |account, amount| Posting { account, amount };
        let (available, held) = (LedgerAccount::Available(consumer), LedgerAccount::Held(consumer));
        let bill = Settled { job, consumer, ..fixture!(Settled) };
        let mut settled = match billed {
            Some((provider, lease)) => Settled {
                provider: Some(provider),
                lease: Some(lease),
                postings: vec![
                    posting(held, -HOLD),
                    posting(available, HOLD - COST),
                    posting(LedgerAccount::Available(provider), EARNED),
                    posting(LedgerAccount::Fees, FEE),
                ],
                ..bill
            },
            None => Settled {
                provider: None,
                lease: None,
                metering: None,
                cost: MicroUsd::ZERO,
                fee: MicroUsd::ZERO,
                earned: MicroUsd::ZERO,
                postings: vec![posting(held, -HOLD), posting(available, HOLD)],
                ..bill
            },
        };
        change(&mut settled);
        self.record(settled)
    }

    /// Records all events of a successful job: submitted, assigned, accepted, started, completed, settled.
    pub fn whole_job(&mut self, job: JobId, consumer: AccountId, (provider, machine): (AccountId, MachineId)) -> Lease {
        self.submitted(consumer, job);
        let lease = self.assigned(job, machine);
        self.accepted(job, lease);
        self.started(job, lease);
        self.completed(job, lease);
        self.settled(job, consumer, Some((provider, lease)));
        lease
    }
}
