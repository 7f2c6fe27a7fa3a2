//! Making a store equal to another one, of which it may have a part already: only what is missing or has changed is copied.
//!
//! The head of a job, its life and the state of its webhook, changes with everything that can happen to the job. So a job
//! whose heads are equal in both stores is not read.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use tokio::task::JoinError;

use super::{
    copy::{Reader, Scope, read_jobs, restore},
    format::{Kind, Tally},
    job,
    record::Record,
};
use crate::{
    clock::Timestamp,
    digest::sha256,
    job::{FailureCode, Job, JobEvent, JobId, JobRecord, JobState, delivery::Delivery},
    store::traits::{JobHead, Store, StoreError},
};

/// Heads read at a time.
const HEADS: usize = 4_096;

/// Most jobs that a batch copies, or takes away.
const BATCH: usize = 500;

/// The SHA-256 of a line.
pub type Digest = [u8; 32];

/// Why stores can't be compared or made equal.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("of the store that is read: {0}")]
    Source(StoreError),
    #[error("of the store that is written: {0}")]
    Target(StoreError),
    #[error("job {id} can't be read: {reason}")]
    Unreadable { id: JobId, reason: String },
}

/// Where the jobs of a source go in a target that has some of them: they keep their order. A job that is the same in both
/// stays where it is, and the numbers between two of them are free for the jobs that the source has between them.
#[derive(Debug, Default)]
pub struct Places {
    /// Jobs of the target that the source has not given yet.
    known: HashMap<JobId, (u64, Digest)>,
    taken: HashMap<u64, JobId>,
    last: u64,
}

/// What becomes of a job of the source.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// The target has it.
    Same,
    /// It takes this number, once these jobs have left the target.
    New { number: u64, instead_of: Vec<JobId> },
}

impl Places {
    /// Of a target.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]. A job that can't be read is one that differs.
    pub async fn of(target: &dyn Store) -> Result<Places, StoreError> {
        let (mut places, mut after) = (Places::default(), 0);
        loop {
            let heads = target.heads(after, HEADS).await?;
            let Some(newest) = heads.last() else { return Ok(places) };
            after = newest.number;
            for JobHead { number, id, life } in heads {
                let digest = life.map_or([0; 32], |(job, delivery)| head_digest(job, delivery.as_ref()));
                places.known.insert(id, (number, digest));
                places.taken.insert(number, id);
            }
        }
    }

    /// Where the next job of the source goes. Without a digest it only gets a number, for later.
    pub fn next(&mut self, id: JobId, digest: Option<Digest>) -> Place {
        let found = self.known.remove(&id);
        if let Some((number, known)) = found {
            self.taken.remove(&number);
            if Some(known) == digest && number > self.last {
                self.last = number;
                return Place::Same;
            }
        }
        self.last += 1;
        let mut instead_of: Vec<JobId> = found.map(|_| id).into_iter().collect();
        if let Some(other) = self.taken.remove(&self.last) {
            self.known.remove(&other);
            instead_of.push(other);
        }
        Place::New { number: self.last, instead_of }
    }

    /// Jobs that the source does not have.
    pub fn surplus(self) -> Vec<JobId> {
        self.known.into_keys().collect()
    }
}

/// Jobs on their way into a target.
#[derive(Debug, Default)]
pub struct Batch {
    instead_of: Vec<JobId>,
    records: Vec<JobRecord>,
    numbers: Vec<u64>,
}

impl Batch {
    pub fn is_full(&self) -> bool {
        self.records.len().max(self.instead_of.len()) >= BATCH
    }

    pub fn leave(&mut self, jobs: Vec<JobId>) {
        self.instead_of.extend(jobs);
    }

    pub fn add(&mut self, number: u64, record: JobRecord) {
        self.numbers.push(number);
        self.records.push(record);
    }

    /// # Errors
    /// [`StoreError`].
    pub async fn write(self, target: &dyn Store, now: Timestamp) -> Result<(), StoreError> {
        discard(target, &self.instead_of, now).await?;
        if !self.records.is_empty() {
            target.import(self.records, Some(self.numbers)).await?;
        }
        Ok(())
    }
}

/// Takes jobs away from a store that no node uses. Only a job that has ended can be removed.
async fn discard(store: &dyn Store, ids: &[JobId], now: Timestamp) -> Result<(), StoreError> {
    for some in ids.chunks(BATCH) {
        for id in some {
            let Some(Job { state, attempt, .. }) = store.find(*id).await? else { continue };
            let end = match state {
                JobState::Queued { .. } => JobEvent::Cancel { at_risk: None },
                // Not a cancel: that would add to the costs.
                JobState::Running => JobEvent::Fail { attempt, code: FailureCode::Internal, report: Arc::default() },
                JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => continue,
            };
            store.transition(*id, end, now).await?;
        }
        store.remove(some.to_vec(), now).await?;
    }
    Ok(())
}

