//! The queue's policy: what is accepted, who gets which job, what becomes of it afterwards. Between the store, which
//! keeps jobs, and everybody who wants something of them.
//!
//! - `admission`: whether the disk has room for more jobs
//! - `audit`: what operators did, on record
//! - `bulk`: one action for many jobs
//! - `follow`: news of a job for those who follow it
//! - `history`: how the service fared over time
//! - `order`: which job is claimed next while clients wait
//! - `outlook`: why a job waits and when its answer may come
//! - `pause`: no job is claimed until an operator says so
//! - `retry`: what becomes of a job after an attempt
//! - `service_time`: how long attempts last
//! - `wait`: who waits for what, and who is woken
//!
//! It runs no job (`worker` does) and watches no clock of its own (`sweeper` does).

mod admission;
pub mod audit;
pub mod bulk;
mod follow;
pub mod history;
mod order;
mod outlook;
mod pause;
pub mod retry;
mod service_time;
mod wait;

use std::{borrow::Cow, num::NonZeroU64, sync::Arc, time::Duration};

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use self::{
    admission::DiskSpace,
    history::History,
    order::Order,
    outlook::Figures,
    pause::Switch,
    retry::{RetryBounds, Settlement, event_after, failure_report},
    service_time::ServiceTime,
    wait::{Running, Standby, Stay, Waiters, Work},
};
pub use self::{
    admission::Shortage,
    follow::{Draft, Follower, News, Seen},
    order::Waiting,
    outlook::{Allowance, Hold, Outlook, WaitingFor},
    pause::Pause,
    wait::{Intent, Permit},
};
use crate::{
    clock::{Clock, Timestamp},
    job::{
        AtRisk, Attempt, AttemptReport, Cached, FailureClass, FailureCode, IdempotencyKey, Job, JobEvent, JobId,
        JobPage, JobRecord, JobRequest, JobState, JobStatus, Listing, Priority, StatusCounts, TransitionError,
        delivery::Delivery,
    },
    ledger::{Day, DaySums, Sums},
    metrics::{Metrics, kind},
    store::{Insertion, JobStore, Pick, StoreError},
};

/// Most jobs that one step of the sweeper ends or removes: more at once would show in the latency of submissions.
const SWEEP_STEP: usize = 64;

/// Most jobs that one step removes when retention has fallen behind, which takes thousands of jobs a second: some
/// milliseconds of latency are better than a disk that fills.
const SWEEP_STEP_BEHIND: usize = 512;

/// Longest pause between two tries to settle an attempt while the store is unavailable.
const SETTLE_RETRY_MAX: Duration = Duration::from_secs(5);

/// A waiter looks at its job at least so often, should it have missed a signal.
const WAIT_POLL: Duration = Duration::from_secs(5);

/// What a call for a request may cost, at most.
pub type EstimateRisk = Arc<dyn Fn(&JobRequest) -> AtRisk + Send + Sync>;

/// A digest of all that makes the answer to a request, which may be waited for, at a moment; and of who asks, as callers
/// share no answers. None if the request wants one of its own.
pub type Identify = Arc<dyn Fn(&JobRequest, bool, Timestamp) -> Option<NonZeroU64> + Send + Sync>;

/// Settings of the queue.
#[derive(Clone)]
pub struct Policy {
    /// How many attempts can be under way at once.
    pub workers: usize,
    /// Jobs whose clients wait go first, by deadline; else all go in the order of submission.
    pub deadlines_first: bool,
    /// Most pending jobs of a caller with a name. Those without one have no bound but that on all jobs together.
    pub max_pending_per_caller: usize,
    /// One in so many claims goes to jobs that nobody asked to wait for, whoever waits.
    pub ordinary_share: u32,
    /// How often a job is tried again.
    pub retries: RetryBounds,
    /// Estimates what an attempt of unknown outcome may have cost.
    pub estimate_risk: EstimateRisk,
    /// Tells which jobs ask the same: of those only one is asked at a time, and its answer is that of all.
    pub identify: Identify,
    /// For how long an answer is given to whoever asks the same again; none if zero.
    pub cache_for: Duration,
    /// How long an idempotency key is in force.
    pub idempotency_window: Duration,
    /// How long a claim lasts without a heartbeat.
    pub lease: Duration,
    /// Whether a job whose attempt ended with an unknown outcome is tried again; else it fails.
    pub retry_unknown_outcome: bool,
    /// How long a finished job is kept.
    pub keep_finished_for: Duration,
    /// How many finished jobs are kept at most.
    pub max_finished: usize,
}

#[cfg(test)]
impl Policy {
    /// One that tries nothing again and keeps everything.
    pub(crate) fn plain() -> Policy {
        Policy {
            workers: 1,
            deadlines_first: true,
            max_pending_per_caller: usize::MAX,
            ordinary_share: 5,
            retries: RetryBounds {
                other: 0,
                connect: 0,
                overload: 0,
                invalid_output: 0,
                give_back_for: Duration::from_hours(1_000_000),
            },
            estimate_risk: Arc::new(|_| AtRisk { input_tokens: 1, output_tokens: 1, nanodollars: Some(1) }),
            identify: Arc::new(|_, _, _| None),
            cache_for: Duration::ZERO,
            idempotency_window: Duration::from_hours(1),
            lease: Duration::from_secs(30),
            retry_unknown_outcome: false,
            keep_finished_for: Duration::from_hours(1_000_000),
            max_finished: usize::MAX,
        }
    }
}

/// A job as a client wants it.
#[derive(Clone, Debug, Default)]
pub struct Submission {
    /// What is asked.
    pub request: JobRequest,
    /// Its place in the order.
    pub priority: Priority,
    /// Not before then.
    pub run_at: Option<Timestamp>,
    /// Fail it if it hasn't started so long after its submission.
    pub deadline: Option<Duration>,
    /// The client's own name for it: submitted again under the same name, it is the same job.
    pub idempotency_key: Option<String>,
    /// It wants an answer of its own, and neither one that was there before nor that of another job.
    pub wants_its_own: bool,
}

/// What became of a submission.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The job.
    pub record: JobRecord,
    /// It was there before, under the same idempotency key.
    pub replayed: bool,
}

/// A job claimed for an attempt, with the token that tells when the attempt has lost it.
#[derive(Debug)]
pub struct Claim {
    /// Running, with the attempt's number.
    pub job: Job,
    /// What is asked.
    pub request: Arc<JobRequest>,
    /// The newest attempt whose answer was of no use, if one was since the submission or the last requeue.
    pub useless: Option<Arc<Attempt>>,
    /// Cancelled when the job is cancelled or the lease is lost: stop at once, nothing is left to settle.
    pub lost: CancellationToken,
    /// Takes the answer's text as it comes, for those who follow the job.
    pub draft: Arc<Draft>,
    /// As long as it lasts, the sweeper keeps the job's lease.
    _stay: Stay,
}

