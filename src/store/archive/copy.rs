//! The records of a store: reading all of them, and restoring them in another one.

use std::{collections::VecDeque, sync::Arc};

use futures_util::future::try_join_all;
use uuid::Uuid;

use super::record::Record;
use crate::{
    clock::Timestamp,
    job::{Job, JobId, JobRecord},
    ledger::{DaySums, OTHER_MODELS, Sums},
    store::traits::{Store, StoreError},
};

/// Most jobs read for one step, and the bytes of their texts after which it ends. So many are read at the same time.
const JOBS: usize = 200;
const JOB_BYTES: usize = 4 << 20;
const READS: usize = 16;

/// Idempotency keys or entries of the audit log read at a time.
const SMALL_RECORDS: usize = 10_000;

/// Settings, audit entries or sums written at a time.
const WRITES: usize = 500;

/// The names of settings that belong to the running nodes of a store, such as their prompts. They stay there.
const OF_NODES: &str = "node/";

/// The setting that says that the records of a store are a part of those of another one. Its value names that one.
const MARK: &str = "unfinished-move";

/// Which records are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All, with what lets people in: hashes of API keys, and sessions.
    Everything,
    /// What an operator of a running service may have.
    ForOperators,
}

/// Reads all records of a store, some at a time, in an order that depends on them alone; jobs in the order of submission.
pub struct Reader {
    store: Arc<dyn Store>,
    scope: Scope,
    /// Idempotency keys that expire before are left out.
    keys_from: Timestamp,
    next: Option<Part>,
    /// The next jobs.
    ids: VecDeque<JobId>,
}

#[derive(Clone, Copy)]
enum Part {
    Settings,
    Days,
    Audit(Option<Uuid>),
    Keys(Option<[u8; 16]>),
    Jobs(u64),
}

impl Reader {
    pub fn new(store: Arc<dyn Store>, scope: Scope, keys_from: Timestamp) -> Reader {
        Reader { store, scope, keys_from, next: Some(Part::Settings), ids: VecDeque::new() }
    }

    /// Whether all but the jobs is read.
    pub fn is_at_jobs(&self) -> bool {
        matches!(self.next, None | Some(Part::Jobs(_)))
    }

    /// The next records, possibly none; `None` at the end.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn next(&mut self) -> Result<Option<Vec<Record>>, StoreError> {
        let Some(part) = self.next else { return Ok(None) };
        let store = &self.store;
        let (mut records, next): (Vec<Record>, Option<Part>) = match part {
            Part::Settings => {
                let settings = store.prefix("").await?.into_iter();
                let settings = settings.filter(|(name, _)| name != MARK && !name.starts_with(OF_NODES));
                let mut settings: Vec<Record> = settings.map(|(name, value)| Record::Setting(name, value)).collect();
                settings.sort_by_key(Record::kind);
                (settings, Some(Part::Days))
            }
            Part::Days => {
                let days = store.days(usize::MAX).await?.into_iter().rev();
                (days.map(Record::Day).collect(), Some(Part::Audit(None)))
            }
            Part::Audit(before) => {
                let entries = store.read_audit(before, SMALL_RECORDS).await?;
                let next = entries.last().map(|(id, _)| Part::Audit(Some(*id)));
                let entries = entries.into_iter().map(|(id, entry)| Record::Audit(id, entry));
                (entries.collect(), next.or(Some(Part::Keys(None))))
            }
            Part::Keys(after) => {
                let keys = store.orphaned_keys(after, SMALL_RECORDS).await?;
                let next = keys.last().map(|(key, ..)| Part::Keys(Some(key.key)));
                let keys = keys.into_iter().filter(|(key, ..)| key.expires_at >= self.keys_from);
                (keys.map(Record::Key).collect(), next.or(Some(Part::Jobs(0))))
            }
            Part::Jobs(after) => {
                let mut last = Some(after);
                if self.ids.is_empty() {
                    let heads = store.heads(after, JOBS).await?;
                    last = heads.last().map(|head| head.number);
                    self.ids.extend(heads.into_iter().map(|head| head.id));
                }
                (read_jobs(&**store, &mut self.ids).await?, last.map(Part::Jobs))
            }
        };
        self.next = next;
        records.retain(|record| self.scope == Scope::Everything || record.kind().is_for_operators());
        Ok(Some(records))
    }
}

