//! The contract of every store, and what a crash leaves of each call.

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    clock::Timestamp,
    digest::ModelKey,
    job::{
        AttemptReport, IdempotencyKey, Job, JobEvent, JobId, JobPage, JobRecord, JobRequest, JobSelection, Listing,
        Owner, TransitionError, caller::Caller, delivery::Delivery,
    },
    ledger::{Day, DaySums, Spent, Sums},
};

/// Most bytes of the audit log. An operator who sends every action once in ten minutes writes 2 MB a day, so it takes a
/// month to get here.
pub(super) const MAX_AUDIT_BYTES: usize = 64 << 20;

/// A process that hears of changes by others later than this can't be relied on: it is not ready and gets no calls.
pub const FEED_LIMIT: Duration = Duration::from_secs(10);

/// All parts of a store.
pub trait Store: JobStore + Ledger + Outbox + Registry {
    /// Whether this process hears of changes by others later than [`FEED_LIMIT`]. False while the store is unavailable: then
    /// [`JobStore::trouble`] has the reason.
    fn is_feed_late(&self) -> bool {
        self.trouble().is_none() && !self.is_watch_live(FEED_LIMIT)
    }
}

impl<S: JobStore + Ledger + Outbox + Registry> Store for S {}

/// Durable jobs.
///
/// **Durable**: what a call returned holds after a crash or a power cut at any later moment. **Visible**: a read shows
/// only what is durable. A call that fails or never returns may have happened or not, entirely or not at all; asking
/// again tells, and the fence makes a repeated settle harmless.
#[async_trait]
pub trait JobStore: Send + Sync + 'static {
    /// Adds a job: queued, or already claimed. A job whose idempotency key is in force already
    /// is not added, however many are inserted at once; a key stays in force if its job is pruned.
    ///
    /// *Returned*: the job is durable, and its claim and its key with it. *Crashed before*: the whole job is there, or
    /// nothing of it.
    ///
    /// # Errors
    /// [`StoreError::KeyReused`], [`StoreError::Unavailable`].
    async fn insert(&self, job: Job, request: Arc<JobRequest>) -> Result<Insertion, StoreError>;

    /// Adds jobs that belong together, all or none: none if one has an idempotency key that is in force for another
    /// request. Where every key is in force already, each job is the one that its key stands for. A job that was answered
    /// before it was added comes with its history.
    ///
    /// *Returned*: all of them are durable. *Crashed before*: all of them are there, or none.
    ///
    /// # Errors
    /// As [`JobStore::insert`].
    async fn insert_all(&self, jobs: Vec<JobRecord>) -> Result<Vec<Insertion>, StoreError>;

    /// Adds jobs with their history and the state of their webhook as another store gave them, those whose id is not here
    /// yet, in this order: after all others, or each with its number of `places`, which no job here has.
    ///
    /// *Returned*: all of them are durable. *Crashed before*: each of them is there entirely or not at all; the same call
    /// again adds what is missing.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn import(&self, records: Vec<JobRecord>, places: Option<Vec<u64>>) -> Result<Vec<Insertion>, StoreError>;

    /// Claims a queued job whose time has come for a new attempt of `owner`.
    ///
    /// *Returned*: the claim is durable, so the record of a call is older than the call itself. *Crashed before*: the job
    /// is queued, or running with nobody at work; then recovery at the next start ends the attempt as outcome unknown.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Transition`] if the job is not what the caller believes; it stays as it is.
    /// [`StoreError::Unavailable`]. [`StoreError::Corrupt`] if the job's request can't be read: it stays queued.
    async fn claim(
        &self,
        id: JobId,
        owner: Owner,
        asks: Option<ModelKey>,
        now: Timestamp,
    ) -> Result<ClaimedJob, StoreError>;

    /// Applies an event and, where it ends an attempt, adds that to the history, and what it cost to the ledger.
    ///
    /// *Returned*: the job's new state, the attempt with its result, and what it cost are durable together. *Crashed
    /// before*: all are there or none.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Transition`] when the life cycle refuses (nothing changes),
    /// [`StoreError::Unavailable`].
    async fn transition(&self, id: JobId, event: JobEvent, now: Timestamp) -> Result<Job, StoreError>;

    /// As [`JobStore::transition`] with [`JobEvent::Succeed`]; and those of the `followers` that are still queued take the
    /// answer with it, by [`JobEvent::Share`]. Of very many followers only some do. Returns the job and then these.
    ///
    /// *Returned*: all that is durable. *Crashed before*: of each job all of it is there or nothing.
    ///
    /// # Errors
    /// As [`JobStore::transition`].
    async fn succeed(
        &self,
        id: JobId,
        attempt: u32,
        report: Arc<AttemptReport>,
        followers: Vec<JobId>,
        now: Timestamp,
    ) -> Result<Vec<Job>, StoreError>;

    /// Removes finished jobs, oldest end first, at most `limit`: those that ended before `before`, and those beyond the
    /// newest `keep`. Tells how many. Those whose message to their callback URL is still due go by their age not before
    /// [`crate::job::delivery::UNNOTIFIED_RETENTION`]; of these, the newest half of `keep` stay.
    ///
    /// *Crashed before*: each job is gone entirely or still there entirely.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn prune(&self, before: Timestamp, keep: usize, limit: usize) -> Result<usize, StoreError>;

    /// The job with its request and history, or none of that id.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Corrupt`].
    async fn get(&self, id: JobId) -> Result<Option<JobRecord>, StoreError>;

    /// The job without its request and history: cheap enough to be read at every wake-up.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn find(&self, id: JobId) -> Result<Option<Job>, StoreError>;

    /// The job that succeeded last of those with this question; `None` if the store was not made to keep track of them.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn newest_answer(&self, question: NonZeroU64) -> Result<Option<Job>, StoreError>;

    /// Whether the key is in force: a hint, as it may be taken by the time of an insert.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn is_key_known(&self, key: &IdempotencyKey, now: Timestamp) -> Result<bool, StoreError>;

    /// The idempotency keys whose jobs are not here any more, sorted by key: at most `most` after the key `after`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn orphaned_keys(&self, after: Option<[u8; 16]>, most: usize) -> Result<Vec<OrphanedKey>, StoreError>;

    /// Adds idempotency keys of jobs that are not here. A key that is in force for longer already stays.
    ///
    /// *Returned*: they are durable. *Crashed before*: each of them is there or not.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn add_keys(&self, keys: Vec<OrphanedKey>) -> Result<(), StoreError>;

    /// Removes those of these jobs that are finished. Tells how many; a few of very many may be left for another call.
    ///
    /// *Crashed before*: each job is gone entirely or still there entirely.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn remove(&self, ids: Vec<JobId>, now: Timestamp) -> Result<usize, StoreError>;

    /// A page of jobs. A search that takes long ends before the page is full, and says how far it came.
    ///
    /// # Errors
    /// As [`JobStore::get`].
    async fn list(&self, listing: Listing, now: Timestamp) -> Result<JobPage, StoreError>;

    /// The jobs after number `after`, readable or not, in the order of submission: at most `most`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn heads(&self, after: u64, most: usize) -> Result<Vec<JobHead>, StoreError>;

    /// As [`JobStore::list`], but the ids alone.
    ///
    /// # Errors
    /// As [`JobStore::get`].
    async fn select(&self, listing: Listing, now: Timestamp) -> Result<JobSelection, StoreError>;

    /// Resets the feed with all pending jobs, in this call, and from then on notifies it of every change. Called once,
    /// before the first change.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn subscribe(&self, feed: Arc<dyn Feed>) -> Result<(), StoreError>;

    /// Why the store can't be used at the moment, if so.
    fn trouble(&self) -> Option<String>;

    /// Cancelled when the store has given up recovering by itself: the process has to be started again.
    fn lost(&self) -> CancellationToken;

    /// Ends all work that was accepted and closes the store. Later calls are [`StoreError::Unavailable`].
    async fn close(&self);
}

