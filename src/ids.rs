//! Ids (UUIDv7) that sort by the service time at which they were made, also within a millisecond.

use std::sync::Mutex;

use uuid::{Builder, ContextV7, Timestamp as UuidTime, Uuid};

use crate::clock::Timestamp;

/// Makes ids. Those of one maker are never equal and never go back.
pub struct Ids(Mutex<ContextV7>);

impl Default for Ids {
    fn default() -> Ids {
        Ids(Mutex::new(ContextV7::new()))
    }
}

impl Ids {
    pub fn next(&self, now: Timestamp) -> Uuid {
        let millis = millis(now);
        let nanos = u32::try_from(millis % 1_000).unwrap_or(0) * 1_000_000;
        Uuid::new_v7(UuidTime::from_unix(&self.0, millis / 1_000, nanos))
    }
}

/// An id before all that are made from `at` on.
pub fn first_at(at: Timestamp) -> Uuid {
    Builder::from_unix_timestamp_millis(millis(at), &[0; 10]).into_uuid()
}

fn millis(at: Timestamp) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(0)
}