/// What a merge did.
#[derive(Debug, Default)]
pub struct Merged {
    /// What the source has; of jobs, their heads.
    pub source: Tally,
    /// The jobs that were copied, and the digests of their lines.
    pub copied: Vec<(JobId, Digest)>,
    /// Jobs that the target had and the source has not.
    pub removed: usize,
    /// Jobs that the source could not read.
    pub unreadable: usize,
}

impl Merged {
    /// Notes a record that is copied.
    pub fn add(&mut self, record: &Record) {
        match record {
            Record::Job(JobRecord { job, delivery, .. }) => {
                let head = job::head(job.clone(), delivery.as_ref());
                self.source.add(Kind::Job, head.as_bytes());
                self.copied.push((job.id, digest(record)));
            }
            Record::UnreadableJob(..) => self.unreadable += 1,
            Record::Key(_) | Record::Setting(..) | Record::Audit(..) | Record::Day(_) => {
                self.source.add(record.kind(), record.line().unwrap_or_default().as_bytes());
            }
        }
    }
}

/// Makes the target equal to the source. `progress` gets the number of jobs copied so far.
///
/// # Errors
/// [`MergeError`]; the same call again goes on.
pub async fn merge(
    source: &Arc<dyn Store>,
    target: &Arc<dyn Store>,
    keys_from: Timestamp,
    now: Timestamp,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<Merged, MergeError> {
    let mut jobs = Copying {
        source: &**source,
        places: Places::of(&**target).await.map_err(MergeError::Target)?,
        after: 0,
        heads: VecDeque::new(),
        ids: VecDeque::new(),
        numbers: HashMap::new(),
        merged: merge_others(source, target, keys_from).await?,
    };
    let mut batch = jobs.next().await?;
    while let Some(some) = batch {
        // The next are read while these are written, on another core.
        let writing = tokio::spawn({
            let target = Arc::clone(target);
            async move { some.write(&*target, now).await }
        });
        let next = jobs.next().await;
        let panicked = |error: JoinError| Err(StoreError::Unavailable { reason: error.to_string() });
        writing.await.unwrap_or_else(panicked).map_err(MergeError::Target)?;
        batch = next?;
        progress(jobs.merged.copied.len() as u64);
    }
    let Copying { places, mut merged, .. } = jobs;
    let surplus = places.surplus();
    merged.removed = surplus.len();
    discard(&**target, &surplus, now).await.map_err(MergeError::Target)?;
    Ok(merged)
}

/// The jobs of a source on their way.
struct Copying<'a> {
    source: &'a dyn Store,
    places: Places,
    /// The number of the newest head that was read.
    after: u64,
    heads: VecDeque<JobHead>,
    /// The jobs to read, and their numbers in the target.
    ids: VecDeque<JobId>,
    numbers: HashMap<JobId, u64>,
    merged: Merged,
}

impl Copying<'_> {
    /// The next jobs that the target lacks; `None` at the end.
    async fn next(&mut self) -> Result<Option<Batch>, MergeError> {
        let mut batch = Batch::default();
        while self.ids.len() < BATCH {
            let Some(JobHead { id, life, .. }) = self.head().await? else { break };
            let (job, delivery) = life.map_err(|reason| MergeError::Unreadable { id, reason })?;
            let line = job::head(job, delivery.as_ref());
            self.merged.source.add(Kind::Job, line.as_bytes());
            if let Place::New { number, instead_of } = self.places.next(id, Some(sha256(&[line.as_bytes()]))) {
                batch.leave(instead_of);
                self.numbers.insert(id, number);
                self.ids.push_back(id);
            }
        }
        if self.ids.is_empty() {
            return Ok(None);
        }
        for record in read_jobs(self.source, &mut self.ids).await.map_err(MergeError::Source)? {
            let line = digest(&record);
            match record {
                Record::Job(record) => {
                    self.merged.copied.push((record.job.id, line));
                    batch.add(self.numbers.remove(&record.job.id).unwrap_or_default(), record);
                }
                Record::UnreadableJob(id, reason) => return Err(MergeError::Unreadable { id, reason }),
                Record::Key(_) | Record::Setting(..) | Record::Audit(..) | Record::Day(_) => {}
            }
        }
        Ok(Some(batch))
    }

    async fn head(&mut self) -> Result<Option<JobHead>, MergeError> {
        if self.heads.is_empty() {
            self.heads = self.source.heads(self.after, HEADS).await.map_err(MergeError::Source)?.into();
            self.after = self.heads.back().map_or(self.after, |head| head.number);
        }
        Ok(self.heads.pop_front())
    }
}

