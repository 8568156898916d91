//! Every command the domain knows, and what a decision comes out as.

use gpubnb_events::{
    AccountId, Aggregate, JobId, MachineId, MicroUsd, Millis, Seq,
    command::{
        Accept, ChangeMachine, ClosePayout, Decline, Deposit, RecordTest, Report, RequestPayout, SetSuspension, Start,
        SubmitJob,
    },
    message::Proposal,
    spec::Offer,
};

/// A machine's offer, with what its enrollment says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Who owns it and earns.
    pub owner: AccountId,
    /// The key that speaks for it.
    pub public_key: Option<String>,
    /// What is offered.
    pub offer: Offer,
}

/// A wish that someone may or may not be granted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // short-lived values, never stored in bulk
pub enum Command {
    /// Opens an account.
    OpenAccount(AccountId),
    /// Money comes in.
    Deposit(AccountId, Deposit),
    /// Earnings are asked for.
    RequestPayout(AccountId, RequestPayout),
    /// A payout was paid, or failed.
    ClosePayout(ClosePayout),
    /// An account is suspended or reinstated.
    SetSuspension(SetSuspension),
    /// A job is submitted.
    Submit(AccountId, SubmitJob),
    /// A job shall stop.
    Cancel(JobId),
    /// A machine is offered.
    ListMachine(MachineId, Listing),
    /// An owner changes a machine.
    ChangeMachine(ChangeMachine),
    /// A self-test was made.
    RecordTest(MachineId, RecordTest),
    /// A machine takes a job.
    Accept(MachineId, Accept),
    /// A machine sends a job back.
    Decline(MachineId, Decline),
    /// A machine is about to start the container.
    Start(MachineId, Start),
    /// A machine says how an attempt ended.
    Report(MachineId, Report),
    /// The scheduler gives a waiting job to a machine.
    Assign(JobId),
    /// The reconciler ends what took too long.
    Expire(JobId),
    /// The reconciler takes a job away from a lost machine.
    Abandon(JobId),
    /// The settlement of an ended job.
    Settle(JobId),
    /// The watchdog missed heartbeats.
    Suspect(MachineId),
    /// The watchdog gave a machine up.
    Lose(MachineId),
    /// The watchdog heard a machine again.
    Recover(MachineId),
}

impl Command {
    /// What its event would belong to: commands on the same aggregate take turns.
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
            Self::Report(_, c) => Aggregate::Job(c.job),
        }
    }

    /// Its name, for those who watch.
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

/// What a decision comes out as.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // one per command, moved once
pub enum Decision {
    /// Write this.
    Append(Proposal),
    /// It was done before, at this sequence.
    Already(Seq),
}

/// The rules that differ between deployments.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The platform's share, in ten-thousandths.
    pub fee_basis_points: u32,
    /// Whether accounts may deposit play money by themselves.
    pub test_funds: bool,
    /// How long a machine has to accept.
    pub accept_within: Millis,
    /// How long past a limit the platform waits for the worker's own word.
    pub grace: Millis,
    /// How long a job that was declined is kept from that machine.
    pub decline_pause: Millis,
    /// Most a job may cost.
    pub max_budget: MicroUsd,
    /// Images that jobs may name as they are, besides those of the templates.
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
