//! Refusals of requests, in the form in which one process sends them to another. A refusal has a name for programs and
//! a message for people.

use serde::{Deserialize, Serialize};

/// The kind of a refusal: the general reason, which many names share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The request itself is wrong.
    Invalid,
    /// The thing that the request is about does not exist.
    NotFound,
    /// The actor has no right to make this request.
    Forbidden,
    /// The request does not fit the present state of the thing that it is about.
    Conflict,
    /// The account does not hold enough money.
    Funds,
}

/// The refusal of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{name}: {message}")]
pub struct Refusal {
    /// The name of the reason, such as `InsufficientFunds`.
    pub name: String,
    /// The general reason.
    pub kind: RefusalKind,
    /// The field of the request that caused the refusal; `None` if no single field did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// A message for people: the reason, and what the user can do.
    pub message: String,
}

impl Refusal {
    /// A refusal that is not about a single field of the request.
    pub fn new(name: &str, kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { name: name.to_owned(), kind, field: None, message: message.into() }
    }

    /// The same refusal, about this field of the request.
    #[must_use]
    pub fn with_field(self, field: &str) -> Self {
        Self { field: Some(field.to_owned()), ..self }
    }
}

/// The refusal of a value in a field of a request.
pub(crate) fn invalid(field: &str, message: impl Into<String>) -> Refusal {
    Refusal::new("InvalidField", RefusalKind::Invalid, message).with_field(field)
}
