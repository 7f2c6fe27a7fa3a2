//! The queue's policy: what is accepted, who gets which job, what becomes of it afterwards. Between the store, which
//! keeps jobs, and everybody who wants something of them.
//!
//! - `admission`: the bounds on pending jobs
//! - `board`: all pending jobs in memory, and which can be claimed
//! - `bulk`: one action for many jobs
//! - `claim`: what workers take, keep and settle
//! - `estimate`: when the answer of a queued job comes
//! - `fair_queue`: callers take turns
//! - `follow`: news of a job for those who follow it
//! - `hold`: clients that are held for an answer
//! - `listener`: what news from the store brings about
//! - `order`: which job is claimed next while clients wait
//! - `outlook`: why a job waits and when its answer may come
//! - `pause`: no job is claimed until an operator says so
//! - `policy`: the queue's settings
//! - `refused`: why a job can't become pending
//! - `reparse`: reading kept answers again
//! - `retry`: what becomes of a job after an attempt
//! - `service_time`: how long attempts last
//! - `submit`: how a question becomes a job
//! - `sweep`: what time runs out on
//! - `wait`: who waits for what, and who is woken
//! - `webhooks`: those that fail, and those that a person resends
//!
//! It runs no job (`worker` does) and watches no clock of its own (`sweeper` does).

mod admission;
mod board;
pub mod bulk;
mod claim;
mod estimate;
mod fair_queue;
mod follow;
mod hold;
mod listener;
mod order;
mod outlook;
mod pause;
mod policy;
mod refused;
mod reparse;
pub mod retry;
mod service_time;
mod submit;
mod sweep;
mod wait;
mod webhooks;

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub use self::{
    admission::Quota,
    board::Proposal,
    claim::{Claim, Reserved, Standby},
    fair_queue::Lanes,
    follow::{Draft, Follower, News, Seen},
    order::Waiting,
    outlook::{Allowance, Hold, Outlook, WaitingFor},
    pause::Pause,
    policy::Policy,
    refused::Refused,
    service_time::Kind,
    submit::{Accepted, Submission},
};
use self::{
    admission::{Bounds, DiskSpace, Rates},
    board::{Arrivals, Board},
    listener::Listener,
    order::Order,
    pause::Switch,
    refused::Shortage,
    service_time::ServiceTime,
    wait::{Running, Waiters},
};
use crate::{
    clock::{Clock, Timestamp},
    digest::sha256,
    history::History,
    ids::Ids,
    job::{
        AtRisk, Job, JobEvent, JobFilter, JobId, JobPage, JobRecord, JobStatus, Listing, StatusCounts, TransitionError,
        caller::{self, Caller, Kind as CallerKind},
    },
    ledger::{Day, Spending, Sums},
    metrics::{Metrics, kind},
    registry::{Registry, Unavailable},
    store::{Insertion, JobStore, Outbox, Store, StoreError},
};

/// A waiter looks at its job at least so often, should it have missed a signal.
const WAIT_POLL: Duration = Duration::from_secs(5);

/// Why the queue could not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// There is no such job (any more).
    #[error("job {0} not found")]
    NotFound(JobId),
    /// The job's state does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// A bound on pending jobs or on submissions is reached.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The idempotency key is in force for another request.
    #[error("this Idempotency-Key was used for another request; use a new key for each request")]
    KeyReused,
    /// The job that the idempotency key stands for is there no more.
    #[error("this Idempotency-Key belongs to job {0}, which was removed; use a new key for a new request")]
    Removed(JobId),
    /// No answer that was kept of the job can be read.
    #[error("the stored answer can't be parsed as a memo: {0}")]
    Unreadable(String),
    /// The service is shutting down and accepts no more.
    #[error("the service is shutting down and accepts no more jobs")]
    Closing,
    /// The store can't be used at the moment.
    #[error("{0}")]
    Unavailable(String),
}

impl From<Unavailable> for QueueError {
    fn from(error: Unavailable) -> QueueError {
        QueueError::Unavailable(error.to_string())
    }
}