/// What calls cost. What an attempt cost is added by the change that ends it.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// Adds the cost of a call that belongs to no job.
    ///
    /// *Returned*: it is durable. *Crashed before*: it is in the ledger or not.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn add(&self, day: Day, model: String, sums: Sums) -> Result<(), StoreError>;

    /// The newest days on which anything was spent, at most so many, newest first. Outlives the jobs; the oldest of more
    /// than [`crate::ledger::DAYS_KEPT`] days are forgotten.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn days(&self, most: usize) -> Result<Vec<DaySums>, StoreError>;
}

/// Messages to callback URLs. One is owed whenever a job that has such a URL ends: it is durable together with the end.
#[async_trait]
pub trait Outbox: Send + Sync + 'static {
    /// Messages that are due: of each caller the earliest `most` to each host.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn due(&self, now: Timestamp, most: usize) -> Result<Vec<Due>, StoreError>;

    /// When the next message is due after `now`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn next_due(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError>;

    /// Makes the newest message of an ended job due at `now`, whatever became of it.
    ///
    /// *Returned*: it is durable. *Crashed before*: it is due or not.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] also for a job without a callback URL, [`StoreError::Transition`] for one that has not
    /// ended, [`StoreError::Unavailable`].
    async fn resend(&self, id: JobId, now: Timestamp) -> Result<(), StoreError>;

    /// A page of the jobs whose message was tried and not accepted, newest job first: of all callers, or of the one whose
    /// digest the filter has. It looks at no other condition.
    ///
    /// # Errors
    /// As [`JobStore::get`].
    async fn failing(&self, listing: Listing) -> Result<JobPage, StoreError>;

    /// Records the outcome of a try, unless the job has ended again or a person had the message resent in the meantime.
    ///
    /// *Returned*: it is durable. *Crashed before*: it may have to be tried again.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn record(&self, id: JobId, delivery: Delivery) -> Result<(), StoreError>;
}

