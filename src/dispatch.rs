//! The dispatcher: takes the best job from the queue once a call for it may be made, claims it, and starts its attempt. So
//! jobs wait in the queue, in its order, and not at a worker.
//!
//! Several claims are under way at a time and share commits. A job that is submitted while no other is ready and a call may
//! be made is stored already claimed ([`Standby`]): that halves its way to Claude.
//!
//! - `prefetch`: how many jobs are claimed before a call ends, where a claim takes long compared with a call

mod prefetch;

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tracing::{debug, error};

use self::prefetch::Prefetch;
use crate::{
    agent::{Agent, Analyst},
    digest::Lane,
    limits::Permit,
    process,
    queue::{Claim, Lanes, Proposal, Reserved, Standby},
    worker::Worker,
};

/// Pause after a claim that failed because the store is unavailable.
const CLAIM_RETRY: Duration = Duration::from_millis(500);

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
    tracker: TaskTracker,
}

/// Room for the attempt of a job that is being stored.
struct Place<A> {
    dispatcher: Dispatcher<A>,
    slot: OwnedSemaphorePermit,
    permit: Permit,
    /// The tracker waits for the attempt from now on.
    _token: TaskTrackerToken,
}

impl<A> Clone for Dispatcher<A> {
    fn clone(&self) -> Dispatcher<A> {
        Dispatcher(Arc::clone(&self.0))
    }
}

impl<A: Analyst> Dispatcher<A> {
    /// Starts to dispatch, with at most `calls` calls at once, until the worker's `closing` is cancelled. `tracker` follows
    /// all attempts to their end.
    pub fn start(worker: Worker<A>, calls: usize, tracker: &TaskTracker) {
        let slots = Arc::new(Semaphore::new(JOBS_PER_CALL * calls));
        let (retry_at, prefetch) = (Mutex::new(Instant::now()), Prefetch::default());
        let dispatcher = Dispatcher(Arc::new(Inner { worker, slots, retry_at, prefetch, tracker: tracker.clone() }));
        let standby: Weak<dyn Standby> = Arc::downgrade(&dispatcher.0) as _;
        dispatcher.0.worker.queue.set_standby(standby);
        tracker.spawn(process::task(async move {
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
        let Inner { worker: Worker { queue, limits, .. }, slots, tracker, .. } = &*self.0;
        loop {
            let retry_at = *self.0.retry_at.lock();
            if retry_at > Instant::now() {
                tokio::time::sleep_until(retry_at).await;
            }
            queue.until_ready().await;
            let Ok(slot) = Arc::clone(slots).acquire_owned().await else { return };
            let permit = limits.permit(|| queue.ready_lanes(), queue.ready()).await;
            // None if the job has been cancelled, or was handed over, meanwhile.
            if let Some(proposal) = queue.propose(&Lanes::Only(permit.lanes().to_vec())) {
                // A task of its own, which is never dropped half-way: a durable claim must reach its attempt.
                tracker.spawn(process::task(self.clone().claim(proposal, permit, slot)));
            }
        }
    }

    async fn claim(self, proposal: Proposal, permit: Permit, slot: OwnedSemaphorePermit) {
        let Inner { worker: Worker { queue, limits, .. }, prefetch, .. } = &*self.0;
        if queue.is_store_down() {
            // Its attempt would be released before the call.
            *self.0.retry_at.lock() = Instant::now() + CLAIM_RETRY;
            return;
        }
        let begun = Instant::now();
        match queue.claim(proposal).await {
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

    async fn attempt(&self, claim: Claim, permit: Permit, _slot: OwnedSemaphorePermit) {
        if let Some(took) = self.0.worker.attempt(&claim, permit).await {
            self.0.prefetch.called(took);
        }
    }
}

impl<A: Analyst> Standby for Inner<A> {
    fn reserve(self: Arc<Self>, lane: Lane) -> Option<Box<dyn Reserved>> {
        // Before the check, so that a stop that begins here waits for it.
        let token = self.tracker.token();
        if self.worker.closing.is_cancelled() || self.worker.queue.is_store_down() {
            return None;
        }
        let slot = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        let permit = self.worker.limits.try_permit(lane)?;
        Some(Box::new(Place { dispatcher: Dispatcher(self), slot, permit, _token: token }))
    }
}

impl<A: Analyst> Reserved for Place<A> {
    fn start(self: Box<Self>, claim: Claim) {
        let Place { dispatcher, slot, permit, _token } = *self;
        let tracker = dispatcher.0.tracker.clone();
        tracker.spawn(process::task(async move { dispatcher.attempt(claim, permit, slot).await }));
    }
}