impl From<StoreError> for QueueError {
    fn from(error: StoreError) -> QueueError {
        match error {
            StoreError::NotFound(id) => QueueError::NotFound(id),
            StoreError::Transition(error) => QueueError::Conflict(error.to_string()),
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
    outbox: Arc<dyn Outbox>,
    ids: Ids,
    clock: Clock,
    policy: Policy,
    metrics: Metrics,
    /// All pending jobs.
    board: Arc<Board>,
    /// For a job's end.
    waiters: Arc<Waiters>,
    /// For every change of a job.
    followers: Arc<Waiters>,
    order: Arc<Order>,
    running: Arc<Running>,
    /// Signalled when a job is ready.
    ready: Arc<Notify>,
    standby: Mutex<Option<Weak<dyn Standby>>>,
    service_time: ServiceTime,
    history: Arc<History>,
    registry: Registry,
    spending: Spending,
    bounds: Bounds,
    /// Signalled when a job has ended that may owe a message to its callback URL.
    ended: Arc<Notify>,
    paused: Switch,
    /// Signalled when something became due earlier than the sweeper may expect.
    due: Arc<Notify>,
    closing: CancellationToken,
}

impl Queue {
    /// A queue over `store`, which feeds its board. Cancel `closing` to have it accept and give out no more jobs and answer
    /// those who wait.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn open(
        store: Arc<dyn Store>,
        clock: Clock,
        policy: Policy,
        metrics: Metrics,
        spending: Spending,
        closing: CancellationToken,
    ) -> Result<Queue, QueueError> {
        let registry = Registry::new(Arc::clone(&store) as _);
        let history = History::load(registry.clone(), clock.clone(), metrics.clone()).await?;
        let paused = Switch::load(&registry).await?;
        let (outbox, store): (Arc<dyn Outbox>, Arc<dyn JobStore>) = (Arc::clone(&store) as _, store);
        let bounds = Bounds {
            max_pending: policy.max_pending,
            max_scheduled: policy.max_scheduled,
            max_pending_per_caller: policy.max_pending_per_caller,
            rates: Rates::new(policy.submits_per_minute),
            disk_space: DiskSpace::default(),
            is_folder_gone: AtomicBool::new(false),
        };
        let ready = Arc::<Notify>::default();
        let board = Arc::new(Board::new(clock.clone(), Arc::clone(&ready)));
        let queue = Queue(Arc::new(Inner {
            store,
            outbox,
            ids: Ids::default(),
            clock,
            policy,
            metrics,
            board,
            waiters: Arc::default(),
            followers: Arc::default(),
            order: Arc::default(),
            running: Arc::default(),
            ready,
            standby: Mutex::default(),
            service_time: ServiceTime::default(),
            history: Arc::new(history),
            registry,
            spending,
            bounds,
            ended: Arc::default(),
            paused,
            due: Arc::default(),
            closing,
        }));
        let inner = &queue.0;
        let listener = Arc::new(Listener {
            clock: inner.clock.clone(),
            board: Arc::clone(&inner.board),
            order: Arc::clone(&inner.order),
            running: Arc::clone(&inner.running),
            waiters: Arc::clone(&inner.waiters),
            followers: Arc::clone(&inner.followers),
            ready: Arc::clone(&inner.ready),
            due: Arc::clone(&inner.due),
            ended: Arc::clone(&inner.ended),
            spending: inner.spending.clone(),
        });
        inner.store.subscribe(listener).await?;
        Ok(queue)
    }

    /// The job with its request and history.
    ///
    /// # Errors
    /// [`QueueError::NotFound`], [`QueueError::Unavailable`].
    pub async fn get(&self, id: JobId) -> Result<JobRecord, QueueError> {
        self.0.store.get(id).await?.ok_or(QueueError::NotFound(id))
    }

    /// The job without its request and history.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub async fn find(&self, id: JobId) -> Result<Job, QueueError> {
        match self.0.board.get(id) {
            Some(job) => Ok((*job).clone()),
            None => self.0.store.find(id).await?.ok_or(QueueError::NotFound(id)),
        }
    }

