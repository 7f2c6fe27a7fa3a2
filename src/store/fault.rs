//! A store that fails by script: [`FaultStore`] wraps any other and makes a change of the test's choice fail before it is
//! done, or after, when only the caller doesn't know. In an [`Outage`], every call fails or hangs, reads included. It can
//! also keep a change from the feed.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::traits::{
    ClaimedJob, Due, Feed, Insertion, JobHead, JobStore, Ledger, OrphanedKey, Outbox, Registry, Store, StoreError,
    Totals,
};
use crate::{
    clock::Timestamp,
    digest::ModelKey,
    job::{
        AttemptReport, IdempotencyKey, Job, JobEvent, JobId, JobPage, JobRecord, JobRequest, JobSelection, Listing,
        Owner, delivery::Delivery,
    },
    ledger::{Day, DaySums, Sums},
};

/// When a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Nothing has happened.
    Before,
    /// All of it has happened and is durable, but the caller sees the same error.
    After,
    /// Nothing has happened, and the caller does not live to see an error.
    Panic,
}

/// What becomes of all calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outage {
    Fails,
    /// No call ever returns.
    Hangs,
    /// As [`Outage::Hangs`], once a job was inserted.
    HangsAfterInsert,
    /// Each call takes so long.
    Slow(Duration),
}

/// A call that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Insert(JobId),
    /// So many jobs together.
    InsertAll(usize),
    /// So many jobs of another store.
    Import(usize),
    Claim,
    Transition(JobId),
    Prune,
    NoteDelivery(JobId),
    Resend(JobId),
    Remove,
    Put,
    AppendAudit,
}

const NO_DISK: &str = "no disk";

/// The store.
pub(crate) struct FaultStore<S> {
    inner: S,
    script: Mutex<Script>,
    outage: Mutex<Option<Outage>>,
    ears: Arc<Ears>,
    /// By how much announcements may be late.
    watch_lag: Mutex<Duration>,
}

#[derive(Default)]
struct Script {
    /// How many more calls pass until the one that fails, and when that does.
    next: Option<(usize, Moment)>,
    /// What has failed since it was last asked for.
    fired: Vec<(Call, Moment)>,
}

/// Between the store and its feed.
#[derive(Default)]
struct Ears {
    feed: OnceLock<Arc<dyn Feed>>,
    /// The feed is told nothing.
    deaf: AtomicBool,
    /// Every job announced since it was last asked for, told or not.
    announced: Mutex<Vec<Job>>,
}

impl Feed for Ears {
    fn reset(&self, pending: Vec<Arc<Job>>, totals: Totals) {
        if let Some(feed) = self.feed.get() {
            feed.reset(pending, totals);
        }
    }

    fn changed(&self, jobs: &[Arc<Job>], totals: Totals) {
        self.announced.lock().extend(jobs.iter().map(|job| (**job).clone()));
        if let Some(feed) = self.feed.get().filter(|_| !self.deaf.load(Ordering::SeqCst)) {
            feed.changed(jobs, totals);
        }
    }
}

impl<S: Store> FaultStore<S> {
    /// Over `inner`, with no faults scripted. To be made before anybody observes `inner`.
    pub(crate) fn over(inner: S) -> FaultStore<S> {
        FaultStore {
            inner,
            script: Mutex::default(),
            outage: Mutex::default(),
            ears: Arc::default(),
            watch_lag: Mutex::default(),
        }
    }

    /// The store within.
    pub(crate) fn inner(&self) -> &S {
        &self.inner
    }

    /// Lets `calls` calls pass and fails the next one.
    pub(crate) fn fail_after(&self, calls: usize, moment: Moment) {
        self.script.lock().next = Some((calls, moment));
    }

    /// Whether the fault scripted is still to come.
    pub(crate) fn is_armed(&self) -> bool {
        self.script.lock().next.is_some()
    }

    /// Forgets a fault that did not come about; gives those that did.
    pub(crate) fn take_fired(&self) -> Vec<(Call, Moment)> {
        std::mem::take(&mut *self.script.lock()).fired
    }

