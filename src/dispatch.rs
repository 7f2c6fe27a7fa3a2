//! The dispatcher: takes the best job from the queue once a call for it may be made, claims it, and starts its attempt. So
//! jobs wait in the queue, in its order, and not at a worker.
//!
//! Several claims are under way at a time and share commits. A job that is submitted while no other is ready and a call may
//! be made is stored already claimed ([`Standby`]): that halves its way to Claude.
//!
//! Where several nodes make calls, the dispatcher has the least busy one make the next. It follows each attempt to its end, and
//! counts in the limits what it used.
//!
//! - `assigned`: the attempts that another node has claimed for this one
//! - `prefetch`: how many jobs are claimed before a call ends, where a claim takes long compared with a call

pub mod assigned;
mod prefetch;

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream};
use parking_lot::Mutex;
use tokio::{
    sync::{OnceCell, OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tracing::{debug, error};

use self::prefetch::Prefetch;
use crate::{
    agent::{Agent, Analyst},
    digest::{Lane, ModelKey},
    job::{Attempt, AttemptOutcome, Job, Owner},
    limits::Permit,
    process,
    queue::{Choice, Claim, Lanes, Preview, Proposal, QueueError, Reserved, Standby},
    worker::{Worker, settle_permit},
};

/// Pause after a claim that failed because the store is unavailable.
const CLAIM_RETRY: Duration = Duration::from_millis(500);

/// How often the dispatcher looks whether the node that makes a call is there.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Jobs that a new dispatcher reads at once. Each may be large, and the database has a few connections for reads.
const READS_AT_ONCE: usize = 32;

/// Jobs that are being claimed, called for or settled, for each call at once: the disk is at work on some while Claude is
/// at work on others. The limits see to the number of calls.
const JOBS_PER_CALL: usize = 2;

/// Clones are handles to the same dispatcher.
pub struct Dispatcher<A = Agent>(Arc<Inner<A>>);

struct Inner<A> {
    worker: Worker<A>,
    /// One for each job that is being claimed, called for or settled.
    slots: Arc<Semaphore>,
    /// No job is claimed before: the store was unavailable.
    retry_at: Mutex<Instant>,
    prefetch: Prefetch,
    /// Set once the limits and the budget know of the calls under way.
    counted: OnceCell<()>,
    /// Follows attempts to their end.
    tracker: TaskTracker,
    /// Follows claims until they are stored.
    claims: TaskTracker,
}

/// Room for the attempt of a job that is being stored.
struct Place<A> {
    dispatcher: Dispatcher<A>,
    slot: OwnedSemaphorePermit,
    permit: Permit,
    _choice: Choice,
    /// The trackers wait for the claim and the attempt from now on.
    _tokens: [TaskTrackerToken; 2],
}

impl<A> Clone for Dispatcher<A> {
    fn clone(&self) -> Dispatcher<A> {
        Dispatcher(Arc::clone(&self.0))
    }
}

impl<A: Analyst> Dispatcher<A> {
    /// Starts to dispatch, with at most `calls` calls at once, until the worker's `closing` is cancelled. `tracker` follows
    /// all attempts to their end, and `claims` all claims until they are stored.
    pub fn start(worker: Worker<A>, calls: usize, tracker: &TaskTracker, claims: &TaskTracker) {
        let slots = Arc::new(Semaphore::new(JOBS_PER_CALL * calls));
        let (retry_at, prefetch) = (Mutex::new(Instant::now()), Prefetch::default());
        let dispatcher = Dispatcher(Arc::new(Inner {
            worker,
            slots,
            retry_at,
            prefetch,
            counted: OnceCell::new(),
            tracker: tracker.clone(),
            claims: claims.clone(),
        }));
        let token = claims.token();
        tracker.spawn(process::task(async move {
            let _token = token;
            let Worker { closing, metrics, .. } = &dispatcher.0.worker;
            // Without it no job would be claimed any more.
            while let Some(Err(_)) =
                closing.run_until_cancelled(AssertUnwindSafe(dispatcher.run()).catch_unwind()).await
            {
                metrics.panics.inc();
                error!("the dispatcher panicked; it goes on");
                closing.run_until_cancelled(tokio::time::sleep(CLAIM_RETRY)).await;
            }
        }));
    }

    async fn run(&self) {
        let Inner { worker: Worker { queue, limits, .. }, slots, tracker, claims, .. } = &*self.0;
        // First: the limits and the budget have to know what runs.
        self.0.counted.get_or_init(|| self.count_running()).await;
        let standby: Weak<dyn Standby> = Arc::downgrade(&self.0) as _;
        queue.set_standby(standby);
        loop {
            let retry_at = *self.0.retry_at.lock();
            if retry_at > Instant::now() {
                tokio::time::sleep_until(retry_at).await;
            }
            queue.until_ready().await;
            let Ok(slot) = Arc::clone(slots).acquire_owned().await else { return };
            if !queue.may_call() {
                // Jobs that are claimed ahead are called for by this node, which is to make no calls now.
                limits.claim_ahead(0);
            }
            let permit = limits.permit(|| queue.ready_lanes(), queue.ready()).await;
            if queue.is_store_down() {
                // The attempt would be released before its call.
                *self.0.retry_at.lock() = Instant::now() + CLAIM_RETRY;
                continue;
            }
            // None if the job has been cancelled, or was handed over, meanwhile.
            if let Some(proposal) = queue.propose(&Lanes::Only(permit.lanes().to_vec())) {
                // A task of its own, which is never dropped half-way: a durable claim must reach its attempt.
                tracker.spawn(process::task(self.clone().claim(proposal, permit, slot, claims.token())));
            }
        }
    }

    /// The attempts that a former dispatcher permitted, and that nodes still make, count as calls of this one.
    async fn count_running(&self) {
        let Worker { queue, limits, .. } = &self.0.worker;
        let reads = stream::iter(queue.running()).map(|job| async move { (queue.at_risk(job.id).await, job) });
        // No call is counted before all are read: after a panic all are read again.
        let running: Vec<_> = reads.buffer_unordered(READS_AT_ONCE).collect().await;
        for (at_risk, job) in running {
            if let Some(at_risk) = at_risk {
                let permit = limits.occupy(job.asks.or(job.model), at_risk);
                let dispatcher = self.clone();
                self.0.tracker.spawn(process::task(async move { dispatcher.attend(&job, permit).await }));
            }
        }
    }

    async fn claim(self, proposal: Proposal, mut permit: Permit, slot: OwnedSemaphorePermit, token: TaskTrackerToken) {
        let Inner { worker: Worker { queue, limits, .. }, prefetch, .. } = &*self.0;
        let mut choice = queue.least_busy_node();
        if let Some((node, preview, asks)) = self.elsewhere(&choice, &proposal, &mut permit).await {
            let claimed = queue.claim_for(node, asks, proposal, &preview.request).await;
            drop((choice, token));
            return self.follow(claimed, &preview, permit).await;
        }
        choice.keep();
        let begun = Instant::now();
        let claimed = queue.claim(proposal).await;
        drop((choice, token));
        match claimed {
            Ok(Some(claim)) => {
                limits.claim_ahead(prefetch.claimed(begun.elapsed(), limits.calls_at_once(None)));
                self.attempt(claim, permit, slot).await;
            }
            Ok(None) => {}
            Err(error) => {
                debug!(%error, "failed to claim a job; trying again");
                *self.0.retry_at.lock() = Instant::now() + CLAIM_RETRY;
            }
        }
    }

    /// The node that is to make the call instead of this one, if any. The permit is for this call then.
    async fn elsewhere(
        &self,
        choice: &Choice,
        proposal: &Proposal,
        permit: &mut Permit,
    ) -> Option<(Owner, Preview, ModelKey)> {
        let worker = &self.0.worker;
        let node = choice.elsewhere().filter(|_| !permit.is_ahead())?;
        let preview = worker.queue.preview(proposal).await?;
        let asks = worker.admit(&preview, permit)?;
        Some((node, preview, asks))
    }

    /// Follows the attempt that a claim for another node has begun.
    async fn follow(&self, claimed: Result<Option<Job>, QueueError>, preview: &Preview, permit: Permit) {
        let queue = &self.0.worker.queue;
        match claimed {
            Ok(Some(job)) => return self.attend(&job, permit).await,
            Ok(None) => {}
            Err(error) => {
                debug!(%error, "failed to claim a job for another node");
                // The claim may be stored all the same, and the node make the call.
                loop {
                    *self.0.retry_at.lock() = Instant::now() + CLAIM_RETRY;
                    tokio::time::sleep(CLAIM_RETRY).await;
                    if !queue.is_store_down() {
                        break;
                    }
                }
                if let Some(job) = queue.running_attempt(preview.job.id, preview.job.attempt.saturating_add(1)) {
                    return self.attend(&job, permit).await;
                }
            }
        }
        permit.return_unused();
    }

    /// Waits for the end of an attempt, and counts what it used. If its node is silent, its call no longer takes the place of
    /// another. The budget has room for it until the end.
    async fn attend(&self, job: &Job, mut permit: Permit) {
        let Worker { queue, closing, .. } = &self.0.worker;
        let begun = Instant::now();
        // Until the ledger has what the call cost.
        let _share = permit.budget_share();
        let mut over = std::pin::pin!(closing.run_until_cancelled(queue.attempt_over(job.id, job.attempt)));
        while job.owner.is_some_and(|owner| queue.is_at_work(owner)) {
            tokio::select! {
                biased;
                attempt = &mut over => {
                    let attempt = attempt.flatten();
                    if attempt.as_deref().is_some_and(|attempt| !was_made(attempt)) {
                        job.owner.into_iter().for_each(|owner| queue.pass_over(owner));
                    }
                    return settle(permit, begun.elapsed(), attempt.as_deref());
                }
                () = tokio::time::sleep(LOOK_PAUSE) => {}
            }
        }
        permit.settle_failed(None);
        over.await;
    }

    async fn attempt(&self, claim: Claim, permit: Permit, _slot: OwnedSemaphorePermit) {
        if let Some(took) = self.0.worker.attempt(&claim, permit).await {
            self.0.prefetch.called(took);
        }
    }
}

/// Counts what an attempt of another node used. It may have made no call, or may not be readable.
fn settle(permit: Permit, took: Duration, attempt: Option<&Attempt>) {
    if attempt.is_none_or(was_made) {
        // It may have begun under another dispatcher.
        let took = attempt.map_or(took, |attempt| attempt.finished_at.since(attempt.started_at));
        settle_permit(permit, took, attempt.map(|attempt| &*attempt.report));
    } else {
        permit.return_unused();
    }
}

/// Whether the attempt of another node made a call.
fn was_made(attempt: &Attempt) -> bool {
    attempt.outcome != AttemptOutcome::Released || attempt.report.http_status.is_some()
}

impl<A: Analyst> Standby for Inner<A> {
    fn reserve(self: Arc<Self>, lane: Lane) -> Option<Box<dyn Reserved>> {
        // Before the check, so that a stop that begins here waits for it.
        let tokens = [self.tracker.token(), self.claims.token()];
        let queue = &self.worker.queue;
        if self.worker.closing.is_cancelled() || queue.is_store_down() {
            return None;
        }
        let choice = queue.least_busy_node();
        if choice.elsewhere().is_some() {
            return None;
        }
        let slot = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        let permit = self.worker.limits.try_permit(lane)?;
        Some(Box::new(Place { dispatcher: Dispatcher(self), slot, permit, _choice: choice, _tokens: tokens }))
    }
}

impl<A: Analyst> Reserved for Place<A> {
    fn start(self: Box<Self>, claim: Claim) {
        let Place { dispatcher, slot, permit, _choice, _tokens } = *self;
        let tracker = dispatcher.0.tracker.clone();
        tracker.spawn(process::task(async move { dispatcher.attempt(claim, permit, slot).await }));
    }
}
