//! Refusals as they go over the wire: a named "no", for people and for programs.

use serde::{Deserialize, Serialize};

/// What kind of no a refusal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The request itself is wrong.
    Invalid,
    /// There is no such thing.
    NotFound,
    /// It is not yours.
    Forbidden,
    /// It does not fit the present state.
    Conflict,
    /// There is not enough money.
    Funds,
}

/// A named no, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{name}: {message}")]
pub struct Refusal {
    /// Its name, such as `InsufficientFunds`.
    pub name: String,
    /// What kind of no.
    pub kind: RefusalKind,
    /// The field at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What happened and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal of this name and kind that is no field's fault. `message` says what happened and what to do.
    pub fn new(name: &str, kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { name: name.to_owned(), kind, field: None, message: message.into() }
    }

    /// The same refusal, with the field at fault.
    #[must_use]
    pub fn at(self, field: &str) -> Self {
        Self { field: Some(field.to_owned()), ..self }
    }
}
