//! Retention and deletion.

use super::super::{
    batch::Batch,
    error::Result,
    idempotency,
    keys::{self, Seq},
};
use crate::{
    clock::Timestamp,
    job::{Job, JobId},
};

/// Most jobs that a batch removes: their list must fit into one record.
const MAX_REMOVED: usize = 2_048;

/// Idempotency keys that a batch forgets: most have no record, and the records are small.
const PRUNED_KEYS: usize = 1_024;

impl Batch<'_> {
    pub(crate) fn prune(&mut self, before: Timestamp, keep: usize, limit: usize, now: Timestamp) -> Result<usize> {
        let (seqs, expired) = {
            let (view, keys_at) = (self.shared.view.read(), self.shared.key_time(now));
            (view.index.prunable(before, keep, limit, now), view.keys.expired(keys_at, limit.max(PRUNED_KEYS)))
        };
        for key in &expired {
            self.disk.tree().remove(keys::idempotency(key))?;
        }
        self.staged.has_other_writes |= !expired.is_empty();
        let has_more = expired.len() >= PRUNED_KEYS;
        self.show(move |view, _| expired.iter().for_each(|key| view.keys.remove(key)));
        let removed = self.remove_jobs(seqs, now)?;
        Ok(if has_more { limit } else { removed })
    }

    pub(crate) fn remove(&mut self, ids: &[JobId], now: Timestamp) -> Result<usize> {
        let seqs: Vec<Seq> = {
            let index = &self.shared.view.read().index;
            let is_final = |seq: &Seq| index.get(*seq).is_some_and(|job| job.state.is_final());
            ids.iter().filter_map(|id| index.seq(*id)).filter(is_final).collect()
        };
        self.remove_jobs(seqs, now)
    }

    /// Stages the removal of jobs, as far as the batch has room and no other change of them. Their keys outlive them.
    fn remove_jobs(&mut self, mut seqs: Vec<Seq>, now: Timestamp) -> Result<usize> {
        seqs.retain(|seq| !self.is_staged(*seq));
        seqs.truncate(MAX_REMOVED.saturating_sub(self.staged.removed.len()));
        if seqs.is_empty() {
            return Ok(0);
        }
        self.save_keys(&seqs, now)?;
        self.staged.removed.extend_from_slice(&seqs);
        let list: Vec<u8> = self.staged.removed.iter().flat_map(|seq| seq.to_be_bytes()).collect();
        self.disk.tree().insert(keys::PRUNING, list)?;
        seqs.iter().for_each(|seq| self.stage(*seq, None, now));
        Ok(seqs.len())
    }

    /// Writes records of the keys of jobs about to be removed that are still in force.
    fn save_keys(&self, seqs: &[Seq], now: Timestamp) -> Result<()> {
        let now = self.shared.key_time(now);
        let jobs: Vec<Job> = {
            let index = &self.shared.view.read().index;
            let has_key = |job: &&Job| job.idempotency.as_deref().is_some_and(|key| key.expires_at > now);
            seqs.iter().filter_map(|seq| index.get(*seq)).filter(has_key).cloned().collect()
        };
        for Job { id, caller, idempotency, .. } in jobs {
            if let Some(key) = idempotency {
                let record = idempotency::encode(&key, id, caller)?;
                self.disk.tree().insert(keys::idempotency(&key.key), record)?;
            }
        }
        Ok(())
    }
}
