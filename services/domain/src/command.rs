//! The commands of the domain, the outcome of a decision, and the settings of a deployment.

use gpubnb_events::{
    AccountId, Aggregate, JobId, MachineId, MicroUsd, Millis, Seq,
    command::{
        Accept, ChangeMachine, ClosePayout, Decline, Deposit, Exit, RecordTest, Report, RequestPayout, SetSuspension,
        Start, SubmitJob,
    },
    message::Proposal,
    spec::Offer,
};

/// A machine's offer, with the owner and the key from its enrollment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The account that owns the machine and earns.
    pub owner: AccountId,
    /// The machine's public key.
    pub public_key: Option<String>,
    /// The offer.
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
    /// Submits a job.
    Submit(AccountId, SubmitJob),
    /// Cancels a job.
    Cancel(JobId),
    /// Offers a machine.
    ListMachine(MachineId, Listing),
    /// Changes a machine as its owner wishes.
    ChangeMachine(ChangeMachine),
    /// Records a self-test.
    RecordTest(MachineId, RecordTest),
    /// A machine accepts a job.
    Accept(MachineId, Accept),
    /// A machine sends a job back.
    Decline(MachineId, Decline),
    /// A machine is about to start the container.
    Start(MachineId, Start),
    /// A machine says that the job's program has ended, before it carries the files away.
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
    /// The watchdog missed heartbeats.
    Suspect(MachineId),
    /// The watchdog gave a machine up.
    Lose(MachineId),
    /// The watchdog heard a machine again.
    Recover(MachineId),
}

impl Command {
    /// The aggregate of the event that the command would write.
    pub fn aggregate(&self) -> Aggregate {
        match self {
            Self::OpenAccount(account)
            | Self::Deposit(account, _)
            | Self::RequestPayout(account, _)
            | Self::Submit(account, _) => Aggregate::Account(*account),
            Self::ClosePayout(c) => Aggregate::Account(c.account),
            Self::SetSuspension(c) => Aggregate::Account(c.account),
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
            Self::Submit(..) => "Submit",
            Self::Cancel(_) => "Cancel",
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
            Self::Suspect(_) => "Suspect",
            Self::Lose(_) => "Lose",
            Self::Recover(_) => "Recover",
        }
    }

    /// The job that the command is about, which may have left memory.
    pub fn job(&self) -> Option<JobId> {
        match self.aggregate() {
            Aggregate::Job(job) => Some(job),
            Aggregate::Account(_) | Aggregate::Machine(_) => None,
        }
    }
}

/// The outcome of a granted command.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // one per command, moved once
pub enum Decision {
    /// This event has to be appended.
    Append(Proposal),
    /// The command was granted before; its event has this sequence.
    Already(Seq),
}

/// The rules that differ between deployments.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The platform's share, in ten-thousandths.
    pub fee_basis_points: u32,
    /// True if accounts may deposit play money by themselves.
    pub test_funds: bool,
    /// How long a machine has to accept.
    pub accept_within: Millis,
    /// How long after a limit the platform waits for the worker's own report.
    pub grace: Millis,
    /// How long a job that was declined is kept from that machine.
    pub decline_pause: Millis,
    /// The greatest budget of a job.
    pub max_budget: MicroUsd,
    /// Images that jobs may use without a digest, besides the images of the templates.
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
            approved_images: Vec::new(),
        }
    }
}