/// What a worker is to do next.
#[derive(Debug)]
pub enum Next {
    /// A job is ready: get a permit, then claim.
    Ready(Intent),
    /// Here is a job, claimed and permitted.
    Claimed(Box<Claim>),
    /// A job was on its way here and was not accepted after all: give its permit back.
    NotHanded,
}

impl Next {
    fn handed(claim: Option<Claim>) -> Next {
        claim.map_or(Next::NotHanded, |claim| Next::Claimed(Box::new(claim)))
    }
}

/// Why the queue could not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// There is no such job (any more).
    #[error("there is no job {0}")]
    NotFound(JobId),
    /// The job's state does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// The bound on pending jobs is reached.
    #[error("the queue is full: {limit} jobs are pending, the most that MAX_QUEUED_JOBS allows")]
    Full {
        /// The bound.
        limit: usize,
    },
    /// The caller's bound on pending jobs is reached.
    #[error(
        "you have {pending} jobs pending and asked for {more} more; MAX_PENDING_PER_CALLER allows {limit}: wait until some \
         have ended, or cancel some"
    )]
    CallerFull {
        /// What the caller has.
        pending: usize,
        /// What was asked for besides.
        more: usize,
        /// The bound.
        limit: usize,
    },
    /// The idempotency key is in force for another request.
    #[error("this Idempotency-Key was used for another request; give each question a key of its own")]
    KeyReused,
    /// The job that the idempotency key stands for is there no more.
    #[error("this Idempotency-Key stands for job {0}, which was removed since; a new question needs a key of its own")]
    Removed(JobId),
    /// No answer that was kept of the job can be read.
    #[error("the answer that was kept can't be read as a memo: {0}")]
    Unreadable(String),
    /// The disk is short of space.
    #[error("{0}")]
    StorageLow(Shortage),
    /// The service is shutting down and accepts no more.
    #[error("the service is shutting down and accepts no more questions")]
    Closing,
    /// The store can't be used at the moment.
    #[error("{0}")]
    Unavailable(String),
}

impl From<StoreError> for QueueError {
    fn from(error: StoreError) -> QueueError {
        match error {
            StoreError::NotFound(id) => QueueError::NotFound(id),
            StoreError::Transition(error) => QueueError::Conflict(error.to_string()),
            StoreError::Full { limit } => QueueError::Full { limit },
            StoreError::KeyReused => QueueError::KeyReused,
            error @ (StoreError::Unavailable { .. } | StoreError::Corrupt { .. }) => {
                QueueError::Unavailable(error.to_string())
            }
        }
    }
}

/// The queue. Clones are handles to the same one.
#[derive(Clone)]
pub struct Queue(Arc<Inner>);

struct Inner {
    store: Arc<dyn JobStore>,
    clock: Clock,
    policy: Policy,
    metrics: Metrics,
    /// For a job's end.
    waiters: Arc<Waiters>,
    /// For every change of a job.
    followers: Arc<Waiters>,
    order: Arc<Order>,
    running: Arc<Running>,
    work: Arc<Work>,
    standby: Standby,
    service_time: ServiceTime,
    history: History,
    disk_space: DiskSpace,
    /// Signalled when a job has ended that may owe a message to its callback URL.
    ended: Arc<tokio::sync::Notify>,
    paused: Switch,
    /// Signalled when something became due earlier than the sweeper may expect.
    due: Arc<tokio::sync::Notify>,
    closing: CancellationToken,
}

impl Queue {
    /// A queue over `store`, whose observer it becomes. Cancel `closing` to have it accept and give out no more jobs
    /// and answer those who wait.
    pub fn new(
        store: Arc<dyn JobStore>,
        clock: Clock,
        policy: Policy,
        metrics: Metrics,
        closing: CancellationToken,
    ) -> Queue {
        let (paused, history) = (Switch::of(&*store), History::of(&*store));
        let queue = Queue(Arc::new(Inner {
            store,
            clock,
            policy,
            metrics,
            waiters: Arc::default(),
            followers: Arc::default(),
            order: Arc::default(),
            running: Arc::default(),
            work: Arc::default(),
            standby: Standby::default(),
            service_time: ServiceTime::default(),
            history,
            disk_space: DiskSpace::default(),
            ended: Arc::default(),
            paused,
            due: Arc::default(),
            closing,
        }));
        let inner = &queue.0;
        let (waiters, followers) = (Arc::clone(&inner.waiters), Arc::clone(&inner.followers));
        let (running, work) = (Arc::clone(&inner.running), Arc::clone(&inner.work));
        let (due, ended) = (Arc::clone(&inner.due), Arc::clone(&inner.ended));
        let (order, clock) = (Arc::clone(&inner.order), inner.clock.clone());
        inner.store.observe(Box::new(move |jobs, held_back| {
            let now = clock.now();
            // Before any worker wakes.
            order.note(jobs, now, |job| held_back.contains(&job.id));
            let (mut ready, mut later) = (0, false);
            for job in jobs {
                running.check(job);
                followers.notify(job.id);
                match job.state {
                    JobState::Queued { run_at } if run_at <= now => ready += 1,
                    JobState::Queued { .. } => later = true,
                    JobState::Running { .. } => {}
                    JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => {
                        waiters.notify(job.id);
                        ended.notify_one();
                    }
                }
                later |= job.deadline_at.is_some();
            }
            work.wake(ready);
            if later {
                due.notify_one();
            }
        }));
        queue
    }

    /// Accepts a job: it is on disk when this returns. A submission whose idempotency key is in force brings the job that
    /// it stands for instead.
    ///
    /// # Errors
    /// [`QueueError::KeyReused`], [`QueueError::Removed`], [`QueueError::Full`], [`QueueError::StorageLow`],
    /// [`QueueError::Closing`], [`QueueError::Unavailable`].
    pub async fn enqueue(&self, submission: Submission) -> Result<Accepted, QueueError> {
        let nobody_waits = None::<(Instant, fn(Option<NonZeroU64>, &JobRequest) -> bool)>;
        Ok(self.accept(submission, nobody_waits).await?.0)
    }

