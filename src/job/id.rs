//! Who is who: jobs, and the nodes that run them.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::digest::sha256;

/// Of version 7, so ids sort by time of creation.
pub type JobId = Uuid;

/// Who makes an attempt: a node, and which start of it (its *incarnation*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner(NonZeroU64);

impl Owner {
    #[cfg(test)]
    pub(crate) const ANY: Owner = Owner(NonZeroU64::MIN);

    /// The node of this name. Its next start must come with another number.
    pub fn new(node: &str, incarnation: u32) -> Owner {
        let [a, b, c, d, ..] = sha256(&[node.as_bytes()]);
        let node = u64::from(u32::from_be_bytes([a, b, c, d]).max(1));
        Owner(NonZeroU64::new(node << 32 | u64::from(incarnation)).unwrap_or(NonZeroU64::MIN))
    }

    /// Whether `other` is an earlier start of this node: then nobody makes its attempts any more.
    pub fn follows(self, other: Owner) -> bool {
        self != other && self.0.get() >> 32 == other.0.get() >> 32
    }
}
