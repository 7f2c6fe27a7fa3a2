//! Formats of what nodes write for each other: rows of the feed, and the records of jobs in them and in the table `job`.
//!
//! A program reads a range of formats, and writes the one that the table `format` names. The node with the seat raises that
//! number once all nodes can read the next one; it is never lowered. So nodes of two versions can run side by side, and go
//! back to the old version as long as one node of it has run all the time. Registration and raising exclude each other by an
//! advisory lock.
//!
//! Format 1 has version 0 of a job's record, and the first shape of the feed. The seat's service time has its first shape too.
//! A change of any of these three is a new format. It needs a writer for each format in the range.
//!
//! What nodes tell each other of clients and calls, and what a dispatcher leaves to the next, is JSON without a format. Readers
//! ignore what they don't know. So a new field there needs a default.

use super::error::OpenError;

/// The advisory lock.
pub(super) const FORMAT_LOCK: i64 = i64::from_be_bytes(*b"ceoagen4");

/// The formats that a program can read. It can write each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formats {
    pub oldest: u8,
    pub newest: u8,
}

impl Formats {
    pub const OF_THIS_PROGRAM: Formats = Formats { oldest: 1, newest: 1 };

    /// # Errors
    /// [`OpenError::Format`] if this program can't use the format of the database.
    pub(super) fn check(self, found: i32) -> Result<u8, OpenError> {
        let known = u8::try_from(found).ok().filter(|format| (self.oldest..=self.newest).contains(format));
        let program = if found < i32::from(self.oldest) { "an older" } else { "a newer" };
        known.ok_or(OpenError::Format { found, oldest: self.oldest, newest: self.newest, program })
    }

    /// The newest format that all of these can read.
    pub(super) fn common(all: impl Iterator<Item = Formats> + Clone) -> Option<u8> {
        let newest = all.clone().map(|formats| formats.newest).min()?;
        all.map(|formats| formats.oldest).all(|oldest| oldest <= newest).then_some(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_format_is_the_newest_that_every_node_can_read() {
        let common = |ranges: &[(u8, u8)]| {
            Formats::common(ranges.iter().map(|(oldest, newest)| Formats { oldest: *oldest, newest: *newest }))
        };
        assert_eq!(common(&[(1, 2), (1, 3), (2, 3)]), Some(2));
        assert_eq!(common(&[(1, 1), (2, 3)]), None);
        assert_eq!(common(&[]), None);
    }
}
