//! Formats of what nodes write for each other: records of jobs and rows of the feed.

/// The formats that a program can read. It can write each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formats {
    pub oldest: i32,
    pub newest: i32,
}

impl Formats {
    pub const OF_THIS_PROGRAM: Formats = Formats { oldest: 1, newest: 1 };
}
