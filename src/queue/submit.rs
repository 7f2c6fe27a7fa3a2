//! How a question becomes a job: alone or with others, under a name or not, answered at once, claimed at once, or put into
//! the queue.

use std::{borrow::Cow, num::NonZeroU64, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    board::Arrivals,
    claim::Reserved,
    core::{digest, store_admitted},
    error::QueueError,
    fair_queue::List,
    handles::Queue,
    hold,
    order::{self, Waiting},
    outlook::{self, Allowance},
    refused::Refused,
    service_time::Kind,
};
use crate::{
    clock::Timestamp,
    digest::ModelKey,
    job::{
        Cached, Depth, IdempotencyKey, Job, JobEvent, JobRecord, JobRequest, JobState, Priority,
        caller::{self, Caller},
    },
    store::{Insertion, StoreError},
};

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
    /// Whose bounds apply; if absent, those of the request's caller.
    pub by: Caller,
}

impl Submission {
    /// Whose bounds apply.
    fn caller(&self) -> Caller {
        self.by.or_else(|| caller::named(self.request.caller.as_deref()?))
    }
}

/// What became of a submission.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The job.
    pub record: JobRecord,
    /// It was there before, under the same idempotency key.
    pub replayed: bool,
}

impl Queue {
    /// Accepts a job: it is on disk when this returns. A submission whose idempotency key is in force brings the job that
    /// it stands for instead.
    ///
    /// # Errors
    /// [`QueueError::KeyReused`], [`QueueError::Removed`], [`QueueError::Refused`], [`QueueError::Closing`],
    /// [`QueueError::Unavailable`].
    pub async fn enqueue(&self, submission: Submission) -> Result<Accepted, QueueError> {
        let nobody_waits = None::<(Instant, fn(Option<NonZeroU64>, &JobRequest) -> bool)>;
        Ok(self.accept(submission, nobody_waits).await?.0)
    }

    /// As [`Queue::enqueue`], for a client that would be held until `until` for the answer. If it is likely to be there
    /// by then, the job goes before background jobs, and [`Queue::answer`] waits for it; else there is
    /// nothing to wait for, and the client gets its `202` at once.
    ///
    /// # Errors
    /// As [`Queue::enqueue`].
    pub async fn ask(
        &self,
        submission: Submission,
        until: Instant,
        allowance: impl FnOnce() -> Allowance,
    ) -> Result<(Accepted, Option<Waiting>), QueueError> {
        let by = submission.caller();
        let hold = |question: Option<NonZeroU64>, request: &JobRequest| {
            // The same question is being asked already: the client waits for that answer.
            !self.0.policy.deadlines_first
                || self.0.board.is_under_way(question)
                || !self.0.is_paused() && self.can_be_met(by, request, until, allowance)
        };
        let accepted = self.accept(submission, Some((until, hold))).await?;
        if accepted.1.is_none() && !accepted.0.record.job.state.is_final() {
            self.0.history.waited(false);
        }
        Ok(accepted)
    }

    /// Whether a job that is submitted now is likely to have its answer by `until`: with an even chance if a worker is free
    /// for it, else almost surely, as others would want the worker too.
    fn can_be_met(
        &self,
        by: Caller,
        request: &JobRequest,
        until: Instant,
        allowance: impl FnOnce() -> Allowance,
    ) -> bool {
        let interactive = self.0.order.ahead_of(by, until);
        // One in so many claims is for another job.
        let has_background = self.0.board.ready(Some(List::Background)) > 0;
        let share = self.0.policy.background_share as usize;
        let share = if has_background { share } else { share * order::DEMOTED_SHARE as usize };
        let others = interactive / share.saturating_sub(1).max(1);
        let figures = self.0.figures(interactive + others, if has_background { others } else { 0 });
        let allowance = allowance();
        let Some(start) = outlook::start_in(&figures, allowance) else { return false };
        let expectation = self.0.service_time.expectation(&Kind::of(request, true));
        let wanted = until.saturating_duration_since(Instant::now());
        let is_contested = !start.is_zero();
        let slack = if is_contested { hold::SLACK } else { Duration::ZERO };
        let is_met = self.0.is_met(&expectation, wanted.saturating_sub(start + slack), is_contested);
        // Not a rush: calls that are held, and a client that wants less than an answer takes.
        if !is_met && allowance.hold.is_none() && self.0.is_met(&expectation, wanted, false) {
            self.0.order.record_declined();
        }
        is_met
    }