    /// As [`Queue::enqueue`], for a client that would be held until `until` for the answer. If it is likely to be there
    /// by then, the job goes before those that nobody waits for, and [`Queue::answer`] waits for it; else there is
    /// nothing to wait for, and the client is better told so at once.
    ///
    /// # Errors
    /// As [`Queue::enqueue`].
    pub async fn ask(
        &self,
        submission: Submission,
        until: Instant,
        allowance: impl FnOnce() -> Allowance,
    ) -> Result<(Accepted, Option<Waiting>), QueueError> {
        let hold = |question: Option<NonZeroU64>, request: &JobRequest| {
            // Of an answer that is on its way already nobody knows better than whoever waits for it.
            !self.0.policy.deadlines_first
                || question.is_some_and(|question| self.0.store.is_under_way(question))
                || !self.is_paused() && self.can_be_met(request, until, allowance)
        };
        let accepted = self.accept(submission, Some((until, hold))).await?;
        if accepted.1.is_none() && !accepted.0.record.job.state.is_final() {
            self.0.history.waited(false);
        }
        Ok(accepted)
    }

    /// Refuses so many more jobs of a caller if they would go beyond its bound.
    ///
    /// A look before the insert: submissions that are on their way at the same moment may pass it by their number. The
    /// bound keeps one caller from filling the queue, for which that is near enough, and costs the writer nothing.
    fn check_room_of(&self, caller: Option<NonZeroU64>, more: usize) -> Result<(), QueueError> {
        let Some(caller) = caller else { return Ok(()) };
        let (pending, limit) = (self.0.store.pending_of(caller), self.0.policy.max_pending_per_caller);
        if pending + more > limit { Err(QueueError::CallerFull { pending, more, limit }) } else { Ok(()) }
    }

    /// Whether a job that is submitted now is likely to have its answer by `until`. Where nothing is known yet, it is,
    /// unless a person has to act first.
    fn can_be_met(&self, request: &JobRequest, until: Instant, allowance: impl FnOnce() -> Allowance) -> bool {
        let allowance = allowance();
        let Some(needs) = self.0.service_time.ninth_decile(request.model.as_deref()) else {
            return allowance.hold.is_none_or(|hold| hold.opens_in.is_some());
        };
        let mut figures = self.figures(self.0.order.ahead_of(caller(request), until));
        // Of so many claims one is not for those who wait.
        let share = self.0.policy.ordinary_share as usize;
        let elsewhere =
            if self.0.store.claimable_unwaited() > 0 { share } else { share * order::TURNED_SHARE as usize };
        figures.ahead = figures.ahead * elsewhere / elsewhere.saturating_sub(1).max(1);
        let Some(start) = outlook::start_in(figures, allowance) else { return false };
        let by = |time| Instant::now().checked_add(time).is_some_and(|answered| answered <= until);
        let met = by(start.saturating_add(needs));
        // One that asks for less than an answer takes is none too many.
        if !met && by(needs) {
            self.0.order.note_declined();
        }
        met
    }

    /// Accepts a job, with a place for its client if that asks to be held until a moment and, by its question, is to be.
    async fn accept(
        &self,
        submission: Submission,
        wait: Option<(Instant, impl FnOnce(Option<NonZeroU64>, &JobRequest) -> bool)>,
    ) -> Result<(Accepted, Option<Waiting>), QueueError> {
        if self.0.closing.is_cancelled() {
            return Err(QueueError::Closing);
        }
        let now = self.now();
        let key = submission.idempotency_key.as_deref().map(|key| self.idempotency_key(key, &submission, now));
        let mut job = self.new_job(&submission, key, wait.is_some(), now);
        let caller = job.caller;
        let is_replay = key.is_some_and(|key| self.0.store.is_key_known(&key, now));
        let hold_until = wait.and_then(|(until, hold)| hold(job.question, &submission.request).then_some(until));
        let request = Arc::new(submission.request);
        if !is_replay {
            if let Some(shortage) = self.shortage() {
                return Err(QueueError::StorageLow(shortage));
            }
            if let Some(answered) = self.answered_before(&job, &request, now).await {
                return Ok((self.accept_answered(answered).await?, None));
            }
            self.check_room_of(caller, 1)?;
        }
        // Before the job is there, so that it has its place from its first moment. It is given up with this future.
        let enter = |id| Some(self.0.order.enter(id, caller, request.model.clone(), hold_until?));
        let waiting = enter(job.id);
        let due = matches!(job.state, JobState::Queued { run_at } if run_at <= now);
        let inserted = if due
            && !is_replay
            && !self.is_paused()
            && self.0.store.claimable(now) == 0
            && !self.is_held_back(&job, now)
            && let Some(hand) = self.0.standby.take()
        {
            let queued = job.clone();
            job = job
                .apply(&JobEvent::Claim { lease_until: now.plus(self.0.policy.lease) }, now)
                .map_err(StoreError::from)?;
            let inserted = self.hand_over(job.clone(), Arc::clone(&request), hand).await?;
            if inserted == Insertion::Unclaimed {
                job = queued;
            }
            inserted
        } else {
            self.0.store.insert(job.clone(), Arc::clone(&request)).await?
        };
        match inserted {
            Insertion::Accepted | Insertion::Unclaimed => {
                self.0.metrics.jobs_submitted.inc();
                Ok((Accepted { record: JobRecord::fresh(job, request), replayed: false }, waiting))
            }
            Insertion::Existing(id) => {
                let waiting = enter(id);
                let record = self.0.store.get(id).await?.ok_or(QueueError::Removed(id))?;
                self.place(&record.job, self.now());
                Ok((Accepted { record, replayed: true }, waiting))
            }
        }
    }

    /// The job at its end, if it asks what has been answered lately.
    async fn answered_before(&self, job: &Job, request: &Arc<JobRequest>, now: Timestamp) -> Option<JobRecord> {
        if self.0.policy.cache_for.is_zero() || job.due_at > now {
            return None;
        }
        let source = self.0.store.newest_answer(job.question?)?;
        let finished_at = source.finished_at.filter(|at| now.since(*at) < self.0.policy.cache_for)?;
        // Whatever is wrong with it, the question can still be asked.
        let source = self.0.store.get(source.id).await.ok()??;
        let report = source.answer()?.report.cached(Cached { job_id: source.job.id, finished_at });
        report.result.as_ref()?;
        let event = JobEvent::Share { report: Arc::new(report) };
        let attempt = job.closed_attempt(&event, now)?;
        let job = job.apply(&event, now).ok()?;
        Some(JobRecord { attempts: vec![Arc::new(attempt)], ..JobRecord::fresh(job, Arc::clone(request)) })
    }

    /// Accepts a job that has its answer already.
    async fn accept_answered(&self, record: JobRecord) -> Result<Accepted, QueueError> {
        let inserted = self.0.store.insert_all(vec![record.clone()]).await?;
        if let Some(Insertion::Existing(id)) = inserted.first() {
            let record = self.0.store.get(*id).await?.ok_or(QueueError::Removed(*id))?;
            return Ok(Accepted { record, replayed: true });
        }
        self.note_answered_before(&record.job);
        // With what is owed to its callback URL by now.
        let record = if record.delivery.is_some() { self.get(record.job.id).await? } else { record };
        Ok(Accepted { record, replayed: false })
    }