/// Settings that are made while the service runs, and the audit log.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Saves a setting.
    ///
    /// *Returned*: it is durable. *Crashed before*: the setting has its old or its new value.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn put(&self, name: String, value: String) -> Result<(), StoreError>;

    /// Removes a setting, if there is one of this name.
    ///
    /// *Returned*: it is gone. *Crashed before*: it is there or not.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn delete(&self, name: String) -> Result<(), StoreError>;

    /// Saves a setting, or removes it without a `value`, if its value is the `expected` one (`None`: there is no such
    /// setting). False if it is not; then nothing changes. So of several nodes one changes it.
    ///
    /// *Returned true*: the change is durable. *Crashed before*: the setting has its old or its new value.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn compare_and_set(
        &self,
        name: String,
        expected: Option<String>,
        value: Option<String>,
    ) -> Result<bool, StoreError>;

    /// The settings whose names begin with `prefix`, by name.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn prefix(&self, prefix: &str) -> Result<Vec<(String, String)>, StoreError>;

    /// Announces settings that were saved or removed, by this process or by another one on the same database. A change of
    /// this process is announced before its caller is answered. The empty name means that any setting may have changed, and
    /// so does a receiver that lags behind.
    fn watch(&self) -> broadcast::Receiver<String>;

    /// Whether changes of other processes are announced `within` this time at the moment. If changes are not announced, the empty
    /// name is once they are again.
    fn is_watch_live(&self, within: Duration) -> bool;

    /// Writes an entry of the audit log or replaces it. Ids order the entries. Removes entries before `oldest`, and the
    /// oldest beyond [`MAX_AUDIT_BYTES`]; of very many a part is left to the next call.
    ///
    /// *Returned*: the entry is durable. *Crashed before*: the entry is the old or the new one.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn append_audit(&self, id: Uuid, entry: String, oldest: Uuid) -> Result<(), StoreError>;

    /// Entries of the audit log before `before`, newest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn read_audit(&self, before: Option<Uuid>, limit: usize) -> Result<Vec<(Uuid, String)>, StoreError>;
}

/// Is notified of every change, in the order of the commits. It is called on a thread of the store, once the change is durable
/// and visible and before its caller is answered, so it must be quick and must not block.
pub trait Feed: Send + Sync {
    /// These are all the pending jobs. Comes first, and again whenever the store can't tell what has changed since.
    fn reset(&self, pending: Vec<Arc<Job>>, totals: Totals);

    /// These jobs have changed, in this order, and are like this now. Jobs that were removed are only counted. No jobs: only the totals have changed.
    fn changed(&self, jobs: &[Arc<Job>], totals: Totals);
}

/// Sums over all jobs, as of a commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub ended: EndedCounts,
    /// The newest day of the ledger, over all models.
    pub spent: Spent,
}

/// How many jobs have ended, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedCounts {
    pub succeeded: usize,
    pub failed: usize,
    pub cancelled: usize,
}

/// A message that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    pub job: JobId,
    pub caller: Caller,
    /// Host and port of the callback URL.
    pub host: Arc<str>,
}

/// What became of an insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insertion {
    /// The job is there now.
    Accepted,
    /// Its idempotency key stands for this job, which may have been pruned since; or, of an import, it is here itself.
    Existing(JobId),
}

/// An idempotency key whose job is gone, and who used it.
pub type OrphanedKey = (IdempotencyKey, JobId, Caller);

/// A job without its request and history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobHead {
    /// Jobs are submitted in the order of their numbers.
    pub number: u64,
    pub id: JobId,
    /// With the state of its webhook; or why that can't be read.
    pub life: Result<(Job, Option<Delivery>), String>,
}

/// A job that has just been claimed.
#[derive(Clone, Debug)]
pub struct ClaimedJob {
    /// Running, with the number of the new attempt.
    pub job: Job,
    /// What was asked.
    pub request: Arc<JobRequest>,
}

/// Why a store could not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is no such job (any more).
    #[error("job {0} not found")]
    NotFound(JobId),
    /// The life cycle does not allow it.
    #[error(transparent)]
    Transition(#[from] TransitionError),
    /// The idempotency key is in force for another request.
    #[error("the idempotency key was used for another request")]
    KeyReused,
    /// The disk or the store's files do not work at the moment; it tries to recover by itself.
    #[error("the job store is unavailable: {reason}")]
    Unavailable {
        /// What went wrong.
        reason: String,
    },
    /// A record can't be read.
    #[error("a record of job {id} can't be read: {reason}")]
    Corrupt {
        /// Whose record.
        id: JobId,
        /// What is wrong with it.
        reason: String,
    },
}