/// Copies what is not a job and differs, and deletes settings that the source does not have. Returns what the source has.
async fn merge_others(
    source: &Arc<dyn Store>,
    target: &Arc<dyn Store>,
    keys_from: Timestamp,
) -> Result<Merged, MergeError> {
    let (mut known, mut settings) = (HashSet::new(), HashSet::new());
    let mut there = Reader::new(Arc::clone(target), Scope::Everything, keys_from);
    while !there.is_at_jobs() {
        for record in there.next().await.map_err(MergeError::Target)?.into_iter().flatten() {
            known.insert(digest(&record));
            if let Record::Setting(name, _) = record {
                settings.insert(name);
            }
        }
    }
    let (mut merged, mut reader) = (Merged::default(), Reader::new(Arc::clone(source), Scope::Everything, keys_from));
    while !reader.is_at_jobs() {
        let mut records = reader.next().await.map_err(MergeError::Source)?.unwrap_or_default();
        for record in &records {
            merged.add(record);
            if let Record::Setting(name, _) = record {
                settings.remove(name);
            }
        }
        records.retain(|record| !known.contains(&digest(record)));
        restore(&**target, records).await.map_err(MergeError::Target)?;
    }
    for name in settings {
        target.delete(name).await.map_err(MergeError::Target)?;
    }
    Ok(merged)
}

/// What a store has; of jobs, their heads.
///
/// # Errors
/// [`MergeError`].
pub async fn outline(store: &Arc<dyn Store>, keys_from: Timestamp) -> Result<Tally, MergeError> {
    let (mut seen, mut reader) = (Merged::default(), Reader::new(Arc::clone(store), Scope::Everything, keys_from));
    while !reader.is_at_jobs() {
        reader.next().await.map_err(MergeError::Source)?.iter().flatten().for_each(|record| seen.add(record));
    }
    let (mut tally, mut after) = (seen.source, 0);
    loop {
        let heads = store.heads(after, HEADS).await.map_err(MergeError::Source)?;
        let Some(newest) = heads.last() else { return Ok(tally) };
        after = newest.number;
        for JobHead { id, life, .. } in heads {
            let (job, delivery) = life.map_err(|reason| MergeError::Unreadable { id, reason })?;
            tally.add(Kind::Job, job::head(job, delivery.as_ref()).as_bytes());
        }
    }
}

/// The first of these jobs whose line in a store is not the one with this digest.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn first_difference(store: &dyn Store, jobs: Vec<(JobId, Digest)>) -> Result<Option<JobId>, StoreError> {
    let mut ids: VecDeque<JobId> = jobs.iter().map(|(id, _)| *id).collect();
    let mut left: HashMap<JobId, Digest> = jobs.into_iter().collect();
    while !ids.is_empty() {
        for record in read_jobs(store, &mut ids).await? {
            let line = digest(&record);
            if let Record::Job(JobRecord { job, .. }) = record
                && left.get(&job.id) == Some(&line)
            {
                left.remove(&job.id);
            }
        }
    }
    Ok(left.into_keys().next())
}

/// The digest of a record's line.
pub fn digest(record: &Record) -> Digest {
    sha256(&[record.line().unwrap_or_default().as_bytes()])
}

