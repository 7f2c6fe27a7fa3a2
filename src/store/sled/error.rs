//! Why the store does not open, and why a record can't be read or written.

use std::{io, path::PathBuf};

use crate::store::traits::StoreError;

/// Version of the key layout, in the record [`super::keys::FORMAT`].
pub(super) const FORMAT_VERSION: u8 = 1;

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the data folder {} is in use by another ceoagent: stop that one, or set another DATA_DIR",
        path.display()
    )]
    InUse { path: PathBuf },
    #[error("can't use the data folder {}: {source}; DATA_DIR must be a folder that this user can write to", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error(
        "can't read the job store {}: {reason}. Restore the folder from a backup. Or save the readable jobs with \
         `ceoagent export --salvage > archive.jsonl`, move the folder away, start the service, and import the archive",
        path.display()
    )]
    Unreadable { path: PathBuf, reason: String },
    /// The disk fails; the files of the store may be sound.
    #[error(
        "the disk that holds the job store {} fails: {source}. Nothing in the store is lost. Free disk space or repair \
         the disk, then start again",
        path.display()
    )]
    Disk { path: PathBuf, source: io::Error },
    #[error(
        "the job store {} has format {found}, which is newer than the format {FORMAT_VERSION} of this program: start the \
         newer ceoagent again, or restore an older backup of the folder",
        path.display()
    )]
    Newer { path: PathBuf, found: u8 },
}

pub(super) type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Why sled or a record failed. It is no [`std::error::Error`], so that `?` makes one of any error.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault(pub(super) String);

impl<E: std::error::Error> From<E> for Fault {
    fn from(error: E) -> Fault {
        Fault(error.to_string())
    }
}

impl From<Fault> for StoreError {
    fn from(Fault(reason): Fault) -> StoreError {
        StoreError::Unavailable { reason }
    }
}

impl From<sled::Error> for StoreError {
    fn from(error: sled::Error) -> StoreError {
        Fault::from(error).into()
    }
}