    /// The depth of a memo that leaves it to the service: brief where a client waits, unless the pace that was learnt lets
    /// a full one be there in time.
    fn resolved_depth(&self, request: &JobRequest, until: Option<Instant>) -> Depth {
        let full = Kind { depth: Depth::Full, ..Kind::of(request, true) };
        let fits = |until: Instant| {
            let expectation = self.0.service_time.expectation(&full);
            let left = until.saturating_duration_since(Instant::now());
            expectation.is_learnt && self.0.is_met(&expectation, left, true) && self.0.order.ready() == 0
        };
        match request.depth {
            Depth::Auto if until.is_some_and(fits) => Depth::Full,
            depth => depth.resolved(until.is_some()),
        }
    }

    /// Accepts a job, with a place for its client if that asks to be held until a moment and, by its question, is to be.
    async fn accept(
        &self,
        mut submission: Submission,
        wait: Option<(Instant, impl FnOnce(Option<NonZeroU64>, &JobRequest) -> bool)>,
    ) -> Result<(Accepted, Option<Waiting>), QueueError> {
        if self.0.closing.is_cancelled() {
            return Err(QueueError::Closing);
        }
        let now = self.0.now();
        let key = submission.idempotency_key.as_deref().map(|key| self.idempotency_key(key, &submission, now));
        submission.request.depth = self.resolved_depth(&submission.request, wait.as_ref().map(|(until, _)| *until));
        let mut job = self.new_job(&submission, key, wait.is_some(), now);
        let caller = job.caller;
        let is_replay = self.is_replay(key.as_ref(), now).await?;
        let hold_until = wait.and_then(|(until, hold)| hold(job.question, &submission.request).then_some(until));
        let request = Arc::new(submission.request);
        if !is_replay && let Some(answered) = self.cached_answer(&job, &request, now).await? {
            return Ok((self.accept_answered(answered).await?, None));
        }
        let arrivals = if is_replay { Arrivals::default() } else { self.admit(&[&job]).await? };
        // Before the job is there, so that it has its place from its first moment. It is given up with this future.
        let enter = |id| Some(self.0.order.enter(id, caller, Kind::of(&request, true), hold_until?));
        let waiting = enter(job.id);
        let is_due = !job.is_timed && !job.is_overdue(now);
        let board = &self.0.board;
        let may_start = is_due && !is_replay && !self.0.is_paused() && board.is_next(&job);
        let hand = if may_start { self.0.reserve(job.model) } else { None };
        let hand = hand.filter(|_| board.arrives_claimed(&job));
        if hand.is_some() {
            let claim = JobEvent::Claim { owner: self.0.owner(), asks: None };
            job = job.apply(&claim, now).map_err(StoreError::from)?;
            self.0.running.take(job.id, job.attempt);
        }
        match self.insert(job.clone(), Arc::clone(&request), arrivals, hand).await? {
            Insertion::Accepted => {
                self.0.metrics.jobs_submitted.inc();
                Ok((Accepted { record: JobRecord::fresh(job, request), replayed: false }, waiting))
            }
            Insertion::Existing(id) => {
                let waiting = enter(id);
                let record = self.0.store.get(id).await?.ok_or(QueueError::Removed(id))?;
                self.0.place(&record.job, self.0.now());
                Ok((Accepted { record, replayed: true }, waiting))
            }
        }
    }

    /// Whether the key is in force, so that the submission most likely brings no new job.
    async fn is_replay(&self, key: Option<&IdempotencyKey>, now: Timestamp) -> Result<bool, QueueError> {
        match key {
            Some(key) => Ok(self.0.store.is_key_known(key, now).await?),
            None => Ok(false),
        }
    }

