//! What one sync makes durable: the commands of a batch write records and stage jobs here; then the batch writes the metadata
//! of the jobs, syncs, and shows, announces and replies (group commit).
//!
//! Later commands of a batch see what earlier ones staged; readers don't.

use std::{collections::HashMap, sync::Arc, time::Instant};

use super::{
    cache::RecordCache,
    disk::Disk,
    error::{Fault, Result},
    idempotency::Keys,
    keys::{self, Seq},
    ledger::{LedgerEntry, LedgerRecord},
    load::View,
    shared::Shared,
};
use crate::{
    clock::Timestamp,
    job::{Job, JobId, delivery::Delivery},
    store::{record, traits::StoreError},
};

/// Sends the reply to a command, or the error with which the batch failed.
type Reply = Box<dyn FnOnce(Option<StoreError>)>;

type Effect = Box<dyn FnOnce(&mut View, &RecordCache)>;

pub(super) struct Batch<'a> {
    pub(super) shared: &'a Shared,
    pub(super) disk: &'a Disk,
    pub(super) next_seq: &'a mut Seq,
    pub(super) staged: Staged,
}

#[derive(Default)]
pub(super) struct Staged {
    replies: Vec<Reply>,
    /// In order; none removes the job.
    changes: Vec<(Seq, Option<Arc<Job>>, Timestamp)>,
    /// The newest state of every job touched.
    jobs: HashMap<Seq, Option<Arc<Job>>>,
    deliveries: HashMap<Seq, Delivery>,
    /// Before the jobs.
    effects: Vec<Effect>,
    /// Attempts that leave the history.
    pub(super) obsolete: Vec<(Seq, u32)>,
    /// Jobs that take the answer of another, and the bytes of it.
    pub(super) shared_answers: (usize, usize),
    /// Jobs inserted together, all or none, by the first.
    pub(super) unfinished_inserts: Vec<Seq>,
    /// Keys of the jobs inserted.
    pub(super) keys: Keys,
    /// What the attempts that end cost, and the ledger's records with these entries.
    pub(super) entries: Vec<LedgerEntry>,
    records: Vec<LedgerRecord>,
    pub(super) removed: Vec<Seq>,
    /// Names of settings that change.
    pub(super) settings: Vec<String>,
    /// Something was written besides jobs.
    pub(super) has_other_writes: bool,
}