    /// Keeps changes from the feed from now on, or tells it of all pending jobs again, as a store does that has lost what it
    /// should have told.
    pub(crate) async fn set_deaf(&self, deaf: bool) {
        if self.ears.deaf.swap(deaf, Ordering::SeqCst) && !deaf {
            let _ = self.inner.subscribe(Arc::clone(&self.ears) as Arc<dyn Feed>).await;
        }
    }

    /// The jobs announced since the last time, in order, whether the observer was told or not.
    pub(crate) fn take_announced(&self) -> Vec<Job> {
        std::mem::take(&mut *self.ears.announced.lock())
    }

    /// From now on.
    pub(crate) fn break_down(&self, outage: Outage) {
        *self.outage.lock() = Some(outage);
    }

    /// Ends the outage.
    pub(crate) fn repair(&self) {
        *self.outage.lock() = None;
    }

    /// From now on changes of other processes count as announced so late.
    pub(crate) fn set_watch_lag(&self, lag: Duration) {
        *self.watch_lag.lock() = lag;
    }

    /// Makes a read, or fails it.
    async fn read<T>(&self, done: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let outage = *self.outage.lock();
        match outage {
            None | Some(Outage::HangsAfterInsert) => done.await,
            Some(Outage::Fails) => Err(StoreError::Unavailable { reason: NO_DISK.to_owned() }),
            Some(Outage::Hangs) => std::future::pending().await,
            Some(Outage::Slow(latency)) => {
                tokio::time::sleep(latency).await;
                done.await
            }
        }
    }

    /// Makes a change, or fails it.
    async fn call<T>(&self, call: Call, done: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let fault = {
            let mut script = self.script.lock();
            match script.next {
                Some((0, moment)) => {
                    script.next = None;
                    script.fired.push((call, moment));
                    Some(moment)
                }
                Some((calls, moment)) => {
                    script.next = Some((calls - 1, moment));
                    None
                }
                None => None,
            }
        };
        match fault {
            None => {
                let result = self.read(done).await;
                if matches!(call, Call::Insert(_)) {
                    let mut outage = self.outage.lock();
                    *outage =
                        outage.map(|outage| if outage == Outage::HangsAfterInsert { Outage::Hangs } else { outage });
                }
                return result;
            }
            Some(Moment::Before) => {}
            Some(Moment::Panic) => panic!("a fault by script"),
            Some(Moment::After) => drop(done.await),
        }
        Err(StoreError::Unavailable { reason: "a fault by script".to_owned() })
    }
}

#[async_trait]
impl<S: Store> JobStore for FaultStore<S> {
    async fn insert(&self, job: Job, request: Arc<JobRequest>) -> Result<Insertion, StoreError> {
        self.call(Call::Insert(job.id), self.inner.insert(job, request)).await
    }

    async fn insert_all(&self, jobs: Vec<JobRecord>) -> Result<Vec<Insertion>, StoreError> {
        self.call(Call::InsertAll(jobs.len()), self.inner.insert_all(jobs)).await
    }

    async fn import(&self, records: Vec<JobRecord>, places: Option<Vec<u64>>) -> Result<Vec<Insertion>, StoreError> {
        self.call(Call::Import(records.len()), self.inner.import(records, places)).await
    }

    async fn claim(
        &self,
        id: JobId,
        owner: Owner,
        asks: Option<ModelKey>,
        now: Timestamp,
    ) -> Result<ClaimedJob, StoreError> {
        self.call(Call::Claim, self.inner.claim(id, owner, asks, now)).await
    }

    async fn transition(&self, id: JobId, event: JobEvent, now: Timestamp) -> Result<Job, StoreError> {
        self.call(Call::Transition(id), self.inner.transition(id, event, now)).await
    }

