//! Archives: all that a store holds as JSON lines, one record a line. `docs/export.md` describes the format to others.
//!
//! The first line is a header. The last line has the count and the checksum of each kind of record, so that a cut or changed
//! archive is noticed. [`Reader`] reads the records of a store, [`restore`] adds them to another one. An export, an import and
//! a move differ only in where records come from and go to.
//!
//! - `job`: the line of a job
//! - `record`: the records and their lines
//! - `file`: whole archives: writing and checking them
//! - `copy`: records of stores
//! - `merge`: making a store equal to another one that it has a part of

mod copy;
mod file;
mod format;
mod job;
mod merge;
mod record;

pub use self::{
    copy::{Reader, Scope, mark, marked, restore, unmark},
    file::{Checker, Writer},
    format::{ArchiveError, Count, FORMAT, Header, Kind, Tally},
    job::Life,
    merge::{Batch, Digest, MergeError, Merged, Place, Places, digest, first_difference, head_digest, merge, outline},
    record::{Line, Record},
};
