//! The commands of the domain, the outcome of a decision, and the settings of a deployment.
//!
//! A command comes from a person, from a machine, or from one of the platform's process managers. The scheduler, the
//! reconciler, the settlement and the watchdog are process managers (`services/src/process`).

use gpubnb_events::{
    AccountId, Aggregate, BatchId, JobId, MachineId, MicroUsd, Millis, Seq,
    command::{
        Accept, ChangeMachine, CloseAccount, ClosePayout, Decline, Deposit, Exit, RecordTest, Report, RequestPayout,
        SetSuspension, Start, SubmitBatch, SubmitJob,
    },
    message::Proposal,
    spec::{Mebibytes, Offer},
};

/// The body of [`Command::ListMachine`]: the machine's offer, with the owner and the key from its enrollment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The account that owns the machine and is paid for its jobs.
    pub owner: AccountId,
    /// The machine's public key, which checks the signatures of its reports. `None` if the machine signs nothing.
    pub public_key: Option<String>,
    /// The hardware, the price and the policy that the machine offers.
    pub offer: Offer,
}

/// A command. The domain grants or refuses it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // short-lived values, never stored in bulk
pub enum Command {
    /// Opens an account.
    OpenAccount(AccountId),
    /// Deposits money.
    Deposit(AccountId, Deposit),
    /// Requests a payout.
    RequestPayout(AccountId, RequestPayout),
    /// Records that a payout was paid, or failed.
    ClosePayout(ClosePayout),
    /// Suspends or reinstates an account.
    SetSuspension(SetSuspension),
    /// The owner closes the account.
    CloseAccount(AccountId, CloseAccount),
    /// Submits a job.
    Submit(AccountId, SubmitJob),
    /// Cancels a job.
    Cancel(JobId),
    /// Submits a batch.
    SubmitBatch(AccountId, SubmitBatch),
    /// Cancels the tasks of a batch that have not ended.
    CancelBatch(BatchId),
    /// The scheduler opens the next tasks of a batch.
    OpenTasks(BatchId),
    /// The scheduler closes a batch that is finished, that has too many failed tasks, or that is too old.
    EndBatch(BatchId),
    /// Offers a machine on the market.
    ListMachine(MachineId, Listing),
    /// Changes a machine as its owner asks, for example pauses it.
    ChangeMachine(ChangeMachine),
    /// Records the results of a machine's self-test.
    RecordTest(MachineId, RecordTest),
    /// A machine accepts a job.
    Accept(MachineId, Accept),
    /// A machine declines a job that it has not accepted.
    Decline(MachineId, Decline),
    /// A machine is about to start the container.
    Start(MachineId, Start),
    /// A machine says that the job's program has ended, before the machine uploads the job's files.
    Exit(MachineId, Exit),
    /// A machine reports how an attempt ended.
    Report(MachineId, Report),
    /// The scheduler gives a waiting job to a machine.
    Assign(JobId),
    /// The reconciler ends a job that took too long.
    Expire(JobId),
    /// The reconciler takes a job away from a lost machine.
    Abandon(JobId),
    /// The settlement bills an ended job.
    Settle(JobId),
    /// The settlement releases the hold of a submission that made no job. The submission is named by its sequence.
    ReleaseHold(AccountId, Seq),
    /// The watchdog missed heartbeats.
    Suspect(MachineId),
    /// The watchdog decided that a silent machine is lost.
    Lose(MachineId),
    /// The watchdog received a heartbeat of a suspect or lost machine.
    Recover(MachineId),
}

