//! Refusals as they travel between processes. A refusal has a name for programs and a message for people.

use serde::{Deserialize, Serialize};

/// The kind of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The request itself is wrong.
    Invalid,
    /// The thing that the request is about does not exist.
    NotFound,
    /// The actor may not do this.
    Forbidden,
    /// The request does not fit the present state.
    Conflict,
    /// There is not enough money.
    Funds,
}

/// A command was not granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{name}: {message}")]
pub struct Refusal {
    /// The name, such as `InsufficientFunds`.
    pub name: String,
    /// The kind.
    pub kind: RefusalKind,
    /// The field of the request that is at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// A sentence on what happened and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal that is not the fault of a single field.
    pub fn new(name: &str, kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { name: name.to_owned(), kind, field: None, message: message.into() }
    }

    /// The same refusal, with the field at fault.
    #[must_use]
    pub fn at(self, field: &str) -> Self {
        Self { field: Some(field.to_owned()), ..self }
    }
}