    fn note_answered_before(&self, job: &Job) {
        self.0.metrics.jobs_submitted.inc();
        self.0.metrics.answers_cached.inc();
        self.note_end(job, self.now());
    }

    /// Accepts jobs that belong together, all or none: they are on disk when this returns. `key` names them as a whole:
    /// the same submissions under it bring the same jobs, in the same order. It is no name of a single submission's.
    ///
    /// # Errors
    /// As [`Queue::enqueue`]; [`QueueError::Full`] also where there is room for some of them.
    pub async fn enqueue_all(
        &self,
        submissions: Vec<Submission>,
        key: Option<&str>,
    ) -> Result<(Vec<Job>, bool), QueueError> {
        if self.0.closing.is_cancelled() {
            return Err(QueueError::Closing);
        }
        let now = self.now();
        let keys = key.map(|key| self.batch_keys(key, &submissions, now));
        let is_replay = keys.iter().flatten().next().is_some_and(|key| self.0.store.is_key_known(key, now));
        if !is_replay && let Some(shortage) = self.shortage() {
            return Err(QueueError::StorageLow(shortage));
        }
        let mut keys = keys.into_iter().flatten();
        let mut jobs = Vec::with_capacity(submissions.len());
        for submission in submissions {
            let job = self.new_job(&submission, keys.next(), false, now);
            let request = Arc::new(submission.request);
            let answered = if is_replay { None } else { self.answered_before(&job, &request, now).await };
            jobs.push(answered.unwrap_or_else(|| JobRecord::fresh(job, request)));
        }
        let accepted: Vec<Job> = jobs.iter().map(|record| record.job.clone()).collect();
        // All of a batch are of the caller that sends it.
        if let Some(first) = accepted.first().filter(|_| !is_replay) {
            let pending = accepted.iter().filter(|job| !job.state.is_final());
            self.check_room_of(first.caller, pending.count())?;
        }
        let inserted = self.0.store.insert_all(jobs).await?;
        let existing = inserted.into_iter().filter_map(|insertion| match insertion {
            Insertion::Existing(id) => Some(self.0.store.peek(id).ok_or(QueueError::Removed(id))),
            Insertion::Accepted | Insertion::Unclaimed => None,
        });
        let existing = existing.collect::<Result<Vec<Job>, QueueError>>()?;
        if !existing.is_empty() {
            return Ok((existing, true));
        }
        for job in &accepted {
            if job.state.is_final() {
                self.note_answered_before(job);
            } else {
                self.0.metrics.jobs_submitted.inc();
            }
        }
        Ok((accepted, false))
    }

    /// What a client's name for a batch makes of each of its jobs. Each knows of all the others, so that another batch
    /// under the same name is told from this one whatever they share.
    fn batch_keys(&self, key: &str, submissions: &[Submission], now: Timestamp) -> Vec<IdempotencyKey> {
        let keys = submissions.iter().zip(0..).map(|(submission, place)| {
            // No client's name has such a character in it.
            self.idempotency_key(&format!("{key}\0{place}"), submission, now)
        });
        let keys: Vec<IdempotencyKey> = keys.collect();
        let whole: Vec<u8> = keys.iter().flat_map(|key| key.body).collect();
        let body = digest(&whole);
        keys.into_iter().map(|key| IdempotencyKey { body, ..key }).collect()
    }

    /// A client's key, with what tells its submission from others.
    fn idempotency_key(&self, key: &str, submission: &Submission, now: Timestamp) -> IdempotencyKey {
        let Submission { request, priority, run_at, deadline, idempotency_key: _, wants_its_own: _ } = submission;
        // Which HTTP request brought it makes no other question of it.
        let request = JobRequest { request_id: None, traceparent: None, ..request.clone() };
        let asked = serde_json::to_vec(&(&request, priority, run_at, deadline.map(|deadline| deadline.as_secs())));
        // A key is its caller's own: nobody comes by another's job with it.
        let name = match &request.caller {
            Some(caller) => format!("{caller}\n{key}").into(),
            None => Cow::Borrowed(key),
        };
        IdempotencyKey {
            key: digest(name.as_bytes()),
            body: digest(&asked.unwrap_or_default()),
            expires_at: now.plus(self.0.policy.idempotency_window),
        }
    }

    /// Accepts a job that nobody is ahead of and gives it to a worker on standby: one commit for both, which halves the
    /// way to Claude of a question asked of an idle service.
    async fn hand_over(
        &self,
        job: Job,
        request: Arc<JobRequest>,
        hand: oneshot::Sender<Claim>,
    ) -> Result<Insertion, QueueError> {
        let queue = self.clone();
        // In a task of its own: the job must reach its worker even if its client hangs up in this moment.
        let handing = tokio::spawn(async move {
            let inserted = queue.0.store.insert(job.clone(), Arc::clone(&request)).await?;
            if inserted != Insertion::Accepted {
                return Ok(inserted);
            }
            let claim = queue.begin(job.clone(), request, None);
            if let Err(_unclaimed) = hand.send(claim) {
                let report = failure_report(FailureCode::Shutdown, "the service stopped before the call".to_owned());
                queue.settle(&job, &Settlement::given_back(FailureCode::Shutdown), report).await;
            }
            Ok(inserted)
        });
        handing.await.map_err(|error| QueueError::Unavailable(error.to_string()))?
    }

    /// The job with its request and history.
    ///
    /// # Errors
    /// [`QueueError::NotFound`], [`QueueError::Unavailable`].
    pub async fn get(&self, id: JobId) -> Result<JobRecord, QueueError> {
        self.0.store.get(id).await?.ok_or(QueueError::NotFound(id))
    }

    /// The life-cycle part of a job alone, which costs no look at the disk.
    pub fn peek(&self, id: JobId) -> Option<Job> {
        self.0.store.peek(id)
    }

