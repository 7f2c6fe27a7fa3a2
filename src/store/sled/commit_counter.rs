//! How many commits were acknowledged at least, in a small file beside the database's.
//!
//! sled takes damage near the end of its file for a write that a crash cut off, and goes on without what came after it. If
//! the database then counts fewer commits than this file, acknowledged changes are lost, and the store must not open.
//!
//! The file is written after each commit but not synced, so after a power cut its count may be too low, never too high.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const FILE: &str = "acknowledged";

/// The file of an open store: a count and its checksum.
#[derive(Debug)]
pub(super) struct CommitCounter(File);

pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// The count of the store in `folder`; zero if the file is missing or torn.
pub(super) fn load(folder: &Path) -> u64 {
    let mut bytes = [0; 12];
    let read = File::open(path(folder)).and_then(|file| file.read_exact_at(&mut bytes, 0));
    let (count, checksum) = bytes.split_at(8);
    let is_sound = read.is_ok() && crc32fast::hash(count).to_be_bytes() == checksum;
    count.try_into().map_or(0, |count| if is_sound { u64::from_be_bytes(count) } else { 0 })
}

impl CommitCounter {
    pub(super) fn open(folder: &Path) -> io::Result<CommitCounter> {
        OpenOptions::new().write(true).create(true).truncate(false).open(path(folder)).map(CommitCounter)
    }

    pub(super) fn save(&self, count: u64) -> io::Result<()> {
        let count = count.to_be_bytes();
        self.0.write_all_at(&[&count[..], &crc32fast::hash(&count).to_be_bytes()].concat(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_comes_back_and_a_torn_one_is_zero() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(load(folder.path()), 0);
        let counter = CommitCounter::open(folder.path()).unwrap();
        counter.save(7).unwrap();
        counter.save(1 << 40).unwrap();
        assert_eq!(load(folder.path()), 1 << 40);
        counter.0.write_all_at(&[1], 3).unwrap();
        assert_eq!(load(folder.path()), 0);
    }
}
