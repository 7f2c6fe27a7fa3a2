//! Ids (UUIDv7) that sort by the service time at which they were made, also within a millisecond.

use std::sync::Mutex;

use uuid::{Builder, Uuid};

use crate::{clock::Timestamp, process};

/// Makes ids. Those of one maker are never equal and never go back.
#[derive(Default)]
pub struct Ids(Mutex<Last>);

#[derive(Default)]
struct Last {
    millis: u64,
    /// 42 bits of the id; starts with a random number in each millisecond.
    counter: u64,
}

impl Ids {
    pub fn next(&self, now: Timestamp) -> Uuid {
        let (millis, counter) = {
            let mut last = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // One bit less, so that it does not overflow.
            let first = process::random() >> 23;
            if millis(now) > last.millis {
                *last = Last { millis: millis(now), counter: first };
            } else {
                last.counter += 1;
            }
            (last.millis, last.counter)
        };
        // 12 bits after the version, and 62 after the variant.
        let [a, b] = u16::to_be_bytes(u16::try_from(counter >> 30 & 0xfff).unwrap_or(0));
        let tail = (counter & ((1 << 30) - 1)) << 32 | process::random() >> 32;
        let [c, d, e, f, g, h, i, j] = tail.to_be_bytes();
        Builder::from_unix_timestamp_millis(millis, &[a, b, c, d, e, f, g, h, i, j]).into_uuid()
    }
}

/// An id before all that are made from `at` on.
pub fn first_at(at: Timestamp) -> Uuid {
    Builder::from_unix_timestamp_millis(millis(at), &[0; 10]).into_uuid()
}

fn millis(at: Timestamp) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_up_within_a_millisecond_and_when_the_clock_goes_back() {
        let ids = Ids::default();
        let at = |millis: i64| Timestamp::from_millis(1_800_000_000_000 + millis);
        let made: Vec<Uuid> = [0, 0, 0, 5, 5, 2, 6].map(|millis| ids.next(at(millis))).into();
        assert!(made.is_sorted_by(|one, other| one < other), "{made:?}");
        assert!(made.iter().all(|id| id.get_version_num() == 7));
        assert!(first_at(at(5)) < made[3] && made[2] < first_at(at(5)));
    }
}
