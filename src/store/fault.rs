//! A store that fails by script: [`FaultStore`] wraps any other and makes a call of the test's choice fail before it is
//! done, or after, when only the caller doesn't know. It can also keep a change from the feed.
//!
//! Calls are those that change something; reads have nothing to commit and never fail here.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{ClaimedJob, Due, EndedCounts, Feed, Insertion, JobStore, StoreError};
use crate::{
    clock::Timestamp,
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
    Keep,
    AppendAudit,
}

/// The store.
pub(crate) struct FaultStore<S> {
    inner: S,
    script: Mutex<Script>,
    ears: Arc<Ears>,
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
    fn reset(&self, pending: Vec<Arc<Job>>, ended: EndedCounts) {
        if let Some(feed) = self.feed.get() {
            feed.reset(pending, ended);
        }
    }

    fn changed(&self, jobs: &[Arc<Job>], ended: EndedCounts) {
        self.announced.lock().extend(jobs.iter().map(|job| (**job).clone()));
        if let Some(feed) = self.feed.get().filter(|_| !self.deaf.load(Ordering::SeqCst)) {
            feed.changed(jobs, ended);
        }
    }
}

impl<S: JobStore> FaultStore<S> {
    /// Over `inner`, with no faults scripted. To be made before anybody observes `inner`.
    pub(crate) fn over(inner: S) -> FaultStore<S> {
        FaultStore { inner, script: Mutex::default(), ears: Arc::default() }
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
    pub(crate) fn set_deaf(&self, deaf: bool) {
        if self.ears.deaf.swap(deaf, Ordering::SeqCst) && !deaf {
            self.inner.subscribe(Arc::clone(&self.ears) as Arc<dyn Feed>);
        }
    }

    /// The jobs announced since the last time, in order, whether the observer was told or not.
    pub(crate) fn take_announced(&self) -> Vec<Job> {
        std::mem::take(&mut *self.ears.announced.lock())
    }

    /// Makes a call, or fails it.
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
            None => return done.await,
            Some(Moment::Before) => {}
            Some(Moment::Panic) => panic!("a fault by script"),
            Some(Moment::After) => drop(done.await),
        }
        Err(StoreError::Unavailable { reason: "a fault by script".to_owned() })
    }
}

#[async_trait]
impl<S: JobStore> JobStore for FaultStore<S> {
    async fn insert(&self, job: Job, request: Arc<JobRequest>) -> Result<Insertion, StoreError> {
        self.call(Call::Insert(job.id), self.inner.insert(job, request)).await
    }

    async fn insert_all(&self, jobs: Vec<JobRecord>) -> Result<Vec<Insertion>, StoreError> {
        self.call(Call::InsertAll(jobs.len()), self.inner.insert_all(jobs)).await
    }

    async fn import(&self, records: Vec<JobRecord>) -> Result<Vec<Insertion>, StoreError> {
        self.call(Call::Import(records.len()), self.inner.import(records)).await
    }

    async fn claim(
        &self,
        id: JobId,
        owner: Owner,
        lease_until: Timestamp,
        now: Timestamp,
    ) -> Result<ClaimedJob, StoreError> {
        self.call(Call::Claim, self.inner.claim(id, owner, lease_until, now)).await
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
        self.inner.get(id).await
    }

    async fn remove(&self, ids: Vec<JobId>, now: Timestamp) -> Result<usize, StoreError> {
        self.call(Call::Remove, self.inner.remove(ids, now)).await
    }

    async fn list(&self, listing: Listing, now: Timestamp) -> Result<JobPage, StoreError> {
        self.inner.list(listing, now).await
    }

    async fn select(&self, listing: Listing, now: Timestamp) -> Result<JobSelection, StoreError> {
        self.inner.select(listing, now).await
    }

    async fn keep(&self, name: String, value: Option<String>) -> Result<(), StoreError> {
        self.call(Call::Keep, self.inner.keep(name, value)).await
    }

    fn kept(&self, prefix: &str) -> Vec<(String, String)> {
        self.inner.kept(prefix)
    }

    async fn book(&self, day: Day, model: String, sums: Sums) -> Result<(), StoreError> {
        self.call(Call::Keep, self.inner.book(day, model, sums)).await
    }

    async fn append_audit(&self, id: Uuid, entry: String, oldest: Uuid) -> Result<(), StoreError> {
        self.call(Call::AppendAudit, self.inner.append_audit(id, entry, oldest)).await
    }

