//! The mark: how many groups of changes were acknowledged at least, in a small file beside the database's.
//!
//! sled takes damage near the end of its file for a write that a crash cut off, and goes on without whatever came
//! after it. The database counts its groups of changes; with a count below the mark it has lost some that were
//! acknowledged, and must not be used as if it had not.
//!
//! The mark is written after each group is durable, and is not synced itself: after a power cut it may be old, which
//! makes it a weaker witness, never a false one.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Its file within the store's folder.
const FILE: &str = "acknowledged";

/// A count and its checksum.
const BYTES: usize = 12;

/// The mark of an open store.
#[derive(Debug)]
pub(super) struct Mark(File);

/// Where the mark of the store in `folder` is.
pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// The mark of the store in `folder`; zero if there is none, or it can't be read as one.
pub(super) fn read(folder: &Path) -> u64 {
    let mut bytes = [0; BYTES];
    let read = File::open(path(folder)).and_then(|file| file.read_exact_at(&mut bytes, 0));
    let (count, checksum) = bytes.split_at(8);
    let sound = read.is_ok() && crc32fast::hash(count).to_be_bytes() == checksum;
    count.try_into().map_or(0, |count| if sound { u64::from_be_bytes(count) } else { 0 })
}

impl Mark {
    pub(super) fn open(folder: &Path) -> io::Result<Mark> {
        OpenOptions::new().write(true).create(true).truncate(false).open(path(folder)).map(Mark)
    }

    /// Notes that `count` groups are durable.
    pub(super) fn set(&self, count: u64) -> io::Result<()> {
        let count = count.to_be_bytes();
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(&count);
        bytes[8..].copy_from_slice(&crc32fast::hash(&count).to_be_bytes());
        self.0.write_all_at(&bytes, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_and_a_torn_one_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()), 0);
        let mark = Mark::open(folder.path()).unwrap();
        mark.set(7).unwrap();
        mark.set(1 << 40).unwrap();
        assert_eq!(read(folder.path()), 1 << 40);
        mark.0.write_all_at(&[1], 3).unwrap();
        assert_eq!(read(folder.path()), 0);
    }
}