    async fn succeed(
        &self,
        id: JobId,
        attempt: u32,
        report: Arc<AttemptReport>,
        followers: Vec<JobId>,
        now: Timestamp,
    ) -> Result<Vec<Job>, StoreError> {
        self.call(Call::Transition(id), self.inner.succeed(id, attempt, report, followers, now)).await
    }

    async fn prune(&self, before: Timestamp, keep: usize, limit: usize) -> Result<usize, StoreError> {
        self.call(Call::Prune, self.inner.prune(before, keep, limit)).await
    }

    async fn get(&self, id: JobId) -> Result<Option<JobRecord>, StoreError> {
        self.read(self.inner.get(id)).await
    }

    async fn remove(&self, ids: Vec<JobId>, now: Timestamp) -> Result<usize, StoreError> {
        self.call(Call::Remove, self.inner.remove(ids, now)).await
    }

    async fn list(&self, listing: Listing, now: Timestamp) -> Result<JobPage, StoreError> {
        self.read(self.inner.list(listing, now)).await
    }

    async fn select(&self, listing: Listing, now: Timestamp) -> Result<JobSelection, StoreError> {
        self.read(self.inner.select(listing, now)).await
    }

    async fn find(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        self.read(self.inner.find(id)).await
    }

    async fn newest_answer(&self, question: std::num::NonZeroU64) -> Result<Option<Job>, StoreError> {
        self.read(self.inner.newest_answer(question)).await
    }

    async fn is_key_known(&self, key: &IdempotencyKey, now: Timestamp) -> Result<bool, StoreError> {
        self.read(self.inner.is_key_known(key, now)).await
    }

    async fn heads(&self, after: u64, most: usize) -> Result<Vec<JobHead>, StoreError> {
        self.read(self.inner.heads(after, most)).await
    }

    async fn orphaned_keys(&self, after: Option<[u8; 16]>, most: usize) -> Result<Vec<OrphanedKey>, StoreError> {
        self.read(self.inner.orphaned_keys(after, most)).await
    }

    async fn add_keys(&self, keys: Vec<OrphanedKey>) -> Result<(), StoreError> {
        self.call(Call::Put, self.inner.add_keys(keys)).await
    }

    async fn subscribe(&self, feed: Arc<dyn Feed>) -> Result<(), StoreError> {
        // A second queue over the store hears all.
        let feed = match self.ears.feed.set(feed) {
            Ok(()) => Arc::clone(&self.ears) as Arc<dyn Feed>,
            Err(feed) => feed,
        };
        self.inner.subscribe(feed).await
    }

    fn trouble(&self) -> Option<String> {
        let broken = (*self.outage.lock() == Some(Outage::Fails)).then(|| NO_DISK.to_owned());
        broken.or_else(|| self.inner.trouble())
    }