    /// The job as soon as it has reached an end, or as it is at `until` or when the service shuts down.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub async fn wait(&self, id: JobId, until: Instant) -> Result<JobRecord, QueueError> {
        let interest = self.0.waiters.register(id);
        loop {
            let signalled = interest.signal().notified();
            let job = self.find(id).await?;
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

    /// Cancels a queued or running job; a cancelled one stays so.
    ///
    /// # Errors
    /// [`QueueError::Conflict`] if the job ended otherwise, [`QueueError::NotFound`], [`QueueError::Unavailable`].
    pub async fn cancel(&self, id: JobId) -> Result<JobRecord, QueueError> {
        match self.give_up(id).await {
            Ok(_) | Err(StoreError::Transition(TransitionError::Illegal { status: JobStatus::Cancelled, .. })) => {
                self.get(id).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Cancels a job, with what its attempt may cost if one is under way. The store refuses a cancel that does not know of
    /// the attempt, because a worker claimed the job in this moment: then the next try knows.
    async fn give_up(&self, id: JobId) -> Result<Job, StoreError> {
        loop {
            let at_risk = self.at_risk(id).await;
            match self.transition(id, JobEvent::Cancel { at_risk }).await {
                Err(StoreError::Transition(TransitionError::Illegal { status: JobStatus::Running, .. })) => {}
                result => return result,
            }
        }
    }

    /// What the attempt of a running job may cost. If its request can't be read, that of the usual one.
    async fn at_risk(&self, id: JobId) -> Option<AtRisk> {
        self.0.board.get(id).filter(|job| job.is_running())?;
        let request = match self.0.running.request(id) {
            Some(request) => request,
            None => self.0.store.get(id).await.ok().flatten().map_or_else(Arc::default, |record| record.request),
        };
        Some((self.0.policy.estimate_risk)(&request))
    }

    /// Puts a failed or cancelled job back into the queue, with a fresh count of attempts. It counts as a submission of the
    /// caller who wants it.
    ///
    /// # Errors
    /// As [`Queue::cancel`], and [`QueueError::Refused`].
    pub async fn requeue(&self, id: JobId, by: Caller) -> Result<JobRecord, QueueError> {
        self.put_back(id, by).await?;
        self.get(id).await
    }

    /// As [`Queue::requeue`], without a look at the job afterwards.
    async fn put_back(&self, id: JobId, by: Caller) -> Result<(), QueueError> {
        let (now, job) = (self.now(), self.find(id).await?);
        let event = JobEvent::Requeue { run_at: now };
        let after = job.apply(&event, now).map_err(StoreError::from)?;
        let arrivals = self.0.board.admit(&self.0.bounds, (by, job.caller), &[&after])?;
        let queue = self.clone();
        store_admitted(arrivals, async move { queue.transition(id, event).await.map(drop) }).await
    }

    /// Deletes a job that has ended, with its memo.
    ///
    /// # Errors
    /// [`QueueError::Conflict`] if the job has not ended, [`QueueError::NotFound`], [`QueueError::Unavailable`].
    pub async fn delete(&self, id: JobId) -> Result<(), QueueError> {
        loop {
            let job = self.find(id).await?;
            if !job.state.is_final() {
                let status = job.status(self.now());
                return Err(QueueError::Conflict(format!("the job is {status}; cancel it before you delete it")));
            }
            // The store leaves out a job that changes at this moment.
            if self.0.store.remove(vec![id], self.now()).await? == 1 {
                return Ok(());
            }
        }
    }

    /// A page of jobs. A search that takes long ends before the page is full, and says how far it came.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn list(&self, mut listing: Listing) -> Result<JobPage, QueueError> {
        note_caller(&mut listing.filter);
        Ok(self.0.store.list(listing, self.now()).await?)
    }

    /// Takes over jobs of another service, those whose id is not here yet, as they were there. An attempt that was under
    /// way there is of unknown outcome here, as after a crash. Tells how many were new.
    ///
    /// # Errors
    /// [`QueueError::Refused`] with none taken over, [`QueueError::Closing`], [`QueueError::Unavailable`].
    pub async fn import(&self, mut records: Vec<JobRecord>) -> Result<usize, QueueError> {
        if self.0.closing.is_cancelled() {
            return Err(QueueError::Closing);
        }
        let now = self.now();
        for record in &mut records {
            record.job.arrive(now);
            if let Some(key) = &mut record.job.idempotency {
                key.expires_at = key.expires_at.min(now.plus(self.0.policy.idempotency_window));
            }
        }
        let mut new: Vec<&Job> = Vec::new();
        for JobRecord { job, .. } in &records {
            new.extend(self.0.store.find(job.id).await?.is_none().then_some(job));
        }
        // An operator brings them, whosever they are.
        let arrivals = self.0.board.admit(&self.0.bounds, (caller::operator(), None), &new)?;
        let store = Arc::clone(&self.0.store);
        let insertions = store_admitted(arrivals, async move { store.import(records).await }).await?;
        self.0.due.notify_one();
        Ok(insertions.iter().filter(|insertion| **insertion == Insertion::Accepted).count())
    }

    /// Whether `name` submitted the job. Jobs of callers without a name are everybody's who has none. By a digest of the
    /// name that is in memory.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub async fn is_of(&self, id: JobId, name: Option<&str>) -> Result<bool, QueueError> {
        let job = self.find(id).await?;
        Ok(match name {
            Some(name) => job.caller == caller::named(name),
            None => caller::kind(job.caller) != CallerKind::Named,
        })
    }

    /// What is left of a caller's submissions this minute, if they are limited.
    pub fn quota(&self, caller: Caller) -> Option<Quota> {
        self.0.bounds.rates.quota(caller, Instant::now())
    }

    /// How the service fared over time.
    pub fn history(&self) -> &Arc<History> {
        &self.0.history
    }

    /// Has the clients of a job take the place that its state calls for.
    fn place(&self, job: &Job, now: Timestamp) {
        self.0.order.note([job], (now, self.0.clock.lead()), |job| self.0.board.is_held_back(job.id));
    }

    /// How many jobs there are in each state.
    pub fn counts(&self) -> StatusCounts {
        self.0.board.counts()
    }

    /// The used share of the places in the queue: of all, or of those for jobs for later, whichever is larger.
    pub fn used(&self) -> f64 {
        let StatusCounts { queued, scheduled, running, .. } = self.counts();
        self.0.bounds.used(queued + scheduled + running, scheduled)
    }

    /// What was spent today, durably.
    pub fn spent_today(&self) -> Sums {
        self.0.spending.on(Day::of(self.now()))
    }

    /// How many jobs were accepted since the start.
    pub fn submitted(&self) -> u64 {
        self.0.metrics.jobs_submitted.get()
    }

    /// How long the oldest job has waited that could run.
    pub fn oldest_queued_age(&self) -> Duration {
        self.0.board.oldest_queued().map_or(Duration::ZERO, |due_at| self.now().since(due_at))
    }

    /// How many clients wait for a job's end or follow one.
    pub fn waiters(&self) -> usize {
        self.0.waiters.len() + self.0.followers.len()
    }

    /// How many attempts are under way in this process.
    pub fn running_attempts(&self) -> usize {
        self.0.running.len()
    }

    /// Signalled when a job has ended that may owe a message to its callback URL.
    pub fn ended(&self) -> &Notify {
        &self.0.ended
    }

    /// How many attempts can be under way at once.
    pub fn workers(&self) -> usize {
        (self.0.policy.allowance)(None).calls_at_once.min(self.0.policy.workers)
    }

    /// How long an attempt lasts: a running mean.
    pub fn service_time(&self) -> Duration {
        self.0.service_time.mean()
    }

    /// Why the store can't be used at the moment, if so.
    pub fn trouble(&self) -> Option<String> {
        let gone = self.is_folder_gone().then(|| Refused::FolderGone.to_string());
        self.0.store.trouble().or(gone)
    }

    /// Whether the store's file is no longer where the next start would look for it.
    fn is_folder_gone(&self) -> bool {
        self.0.bounds.is_folder_gone.load(Ordering::Relaxed)
    }

    /// Records whether the store's file is where its path says. While it is not, no job is accepted and no call is made:
    /// what is written could not be found again.
    pub fn note_folder(&self, is_gone: bool) {
        match (self.0.bounds.is_folder_gone.swap(is_gone, Ordering::Relaxed), is_gone) {
            (false, true) => error!("{}", Refused::FolderGone),
            (true, false) => {
                info!("the data folder is back: jobs are accepted");
                self.0.ready.notify_one();
            }
            _ => {}
        }
    }

    /// Cancelled when the store can't recover by itself: the process has to be started again.
    pub fn store_lost(&self) -> CancellationToken {
        self.0.store.lost()
    }

    /// What the disk is short of, if it is: then no job is accepted, and all else goes on.
    pub fn shortage(&self) -> Option<Shortage> {
        self.0.bounds.disk_space.shortage()
    }

    /// Tells the queue how much space the disk has, and how much it should have at least.
    pub fn note_disk_space(&self, free_bytes: u64, floor_bytes: u64) {
        match self.0.bounds.disk_space.note(free_bytes, floor_bytes) {
            (None, Some(shortage)) => error!("no jobs are accepted: {shortage}"),
            (Some(_), None) => info!(disk.free_bytes = free_bytes, "enough disk space again: jobs are accepted"),
            _ => {}
        }
    }

    /// True once the service is shutting down.
    pub fn is_closing(&self) -> bool {
        self.0.closing.is_cancelled()
    }

    /// The service time.
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// The machine's clock, as clients compare it with theirs.
    pub fn wall(&self) -> Timestamp {
        self.0.clock.wall()
    }

    /// How long a claim lasts without a heartbeat.
    pub fn lease(&self) -> Duration {
        self.0.policy.lease
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
        let is_running = || self.0.board.get(id).is_some_and(|job| job.is_running());
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
            JobEvent::Succeed { attempt, report } => {
                let followers = self.0.board.followers(id);
                self.0.store.succeed(id, attempt, report, followers, now).await
            }
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
        let took = now.since(job.due_at);
        self.0.metrics.jobs_finished.get_or_create(&kind(status.into())).inc();
        if status != JobStatus::Cancelled {
            self.0.metrics.time_to_finish_seconds.observe(took.as_secs_f64());
        }
        if status == JobStatus::Succeeded {
            self.0.history.succeeded(took);
        }
        info!(job.id = %job.id, job.status = %status, attempt = job.attempt, duration_ms = took.as_secs_f64() * 1e3,
            "job finished");
    }
}

/// Has the store take jobs that were admitted. The bounds count them until the store has answered, even if the client hangs
/// up in this moment: then a task of its own waits for the answer.
async fn store_admitted<T: Send + 'static>(
    arrivals: Arrivals,
    taken: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, QueueError> {
    let mut call = Outliving(Some(Box::pin(async move {
        let taken = taken.await;
        drop(arrivals);
        taken
    })));
    let result = poll_fn(|context| match &mut call.0 {
        Some(call) => call.as_mut().poll(context),
        None => Poll::Pending,
    });
    let result = result.await;
    call.0 = None;
    Ok(result?)
}

/// A call that goes on if it is dropped before its end.
struct Outliving<T: Send + 'static>(Option<Pin<Box<dyn Future<Output = T> + Send>>>);

impl<T: Send + 'static> Drop for Outliving<T> {
    fn drop(&mut self) {
        if let (Some(call), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(call);
        }
    }
}

/// The first half of a SHA-256: no two texts are known to share even that.
fn digest(bytes: &[u8]) -> [u8; 16] {
    let whole = sha256(&[bytes]);
    std::array::from_fn(|place| whole[place])
}

/// Adds what tells the caller's jobs from others without reading them.
fn note_caller(filter: &mut JobFilter) {
    filter.caller_digest = filter.caller.as_deref().and_then(caller::named);
}

#[cfg(test)]
mod tests;
