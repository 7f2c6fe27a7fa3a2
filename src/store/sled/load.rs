//! Reading a store at its start.

use std::{
    collections::BTreeMap,
    sync::mpsc::{self, SyncSender},
    thread,
};

use super::{
    audit::AuditIndex,
    deliveries::Deliveries,
    disk::Disk,
    error::Fault,
    idempotency::{self, Keys, key_time},
    index::Index,
    keys::{self, Seq},
    ledger::LedgerDays,
};
use crate::{clock::Clock, job::Job, store::traits::Totals};

/// Jobs that a start reads at a time, and how many such parts it is ahead of the index.
const READ_BATCH: usize = 4_096;
const READ_AHEAD: usize = 4;

/// What readers see without the disk. All of it is durable.
#[derive(Default)]
pub(super) struct View {
    pub(super) index: Index,
    pub(super) keys: Keys,
    pub(super) deliveries: Deliveries,
    pub(super) settings: BTreeMap<String, String>,
    pub(super) audit: AuditIndex,
    pub(super) ledger: LedgerDays,
}

impl View {
    pub(super) fn totals(&self) -> Totals {
        Totals { ended: self.index.ended(), spent: self.ledger.spent() }
    }
}

/// The view, and the first number that is free.
pub(super) fn load(disk: &Disk, keep_answers: bool, clock: &Clock) -> Result<(View, Seq), Fault> {
    clock.resume(disk.time());
    // Before anything is removed, so that no number is given twice.
    let next_seq = disk.next_seq()?;
    disk.sweep_unfinished_inserts()?;
    let (mut index, mut keys, newest) = load_jobs(disk, keep_answers, clock)?;
    for entry in disk.tree().scan_prefix(keys::IDEMPOTENCY) {
        let (record, value) = entry?;
        let key = record[1..].try_into().map_err(|_| Fault(format!("{record:?} is not a key of this store")))?;
        let (key, job, caller) = idempotency::decode(key, &value)?;
        keys.insert(&key, job, caller);
    }
    // Before anything else is removed.
    disk.check(&index)?;
    disk.sweep_orphans(newest)?;
    let deliveries = Deliveries::load(disk, &index)?;
    deliveries.pending().for_each(|seq| index.set_unnotified(seq, true));
    let (settings, audit) = (load_settings(disk.tree())?, AuditIndex::load(disk.tree())?);
    let ledger = LedgerDays::load(disk.tree(), &index)?;
    Ok((View { index, keys, deliveries, settings, audit, ledger }, next_seq))
}

/// The index, the idempotency keys of the jobs that are still in force, and the newest job's number.
fn load_jobs(disk: &Disk, keep_answers: bool, clock: &Clock) -> Result<(Index, Keys, Seq), Fault> {
    let now = clock.now();
    let keys_at = key_time(clock, now);
    let (mut keys, mut newest) = (Keys::default(), 0);
    // One thread reads records while the other indexes them: together they take most of a start.
    let index = thread::scope(|scope| {
        let (sender, batches) = mpsc::sync_channel(READ_AHEAD);
        let reading = scope.spawn(move || read_jobs(disk, &sender));
        let jobs = batches.into_iter().flatten().inspect(|(seq, job)| {
            if job.idempotency.as_ref().is_some_and(|key| key.expires_at > keys_at) {
                keys.record(job);
            }
            newest = *seq;
        });
        let index = Index::from_jobs(jobs, keep_answers, now, clock.lead());
        reading.join().unwrap_or_else(|_| Err(Fault("sled panicked".to_owned()))).map(|()| index)
    })?;
    Ok((index, keys, newest))
}

fn read_jobs(disk: &Disk, batches: &SyncSender<Vec<(Seq, Job)>>) -> Result<(), Fault> {
    let mut jobs = disk.jobs();
    loop {
        let batch = jobs.by_ref().take(READ_BATCH).collect::<Result<Vec<_>, _>>()?;
        // The other side is gone only if it panicked.
        if batch.is_empty() || batches.send(batch).is_err() {
            return Ok(());
        }
    }
}

fn load_settings(tree: &sled::Tree) -> Result<BTreeMap<String, String>, Fault> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| Fault("a setting is not text".to_owned()));
    let mut settings = BTreeMap::new();
    for entry in tree.scan_prefix(keys::SETTING) {
        let (key, value) = entry?;
        settings.insert(text(&key[1..])?, text(&value)?);
    }
    Ok(settings)
}
