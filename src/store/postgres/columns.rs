//! What a batch writes, as columns: each statement gets arrays.

use std::collections::{BTreeMap, BTreeSet};

use super::batch::Batch;
use crate::{
    clock::Timestamp,
    job::{JobId, JobState, caller::Caller},
    ledger::{ByModel, Day},
    store::{new_job::json, record},
};

/// The changed jobs, the messages to their callback URLs, and new idempotency keys.
#[derive(Default)]
pub(super) struct Columns {
    pub(super) seqs: Vec<i64>,
    pub(super) ids: Vec<JobId>,
    pub(super) records: Vec<Vec<u8>>,
    pub(super) statuses: Vec<i16>,
    pub(super) callers: Vec<Option<i64>>,
    pub(super) questions: Vec<Option<i64>>,
    pub(super) created: Vec<i64>,
    pub(super) finished: Vec<Option<i64>>,
    pub(super) unnotified: Vec<bool>,
    pub(super) delivery_seqs: Vec<i64>,
    pub(super) delivery_callers: Vec<Option<i64>>,
    pub(super) hosts: Vec<String>,
    pub(super) next: Vec<Option<i64>>,
    pub(super) failing: Vec<bool>,
    pub(super) deliveries: Vec<Vec<u8>>,
    pub(super) removed: Vec<i64>,
    pub(super) keys: Vec<Vec<u8>>,
    pub(super) key_bodies: Vec<Vec<u8>>,
    pub(super) key_jobs: Vec<JobId>,
    pub(super) key_ends: Vec<i64>,
    pub(super) key_callers: Vec<Option<i64>>,
}

/// The number of a state in the column `status`.
pub(super) fn status(state: JobState) -> i16 {
    match state {
        JobState::Queued { .. } => 0,
        JobState::Running => 1,
        JobState::Succeeded => 2,
        JobState::Failed { .. } => 3,
        JobState::Cancelled => 4,
    }
}

/// A digest as PostgreSQL stores it.
pub(super) fn digest(digest: Caller) -> Option<i64> {
    digest.map(|digest| digest.get().cast_signed())
}

impl Columns {
    pub(super) fn of(batch: &Batch) -> Result<Columns, String> {
        let mut columns = Columns::default();
        for (name, key) in batch.keys.iter().filter(|(_, key)| key.is_new) {
            columns.keys.push(name.clone());
            columns.key_bodies.push(key.body.clone());
            columns.key_jobs.push(key.job);
            columns.key_ends.push(key.expires_at.as_millis());
            columns.key_callers.push(digest(key.caller));
        }
        for (id, entry) in batch.entries.iter().filter(|(_, entry)| entry.is_changed) {
            let Some(job) = &entry.job else {
                columns.removed.push(entry.seq);
                continue;
            };
            columns.seqs.push(entry.seq);
            columns.ids.push(*id);
            columns.records.push(record::encode(job)?);
            columns.statuses.push(status(job.state));
            columns.callers.push(digest(job.caller));
            columns.questions.push(digest(job.question));
            columns.created.push(job.created_at.as_millis());
            columns.finished.push(job.finished_at.map(Timestamp::as_millis));
            columns.unnotified.push(job.state.is_final() && entry.is_unnotified());
            if let Some(delivery) = entry.delivery.as_ref().filter(|_| entry.has_new_delivery) {
                columns.delivery_seqs.push(entry.seq);
                columns.delivery_callers.push(digest(job.caller));
                columns.hosts.push(delivery.host.clone());
                columns.next.push(delivery.next_at().map(Timestamp::as_millis));
                columns.failing.push(delivery.is_failing());
                columns.deliveries.push(json(*id, delivery).map_err(|error| error.to_string())?);
            }
        }
        Ok(columns)
    }
}

/// Changed rows of the ledger.
#[derive(Default)]
pub(super) struct LedgerRows {
    pub(super) days: Vec<i64>,
    pub(super) models: Vec<String>,
    pub(super) sums: Vec<Vec<u8>>,
}

impl LedgerRows {
    pub(super) fn new(ledger: &BTreeMap<Day, ByModel>, changed: BTreeSet<(Day, String)>) -> LedgerRows {
        let mut rows = LedgerRows::default();
        for (day, model) in changed {
            let sums = ledger.get(&day).and_then(|models| models.get(&model)).copied().unwrap_or_default();
            rows.days.push(i64::from(day.number()));
            rows.models.push(model);
            rows.sums.push(postcard::to_stdvec(&sums).unwrap_or_default());
        }
        rows
    }
}
