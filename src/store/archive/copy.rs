//! The records of a store: reading all of them, and restoring them in another one.

use std::sync::Arc;

use futures_util::future::try_join_all;
use parking_lot::Mutex;
use uuid::Uuid;

use super::record::Record;
use crate::{
    clock::Timestamp,
    job::{Cursor, Job, JobRecord, Listing, Order},
    ledger::{DaySums, OTHER_MODELS, Sums},
    store::traits::{Feed, Store, StoreError, Totals},
};

/// Jobs read at a time: each has all of Claude's answers.
const JOBS: usize = 200;

/// Idempotency keys or entries of the audit log read at a time.
const SMALL_RECORDS: usize = 10_000;

/// Settings, audit entries or sums written at a time.
const WRITES: usize = 500;

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
    now: Timestamp,
    next: Option<Part>,
}

#[derive(Clone, Copy)]
enum Part {
    Settings,
    Days,
    Audit(Option<Uuid>),
    Keys(Option<[u8; 16]>),
    Jobs(Option<Cursor>),
}

impl Reader {
    pub fn new(store: Arc<dyn Store>, scope: Scope, now: Timestamp) -> Reader {
        Reader { store, scope, now, next: Some(Part::Settings) }
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
                let settings = store.prefix("").await?.into_iter().filter(|(name, _)| name != MARK);
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
                let next = keys.last().map(|(key, _)| Part::Keys(Some(key.key)));
                (keys.into_iter().map(|(key, job)| Record::Key(key, job)).collect(), next.or(Some(Part::Jobs(None))))
            }
            Part::Jobs(cursor) => {
                let listing = Listing { order: Order::OldestFirst, cursor, limit: JOBS, ..Listing::default() };
                let page = store.list(listing, self.now).await?;
                let jobs = page.jobs.into_iter().map(|record| Record::Job(unowned(record)));
                (jobs.collect(), page.next.map(|next| Part::Jobs(Some(next))))
            }
        };
        self.next = next;
        records.retain(|record| self.scope == Scope::Everything || record.kind().is_for_operators());
        Ok(Some(records))
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
            Record::Key(key, job) => keys.push((key, job)),
            Record::Day(day) => days.push(day),
            Record::Setting(..) | Record::Audit(..) => others.push(record),
        }
    }
    for some in others.chunks(WRITES) {
        try_join_all(some.iter().map(|record| async move {
            match record {
                Record::Setting(name, value) => store.put(name.clone(), value.clone()).await,
                Record::Audit(id, entry) => store.append_audit(*id, entry.clone(), Uuid::nil()).await,
                Record::Job(_) | Record::Key(..) | Record::Day(_) => Ok(()),
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
        store.import(jobs).await?;
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

/// How many jobs a store has, readable or not. To be called before anything else subscribes to it.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn job_count(store: &dyn Store) -> Result<u64, StoreError> {
    #[derive(Default)]
    struct Counter(Mutex<u64>);

    impl Feed for Counter {
        fn reset(&self, pending: Vec<Arc<Job>>, totals: Totals) {
            let ended = totals.ended.succeeded + totals.ended.failed + totals.ended.cancelled;
            *self.0.lock() = (pending.len() + ended) as u64;
        }

        fn changed(&self, _: &[Arc<Job>], _: Totals) {}
    }

    let counter = Arc::<Counter>::default();
    store.subscribe(Arc::clone(&counter) as Arc<dyn Feed>).await?;
    let count = *counter.0.lock();
    Ok(count)
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