impl Command {
    /// The aggregate of the event that the command writes.
    pub fn aggregate(&self) -> Aggregate {
        match self {
            Self::OpenAccount(account)
            | Self::Deposit(account, _)
            | Self::RequestPayout(account, _)
            | Self::ReleaseHold(account, _)
            | Self::Submit(account, _)
            | Self::SubmitBatch(account, _) => Aggregate::Account(*account),
            Self::CancelBatch(batch) | Self::OpenTasks(batch) | Self::EndBatch(batch) => Aggregate::Batch(*batch),
            Self::ClosePayout(c) => Aggregate::Account(c.account),
            Self::SetSuspension(c) => Aggregate::Account(c.account),
            Self::CloseAccount(id, _) => Aggregate::Account(*id),
            Self::ChangeMachine(c) => Aggregate::Machine(c.machine),
            Self::ListMachine(machine, _)
            | Self::RecordTest(machine, _)
            | Self::Suspect(machine)
            | Self::Lose(machine)
            | Self::Recover(machine) => Aggregate::Machine(*machine),
            Self::Cancel(job) | Self::Assign(job) | Self::Expire(job) | Self::Abandon(job) | Self::Settle(job) => {
                Aggregate::Job(*job)
            }
            Self::Accept(_, c) => Aggregate::Job(c.job),
            Self::Decline(_, c) => Aggregate::Job(c.job),
            Self::Start(_, c) => Aggregate::Job(c.job),
            Self::Exit(_, c) => Aggregate::Job(c.job),
            Self::Report(_, c) => Aggregate::Job(c.job),
        }
    }

    /// The command's name in traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::OpenAccount(_) => "OpenAccount",
            Self::Deposit(..) => "Deposit",
            Self::RequestPayout(..) => "RequestPayout",
            Self::ClosePayout(_) => "ClosePayout",
            Self::SetSuspension(_) => "SetSuspension",
            Self::CloseAccount(..) => "CloseAccount",
            Self::Submit(..) => "Submit",
            Self::Cancel(_) => "Cancel",
            Self::SubmitBatch(..) => "SubmitBatch",
            Self::CancelBatch(_) => "CancelBatch",
            Self::OpenTasks(_) => "OpenTasks",
            Self::EndBatch(_) => "EndBatch",
            Self::ListMachine(..) => "ListMachine",
            Self::ChangeMachine(_) => "ChangeMachine",
            Self::RecordTest(..) => "RecordTest",
            Self::Accept(..) => "Accept",
            Self::Decline(..) => "Decline",
            Self::Start(..) => "Start",
            Self::Exit(..) => "Exit",
            Self::Report(..) => "Report",
            Self::Assign(_) => "Assign",
            Self::Expire(_) => "Expire",
            Self::Abandon(_) => "Abandon",
            Self::Settle(_) => "Settle",
            Self::ReleaseHold(..) => "ReleaseHold",
            Self::Suspect(_) => "Suspect",
            Self::Lose(_) => "Lose",
            Self::Recover(_) => "Recover",
        }
    }

    /// The job that the command is about, if its event belongs to a job. `None` for `Submit`: its event belongs to the
    /// account.
    pub fn job(&self) -> Option<JobId> {
        match self.aggregate() {
            Aggregate::Job(job) => Some(job),
            Aggregate::Account(_) | Aggregate::Machine(_) | Aggregate::Batch(_) => None,
        }
    }
}

/// The outcome of a granted command.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // one per command, moved once
pub enum Decision {
    /// The caller must append this event to the log.
    Append(Proposal),
    /// The command was granted before, and its event has this sequence.
    AlreadyDone(Seq),
}

/// The rules that differ between deployments.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The platform's share of the cost, in ten-thousandths: 1,000 is 10 %.
    pub fee_basis_points: u32,
    /// True if accounts may deposit play money by themselves.
    pub test_funds: bool,
    /// Time for a machine to accept a job that was assigned to it, in milliseconds.
    pub accept_within: Millis,
    /// Time that a worker has to report the end of a job after a request to cancel it. Then the platform ends the
    /// attempt. Milliseconds.
    pub grace: Millis,
    /// First pause of a job that came back to the queue, in milliseconds. For example, a machine that declined the job
    /// does not get the job again during the pause. Each time that the job comes back doubles the next pause.
    pub decline_pause: Millis,
    /// Greatest budget of a job.
    pub max_budget: MicroUsd,
    /// Most jobs of one account that are not settled.
    pub max_open_jobs: u32,
    /// Largest output of a job. The market's store of files can take no more.
    pub max_output: Mebibytes,
    /// Images that jobs may use without a digest. The images of the templates are always allowed.
    pub approved_images: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            fee_basis_points: 1_000,
            test_funds: false,
            accept_within: Millis(60_000),
            grace: Millis(30_000),
            decline_pause: Millis(5_000),
            max_budget: MicroUsd::dollars(10_000),
            max_open_jobs: 1_000,
            max_output: Mebibytes(u64::MAX),
            approved_images: Vec::new(),
        }
    }
}
