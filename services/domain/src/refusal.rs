//! The refusals of the domain, and the form in which they travel to the requester.

use gpubnb_events::{MicroUsd, RefusalKind};

/// The reason why a command is not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field of the request breaks a rule.
    #[error("{message}")]
    InvalidField {
        /// The field's name in the request.
        field: &'static str,
        /// The rule, as a sentence.
        message: String,
    },
    /// There is no such account.
    #[error("There is no such account. Open it first.")]
    UnknownAccount,
    /// There is no such machine.
    #[error("There is no such machine on the market.")]
    UnknownMachine,
    /// There is no such job, or the job belongs to somebody else.
    #[error("There is no such job.")]
    UnknownJob,
    /// There is no such payout.
    #[error("There is no such payout.")]
    UnknownPayout,
    /// The actor may not give this command.
    #[error("You may not do this: {0}")]
    NotAllowed(&'static str),
    /// The account is suspended.
    #[error("This account is suspended: {0}")]
    Suspended(String),
    /// The account has less money than a submission would hold.
    #[error("This needs {needed} and {available} is available. Add funds on the page Wallet, or lower the budget.")]
    InsufficientFunds {
        /// The amount that would be held.
        needed: MicroUsd,
        /// The amount that the account may spend.
        available: MicroUsd,
    },
    /// The account has less money than it asks to be paid out.
    #[error(
        "You asked for {asked} and {available} is available. Ask for less, or wait until running jobs are settled."
    )]
    PayoutTooLarge {
        /// The amount that was asked for.
        asked: MicroUsd,
        /// The amount that can be paid out.
        available: MicroUsd,
    },
    /// The time in the job's id is too long ago for the id to be remembered, or in the future.
    #[error(
        "The job id was made too long ago, or lies in the future. Make a new one (UUID version 7) and check the clock."
    )]
    IdOutOfTime,
    /// The id was used before, for a request with other content.
    #[error("This id was used before, for something else. Make a new one.")]
    IdReused(&'static str),
    /// The lease is not the live one: the attempt is over, and its reports are fenced off.
    #[error("The lease is no longer live: the job was given to another attempt, or is over.")]
    StaleLease,
    /// The command does not fit the present state of the job or machine.
    #[error("{0}")]
    WrongState(&'static str),
    /// No machine can take the job now.
    #[error("No machine can take this job now.")]
    NoMachineNow,
}

impl Refusal {
    /// The refusal of a field that breaks a rule.
    pub fn field(field: &'static str, message: impl Into<String>) -> Self {
        Self::InvalidField { field, message: message.into() }
    }

    fn name_and_kind(&self) -> (&'static str, RefusalKind) {
        match self {
            Self::InvalidField { .. } => ("InvalidField", RefusalKind::Invalid),
            Self::UnknownAccount => ("UnknownAccount", RefusalKind::NotFound),
            Self::UnknownMachine => ("UnknownMachine", RefusalKind::NotFound),
            Self::UnknownJob => ("UnknownJob", RefusalKind::NotFound),
            Self::UnknownPayout => ("UnknownPayout", RefusalKind::NotFound),
            Self::NotAllowed(_) => ("NotAllowed", RefusalKind::Forbidden),
            Self::Suspended(_) => ("Suspended", RefusalKind::Forbidden),
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

impl From<Refusal> for gpubnb_events::Refusal {
    fn from(refusal: Refusal) -> Self {
        let (name, kind) = refusal.name_and_kind();
        let field = match &refusal {
            Refusal::InvalidField { field, .. } => Some((*field).to_owned()),
            Refusal::InsufficientFunds { .. } => Some("budget".to_owned()),
            Refusal::PayoutTooLarge { .. } => Some("amount".to_owned()),
            Refusal::IdReused(field) => Some((*field).to_owned()),
            Refusal::IdOutOfTime => Some("job".to_owned()),
            _ => None,
        };
        Self { name: name.to_owned(), kind, field, message: refusal.to_string() }
    }
}
