//! Typed ids. A UUID of version 7 names an account, a machine, a job, a command or a projector; a sequence names an
//! event.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::time::Timestamp;

/// The error for a text or a UUID that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an id: expected a version 7 UUID in small letters such as 0190b2c5-7d2e-7c3a-9a51-3f0f6a1b2c3d")]
pub struct BadId(pub(crate) String);

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        #[schema(value_type = String, format = Uuid)]
        #[serde(try_from = "Uuid", into = "Uuid")]
        pub struct $name(Uuid);

        impl $name {
            /// A lower bound for ranges: sorts before every id. `MIN` is the nil UUID, which is not a valid id.
            pub const MIN: Self = Self(Uuid::nil());

            /// A new id. A decision never calls this function but receives its ids, so that a repeated decision gives
            /// the same event.
            #[allow(clippy::disallowed_methods)] // the one place where ids of this type are made
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// The time at which the id was made, with a precision of milliseconds, by the clock of the process that
            /// made it.
            pub fn made_at(self) -> Timestamp {
                let (secs, nanos) = self.0.get_timestamp().map_or((0, 0), |t| t.to_unix());
                let millis = i64::try_from(secs).unwrap_or(i64::MAX / 1_000).saturating_mul(1_000);
                Timestamp::from_millis(millis.saturating_add(i64::from(nanos / 1_000_000)))
            }

            /// The sixteen bytes, big-endian. Ids that are sorted by their bytes are sorted by their times.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// The inverse of [`Self::as_bytes`].
            pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, BadId> {
                Self::try_from(Uuid::from_bytes(bytes))
            }

            /// The last eight hexadecimal digits, for people.
            pub fn short(self) -> String {
                let text = self.0.simple().to_string();
                text[24..].to_owned()
            }
        }

        impl TryFrom<Uuid> for $name {
            type Error = BadId;

            fn try_from(id: Uuid) -> Result<Self, BadId> {
                if id.get_version_num() == 7 { Ok(Self(id)) } else { Err(BadId(id.to_string())) }
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            /// Parses only the canonical form (lower case, with dashes): two spellings of an id would be two subjects.
            fn from_str(text: &str) -> Result<Self, BadId> {
                let bad = || BadId(text.chars().take(64).collect());
                let id = Uuid::parse_str(text).map_err(|_| bad())?;
                if id.to_string() != text {
                    return Err(bad());
                }
                Self::try_from(id)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

uuid_id!(
    /// An account: a person or organisation that consumes, provides, or does both.
    AccountId
);
uuid_id!(
    /// A machine. The machine itself makes its id.
    MachineId
);
uuid_id!(
    /// A job. The command that submits the job has the same id, so that submitting twice is safe.
    JobId
);
uuid_id!(
    /// A command, and the deposit or payout that it makes.
    CommandId
);

uuid_id!(
    /// A running projector. Each start makes a new id.
    ProjectorId
);

/// The sequence of a message in a stream: in MARKET, the log of events, unless the comment of a field names another
/// stream. The first message has 1; `Seq(0)` is before it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The sequence before the first message.
    pub const ZERO: Self = Self(0);

    /// The sequence after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The fencing token of one attempt: the MARKET sequence of its `JobAssigned` event. A machine names the lease in
/// every command about the attempt. When the job has a newer attempt, the services refuse commands with the older
/// lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct Lease(pub Seq);

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Lease {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(|n| Self(Seq(n)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_contains_the_time_at_which_it_was_made() {
        let id: JobId = "01900000-0000-7000-8000-000000000001".parse().unwrap();
        assert_eq!(id.made_at(), Timestamp::from_millis(0x0190_0000_0000));
        assert_eq!(id.short(), "00000001");
    }

    #[test]
    fn only_the_canonical_text_of_a_version_7_uuid_is_an_id() {
        for bad in [
            "",
            "x",
            "*",
            "01900000-0000-4000-8000-000000000001",
            "0190000000007000800000000000000A",
            "01900000-0000-7000-8000-00000000000A",
            "{01900000-0000-7000-8000-000000000001}",
        ] {
            assert!(bad.parse::<JobId>().is_err(), "{bad}");
        }
    }
}