    /// The job as soon as it has reached an end, or as it is at `until` or when the service shuts down.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub async fn wait(&self, id: JobId, until: Instant) -> Result<JobRecord, QueueError> {
        let interest = self.0.waiters.register(id);
        loop {
            let signalled = interest.signal().notified();
            let job = self.0.store.peek(id).ok_or(QueueError::NotFound(id))?;
            if job.state.is_final() || self.0.closing.is_cancelled() || Instant::now() >= until {
                return self.get(id).await;
            }
            tokio::select! {
                () = signalled => {}
                () = tokio::time::sleep_until(until.min(Instant::now() + WAIT_POLL)) => {}
                () = self.0.closing.cancelled() => {}
            }
        }
    }

    /// The job that a client was accepted to wait for: as soon as it has reached an end, or as it is when that can't be in
    /// time any more, or when the service shuts down.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub async fn answer(&self, waiting: &Waiting) -> Result<JobRecord, QueueError> {
        let interest = self.0.waiters.register(waiting.job());
        loop {
            let signalled = interest.signal().notified();
            let job = self.0.store.peek(waiting.job()).ok_or(QueueError::NotFound(waiting.job()))?;
            let now = Instant::now();
            // Where the same is being asked, the answer is on its way; where the claim is, the attempt is as good as begun.
            let is_queued = matches!(job.state, JobState::Queued { .. })
                && !waiting.is_picked()
                && !self.is_held_back(&job, self.now());
            // An attempt under way may be one of the quicker ones; one that hasn't begun by then comes too late.
            let until = if is_queued && self.0.policy.deadlines_first {
                let needs = self.needs(waiting.model.as_deref());
                waiting.until().checked_sub(needs).unwrap_or(now)
            } else {
                waiting.until()
            };
            if job.state.is_final()
                || self.0.closing.is_cancelled()
                || now >= until
                || (is_queued && waiting.has_turned())
            {
                if is_queued {
                    self.0.order.turn(waiting);
                }
                self.0.history.waited(job.state.is_final());
                return self.get(waiting.job()).await;
            }
            tokio::select! {
                () = signalled => {}
                () = waiting.signal().notified() => {}
                () = tokio::time::sleep_until(until.min(now + WAIT_POLL)) => {}
                () = self.0.closing.cancelled() => {}
            }
        }
    }

    /// How long an answer of a model takes, in 9 of 10 cases; nothing where that is not known.
    fn needs(&self, model: Option<&str>) -> Duration {
        self.0.service_time.ninth_decile(model).unwrap_or_default()
    }

    /// Cancels a queued or running job; a cancelled one stays so.
    ///
    /// # Errors
    /// [`QueueError::Conflict`] if the job ended otherwise, [`QueueError::NotFound`], [`QueueError::Unavailable`].
    pub async fn cancel(&self, id: JobId) -> Result<JobRecord, QueueError> {
        let at_risk = self.at_risk(id).await;
        match self.transition(id, JobEvent::Cancel { at_risk }).await {
            Ok(_) | Err(StoreError::Transition(TransitionError::Illegal { status: JobStatus::Cancelled, .. })) => {
                self.get(id).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What the job's attempt may cost; nothing is known of one that has none under way or can't be read.
    async fn at_risk(&self, id: JobId) -> Option<AtRisk> {
        let is_running = self.0.store.peek(id).is_some_and(|job| job.is_running());
        let record = if is_running { self.0.store.get(id).await.ok().flatten() } else { None };
        record.map(|record| (self.0.policy.estimate_risk)(&record.request))
    }

    /// Puts a failed or cancelled job back into the queue, with a fresh count of attempts.
    ///
    /// # Errors
    /// As [`Queue::cancel`].
    pub async fn requeue(&self, id: JobId) -> Result<JobRecord, QueueError> {
        self.transition(id, JobEvent::Requeue { run_at: self.now() }).await?;
        self.get(id).await
    }

    /// Reads the answers that were kept of a failed job again, newest first, by `read`. The first that reads now makes the
    /// job a success; nothing is called and nothing billed. A job that has its memo keeps it as it is.
    ///
    /// # Errors
    /// [`QueueError::Unreadable`] and [`QueueError::Conflict`], with which nothing has changed; [`QueueError::NotFound`],
    /// [`QueueError::Unavailable`].
    pub async fn reparse(
        &self,
        id: JobId,
        read: impl Fn(&str) -> Result<Box<RawValue>, String>,
    ) -> Result<JobRecord, QueueError> {
        let record = self.get(id).await?;
        match record.job.state {
            JobState::Succeeded => return Ok(record),
            JobState::Failed { .. } => {}
            JobState::Queued { .. } | JobState::Running { .. } | JobState::Cancelled => {
                let status = record.job.status(self.now());
                return Err(QueueError::Conflict(format!(
                    "a job that is {status} can't be read again, a failed one can"
                )));
            }
        }
        let mut complaint = None;
        for attempt in record.attempts.iter().rev() {
            let report = &attempt.report;
            // What a model says while it declines is no memo, whatever it looks like.
            let refused = report.error.as_ref().is_some_and(|error| error.code == FailureCode::Refused);
            let Some(answer) = report.raw_answer.as_deref().filter(|answer| !refused && !answer.trim().is_empty())
            else {
                continue;
            };
            match read(answer) {
                Ok(result) => {
                    let report = AttemptReport {
                        model: report.model.clone(),
                        prompt_version: report.prompt_version.clone(),
                        prompt_sha256: report.prompt_sha256.clone(),
                        reparsed_from: Some(attempt.number),
                        result: Some(result),
                        ..AttemptReport::default()
                    };
                    let event = JobEvent::Reparse { attempt: record.job.attempt, report: Arc::new(report) };
                    self.transition(id, event).await?;
                    return self.get(id).await;
                }
                Err(wrong) => drop(complaint.get_or_insert(wrong)),
            }
        }
        Err(match complaint {
            Some(wrong) => QueueError::Unreadable(wrong),
            None => {
                QueueError::Conflict("no answer was kept of this job, so there is nothing to read again".to_owned())
            }
        })
    }

    /// A page of jobs. It ends early, even empty, where looking for them takes long; its cursor then goes on.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn list(&self, listing: Listing) -> Result<JobPage, QueueError> {
        Ok(self.0.store.list(listing, self.now()).await?)
    }

    /// Takes over jobs of another service, those whose id is not here yet, as they were there. An attempt that was under
    /// way there is of unknown outcome here, as after a crash. Tells how many were new.
    ///
    /// # Errors
    /// [`QueueError::Full`] with none taken over, [`QueueError::StorageLow`], [`QueueError::Closing`],
    /// [`QueueError::Unavailable`].
    pub async fn import(&self, mut records: Vec<JobRecord>) -> Result<usize, QueueError> {
        if self.0.closing.is_cancelled() {
            return Err(QueueError::Closing);
        }
        if let Some(shortage) = self.shortage() {
            return Err(QueueError::StorageLow(shortage));
        }
        let now = self.now();
        for record in &mut records {
            if let JobState::Running { lease_until } = &mut record.job.state {
                // Over at once: the sweeper ends it as it ends the attempts of the dead.
                *lease_until = now;
            }
        }
        let insertions = self.0.store.import(records).await?;
        self.0.due.notify_one();
        Ok(insertions.iter().filter(|insertion| **insertion == Insertion::Accepted).count())
    }

    /// Whether `caller` submitted the job; none if there is no such job. By a digest of the name that is in memory.
    pub fn is_of(&self, id: JobId, caller: Option<&str>) -> Option<bool> {
        let digest = caller.map(|caller| short_digest(caller.as_bytes()));
        self.0.store.peek(id).map(|job| job.caller == digest)
    }

    /// Keeps a setting that is made while the service runs, or (without a value) forgets it.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn keep(&self, name: String, value: Option<String>) -> Result<(), QueueError> {
        Ok(self.0.store.keep(name, value).await?)
    }

    /// The settings kept whose names begin with `prefix`, by name.
    pub fn kept(&self, prefix: &str) -> Vec<(String, String)> {
        self.0.store.kept(prefix)
    }

    /// Why a queued job waits, and for how long; none for any other, of which `allowance` is not asked.
    pub fn outlook(&self, job: &Job, allowance: impl FnOnce() -> Allowance) -> Option<Outlook> {
        let JobState::Queued { .. } = job.state else { return None };
        let now = self.now();
        if self.is_held_back(job, now) {
            return Some(outlook::behind_the_same(self.service_time()));
        }
        let (place, ahead) = self.ahead_of(job, now);
        outlook::outlook(job, Figures { place, ..self.figures(ahead) }, allowance(), now)
    }

    /// How many jobs go before this one as things stand, and how many are likely to be claimed before it.
    fn ahead_of(&self, job: &Job, now: Timestamp) -> (usize, usize) {
        if let Some(ahead) = self.0.order.ahead_of_job(job.id) {
            return (ahead, ahead);
        }
        let ahead = self.0.store.ahead_of(job);
        let waited_for = self.0.order.ready();
        // Those that clients wait for go first, wherever they stand.
        let before = (ahead.all + waited_for).min(self.0.store.claimable(now).saturating_sub(1)).max(ahead.all);
        // Or its turn comes by the share of those that nobody waits for.
        let share = self.0.policy.ordinary_share as usize;
        let by_share = (ahead.unwaited + 1) * share - 1;
        let place = if job.waited_for || waited_for == 0 { before } else { before.min(by_share) };
        let since = Instant::now().checked_sub(now.since(job.created_at)).unwrap_or_else(Instant::now);
        let Policy { deadlines_first, workers, .. } = self.0.policy;
        let rush = if deadlines_first { self.0.order.rush_before(job.caller, since, workers) } else { None };
        let claims = match rush {
            None => place,
            // As long as more clients wait than can be answered, the others move by their shares alone, ...
            Some(_) if !job.waited_for => by_share,
            // ... and those that have turned ordinary once the clients that came before them are gone.
            Some(rush) => {
                let turned = ahead.all.saturating_sub(ahead.unwaited + rush);
                rush + (turned + 1) * share * order::TURNED_SHARE as usize - 1
            }
        };
        (place, claims)
    }

    /// Whether a job is due and can't be claimed, as another one that asks the same is running.
    fn is_held_back(&self, job: &Job, now: Timestamp) -> bool {
        matches!(job.state, JobState::Queued { run_at } if run_at <= now)
            && job.question.is_some_and(|question| self.0.store.is_under_way(question))
    }

    /// Has the clients of a job take the place that its state calls for.
    fn place(&self, job: &Job, now: Timestamp) {
        self.0.order.note(std::slice::from_ref(job), now, |job| self.is_held_back(job, now));
    }

    fn figures(&self, ahead: usize) -> Figures {
        Figures {
            place: ahead,
            ahead,
            running: self.running_attempts(),
            workers: self.0.policy.workers,
            service_time: self.service_time(),
            is_paused: self.is_paused(),
        }
    }

    /// How many jobs there are in each state.
    pub fn counts(&self) -> StatusCounts {
        self.0.store.counts(self.now())
    }

    /// What was spent today, durably.
    pub fn spent_today(&self) -> Sums {
        self.0.store.spent(Day::of(self.now()))
    }

    /// The newest days on which anything was spent, at most so many, newest first.
    pub fn ledger(&self, days: usize) -> Vec<DaySums> {
        self.0.store.ledger(days)
    }

    /// How long the oldest job has waited that could run.
    pub fn oldest_queued_age(&self) -> Duration {
        self.0.store.oldest_queued().map_or(Duration::ZERO, |due_at| self.now().since(due_at))
    }

    /// How many clients wait for a job's end or follow one.
    pub fn waiters(&self) -> usize {
        self.0.waiters.len() + self.0.followers.len()
    }

    /// How many attempts are under way in this process.
    pub fn running_attempts(&self) -> usize {
        self.0.running.len()
    }

    /// Jobs whose message to their callback URL is due, earliest first.
    pub fn deliveries_due(&self, limit: usize) -> Vec<JobId> {
        self.0.store.deliveries_due(self.now(), limit)
    }

    /// Notes what came of sending a job's message.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn note_delivery(&self, id: JobId, delivery: Delivery) -> Result<(), QueueError> {
        Ok(self.0.store.note_delivery(id, delivery).await?)
    }

    /// Waits until another message may be due, at most `at_most`.
    pub async fn until_delivery_due(&self, at_most: Duration) {
        let now = self.now();
        let wait = self.0.store.next_delivery_after(now).map_or(at_most, |due| due.since(now).min(at_most));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.0.ended.notified() => {}
        }
    }

    /// How many attempts can be under way at once.
    pub fn workers(&self) -> usize {
        self.0.policy.workers
    }

    /// How long an attempt lasts: a running mean.
    pub fn service_time(&self) -> Duration {
        self.0.service_time.mean()
    }

    /// Why the store can't be used at the moment, if so.
    pub fn trouble(&self) -> Option<String> {
        self.0.store.trouble()
    }

    /// What the disk is short of, if it is: then no job is accepted, and all else goes on.
    pub fn shortage(&self) -> Option<Shortage> {
        self.0.disk_space.shortage()
    }

    /// Tells the queue how much space the disk has, and how much it should have at least.
    pub fn note_disk_space(&self, free_bytes: u64, floor_bytes: u64) {
        match self.0.disk_space.note(free_bytes, floor_bytes) {
            (None, Some(shortage)) => error!("no question is accepted: {shortage}"),
            (Some(_), None) => info!(disk.free_bytes = free_bytes, "the disk has room again: questions are accepted"),
            _ => {}
        }
    }

    /// True once the service is shutting down.
    pub fn is_closing(&self) -> bool {
        self.0.closing.is_cancelled()
    }

    /// The queue's clock.
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// How long a claim lasts without a heartbeat.
    pub fn lease(&self) -> Duration {
        self.0.policy.lease
    }

    /// Waits until there is a job for the calling worker; none once the service is shutting down. `permit` is asked where
    /// a job comes with its claim.
    pub async fn next(&self, permit: &Permit) -> Option<Next> {
        let mut place = self.0.standby.enter(Arc::clone(permit));
        let intent = tokio::select! {
            biased;
            handed = place.handed() => return Some(Next::handed(handed)),
            () = self.0.closing.cancelled() => None,
            intent = self.0.work.intend(|| self.claimable()) => Some(intent),
        };
        if place.leave() {
            return intent.map(Next::Ready);
        }
        drop(intent);
        // A job is on its way here, claimed already: nobody else will take it.
        Some(Next::handed(place.handed().await))
    }

    /// Claims the first job for an attempt, if there still is one. The claim is on disk when this returns.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn claim(&self, intent: Intent) -> Result<Option<Claim>, QueueError> {
        if self.is_paused() {
            return Ok(None);
        }
        let now = self.now();
        let pick = self.pick(now);
        let claimed = self.0.store.claim(pick, now.plus(self.0.policy.lease), now).await;
        if let (Err(_), Pick::Job(id)) = (&claimed, pick)
            && let Some(job) = self.0.store.peek(id)
        {
            // Nobody else may have noticed, so that it would have lost its place.
            self.place(&job, now);
        }
        drop(intent);
        let claimed = match claimed {
            Ok(Some(claimed)) => claimed,
            Ok(None) => return Ok(None),
            Err(StoreError::Corrupt { id, reason }) => {
                self.fail_unreadable(id, &reason).await?;
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let (job, request) = (claimed.job, claimed.request);
        let useless = self.useless(&job).await;
        Ok(Some(self.begin(job, request, useless)))
    }

    /// Ends a job that asks what can't be read, or it would be the first to be claimed for ever.
    async fn fail_unreadable(&self, id: JobId, reason: &str) -> Result<(), QueueError> {
        error!(job.id = %id, reason, "a question on disk can't be read any more: its job fails");
        let message = format!("no call was made: the question can't be read any more ({reason}); ask it again");
        let report = Arc::new(failure_report(FailureCode::Internal, message));
        self.try_transition(id, JobEvent::FindUnreadable { report }).await.map(drop)
    }

    /// The newest attempt whose answer was of no use. Without it the job is asked as if for the first time.
    async fn useless(&self, job: &Job) -> Option<Arc<Attempt>> {
        if job.failures.count(FailureClass::InvalidOutput) == 0 {
            return None;
        }
        let attempts = self.0.store.get(job.id).await.ok()??.attempts;
        attempts.into_iter().rev().find(|attempt| {
            let code = attempt.report.error.as_ref().map(|error| error.code);
            matches!(code, Some(FailureCode::InvalidOutput | FailureCode::AnswerTruncated))
        })
    }

    /// Which job the next claim is to take.
    fn pick(&self, now: Timestamp) -> Pick {
        let Inner { policy, order, store, .. } = &*self.0;
        if !policy.deadlines_first {
            return Pick::First;
        }
        order.pick(now, policy.ordinary_share, |model| self.needs(model), || store.claimable_unwaited() > 0)
    }

    /// How many jobs a worker could claim now.
    fn claimable(&self) -> usize {
        if self.is_paused() { 0 } else { self.0.store.claimable(self.now()) }
    }

    /// Begins an attempt's stay in this process.
    fn begin(&self, job: Job, request: Arc<JobRequest>, useless: Option<Arc<Attempt>>) -> Claim {
        if job.attempt == 1 {
            let waited = self.now().since(job.created_at);
            self.0.metrics.time_to_claim_seconds.observe(waited.as_secs_f64());
        }
        let (lost, draft) = (CancellationToken::new(), Arc::new(Draft::new(job.attempt)));
        let stay = self.0.running.begin(&job, Arc::clone(&request), lost.clone(), Arc::clone(&draft));
        // Its followers heard of the claim before there was a draft to read.
        self.0.followers.notify(job.id);
        // Whoever cancelled the job in between did not find the token yet.
        if let Some(current) = self.0.store.peek(job.id) {
            self.0.running.check(&current);
        }
        Claim { job, request, useless, lost, draft, _stay: stay }
    }

    /// The heartbeat of an attempt. `Ok(false)`: the job is lost.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`]; the lease holds until its end.
    pub async fn extend(&self, job: &Job) -> Result<bool, QueueError> {
        let lease_until = self.now().plus(self.0.policy.lease);
        match self.transition(job.id, JobEvent::Extend { attempt: job.attempt, lease_until }).await {
            Ok(_) => Ok(true),
            Err(StoreError::Transition(_) | StoreError::NotFound(_)) => {
                self.0.metrics.leases_lost.inc();
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Settles an attempt, durably. As long as the store is unavailable it tries again: the answer is paid for. A job
    /// that is not the attempt's any more stays as it is.
    pub async fn settle(&self, job: &Job, settlement: &Settlement, report: AttemptReport) {
        let mut pause = Duration::from_millis(100);
        let event = event_after(job, settlement, report, &self.0.policy.retries, rand::random(), self.now());
        loop {
            match self.transition(job.id, event.clone()).await {
                Ok(_) => {
                    // From before the claim was written to after the answer was: what a client that waits has to wait.
                    if let (Settlement::Succeeded, Some(started_at)) = (settlement, job.started_at) {
                        let request = self.0.running.request(job.id);
                        let model = request.as_ref().and_then(|request| request.model.as_deref());
                        self.0.service_time.observe(model, job.waited_for, self.now().since(started_at));
                    }
                    break;
                }
                Err(error @ StoreError::Unavailable { .. }) => {
                    warn!(job.id = %job.id, attempt = job.attempt, %error, "an attempt can't be settled yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(SETTLE_RETRY_MAX);
                }
                Err(error) => {
                    self.0.metrics.leases_lost.inc();
                    warn!(job.id = %job.id, attempt = job.attempt, %error, "a late settle changed nothing");
                    break;
                }
            }
        }
    }

    /// Ends every attempt that the store believes to be running. For the start of a process that owns its store alone:
    /// whoever ran them is dead. Tells how many there were.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn recover(&self) -> Result<usize, QueueError> {
        let orphans = self.0.store.running();
        for job in &orphans {
            if let JobState::Running { lease_until } = job.state {
                self.expire(job, lease_until, "its process ended").await?;
            }
        }
        Ok(orphans.len())
    }

    /// Ends what time has run out on and removes what is kept long enough, a step at a time. Tells whether there may be
    /// more to do at once.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn sweep(&self) -> Result<bool, QueueError> {
        let now = self.now();
        // Jobs that have become ready by the passing of time wake workers here.
        self.0.work.wake(self.0.store.claimable(now).min(SWEEP_STEP));
        let overdue = self.0.store.overdue(now, SWEEP_STEP);
        for job in &overdue {
            match job.state {
                // The store or the clock kept its heartbeat from coming in time: no reason to pay for another call.
                JobState::Running { .. } if self.0.running.holds(job) => {
                    warn!(job.id = %job.id, attempt = job.attempt, "a lease was over with its attempt under way: extended");
                    let lease_until = now.plus(self.0.policy.lease);
                    self.try_transition(job.id, JobEvent::Extend { attempt: job.attempt, lease_until }).await?;
                }
                JobState::Running { lease_until } => self.expire(job, lease_until, "its lease is over").await?,
                _ => drop(self.try_transition(job.id, JobEvent::MissDeadline).await?),
            }
        }
        let before = now.minus(self.0.policy.keep_finished_for);
        let counts = self.0.store.counts(now);
        let finished = counts.succeeded + counts.failed + counts.cancelled;
        // The further behind, the larger the step, so that any load finds its level.
        let surplus = finished.saturating_sub(self.0.policy.max_finished);
        let step = (surplus / 16).clamp(SWEEP_STEP, SWEEP_STEP_BEHIND);
        let pruned = self.0.store.prune(before, self.0.policy.max_finished, step).await?;
        Ok(overdue.len() == SWEEP_STEP || pruned == step)
    }

    /// Waits until there is something to sweep, at most `at_most`.
    pub async fn until_due(&self, at_most: Duration) {
        let now = self.now();
        let wait = self.0.store.next_due().map_or(at_most, |due| due.since(now).min(at_most));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.0.due.notified() => {}
        }
    }

    async fn expire(&self, job: &Job, lease_until: Timestamp, why: &str) -> Result<(), QueueError> {
        let policy = &self.0.policy;
        let again = policy.retry_unknown_outcome && policy.retries.allow(job, FailureClass::Other);
        let at_risk = self.at_risk(job.id).await;
        let retry_at = again.then(|| self.now());
        let event = JobEvent::Expire { attempt: job.attempt, lease_until, retry_at, at_risk };
        if let Some(after) = self.try_transition(job.id, event).await? {
            let status = after.status(self.now());
            warn!(job.id = %job.id, attempt = job.attempt, job.status = %status,
                "the outcome of an attempt is unknown, it may have been billed: {why}");
        }
        Ok(())
    }

    /// A transition of a job as it was seen a moment ago; none if it has changed or gone since.
    async fn try_transition(&self, id: JobId, event: JobEvent) -> Result<Option<Job>, QueueError> {
        match self.transition(id, event).await {
            Ok(after) => Ok(Some(after)),
            Err(StoreError::Transition(_) | StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Every transition of the queue goes through here, so that each is counted once.
    async fn transition(&self, id: JobId, event: JobEvent) -> Result<Job, StoreError> {
        let now = self.now();
        let is_running = || self.0.store.peek(id).is_some_and(|job| job.is_running());
        let outcome = match &event {
            JobEvent::Succeed { .. } => Some("succeeded"),
            JobEvent::Retry { .. } | JobEvent::Fail { .. } | JobEvent::FindUnreadable { .. } => Some("failed"),
            JobEvent::Cancel { .. } => is_running().then_some("cancelled"),
            JobEvent::Release { .. } => Some("released"),
            JobEvent::Expire { .. } => Some("outcome_unknown"),
            JobEvent::Reparse { .. } => Some("reparsed"),
            JobEvent::Share { .. } => Some("shared"),
            JobEvent::Claim { .. } | JobEvent::Extend { .. } | JobEvent::MissDeadline | JobEvent::Requeue { .. } => {
                None
            }
        };
        let changed = match event {
            JobEvent::Succeed { attempt, report } => self.0.store.succeed(id, attempt, report, now).await,
            event => self.0.store.transition(id, event, now).await.map(|job| vec![job]),
        };
        let mut changed = changed?;
        if let Some(outcome) = outcome {
            self.0.metrics.attempts.get_or_create(&kind(outcome)).inc();
        }
        for job in changed.iter().filter(|job| job.state.is_final()) {
            self.note_end(job, now);
        }
        self.0.metrics.answers_shared.inc_by(changed.len().saturating_sub(1) as u64);
        Ok(changed.swap_remove(0))
    }

    /// Counts and tells that a job has reached an end.
    fn note_end(&self, job: &Job, now: Timestamp) {
        let status = job.status(now);
        let took = now.since(job.created_at);
        self.0.metrics.jobs_finished.get_or_create(&kind(status.into())).inc();
        self.0.metrics.time_to_finish_seconds.observe(took.as_secs_f64());
        if status == JobStatus::Succeeded {
            self.0.history.succeeded(took);
        }
        info!(job.id = %job.id, job.status = %status, attempt = job.attempt, duration_ms = took.as_millis(),
            "job finished");
    }

    /// The job that a submission becomes.
    fn new_job(
        &self,
        submission: &Submission,
        key: Option<IdempotencyKey>,
        is_waited_for: bool,
        now: Timestamp,
    ) -> Job {
        let Submission { request, priority, run_at, deadline, idempotency_key: _, wants_its_own } = submission;
        let mut job = Job::new(new_id(now), *priority, now);
        job.deadline_at = deadline.map(|deadline| now.plus(deadline));
        if let Some(run_at) = *run_at {
            job.due_at = run_at.max(now);
            job.state = JobState::Queued { run_at: job.due_at };
        }
        job.idempotency = key.map(Box::new);
        job.caller = caller(request);
        job.waited_for = is_waited_for;
        if !wants_its_own {
            job.question = (self.0.policy.identify)(request, is_waited_for, now);
        }
        job
    }
}

/// Who submits a request, as jobs carry it.
fn caller(request: &JobRequest) -> Option<NonZeroU64> {
    request.caller.as_deref().map(|caller| short_digest(caller.as_bytes()))
}

/// The first half of a SHA-256: no two texts are known to share even that.
fn digest(bytes: &[u8]) -> [u8; 16] {
    let whole: [u8; 32] = Sha256::digest(bytes).into();
    std::array::from_fn(|place| whole[place])
}

/// Eight bytes of a SHA-256, for what is kept in memory for every job.
fn short_digest(bytes: &[u8]) -> NonZeroU64 {
    let [a, b, c, d, e, f, g, h, ..] = digest(bytes);
    NonZeroU64::new(u64::from_be_bytes([a, b, c, d, e, f, g, h])).unwrap_or(NonZeroU64::MIN)
}

/// A new id; ids sort by time of creation.
fn new_id(now: Timestamp) -> JobId {
    let millis = u64::try_from(now.as_millis()).unwrap_or(0);
    let nanos = u32::try_from(millis % 1_000).unwrap_or(0) * 1_000_000;
    Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, millis / 1_000, nanos))
}

#[cfg(test)]
mod tests;
