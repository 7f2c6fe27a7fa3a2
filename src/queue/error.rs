//! Why the queue could not do as asked.

use super::refused::Refused;
use crate::{job::JobId, registry::Unavailable, store::StoreError};

/// Why the queue could not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// There is no such job (any more).
    #[error("job {0} not found")]
    NotFound(JobId),
    /// The job's state does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// A bound on pending jobs or on submissions is reached.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The idempotency key is in force for another request.
    #[error("this Idempotency-Key was used for another request; use a new key for each request")]
    KeyReused,
    /// The job that the idempotency key stands for is there no more.
    #[error("this Idempotency-Key belongs to job {0}, which was removed; use a new key for a new request")]
    Removed(JobId),
    /// None of the job's stored answers can be read.
    #[error("the stored answer can't be parsed as a memo: {0}")]
    Unreadable(String),
    /// The service is shutting down and accepts no more.
    #[error("the service is shutting down and accepts no more jobs")]
    Closing,
    /// The store can't be used at the moment.
    #[error("{0}")]
    Unavailable(String),
}

impl From<Unavailable> for QueueError {
    fn from(error: Unavailable) -> QueueError {
        QueueError::Unavailable(error.to_string())
    }
}

impl From<StoreError> for QueueError {
    fn from(error: StoreError) -> QueueError {
        match error {
            StoreError::NotFound(id) => QueueError::NotFound(id),
            StoreError::Transition(error) => QueueError::Conflict(error.to_string()),
            StoreError::KeyReused => QueueError::KeyReused,
            error @ (StoreError::Unavailable { .. } | StoreError::Corrupt { .. }) => {
                QueueError::Unavailable(error.to_string())
            }
        }
    }
}
