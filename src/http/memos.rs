//! Memos as readers get them, those lately read: to compute one takes as long as all else of a read.

use std::sync::Arc;

use quick_cache::{Weighter, sync::Cache};
use serde_json::value::RawValue;

use crate::{
    clock::Timestamp,
    job::{JobId, JobRecord},
    webhook::message::memo,
};

/// Most bytes of memos in memory.
const MAX_BYTES: u64 = 8 << 20;

/// A memo of usual size; the cache sizes its tables by it.
const USUAL_BYTES: u64 = 8 << 10;

/// A job, and the attempt that brought its answer, which never changes. The end tells it from one of a job that was imported
/// again.
type Key = (JobId, u32, Timestamp);

#[derive(Debug)]
pub struct Memos(Cache<Key, Arc<RawValue>, Weight>);

#[derive(Clone, Debug)]
struct Weight;

impl Weighter<Key, Arc<RawValue>> for Weight {
    fn weight(&self, _: &Key, memo: &Arc<RawValue>) -> u64 {
        memo.get().len() as u64
    }
}

impl Default for Memos {
    fn default() -> Memos {
        let entries = usize::try_from(MAX_BYTES / USUAL_BYTES).unwrap_or(usize::MAX);
        Memos(Cache::with_weighter(entries, MAX_BYTES, Weight))
    }
}

impl Memos {
    /// The memo of a job, with what is computed from it.
    pub(super) fn of(&self, record: &JobRecord) -> Option<Arc<RawValue>> {
        let answer = record.answer()?;
        let key = (record.job.id, answer.number, answer.finished_at);
        if let Some(memo) = self.0.get(&key) {
            return Some(memo);
        }
        let memo: Arc<RawValue> = serde_json::value::to_raw_value(&memo(record)?).ok()?.into();
        self.0.insert(key, Arc::clone(&memo));
        Some(memo)
    }
}
