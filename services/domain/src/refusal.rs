//! The refusals of the domain, and their wire form.

use gpubnb_events::{MicroUsd, RefusalKind};

/// Why a command is not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field breaks a rule.
    #[error("{message}")]
    InvalidField {
        /// Which, as in the request.
        field: &'static str,
        /// The rule.
        message: String,
    },
    /// No such account.
    #[error("There is no such account. Open it first.")]
    UnknownAccount,
    /// No such machine.
    #[error("There is no such machine on the market.")]
    UnknownMachine,
    /// No such job.
    #[error("There is no such job.")]
    UnknownJob,
    /// No such payout.
    #[error("There is no such payout.")]
    UnknownPayout,
    /// Not yours.
    #[error("You may not do this: {0}")]
    NotAllowed(&'static str),
    /// The account is suspended.
    #[error("This account is suspended: {0}")]
    Suspended(String),
    /// Too little money.
    #[error("This needs {needed} and {available} is available. Add funds on the page Wallet, or lower the budget.")]
    InsufficientFunds {
        /// What it takes.
        needed: MicroUsd,
        /// What is there.
        available: MicroUsd,
    },
    /// The id of the command is too old to be remembered, or from the future.
    #[error(
        "The job id was made too long ago, or lies in the future. Make a new one (UUID version 7) and check the clock."
    )]
    IdOutOfTime,
    /// The id was used for something else.
    #[error("This id was used before, for something else. Make a new one.")]
    IdReused(&'static str),
    /// The attempt is over: it is fenced off.
    #[error("The lease is no longer live: the job was given to another attempt, or is over.")]
    StaleLease,
    /// It does not fit where the job or machine is.
    #[error("{0}")]
    WrongState(&'static str),
    /// No machine can take the job now.
    #[error("No machine can take this job now.")]
    NoMachineNow,
}

impl Refusal {
    /// Shorthand for a field's rule.
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
            Refusal::IdReused(field) => Some((*field).to_owned()),
            Refusal::IdOutOfTime => Some("job".to_owned()),
            _ => None,
        };
        Self { name: name.to_owned(), kind, field, message: refusal.to_string() }
    }
}