impl Batch<'_> {
    pub(super) fn reply(&mut self, reply: impl FnOnce(Option<StoreError>) + 'static) {
        self.staged.replies.push(Box::new(reply));
    }

    pub(super) fn show(&mut self, effect: impl FnOnce(&mut View, &RecordCache) + 'static) {
        self.staged.effects.push(Box::new(effect));
    }

    /// The job as the batch leaves it so far.
    pub(super) fn job(&self, id: JobId) -> Result<(Seq, Job)> {
        let index = &self.shared.view.read().index;
        let found = index.seq(id).and_then(|seq| match self.staged.jobs.get(&seq) {
            Some(staged) => Some((seq, Job::clone(staged.as_ref()?))),
            None => Some((seq, index.get(seq)?.clone())),
        });
        found.ok_or(StoreError::NotFound(id))
    }

    pub(super) fn staged_ids(&self) -> impl Iterator<Item = JobId> + '_ {
        self.staged.jobs.values().flatten().map(|job| job.id)
    }

    pub(super) fn is_staged(&self, seq: Seq) -> bool {
        self.staged.jobs.contains_key(&seq)
    }

    /// Stages the new state of a job, or its removal.
    pub(super) fn stage(&mut self, seq: Seq, job: Option<Job>, now: Timestamp) {
        let job = job.map(Arc::new);
        self.staged.jobs.insert(seq, job.clone());
        self.staged.changes.push((seq, job, now));
    }

    /// The webhook of a job, unless it is settled.
    pub(super) fn open_delivery(&self, seq: Seq) -> Option<Delivery> {
        self.staged.deliveries.get(&seq).cloned().or_else(|| self.shared.view.read().deliveries.get(seq).cloned())
    }

    /// The webhook of a job, if it has one.
    pub(super) fn delivery(&self, seq: Seq) -> Result<Option<Delivery>> {
        match self.open_delivery(seq) {
            Some(open) => Ok(Some(open)),
            None => Ok(self.disk.delivery(seq)?),
        }
    }

    pub(super) fn set_delivery(&mut self, seq: Seq, delivery: Delivery) -> Result<()> {
        self.disk.write_delivery(seq, &delivery)?;
        self.staged.deliveries.insert(seq, delivery);
        Ok(())
    }

    /// Writes the metadata of all jobs touched, the commit point of their changes, and syncs.
    pub(super) fn write(&mut self) -> Result<()> {
        if self.staged.changes.is_empty() && !self.staged.has_other_writes {
            return Ok(());
        }
        let (disk, shared) = (self.disk, self.shared);
        let mut touched: Vec<Seq> = self.staged.jobs.keys().copied().collect();
        touched.sort_unstable();
        disk.begin(touched.clone(), &shared.view.read().index, shared.clock.save())?;
        // Before the metadata: an entry whose metadata a crash cuts off will not count.
        self.write_ledger()?;
        for seq in &touched {
            match &self.staged.jobs[seq] {
                Some(job) => drop(disk.tree().insert(keys::metadata(*seq), record::encode(job).map_err(Fault)?)?),
                None => {
                    disk.tree().remove(keys::metadata(*seq))?;
                    // Never before: a job must not be there without its request.
                    disk.remove_bodies(*seq)?;
                }
            }
        }
        // After the metadata: until then the history may have to be as it was.
        for (seq, number) in &self.staged.obsolete {
            disk.remove_attempt(*seq, *number)?;
        }
        for first in &self.staged.unfinished_inserts {
            disk.end_insert_all(*first)?;
        }
        let syncing = Instant::now();
        disk.commit()?;
        shared.metrics.store_sync_seconds.observe(syncing.elapsed().as_secs_f64());
        Ok(())
    }

    fn write_ledger(&mut self) -> Result<()> {
        if self.staged.entries.is_empty() {
            return Ok(());
        }
        // Read first: readers must not wait for the disk.
        let surplus = {
            let ledger = &self.shared.view.read().ledger;
            self.staged.records = ledger.records(&self.staged.entries);
            ledger.surplus()
        };
        for key in surplus {
            self.disk.tree().remove(key)?;
        }
        for record in &self.staged.records {
            self.disk.tree().insert(record.key(), record.encode()?)?;
        }
        Ok(())
    }

    /// Shows a durable batch to readers, announces its changes and sends its replies.
    pub(super) fn publish(self, started: Instant) {
        let (shared, staged) = (self.shared, self.staged);
        let (has_jobs, has_spent) = (!staged.changes.is_empty(), !staged.records.is_empty());
        let totals = {
            // All at one moment: who sees an attempt ended finds its cost, and no message is due while its job has not ended.
            let view = &mut *shared.view.write();
            staged.effects.into_iter().for_each(|effect| effect(view, &shared.cache));
            if has_spent {
                view.ledger.forget_surplus();
                staged.records.into_iter().for_each(|record| view.ledger.apply(record));
            }
            for (seq, job, now) in &staged.changes {
                match job {
                    Some(job) => view.keys.record(job),
                    None => {
                        shared.cache.remove(*seq);
                        view.deliveries.replace(*seq, None);
                    }
                }
                view.index.replace(*seq, job.clone(), *now);
            }
            for (seq, delivery) in staged.deliveries {
                // A job removed by the batch has no webhook any more.
                if let Some(caller) = view.index.get(seq).map(|job| job.caller) {
                    view.index.set_unnotified(seq, delivery.next_at().is_some());
                    view.deliveries.replace(seq, Some((caller, delivery)));
                }
            }
            view.totals()
        };
        staged.settings.iter().for_each(|name| shared.settings_watch.changed(name));
        if has_jobs {
            shared.metrics.store_commits.inc();
            shared.metrics.store_commit_seconds.observe(started.elapsed().as_secs_f64());
        }
        // Before the replies: a worker's way to Claude is longer than a reply's to its client.
        if let Some(feed) = shared.feed.get().filter(|_| has_jobs || has_spent) {
            let changed: Vec<Arc<Job>> = staged.changes.into_iter().filter_map(|(_, job, _)| job).collect();
            feed.changed(&changed, totals);
        }
        staged.replies.into_iter().for_each(|reply| reply(None));
    }

    /// Replies to every command staged that the batch failed.
    pub(super) fn fail(self, fault: &StoreError) {
        self.staged.replies.into_iter().for_each(|reply| reply(Some(fault.clone())));
    }
}
