//! A store that fails by script: [`FaultStore`] wraps any other and makes a call of the test's choice fail before it is
//! done, or after, when only the caller doesn't know. It can also keep a change from the observer, which is no more than
//! a hint.
//!
//! Calls are those that change something; reads have nothing to commit and never fail here.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Ahead, Claimed, Due, Insertion, JobStore, Lanes, Observer, Pick, StoreError, bounds::Admit};
use crate::{
    clock::Timestamp,
    digest::Lane,
    job::{
        AttemptReport, IdempotencyKey, Job, JobEvent, JobId, JobPage, JobRecord, JobRequest, JobSelection, Listing,
        StatusCounts, delivery::Delivery,
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
    /// What claims were to take since it was last asked for.
    picks: Vec<Pick>,
}

/// What comes of announcements.
#[derive(Default)]
struct Ears {
    /// The observer is told nothing.
    deaf: AtomicBool,
    /// Every job announced since it was last asked for, told or not.
    announced: Mutex<Vec<Job>>,
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

    /// What claims were to take since the last time, failed ones included.
    pub(crate) fn take_picks(&self) -> Vec<Pick> {
        std::mem::take(&mut self.script.lock().picks)
    }

    /// Keeps changes from the observer from now on, or tells them again.
    pub(crate) fn set_deaf(&self, deaf: bool) {
        self.ears.deaf.store(deaf, Ordering::SeqCst);
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
        pick: Pick,
        lanes: Lanes,
        lease_until: Timestamp,
        now: Timestamp,
    ) -> Result<Claimed, StoreError> {
        self.script.lock().picks.push(pick);
        self.call(Call::Claim, self.inner.claim(pick, lanes, lease_until, now)).await
    }

    async fn transition(&self, id: JobId, event: JobEvent, now: Timestamp) -> Result<Job, StoreError> {
        self.call(Call::Transition(id), self.inner.transition(id, event, now)).await
    }

    async fn succeed(
        &self,
        id: JobId,
        attempt: u32,
        report: Arc<AttemptReport>,
        now: Timestamp,
    ) -> Result<Vec<Job>, StoreError> {
        self.call(Call::Transition(id), self.inner.succeed(id, attempt, report, now)).await
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

    fn is_under_way(&self, question: std::num::NonZeroU64) -> bool {
        self.inner.is_under_way(question)
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

    fn ahead_of(&self, job: &Job) -> Ahead {
        self.inner.ahead_of(job)
    }

    fn counts(&self, now: Timestamp) -> StatusCounts {
        self.inner.counts(now)
    }

    fn claimable(&self, now: Timestamp) -> usize {
        self.inner.claimable(now)
    }

    fn ready_lanes(&self, now: Timestamp) -> Vec<Lane> {
        self.inner.ready_lanes(now)
    }

    fn claimable_unwaited(&self) -> usize {
        self.inner.claimable_unwaited()
    }

    fn overdue(&self, now: Timestamp, limit: usize) -> Vec<Job> {
        self.inner.overdue(now, limit)
    }

    fn next_due(&self) -> Option<Timestamp> {
        self.inner.next_due()
    }

    fn oldest_queued(&self) -> Option<Timestamp> {
        self.inner.oldest_queued()
    }

    fn running(&self) -> Vec<Job> {
        self.inner.running()
    }

    fn spent(&self, day: Day) -> Sums {
        self.inner.spent(day)
    }

    fn ledger(&self, days: usize) -> Vec<DaySums> {
        self.inner.ledger(days)
    }

    fn admit_by(&self, admit: Admit) {
        self.inner.admit_by(admit);
    }

    fn observe(&self, observer: Observer) {
        let ears = Arc::clone(&self.ears);
        self.inner.observe(Box::new(move |jobs, held_back| {
            ears.announced.lock().extend_from_slice(jobs);
            if !ears.deaf.load(Ordering::SeqCst) {
                observer(jobs, held_back);
            }
        }));
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
            contract::{self, at, job, request, success},
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
        let error = store.claim(Pick::First, Lanes::All, at(30), at(1)).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        assert_eq!(store.running().len(), 1, "it is claimed all the same");
        store.fail_after(0, Moment::After);
        store.transition(job(0).id, success(1, 1), at(2)).await.unwrap_err();
        let again = store.transition(job(0).id, success(1, 1), at(2)).await.unwrap_err();
        assert!(matches!(again, StoreError::Transition(_)), "the fence makes a repeated settle harmless: {again}");
        assert_eq!(store.get(job(0).id).await.unwrap().unwrap().attempts.len(), 1);
    }

    #[tokio::test]
    async fn a_deaf_observer_hears_nothing_of_what_happens() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        let heard = Arc::new(Mutex::new(0));
        let count = Arc::clone(&heard);
        store.observe(Box::new(move |jobs, _| *count.lock() += jobs.len()));
        store.insert(job(0), request(0)).await.unwrap();
        store.set_deaf(true);
        store.insert(job(1), request(1)).await.unwrap();
        store.set_deaf(false);
        assert_eq!(*heard.lock(), 1);
        assert_eq!(store.take_announced().len(), 2);
    }
}