    fn lost(&self) -> CancellationToken {
        self.inner.lost()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[async_trait]
impl<S: Store> Ledger for FaultStore<S> {
    async fn add(&self, day: Day, model: String, sums: Sums) -> Result<(), StoreError> {
        self.call(Call::Put, self.inner.add(day, model, sums)).await
    }

    async fn days(&self, most: usize) -> Result<Vec<DaySums>, StoreError> {
        self.read(self.inner.days(most)).await
    }
}

#[async_trait]
impl<S: Store> Outbox for FaultStore<S> {
    async fn due(&self, now: Timestamp, most: usize) -> Result<Vec<Due>, StoreError> {
        self.read(self.inner.due(now, most)).await
    }

    async fn next_due(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        self.read(self.inner.next_due(now)).await
    }

    async fn resend(&self, id: JobId, now: Timestamp) -> Result<(), StoreError> {
        self.call(Call::Resend(id), self.inner.resend(id, now)).await
    }

    async fn failing(&self, listing: Listing) -> Result<JobPage, StoreError> {
        self.read(self.inner.failing(listing)).await
    }

    async fn record(&self, id: JobId, delivery: Delivery) -> Result<(), StoreError> {
        self.call(Call::NoteDelivery(id), self.inner.record(id, delivery)).await
    }
}

#[async_trait]
impl<S: Store> Registry for FaultStore<S> {
    async fn put(&self, name: String, value: String) -> Result<(), StoreError> {
        self.call(Call::Put, self.inner.put(name, value)).await
    }

    async fn delete(&self, name: String) -> Result<(), StoreError> {
        self.call(Call::Put, self.inner.delete(name)).await
    }

    async fn compare_and_set(
        &self,
        name: String,
        expected: Option<String>,
        value: Option<String>,
    ) -> Result<bool, StoreError> {
        self.call(Call::Put, self.inner.compare_and_set(name, expected, value)).await
    }

    async fn prefix(&self, prefix: &str) -> Result<Vec<(String, String)>, StoreError> {
        self.read(self.inner.prefix(prefix)).await
    }

    fn watch(&self) -> broadcast::Receiver<String> {
        self.inner.watch()
    }

    fn is_watch_live(&self, within: Duration) -> bool {
        *self.watch_lag.lock() <= within && self.inner.is_watch_live(within)
    }

    async fn append_audit(&self, id: Uuid, entry: String, oldest: Uuid) -> Result<(), StoreError> {
        self.call(Call::AppendAudit, self.inner.append_audit(id, entry, oldest)).await
    }

    async fn read_audit(&self, before: Option<Uuid>, limit: usize) -> Result<Vec<(Uuid, String)>, StoreError> {
        self.read(self.inner.read_audit(before, limit)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Clock,
        metrics::Metrics,
        store::{
            contract::{self, Heard, at, job, request, success},
            memory::MemoryStore,
            sled::{SledConfig, SledStore},
        },
    };

    fn open() -> FaultStore<MemoryStore> {
        FaultStore::over(MemoryStore::default())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_a_fault_it_keeps_the_contract() {
        contract::holds_for(async || open()).await;
        let folders = std::cell::RefCell::new(Vec::new());
        contract::holds_for(async || {
            let folder = tempfile::tempdir().unwrap();
            let config = SledConfig { path: folder.path().to_owned(), cache_bytes: 16 << 20, keep_answers: false };
            let store = SledStore::open(config, Clock::manual(at(0)), Metrics::new()).unwrap();
            folders.borrow_mut().push(folder);
            FaultStore::over(store)
        })
        .await;
    }

    #[tokio::test]
    async fn a_call_that_fails_before_changes_nothing_and_one_that_fails_after_is_done() {
        let store = open();
        store.fail_after(1, Moment::Before);
        store.insert(job(0), request(0)).await.unwrap();
        store.insert(job(1), request(1)).await.unwrap_err();
        assert_eq!(store.take_fired(), [(Call::Insert(job(1).id), Moment::Before)]);
        assert!(store.find(job(0).id).await.unwrap().is_some() && store.find(job(1).id).await.unwrap().is_none());

        store.fail_after(0, Moment::After);
        let error = store.claim(job(0).id, Owner::ANY, None, at(1)).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        assert!(store.find(job(0).id).await.unwrap().unwrap().is_running(), "it is claimed all the same");
        store.fail_after(0, Moment::After);
        store.transition(job(0).id, success(1, 1), at(2)).await.unwrap_err();
        let again = store.transition(job(0).id, success(1, 1), at(2)).await.unwrap_err();
        assert!(matches!(again, StoreError::Transition(_)), "the fence makes a repeated settle harmless: {again}");
        assert_eq!(store.get(job(0).id).await.unwrap().unwrap().attempts.len(), 1);
    }

    #[tokio::test]
    async fn a_deaf_feed_hears_nothing_and_then_all_there_is() {
        let store = open();
        let heard = Heard::of(&store).await;
        store.insert(job(0), request(0)).await.unwrap();
        store.set_deaf(true).await;
        store.insert(job(1), request(1)).await.unwrap();
        assert_eq!(heard.pending(), [job(0)]);
        assert_eq!(store.take_announced().len(), 2);
        store.set_deaf(false).await;
        assert_eq!(heard.pending(), [job(0), job(1)]);
    }
}
