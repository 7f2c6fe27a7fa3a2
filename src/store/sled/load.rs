//! Reading a store at its start.

use std::{
    sync::mpsc::{self, SyncSender},
    thread,
};

use super::{
    beside::Beside,
    disk::Disk,
    idempotency::{self, Keys},
    index::Index,
    keys::Seq,
};
use crate::{clock::Clock, job::Job};

/// Jobs that a start reads at a time, and how many such batches it is ahead of the index.
const READ_BATCH: usize = 4_096;
const READ_AHEAD: usize = 4;

/// Sends all jobs in their order, in batches.
fn read_jobs(disk: &Disk, batches: &SyncSender<Vec<(Seq, Job)>>) -> Result<(), String> {
    let mut jobs = disk.jobs();
    loop {
        let batch = jobs.by_ref().take(READ_BATCH).collect::<Result<Vec<_>, _>>()?;
        // The other side is gone only if it panicked.
        if batch.is_empty() || batches.send(batch).is_err() {
            return Ok(());
        }
    }
}

/// The index and the idempotency keys as the database tells them, and the first number that is free.
///
/// Of a job that has outlived its key, the key is not taken up again.
pub(super) fn load(disk: &Disk, keep_answers: bool, clock: &Clock) -> Result<(Index, Keys, Beside, Seq), String> {
    clock.resume(disk.time());
    let now = clock.now();
    let keys_at = idempotency::time(clock, now);
    // Before anything is removed, so that no number is given twice.
    let next_seq = disk.next_seq().map_err(|error| error.to_string())?;
    disk.sweep_batches().map_err(|error| error.to_string())?;
    let (mut keys, mut newest) = (Keys::default(), 0);
    // One thread reads records while the other indexes what they say: together they take most of a start.
    let index = thread::scope(|scope| {
        let (sender, batches) = mpsc::sync_channel(READ_AHEAD);
        let reading = scope.spawn(move || read_jobs(disk, &sender));
        let jobs = batches.into_iter().flatten().inspect(|(seq, job)| {
            if job.idempotency.as_ref().is_some_and(|key| key.expires_at > keys_at) {
                keys.note(job);
            }
            newest = *seq;
        });
        let index = Index::of(jobs, keep_answers, now, clock.lead());
        reading.join().unwrap_or_else(|_| Err("sled panicked".to_owned())).map(|()| index)
    })?;
    for entry in disk.orphaned_keys() {
        let (key, job, caller) = entry?;
        keys.insert(&key, job, caller);
    }
    // Before anything is removed.
    disk.check(&index)?;
    disk.sweep_orphans(newest).map_err(|error| error.to_string())?;
    let beside = Beside::load(disk.tree())?;
    Ok((index, keys, beside, next_seq))
}
