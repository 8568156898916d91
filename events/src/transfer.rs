//! File transfers between a machine and the web server. A large file is sent in parts, so that an interrupted transfer
//! can continue with the next part.

use serde::{Deserialize, Serialize};

/// Size of a part, bytes. Only the last part of a file may be smaller.
pub const PART_BYTES: u64 = 32 << 20;

/// How much of a file has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Received {
    /// True if the whole file has arrived.
    pub complete: bool,
    /// The number of parts that have arrived. Parts are numbered from 0, so this is also the number of the next part.
    pub parts: u32,
}
