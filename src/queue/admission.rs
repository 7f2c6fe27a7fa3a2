//! Whether there is room on the disk for more jobs. The sweeper looks, the queue remembers, every submission asks.
//!
//! The floor lies well above zero, so that what was accepted still fits when nothing new does: claims, answers, and
//! what the store needs to open again.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

/// Once short of space, the disk is so until it has this part of the floor free above it, ...
const MARGIN_PART: u64 = 8;

/// ... but no more than this above it. Otherwise submissions would go on and off with every few records.
const MAX_MARGIN_BYTES: u64 = 64 << 20;

/// The disk has less space than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// What is free.
    pub free_bytes: u64,
    /// What should be free.
    pub floor_bytes: u64,
}

impl Shortage {
    /// From so many free bytes on, submissions are accepted again.
    pub fn enough_bytes(self) -> u64 {
        self.floor_bytes + (self.floor_bytes / MARGIN_PART).min(MAX_MARGIN_BYTES)
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        write!(
            f,
            "the disk has {} MiB free, but needs {}; jobs are accepted again with {} MiB free",
            mib(self.free_bytes),
            mib(self.floor_bytes),
            mib(self.enough_bytes().next_multiple_of(1 << 20)),
        )
    }
}

/// The free space as last told.
#[derive(Debug, Default)]
pub(super) struct DiskSpace {
    free: AtomicU64,
    /// Zero while there is enough.
    short_of: AtomicU64,
}

impl DiskSpace {
    /// Records the free space; a floor of zero is none. Gives the shortage before and the one from now on.
    pub(super) fn note(&self, free_bytes: u64, floor_bytes: u64) -> (Option<Shortage>, Option<Shortage>) {
        let before = self.shortage();
        let seen = Shortage { free_bytes, floor_bytes };
        let needed = if before.is_some() { seen.enough_bytes() } else { floor_bytes };
        let after = (free_bytes < needed).then_some(seen);
        self.free.store(free_bytes, Ordering::Relaxed);
        self.short_of.store(after.map_or(0, |shortage| shortage.floor_bytes), Ordering::Relaxed);
        (before, after)
    }

    pub(super) fn shortage(&self) -> Option<Shortage> {
        let floor_bytes = self.short_of.load(Ordering::Relaxed);
        (floor_bytes > 0).then(|| Shortage { free_bytes: self.free.load(Ordering::Relaxed), floor_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn space_is_short_below_the_floor_and_until_there_is_a_margin_above_it() {
        let space = DiskSpace::default();
        let mut short = |free_mib| space.note(free_mib * MIB, 80 * MIB).1.is_some();
        let seen = [100, 80, 79, 80, 89, 90, 80, 0].map(&mut short);
        assert_eq!(seen, [false, false, true, true, true, false, false, true]);
    }

    #[test]
    fn the_margin_of_a_high_floor_is_bounded() {
        let shortage = Shortage { free_bytes: 0, floor_bytes: 100 << 30 };
        assert_eq!(shortage.enough_bytes(), (100 << 30) + MAX_MARGIN_BYTES);
    }

    #[test]
    fn without_a_floor_nothing_is_short() {
        let space = DiskSpace::default();
        assert_eq!(space.note(0, 0), (None, None));
        assert_eq!(space.shortage(), None);
    }

    #[test]
    fn a_shortage_says_what_is_free_and_what_is_needed() {
        let told = Shortage { free_bytes: 12 * MIB + 1, floor_bytes: 81 * MIB }.to_string();
        assert!(told.contains("has 12 MiB free, but needs 81;") && told.contains("with 92 MiB free"), "{told}");
    }
}
