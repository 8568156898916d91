//! The errors of the domain: the reasons why a command is refused. The services send each error to the requester as a
//! `gpubnb_events::Refusal`, which has a name for programs and a message for people.

use gpubnb_events::{MicroUsd, RefusalKind};

/// The reason why a command is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// A field of the request breaks a rule.
    #[error("{message}")]
    InvalidField {
        /// The field's name in the request.
        field: &'static str,
        /// The rule that the field breaks, as a sentence.
        message: String,
    },
    /// No account with this id is open.
    #[error("There is no such account. Open the account first.")]
    UnknownAccount,
    /// No machine with this id was ever listed.
    #[error("There is no such machine on the market.")]
    UnknownMachine,
    /// No job has this id, or the job belongs to another account.
    #[error("There is no such job.")]
    UnknownJob,
    /// No batch has this id, its tasks are all settled, or it belongs to another account.
    #[error("There is no such batch, or all its tasks are settled.")]
    UnknownBatch,
    /// The account has requested no payout with this id.
    #[error("There is no such payout.")]
    UnknownPayout,
    /// The actor may not give this command, for the reason in the text.
    #[error("You may not do this: {0}")]
    NotAllowed(&'static str),
    /// The account is suspended, for the reason in the text.
    #[error("This account is suspended: {0}")]
    Suspended(String),
    /// The owner closed the account.
    #[error("This account is closed.")]
    AccountClosed,
    /// The account cannot be closed yet, for the reason in the text.
    #[error("{0}")]
    CannotClose(&'static str),
    /// The account has another amount than its owner gave up.
    #[error("{available} is available. Withdraw the money first, or agree to give up exactly this amount.")]
    NotGivenUp {
        /// The amount that the account may spend.
        available: MicroUsd,
    },
    /// The account has less money than the market must hold for the submitted job.
    #[error("This needs {needed} and {available} is available. Add funds on the page Wallet, or lower the budget.")]
    InsufficientFunds {
        /// The amount to hold.
        needed: MicroUsd,
        /// The amount that the account may spend.
        available: MicroUsd,
    },
    /// The account has as many jobs that are not settled as an account may have.
    #[error(
        "This account has {0} jobs that are not settled, and may have no more. Wait for some to end, or cancel some."
    )]
    TooManyJobs(u32),
    /// The account has as many batches that are not over, or so large ones, that it may have no more.
    #[error(
        "This account has {0} batches that are not over, and may have no more. Wait for some to end, or cancel some."
    )]
    TooManyBatches(u32),
    /// The account or the machine has appended this many MiB of events on this day, without anything that pays for
    /// them.
    #[error(
        "The events of jobs that nobody paid for, deposits, self-tests and changes of one day (UTC) may have {0} MiB, \
         and these are used up. Jobs that cost something do not count. Try again tomorrow."
    )]
    DailyBytes(u64),
    /// The account has less money than the requested payout.
    #[error(
        "You asked for {asked} and {available} is available. Ask for less, or wait until running jobs are settled."
    )]
    PayoutTooLarge {
        /// The requested amount.
        asked: MicroUsd,
        /// The amount that can be paid out.
        available: MicroUsd,
    },
    /// The time in the job's id is in the future, or too long ago. The market remembers the ids of one day.
    #[error(
        "The job id was made too long ago, or in the future. Make a new id (UUID version 7), and check your clock."
    )]
    IdOutOfTime,
    /// Another request with this id, and with other content, was granted before. The text is the name of the id's
    /// field.
    #[error("This id was used before, for another request. Make a new id.")]
    IdReused(&'static str),
    /// The command names a lease that is not live. Its attempt is over, so the machine may not change the job.
    #[error("The lease is not live: the job has another attempt, or is over.")]
    StaleLease,
    /// The present state of the account, machine or job does not allow the command. The text says why.
    #[error("{0}")]
    WrongState(&'static str),
    /// No machine can take the job now.
    #[error("No machine can take this job now.")]
    NoMachineNow,
}

impl DomainError {
    /// Makes the error for a field that breaks a rule.
    pub fn field(field: &'static str, message: impl Into<String>) -> Self {
        Self::InvalidField { field, message: message.into() }
    }

    fn name_and_kind(&self) -> (&'static str, RefusalKind) {
        match self {
            Self::InvalidField { .. } => ("InvalidField", RefusalKind::Invalid),
            Self::UnknownAccount => ("UnknownAccount", RefusalKind::NotFound),
            Self::UnknownMachine => ("UnknownMachine", RefusalKind::NotFound),
            Self::UnknownJob => ("UnknownJob", RefusalKind::NotFound),
            Self::UnknownBatch => ("UnknownBatch", RefusalKind::NotFound),
            Self::UnknownPayout => ("UnknownPayout", RefusalKind::NotFound),
            Self::NotAllowed(_) => ("NotAllowed", RefusalKind::Forbidden),
            Self::Suspended(_) => ("Suspended", RefusalKind::Forbidden),
            Self::AccountClosed => ("AccountClosed", RefusalKind::Forbidden),
            Self::CannotClose(_) => ("CannotClose", RefusalKind::Conflict),
            Self::NotGivenUp { .. } => ("NotGivenUp", RefusalKind::Conflict),
            Self::TooManyJobs(_) => ("TooManyJobs", RefusalKind::Conflict),
            Self::TooManyBatches(_) => ("TooManyBatches", RefusalKind::Conflict),
            Self::DailyBytes(_) => ("DailyBytes", RefusalKind::Conflict),
            Self::InsufficientFunds { .. } => ("InsufficientFunds", RefusalKind::Funds),
            Self::PayoutTooLarge { .. } => ("PayoutTooLarge", RefusalKind::Funds),
            Self::IdOutOfTime => ("IdOutOfTime", RefusalKind::Invalid),
            Self::IdReused(_) => ("IdReused", RefusalKind::Conflict),
            Self::StaleLease => ("StaleLease", RefusalKind::Conflict),
            Self::WrongState(_) => ("WrongState", RefusalKind::Conflict),
            Self::NoMachineNow => ("NoMachineNow", RefusalKind::Conflict),
        }
    }
}

impl From<DomainError> for gpubnb_events::Refusal {
    fn from(error: DomainError) -> Self {
        let (name, kind) = error.name_and_kind();
        let field = match &error {
            DomainError::InvalidField { field, .. } => Some((*field).to_owned()),
            DomainError::InsufficientFunds { .. } => Some("budget".to_owned()),
            DomainError::PayoutTooLarge { .. } => Some("amount".to_owned()),
            DomainError::NotGivenUp { .. } => Some("given_up".to_owned()),
            DomainError::IdReused(field) => Some((*field).to_owned()),
            DomainError::IdOutOfTime => Some("job".to_owned()),
            _ => None,
        };
        Self { name: name.to_owned(), kind, field, message: error.to_string() }
    }
}
