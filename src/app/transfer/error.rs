//! Why a transfer fails.

use std::{io, path::PathBuf};

use tokio::task::JoinError;

use super::place::Place;
use crate::{
    job::JobId,
    store::{
        StoreError,
        archive::{ArchiveError, MergeError},
        postgres, sled,
    },
};

#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error("there is no job store in {}: name the data folder of a ceoagent, which has a folder `queue`", path.display())]
    NoStore { path: PathBuf },
    #[error("{0} is empty: there is nothing to move or to export")]
    Nothing(Place),
    #[error("{0} is the source and the target: name two different places")]
    SamePlace(Place),
    #[error(transparent)]
    Folder(#[from] sled::OpenError),
    #[error("{0}: {1}")]
    Database(Place, postgres::OpenError),
    #[error("can't use {0}: {1}")]
    Unreachable(Place, String),
    #[error("{0} is in use: nodes of a service are connected to it. Stop all nodes, then repeat the command")]
    InUse(Place),
    #[error(
        "{0} has only a part of {1}, because a move or an import into it did not end. End that one first (after a copy ahead, \
         by the move itself), or empty this place: see docs/export.md"
    )]
    Half(Place, String),
    #[error(
        "{0} has records already. Name an empty place: a new folder, or a database without the schema `ceoagent`. To add jobs \
         to a running service, use `ceoagent import` without --to"
    )]
    NotEmpty(Place),
    #[error(
        "{place}: job {id} can't be read: {reason}. Start the service and delete this job, or save what is left of a data \
         folder with `ceoagent export --salvage`: see docs/export.md"
    )]
    UnreadableJob { place: Place, id: JobId, reason: String },
    #[error("job {id} does not have the same texts in {place}. Repeat the command")]
    Texts { place: Place, id: JobId },
    #[error("line {line} from the service: {source}. Repeat the command: it continues")]
    Service { line: usize, source: ArchiveError },
    #[error(
        "line {line}: {source}. {restored} records before it are in {target}, and no service starts with them: empty it, and \
         import a whole archive"
    )]
    Line { line: usize, source: ArchiveError, restored: u64, target: Place },
    #[error("line {line}: {source}. Nothing was imported")]
    FirstLines { line: usize, source: ArchiveError },
    #[error("{0}: {1}")]
    Store(Place, StoreError),
    #[error("can't write the archive: {0}")]
    Output(io::Error),
    #[error("can't read the archive: {0}")]
    Input(io::Error),
    #[error("the store could not be opened: {0}")]
    Panicked(#[from] JoinError),
}

impl TransferError {
    /// Of a merge, or of reading `from` alone.
    pub(super) fn of_merge(error: MergeError, from: &Place, to: &Place) -> TransferError {
        match error {
            MergeError::Source(error) => TransferError::Store(from.clone(), error),
            MergeError::Target(error) => TransferError::Store(to.clone(), error),
            MergeError::Unreadable { id, reason } => TransferError::UnreadableJob { place: from.clone(), id, reason },
        }
    }
}