/// Reads the next jobs of `ids`. Those that were deleted in the meantime are left out.
pub(super) async fn read_jobs(store: &dyn Store, ids: &mut VecDeque<JobId>) -> Result<Vec<Record>, StoreError> {
    let (mut records, mut bytes) = (Vec::new(), 0);
    while bytes < JOB_BYTES && !ids.is_empty() {
        let some = ids.drain(..ids.len().min(READS));
        let read = try_join_all(some.map(|id| read_job(store, id))).await?;
        for record in read.into_iter().flatten() {
            bytes += if let Record::Job(job) = &record { job.text_bytes() } else { 0 };
            records.push(record);
        }
    }
    Ok(records)
}

async fn read_job(store: &dyn Store, id: JobId) -> Result<Option<Record>, StoreError> {
    match store.get(id).await {
        Ok(Some(record)) => Ok(Some(Record::Job(unowned(record)))),
        Ok(None) => {
            let lost = || Record::UnreadableJob(id, "its request is missing".to_owned());
            Ok(store.find(id).await?.map(|_| lost()))
        }
        Err(StoreError::Corrupt { id, reason }) => Ok(Some(Record::UnreadableJob(id, reason))),
        Err(error) => Err(error),
    }
}

/// A running job arrives without an owner: its attempt belongs to the store that it comes from.
fn unowned(record: JobRecord) -> JobRecord {
    JobRecord { job: Job { owner: None, ..record.job }, ..record }
}

/// Adds records to a store. Again with the same records, it changes nothing.
///
/// # Errors
/// [`StoreError::Unavailable`]; then a part of them may be there.
pub async fn restore(store: &dyn Store, records: Vec<Record>) -> Result<(), StoreError> {
    let (mut jobs, mut keys, mut days, mut others) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for record in records {
        match record {
            Record::Job(job) => jobs.push(job),
            Record::Key(key) => keys.push(key),
            Record::Day(day) => days.push(day),
            Record::Setting(..) | Record::Audit(..) => others.push(record),
            Record::UnreadableJob(..) => {}
        }
    }
    for some in others.chunks(WRITES) {
        try_join_all(some.iter().map(|record| async move {
            match record {
                Record::Setting(name, value) => store.put(name.clone(), value.clone()).await,
                Record::Audit(id, entry) => store.append_audit(*id, entry.clone(), Uuid::nil()).await,
                Record::Job(_) | Record::UnreadableJob(..) | Record::Key(_) | Record::Day(_) => Ok(()),
            }
        }))
        .await?;
    }
    if !days.is_empty() {
        restore_days(store, days).await?;
    }
    if !keys.is_empty() {
        store.add_keys(keys).await?;
    }
    if !jobs.is_empty() {
        store.import(jobs, None).await?;
    }
    Ok(())
}

/// Adds what a day has here less than there.
async fn restore_days(store: &dyn Store, days: Vec<DaySums>) -> Result<(), StoreError> {
    let here = store.days(usize::MAX).await?;
    let mut missing = Vec::new();
    for DaySums { day, models } in days {
        let known = here.iter().find(|known| known.day == day);
        for (model, sums) in models {
            let known = known.and_then(|known| known.models.get(&model)).copied().unwrap_or_default();
            missing.push((day, model, sums.minus(&known)));
        }
    }
    missing.retain(|(_, _, sums)| *sums != Sums::default());
    // A day has room for so many models, and the others share this name: it must not take the place of another.
    missing.sort_by_key(|(_, model, _)| model == OTHER_MODELS);
    for some in missing.chunks(WRITES) {
        try_join_all(some.iter().map(|(day, model, sums)| store.add(*day, model.clone(), *sums))).await?;
    }
    Ok(())
}

/// Marks a store as holding a part of the records of `origin`, until [`unmark`].
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn mark(store: &dyn Store, origin: &str) -> Result<(), StoreError> {
    store.put(MARK.to_owned(), origin.to_owned()).await
}

/// Of which origin the store has a part only, if so.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn marked(store: &dyn Store) -> Result<Option<String>, StoreError> {
    Ok(store.prefix(MARK).await?.into_iter().find(|(name, _)| name == MARK).map(|(_, origin)| origin))
}

/// # Errors
/// [`StoreError::Unavailable`].
pub async fn unmark(store: &dyn Store) -> Result<(), StoreError> {
    store.delete(MARK.to_owned()).await
}
