//! Memos as readers get them, those lately read: to compute one takes as long as all else of a read.

use std::sync::Arc;

use quick_cache::{Weighter, sync::Cache};
use serde_json::value::RawValue;

use super::view;
use crate::job::{JobId, JobRecord};

/// Most bytes of memos in memory.
const MAX_BYTES: u64 = 8 << 20;

/// A memo of usual size; the cache sizes its tables by it.
const USUAL_BYTES: u64 = 8 << 10;

/// By the job and the attempt that brought the answer, which never changes.
#[derive(Debug)]
pub struct Memos(Cache<(JobId, u32), Arc<RawValue>, Weight>);

#[derive(Clone, Debug)]
struct Weight;

impl Weighter<(JobId, u32), Arc<RawValue>> for Weight {
    fn weight(&self, _: &(JobId, u32), memo: &Arc<RawValue>) -> u64 {
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
        let key = (record.job.id, record.answer()?.number);
        if let Some(memo) = self.0.get(&key) {
            return Some(memo);
        }
        let memo: Arc<RawValue> = serde_json::value::to_raw_value(&view::shown(record)?).ok()?.into();
        self.0.insert(key, Arc::clone(&memo));
        Some(memo)
    }
}
