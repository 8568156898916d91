//! Files that travel between a machine and the web server. Large files travel in parts, so that a transfer that was cut
//! off can go on.

use serde::{Deserialize, Serialize};

/// Bytes of a part. A larger file is sent in parts of this size; only the last part may be shorter.
pub const PART_BYTES: u64 = 32 << 20;

/// How much of a file has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Received {
    /// True if the whole file is here.
    pub complete: bool,
    /// The number of parts that are here, which is also the number of the next part.
    pub parts: u32,
}
