//! Where jobs are kept: the contract of every store, and what a crash leaves of each call.
//!
//! A store makes the pure transitions of [`crate::job`] atomic and durable and answers questions about jobs; it decides
//! nothing. Its one caller is `queue`. Every implementation passes the suite [`contract`].

pub mod bounds;
pub mod sled;
pub(crate) mod turns;

#[cfg(test)]
pub mod contract;
#[cfg(test)]
pub(crate) mod fault;

use std::{num::NonZeroU64, sync::Arc};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::bounds::{Admit, Refused};
pub use self::turns::Lanes;
use crate::{
    clock::Timestamp,
    digest::Lane,
    job::{
        AttemptReport, IdempotencyKey, Job, JobEvent, JobId, JobPage, JobRecord, JobRequest, JobSelection, Listing,
        StatusCounts, TransitionError, caller::Caller, delivery::Delivery,
    },
    ledger::{Day, DaySums, Sums},
};

/// Most bytes of the audit log. An operator who sends every action once in ten minutes writes 2 MB a day, so it takes a
/// month to get here.
pub const MAX_AUDIT_BYTES: usize = 64 << 20;

/// Durable jobs, runtime settings and the audit log.
///
/// **Durable**: what a call returned holds after a crash or a power cut at any later moment. **Visible**: a read shows
/// only what is durable. A call that fails or never returns may have happened or not, entirely or not at all; asking
/// again tells, and the fence makes a repeated settle harmless.
#[async_trait]
pub trait JobStore: Send + Sync + 'static {
    /// Adds a job: queued, or already claimed for a worker that stands by. One that comes claimed is queued
    /// nevertheless if another job with its question is running ([`Insertion::Unclaimed`]). If too many jobs are queued
    /// with the same question, the new one loses its question and is asked by itself. A job whose idempotency key is in
    /// force already is not added, however many ask at once; a key stays in force if its job is pruned.
    ///
    /// *Returned*: the job is durable, and its claim and its key with it. *Crashed before*: the whole job is there, or
    /// nothing of it.
    ///
    /// # Errors
    /// [`StoreError::KeyReused`], [`StoreError::Refused`], [`StoreError::Unavailable`].
    async fn insert(&self, job: Job, request: Arc<JobRequest>) -> Result<Insertion, StoreError>;

    /// Adds jobs that belong together, all or none: none if not all may become pending, or if one has an idempotency key
    /// that is in force for another request. Where every key is in force already, each job is
    /// the one that its key stands for. One that had its answer before it comes with its history.
    ///
    /// *Returned*: all of them are durable. *Crashed before*: all of them are there, or none.
    ///
    /// # Errors
    /// As [`JobStore::insert`].
    async fn insert_all(&self, jobs: Vec<JobRecord>) -> Result<Vec<Insertion>, StoreError>;

    /// Adds jobs with their history as another store gave them, those whose id is not here yet.
    ///
    /// *Returned*: all of them are durable. *Crashed before*: each of them is there entirely or not at all; the same call
    /// again adds what is missing.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when those of them that are pending may not be; then none is added.
    /// [`StoreError::Unavailable`].
    async fn import(&self, records: Vec<JobRecord>) -> Result<Vec<Insertion>, StoreError>;

    /// Takes a ready job of these lanes, if there is one, for a new attempt: the one picked, or the first in order. A job is not ready
    /// while another one of its [`Job::question`] is running; meanwhile its deadline waits too. Jobs whose deadline has
    /// passed are not taken: they fail in the same step.
    ///
    /// *The order*: callers take turns, one job a turn, each its own first by [`Job::effective_at`], then in the order of
    /// submission. A database that knows no turns comes near by `ORDER BY row_number() OVER (PARTITION BY caller ORDER
    /// BY effective_at, seq), effective_at, seq … FOR UPDATE SKIP LOCKED`.
    ///
    /// *Returned*: the claim is durable, so the record of a call is older than the call itself. *Crashed before*: the job
    /// is queued, or running with nobody at work; then recovery at the next start ends the attempt as outcome unknown.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; [`StoreError::Corrupt`] if the job's request can't be read: it stays queued.
    async fn claim(
        &self,
        pick: Pick,
        lanes: Lanes,
        lease_until: Timestamp,
        now: Timestamp,
    ) -> Result<Claimed, StoreError>;

    /// Applies an event and, where it ends an attempt, adds that to the history, and what it cost to the ledger.
    ///
    /// *Returned*: the job's new state, the attempt with its result, and what it cost are durable together. *Crashed
    /// before*: all are there or none.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Transition`] when the life cycle refuses and [`StoreError::Refused`] when an
    /// ended job may not become pending again (nothing changes), [`StoreError::Unavailable`].
    async fn transition(&self, id: JobId, event: JobEvent, now: Timestamp) -> Result<Job, StoreError>;

    /// As [`JobStore::transition`] with [`JobEvent::Succeed`]; and those jobs take the answer with it, by
    /// [`JobEvent::Share`], which are queued with the same [`Job::question`]. Of very many only some do, and one of the
    /// others is to ask anew. Gives the job and then these.
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
        now: Timestamp,
    ) -> Result<Vec<Job>, StoreError>;

    /// Removes finished jobs, oldest end first, at most `limit`: those that ended before `before`, and those beyond the
    /// newest `keep`. Tells how many. Those whose message to their callback URL is still due go by their age not before
    /// [`crate::job::delivery::KEPT_UNTOLD`]; of these, the newest half of `keep` stay.
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

    /// As [`JobStore::list`], but the ids alone.
    ///
    /// # Errors
    /// As [`JobStore::get`].
    async fn select(&self, listing: Listing, now: Timestamp) -> Result<JobSelection, StoreError>;

    /// Keeps a setting that is made while the service runs, or (without a value) forgets it.
    ///
    /// *Returned*: the change is durable. *Crashed before*: the setting is as it was or as it should be.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn keep(&self, name: String, value: Option<String>) -> Result<(), StoreError>;

    /// The settings kept whose names begin with `prefix`, by name.
    fn kept(&self, prefix: &str) -> Vec<(String, String)>;

    /// Adds the cost of a call that belongs to no job to the ledger.
    ///
    /// *Returned*: it is durable. *Crashed before*: it is in the ledger or not.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn book(&self, day: Day, model: String, sums: Sums) -> Result<(), StoreError>;

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

    /// The life-cycle part of a job alone: cheap enough to be asked at every wake-up.
    fn peek(&self, id: JobId) -> Option<Job>;

    /// Whether a job of this question is running.
    fn is_under_way(&self, question: NonZeroU64) -> bool;

    /// The job that succeeded last of those of this question; none if the store was not made to keep track of them.
    fn newest_answer(&self, question: NonZeroU64) -> Option<Job>;

    /// Whether the key is in force: a hint, as it may be taken by the time of an insert.
    fn is_key_known(&self, key: &IdempotencyKey, now: Timestamp) -> bool;

    /// Messages to callback URLs that are due: of each caller the earliest `most` to each host. A store owes one whenever a
    /// job that has such a URL ends: the message is durable together with the end.
    fn deliveries_due(&self, now: Timestamp, most: usize) -> Vec<Due>;

    /// When the next message is due after `now`.
    fn next_delivery_after(&self, now: Timestamp) -> Option<Timestamp>;

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
    async fn failing_deliveries(&self, listing: Listing) -> Result<JobPage, StoreError>;

    /// Records the outcome of a try, unless the job has ended again or a person had the message resent in the meantime.
    ///
    /// *Returned*: it is durable. *Crashed before*: it may have to be tried again.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn note_delivery(&self, id: JobId, delivery: Delivery) -> Result<(), StoreError>;

    /// How many jobs there are in each state; counters, never a scan.
    fn counts(&self, now: Timestamp) -> StatusCounts;

    /// How many jobs a claim could take now.
    fn claimable(&self, now: Timestamp) -> usize;

    /// The models that those jobs name, and `None` if some name none.
    fn ready_lanes(&self, now: Timestamp) -> Vec<Lane>;

    /// How many of them nobody asked to wait for, as of the last time that [`JobStore::claimable`] was asked.
    fn claimable_unwaited(&self) -> usize;

    /// How many ready jobs go before this one in the order of claiming; for listings, so never by scan.
    fn ahead_of(&self, job: &Job) -> Ahead;

    /// Jobs on which time has run out: running with their lease over, or queued past their deadline.
    fn overdue(&self, now: Timestamp, limit: usize) -> Vec<Job>;

    /// The next moment at which waiting alone changes something: a job becomes ready, a lease or a deadline ends. Past if
    /// that has not been acted on yet.
    fn next_due(&self) -> Option<Timestamp>;

    /// When the job was due that is ready and was submitted before all others that are; never by scan.
    fn oldest_queued(&self) -> Option<Timestamp>;

    /// Every running job. At the start of a process that owns its store alone they are orphans.
    fn running(&self) -> Vec<Job>;

    /// What the attempts cost that ended on `day`, over all models: cheap enough to be asked before every call.
    fn spent(&self, day: Day) -> Sums;

    /// The newest days on which anything was spent, at most so many, newest first. Outlives the jobs; the oldest of more
    /// than [`crate::ledger::DAYS_KEPT`] days are forgotten.
    fn ledger(&self, days: usize) -> Vec<DaySums>;

    /// Has `admit` decide, in the step that would make jobs pending, whether they may be: of two such steps the second sees
    /// what the first has added. Set once, before the first call; without it there is no bound.
    fn admit_by(&self, admit: Admit);

    /// Has `observer` called after every durable change. Set once, before the first call.
    fn observe(&self, observer: Observer);

    /// Why the store can't be used at the moment, if so.
    fn trouble(&self) -> Option<String>;

    /// Cancelled when the store has given up recovering by itself: the process has to be started again.
    fn lost(&self) -> CancellationToken;

    /// Ends all work that was accepted and closes the store. Later calls are [`StoreError::Unavailable`].
    async fn close(&self);
}