/// The digest of a job's head.
pub fn head_digest(job: Job, delivery: Option<&Delivery>) -> Digest {
    sha256(&[job::head(job, delivery).as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{
            Owner,
            delivery::{Delivery, DeliveryTry},
        },
        store::{
            JobStore, Ledger, Outbox, Registry,
            contract::{at, job, request, request_with_callback, spending, success},
            memory::MemoryStore,
        },
    };

    fn digest_of(n: u8) -> Option<Digest> {
        Some([n; 32])
    }

    fn id(n: u32) -> JobId {
        job(n).id
    }

    fn places(known: &[(u32, u64)]) -> Places {
        let mut places = Places::default();
        for (n, number) in known {
            places.known.insert(id(*n), (*number, [u8::try_from(*n).unwrap(); 32]));
            places.taken.insert(*number, id(*n));
        }
        places
    }

    #[test]
    fn jobs_keep_their_order_and_what_is_equal_keeps_its_number() {
        let mut empty = Places::default();
        assert_eq!(empty.next(id(1), digest_of(1)), Place::New { number: 1, instead_of: vec![] });
        assert_eq!(empty.next(id(2), None), Place::New { number: 2, instead_of: vec![] });
        assert_eq!(empty.next(id(3), digest_of(3)), Place::New { number: 3, instead_of: vec![] });

        // The second was left out, the fourth was deleted since, the fifth has changed, the sixth is new.
        let mut places = places(&[(1, 1), (3, 3), (4, 4), (5, 5)]);
        assert_eq!(places.next(id(1), digest_of(1)), Place::Same);
        assert_eq!(places.next(id(2), digest_of(2)), Place::New { number: 2, instead_of: vec![] });
        assert_eq!(places.next(id(3), digest_of(3)), Place::Same);
        assert_eq!(places.next(id(5), digest_of(9)), Place::New { number: 4, instead_of: vec![id(5), id(4)] });
        assert_eq!(places.next(id(6), digest_of(6)), Place::New { number: 5, instead_of: vec![] });
        assert!(places.surplus().is_empty());
    }

    #[test]
    fn a_target_in_another_order_or_of_another_source_gets_the_order_of_the_source() {
        let mut places = places(&[(2, 1), (1, 2), (7, 3)]);
        assert_eq!(places.next(id(1), digest_of(1)), Place::Same);
        assert_eq!(places.next(id(2), digest_of(2)), Place::New { number: 3, instead_of: vec![id(2), id(7)] });
        assert_eq!(places.next(id(7), digest_of(7)), Place::New { number: 4, instead_of: vec![] });
        assert!(places.surplus().is_empty());
        let mut places = self::places(&[(8, 8), (9, 1)]);
        assert_eq!(places.next(id(1), digest_of(1)), Place::New { number: 1, instead_of: vec![id(9)] });
        assert_eq!(places.surplus(), [id(8)]);
    }

    async fn equal(source: &Arc<dyn Store>, target: &Arc<dyn Store>) -> Merged {
        let merged = merge(source, target, at(0), at(90), &mut |_| {}).await.unwrap();
        assert_eq!(outline(target, at(0)).await.unwrap(), merged.source);
        assert_eq!(first_difference(&**target, merged.copied.clone()).await, Ok(None));
        let numbers = async |store: &Arc<dyn Store>| {
            store.heads(0, 99).await.unwrap().into_iter().map(|head| head.id).collect::<Vec<_>>()
        };
        assert_eq!(numbers(source).await, numbers(target).await, "in the same order");
        merged
    }

    #[tokio::test]
    async fn a_target_becomes_equal_to_a_source_that_goes_on_and_only_what_changed_is_copied() {
        let (source, target) = (Arc::new(MemoryStore::default()), Arc::new(MemoryStore::default()));
        let (from, to): (Arc<dyn Store>, Arc<dyn Store>) = (source.clone(), target.clone());
        let cancel =
            async |n, now| source.transition(id(n), JobEvent::Cancel { at_risk: None }, at(now)).await.unwrap();
        let claim = async |n, now| source.claim(id(n), Owner::ANY, None, at(now)).await.unwrap();
        for n in 0..8 {
            let request = if n == 3 { request_with_callback(n) } else { request(n) };
            source.insert(job(n), request).await.unwrap();
        }
        for n in 0..4 {
            cancel(n, 10).await;
        }
        claim(4, 11).await;
        source.put("paused".to_owned(), "1".to_owned()).await.unwrap();
        source.put("node/prompts".to_owned(), "1".to_owned()).await.unwrap();
        assert_eq!(equal(&from, &to).await.copied.len(), 8);
        assert!(target.prefix("node/").await.unwrap().is_empty(), "it belongs to the nodes of the source");
        assert_eq!(equal(&from, &to).await.copied.len(), 0);

        // As if the move had been given up and the service had gone on.
        source.transition(id(0), JobEvent::Requeue { run_at: at(20) }, at(20)).await.unwrap();
        source.remove(vec![id(1)], at(20)).await.unwrap();
        let tried = DeliveryTry { at: at(21), http_status: Some(500), error: None };
        let due = source.get(id(3)).await.unwrap().unwrap().delivery.unwrap();
        source.record(id(3), Delivery::clone(&due).tried(tried, None)).await.unwrap();
        source.transition(id(4), success(1, 10), at(22)).await.unwrap();
        source.insert(job(8), request(8)).await.unwrap();
        claim(5, 23).await;
        let failed = JobEvent::Fail { attempt: 1, code: FailureCode::Refused, report: spending("a", 5) };
        source.transition(id(5), failed, at(24)).await.unwrap();
        source.delete("paused".to_owned()).await.unwrap();
        source.put("key/alice".to_owned(), "2".to_owned()).await.unwrap();
        target.put("node/prompts".to_owned(), "3".to_owned()).await.unwrap();
        let merged = equal(&from, &to).await;
        let mut copied: Vec<JobId> = merged.copied.iter().map(|(id, _)| *id).collect();
        copied.sort_unstable();
        assert_eq!((copied, merged.removed), ([0, 3, 4, 5, 8].map(id).to_vec(), 1));
        assert_eq!(target.days(9).await, source.days(9).await, "a job that is replaced costs nothing");
        assert_eq!(target.prefix("").await.unwrap().len(), 2, "the key, and what belongs to the nodes of the target");
    }
}