    async fn read_audit(&self, before: Option<Uuid>, limit: usize) -> Result<Vec<(Uuid, String)>, StoreError> {
        self.inner.read_audit(before, limit).await
    }

    fn peek(&self, id: JobId) -> Option<Job> {
        self.inner.peek(id)
    }

    fn newest_answer(&self, question: std::num::NonZeroU64) -> Option<Job> {
        self.inner.newest_answer(question)
    }

    fn is_key_known(&self, key: &IdempotencyKey, now: Timestamp) -> bool {
        self.inner.is_key_known(key, now)
    }

    fn deliveries_due(&self, now: Timestamp, most: usize) -> Vec<Due> {
        self.inner.deliveries_due(now, most)
    }

    fn next_delivery_after(&self, now: Timestamp) -> Option<Timestamp> {
        self.inner.next_delivery_after(now)
    }

    async fn resend(&self, id: JobId, now: Timestamp) -> Result<(), StoreError> {
        self.call(Call::Resend(id), self.inner.resend(id, now)).await
    }

    async fn failing_deliveries(&self, listing: Listing) -> Result<JobPage, StoreError> {
        self.inner.failing_deliveries(listing).await
    }

    async fn note_delivery(&self, id: JobId, delivery: Delivery) -> Result<(), StoreError> {
        self.call(Call::NoteDelivery(id), self.inner.note_delivery(id, delivery)).await
    }

    fn spent(&self, day: Day) -> Sums {
        self.inner.spent(day)
    }

    fn ledger(&self, days: usize) -> Vec<DaySums> {
        self.inner.ledger(days)
    }

    fn subscribe(&self, feed: Arc<dyn Feed>) {
        let _ = self.ears.feed.set(feed);
        self.inner.subscribe(Arc::clone(&self.ears) as Arc<dyn Feed>);
    }

    fn trouble(&self) -> Option<String> {
        self.inner.trouble()
    }

    fn lost(&self) -> CancellationToken {
        self.inner.lost()
    }

    async fn close(&self) {
        self.inner.close().await;
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
            sled::{SledConfig, SledStore},
        },
    };

    fn open(folder: &tempfile::TempDir) -> FaultStore<SledStore> {
        let config = SledConfig { path: folder.path().to_owned(), cache_bytes: 16 << 20, keep_answers: false };
        FaultStore::over(SledStore::open(config, Clock::manual(at(0)), Metrics::new()).unwrap())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_a_fault_it_keeps_the_contract() {
        let folders = std::cell::RefCell::new(Vec::new());
        contract::holds_for(async || {
            let folder = tempfile::tempdir().unwrap();
            let store = open(&folder);
            folders.borrow_mut().push(folder);
            store
        })
        .await;
    }

    #[tokio::test]
    async fn a_call_that_fails_before_changes_nothing_and_one_that_fails_after_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        store.fail_after(1, Moment::Before);
        store.insert(job(0), request(0)).await.unwrap();
        store.insert(job(1), request(1)).await.unwrap_err();
        assert_eq!(store.take_fired(), [(Call::Insert(job(1).id), Moment::Before)]);
        assert!(store.peek(job(0).id).is_some() && store.peek(job(1).id).is_none());

        store.fail_after(0, Moment::After);
        let error = store.claim(job(0).id, Owner::ANY, at(30), at(1)).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        assert!(store.peek(job(0).id).unwrap().is_running(), "it is claimed all the same");
        store.fail_after(0, Moment::After);
        store.transition(job(0).id, success(1, 1), at(2)).await.unwrap_err();
        let again = store.transition(job(0).id, success(1, 1), at(2)).await.unwrap_err();
        assert!(matches!(again, StoreError::Transition(_)), "the fence makes a repeated settle harmless: {again}");
        assert_eq!(store.get(job(0).id).await.unwrap().unwrap().attempts.len(), 1);
    }

    #[tokio::test]
    async fn a_deaf_feed_hears_nothing_and_then_all_there_is() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        let heard = Heard::of(&store);
        store.insert(job(0), request(0)).await.unwrap();
        store.set_deaf(true);
        store.insert(job(1), request(1)).await.unwrap();
        assert_eq!(heard.pending(), [job(0)]);
        assert_eq!(store.take_announced().len(), 2);
        store.set_deaf(false);
        assert_eq!(heard.pending(), [job(0), job(1)]);
    }
}
