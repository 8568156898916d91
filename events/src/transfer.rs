//! How files travel between a machine and the edge: in parts, so that a transfer that broke off goes on.

use serde::{Deserialize, Serialize};

/// Bytes of a part: larger files are put in parts, all of them of this size but the last.
pub const PART_BYTES: u64 = 32 << 20;

/// How far a file has been put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Received {
    /// Whether all of it is here.
    pub complete: bool,
    /// Its parts that are here: the next one has this number.
    pub parts: u32,
}