    /// The job at its end, if it asks what has been answered lately.
    async fn cached_answer(
        &self,
        job: &Job,
        request: &Arc<JobRequest>,
        now: Timestamp,
    ) -> Result<Option<JobRecord>, QueueError> {
        let Some(question) = job.question.filter(|_| !self.0.policy.cache_for.is_zero() && !job.is_timed) else {
            return Ok(None);
        };
        let is_fresh = |at: &Timestamp| now.since(*at) < self.0.policy.cache_for;
        let newest = self.0.store.newest_answer(question).await?;
        let newest = newest.and_then(|job| Some((job.id, job.finished_at.filter(is_fresh)?)));
        let Some((id, finished_at)) = newest else { return Ok(None) };
        let source = match self.0.store.get(id).await {
            Ok(Some(source)) => source,
            // The question can still be asked.
            Ok(None) | Err(StoreError::Corrupt { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let answer = source.answer().map(|answer| answer.report.cached(Cached { job_id: id, finished_at }));
        let Some(report) = answer.filter(|report| report.result.is_some()) else { return Ok(None) };
        let event = JobEvent::Share { report: Arc::new(report) };
        let shared = job.closed_attempt(&event, now).zip(job.apply(&event, now).ok());
        Ok(shared.map(|(attempt, job)| JobRecord {
            attempts: vec![Arc::new(attempt)],
            ..JobRecord::fresh(job, Arc::clone(request))
        }))
    }

    /// Asks the bounds of their caller whether these jobs may be accepted.
    async fn admit(&self, jobs: &[&Job]) -> Result<Arrivals, Refused> {
        let caller = jobs.first().and_then(|job| job.caller);
        self.0.admit((caller, caller), jobs).await
    }

    /// Accepts a job that has its answer already.
    async fn accept_answered(&self, record: JobRecord) -> Result<Accepted, QueueError> {
        let arrivals = self.admit(&[&record.job]).await?;
        let inserted = self.insert_all(vec![record.clone()], arrivals).await?;
        if let Some(Insertion::Existing(id)) = inserted.first() {
            let record = self.0.store.get(*id).await?.ok_or(QueueError::Removed(*id))?;
            return Ok(Accepted { record, replayed: true });
        }
        self.record_cached_answer(&record.job);
        // With what is owed to its callback URL by now.
        let record = if record.delivery.is_some() { self.0.get(record.job.id).await? } else { record };
        Ok(Accepted { record, replayed: false })
    }

    fn record_cached_answer(&self, job: &Job) {
        self.0.metrics.jobs_submitted.inc();
        self.0.metrics.answers_cached.inc();
        self.0.record_end(job, self.0.now());
    }

    /// Accepts jobs that belong together, all or none: they are on disk when this returns. `key` names them as a whole:
    /// the same submissions under it bring the same jobs, in the same order. It is no name of a single submission's.
    ///
    /// # Errors
    /// As [`Queue::enqueue`]; [`QueueError::Refused`] also where some of them may become pending.
    pub async fn enqueue_all(
        &self,
        submissions: Vec<Submission>,
        key: Option<&str>,
    ) -> Result<(Vec<Job>, bool), QueueError> {
        if self.0.closing.is_cancelled() {
            return Err(QueueError::Closing);
        }
        let now = self.0.now();
        let keys = key.map(|key| self.batch_keys(key, &submissions, now));
        let is_replay = self.is_replay(keys.iter().flatten().next(), now).await?;
        let mut keys = keys.into_iter().flatten();
        let mut jobs = Vec::with_capacity(submissions.len());
        for mut submission in submissions {
            submission.request.depth = submission.request.depth.resolved(false);
            let job = self.new_job(&submission, keys.next(), false, now);
            let request = Arc::new(submission.request);
            let answered = if is_replay { None } else { self.cached_answer(&job, &request, now).await? };
            jobs.push(answered.unwrap_or_else(|| JobRecord::fresh(job, request)));
        }
        let accepted: Vec<Job> = jobs.iter().map(|record| record.job.clone()).collect();
        let new: Vec<&Job> = accepted.iter().collect();
        let arrivals = if is_replay { Arrivals::default() } else { self.admit(&new).await? };
        let inserted = self.insert_all(jobs, arrivals).await?;
        let mut existing = Vec::new();
        for insertion in inserted {
            if let Insertion::Existing(id) = insertion {
                existing.push(self.0.store.find(id).await?.ok_or(QueueError::Removed(id))?);
            }
        }
        if !existing.is_empty() {
            return Ok((existing, true));
        }
        for job in &accepted {
            if job.state.is_final() {
                self.record_cached_answer(job);
            } else {
                self.0.metrics.jobs_submitted.inc();
            }
        }
        Ok((accepted, false))
    }

    /// What a client's name for a batch makes of each of its jobs. Each knows of all the others, so that another batch
    /// under the same name differs from this one whatever they share.
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

    /// A client's key, with the digest of its submission.
    fn idempotency_key(&self, key: &str, submission: &Submission, now: Timestamp) -> IdempotencyKey {
        let Submission { request, priority, run_at, deadline, idempotency_key: _, wants_its_own: _, by: _ } =
            submission;
        // Which HTTP request brought it makes no other question of it.
        let request = JobRequest { request_id: None, traceparent: None, ..request.clone() };
        let asked = serde_json::to_vec(&(&request, priority, run_at, deadline.map(|deadline| deadline.as_secs())));
        // A key is its caller's own: no caller gets another's job with it.
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

    /// Stores a job that was admitted. If it arrives claimed, its attempt starts.
    async fn insert(
        &self,
        job: Job,
        request: Arc<JobRequest>,
        arrivals: Arrivals,
        hand: Option<Box<dyn Reserved>>,
    ) -> Result<Insertion, QueueError> {
        let queue = self.clone();
        store_admitted(arrivals, async move {
            let inserting = queue.0.store.insert(job.clone(), Arc::clone(&request)).await;
            if inserting.is_err() && job.is_running() {
                queue.0.give_back(job.id);
            }
            let inserted = inserting?;
            if inserted != Insertion::Accepted {
                queue.0.running.give_back(job.id);
            } else if let Some(hand) = hand {
                hand.start(queue.0.begin(job, request, None).await);
            }
            Ok(inserted)
        })
        .await
    }

    /// Stores jobs that were admitted, all or none.
    async fn insert_all(&self, jobs: Vec<JobRecord>, arrivals: Arrivals) -> Result<Vec<Insertion>, QueueError> {
        let store = Arc::clone(&self.0.store);
        store_admitted(arrivals, async move { store.insert_all(jobs).await }).await
    }

    /// The job that a submission becomes.
    fn new_job(
        &self,
        submission: &Submission,
        key: Option<IdempotencyKey>,
        is_waited_for: bool,
        now: Timestamp,
    ) -> Job {
        let Submission { request, priority, run_at, deadline, idempotency_key: _, wants_its_own, by: _ } = submission;
        let mut job = Job::new(self.0.ids.next(now), *priority, now);
        job.deadline_at = deadline.map(|deadline| now.plus(deadline));
        // The client's clock is compared with the machine's, which may be behind the service time, but with no jump ahead.
        if let Some(run_at) = run_at.filter(|run_at| *run_at > now.minus(self.0.clock.lead())) {
            job.state = JobState::Queued { run_at };
            (job.due_at, job.is_timed) = (run_at, true);
        }
        job.idempotency = key.map(Box::new);
        job.caller = submission.caller();
        job.model = submission.request.model.as_deref().map(ModelKey::of);
        job.waited_for = is_waited_for;
        if !wants_its_own {
            let question = (self.0.policy.dedup_key)(request, is_waited_for, now);
            job.question = question.filter(|question| !self.0.board.is_crowded(*question));
        }
        job
    }
}