/// Called with the jobs that changed, once the change is durable and visible, from a thread of the store: it must be
/// quick and must not block. A hint, never the truth: a listener that missed one finds out by reading.
///
/// Among them are the jobs that have become ready or not with the change of another; the second list has those that are
/// due and not ready, because their question is under way.
pub type Observer = Box<dyn Fn(&[Job], &[JobId]) + Send + Sync>;

/// Which of the ready jobs a claim is to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// The first in order.
    First,
    /// The first of those that nobody asked to wait for ([`Job::waited_for`]); if there is none, the first of all.
    Unwaited,
    /// This one, of whatever lane; if it is not ready, the first of all.
    Job(JobId),
}

/// How many ready jobs go before one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Of all.
    pub all: usize,
    /// Of those that nobody asked to wait for.
    pub unwaited: usize,
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
    /// The job is there now, but queued: it came claimed, and its question is under way.
    Unclaimed,
    /// Its idempotency key stands for this job, which may have been pruned since; or, of an import, it is here itself.
    Existing(JobId),
}

/// What came of a claim.
#[derive(Clone, Debug, Default)]
pub struct Claimed {
    /// The job, if there was one.
    pub job: Option<ClaimedJob>,
    /// Jobs that failed instead, because their deadline had passed.
    pub expired: Vec<Job>,
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
    /// Jobs may not become pending.
    #[error(transparent)]
    Refused(#[from] Refused),
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
