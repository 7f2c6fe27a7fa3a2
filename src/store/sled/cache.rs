//! Requests and attempts lately written or read: a job is mostly read shortly after it changed, by its worker and by the
//! client that waits for it. Neither then needs the disk, nor a thread that may block for it.
//!
//! Entries hold only what is durable. An entry may lack the newest attempt of its job; then it counts as a miss.

use std::sync::Arc;

use quick_cache::{Weighter, sync::Cache};

use super::keys::Seq;
use crate::job::{Attempt, Job, JobRecord, JobRequest, MAX_ATTEMPTS};

const MAX_BYTES: u64 = 16 << 20;

/// A record of usual size; the cache sizes its tables by it.
const USUAL_BYTES: u64 = 4 << 10;

const OVERHEAD_BYTES: u64 = 256;

pub(super) struct RecordCache(Cache<Seq, Bodies, Weight>);

/// The records of one job beside its metadata.
#[derive(Clone)]
pub(super) struct Bodies {
    pub(super) request: Arc<JobRequest>,
    /// Oldest first; without a gap, but for released ones that the next one stands for and the oldest of very many.
    pub(super) attempts: Vec<Arc<Attempt>>,
    pub(super) bytes: usize,
}

#[derive(Clone)]
struct Weight;

impl Weighter<Seq, Bodies> for Weight {
    fn weight(&self, _: &Seq, bodies: &Bodies) -> u64 {
        bodies.bytes as u64 + OVERHEAD_BYTES
    }
}

impl Default for RecordCache {
    fn default() -> RecordCache {
        let entries = usize::try_from(MAX_BYTES / USUAL_BYTES).unwrap_or(usize::MAX);
        RecordCache(Cache::with_weighter(entries, MAX_BYTES, Weight))
    }
}

impl RecordCache {
    pub(super) fn insert(&self, seq: Seq, bodies: Bodies) {
        self.0.insert(seq, bodies);
    }

    /// Adds an attempt of `bytes` to the job's history, if the job is cached.
    pub(super) fn push(&self, seq: Seq, attempt: Arc<Attempt>, bytes: usize) {
        if let Some(mut bodies) = self.0.get(&seq) {
            bodies.attempts.retain(|before| !attempt.stands_for(before.number));
            bodies.attempts.push(attempt);
            let surplus = bodies.attempts.len().saturating_sub(MAX_ATTEMPTS);
            bodies.attempts.drain(..surplus);
            bodies.bytes += bytes;
            self.0.insert(seq, bodies);
        }
    }

    pub(super) fn remove(&self, seq: Seq) {
        self.0.remove(&seq);
    }

    pub(super) fn request(&self, seq: Seq) -> Option<Arc<JobRequest>> {
        Some(self.0.get(&seq)?.request)
    }

    /// The whole record of a job in this state, but for its webhook.
    pub(super) fn record(&self, seq: Seq, job: &Job) -> Option<JobRecord> {
        let Bodies { request, mut attempts, .. } = self.0.get(&seq)?;
        let closed = job.closed_attempts();
        if attempts.last().map_or(0, |newest| newest.number) < closed {
            return None;
        }
        attempts.retain(|attempt| attempt.number <= closed);
        Some(JobRecord { job: job.clone(), request, attempts, delivery: None })
    }
}
