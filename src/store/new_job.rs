//! A job on its way into a store, with its JSON made by the caller, so that the one writer need not do it.

use serde::Serialize;

use super::traits::StoreError;
use crate::job::{JobId, JobRecord};

pub(super) struct NewJob {
    pub(super) record: JobRecord,
    pub(super) request: Vec<u8>,
    /// The attempts that it had before, by their number.
    pub(super) attempts: Vec<(u32, Vec<u8>)>,
}

impl NewJob {
    pub(super) fn from_records(records: impl IntoIterator<Item = JobRecord>) -> Result<Vec<NewJob>, StoreError> {
        records.into_iter().map(NewJob::from_record).collect()
    }

    fn from_record(record: JobRecord) -> Result<NewJob, StoreError> {
        let id = record.job.id;
        let attempts = record.attempts.iter().map(|attempt| Ok((attempt.number, json(id, attempt)?)));
        let attempts = attempts.collect::<Result<_, StoreError>>()?;
        Ok(NewJob { request: json(id, &*record.request)?, attempts, record })
    }

    pub(super) fn bytes(&self) -> usize {
        self.request.len() + self.attempts.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    }
}

/// A record of a job as JSON.
pub(super) fn json(id: JobId, record: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(record).map_err(|error| StoreError::Corrupt { id, reason: error.to_string() })
}
