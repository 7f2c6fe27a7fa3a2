//! The queue's policy: what is accepted, which job is next, what becomes of it afterwards. It has three handles, by use:
//! [`Queue`] for clients, [`WorkQueue`] for those who work on jobs, [`Operations`] for operators.
//!
//! - `admission`: the bounds on pending jobs
//! - `board`: all pending jobs in memory, and which can be claimed
//! - `bulk`: one action for many jobs
//! - `claim`: a job's way from ready to claimed to settled
//! - `core`: what the handles share
//! - `estimate`: when the answer of a queued job comes
//! - `fair_queue`: callers take turns
//! - `follow`: news of a job for those who follow it
//! - `hold`: clients that are held for an answer
//! - `jobs`: what clients do with jobs
//! - `listener`: what news from the store brings about
//! - `operations`: what operators do and see
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
mod core;
mod estimate;
mod fair_queue;
mod follow;
mod hold;
mod jobs;
mod listener;
mod operations;
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
    sync::{Arc, Weak, atomic::AtomicBool},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

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
    board::Board,
    listener::Listener,
    order::Order,
    pause::Switch,
    service_time::ServiceTime,
    wait::{Running, Waiters},
};
use crate::{
    clock::Clock,
    digest::sha256,
    history::History,
    ids::Ids,
    job::{JobFilter, JobId, caller},
    ledger::Spending,
    metrics::Metrics,
    registry::{Registry, Unavailable},
    store::{JobStore, Outbox, Store, StoreError},
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

/// The queue for clients: they submit questions, read jobs and wait for them. Clones are handles to the same queue, and so are
/// [`WorkQueue`] and [`Operations`].
#[derive(Clone)]
pub struct Queue(Arc<Inner>);

/// The queue for those who work on jobs: the dispatcher, the workers and the sweeper.
#[derive(Clone)]
pub struct WorkQueue(Arc<Inner>);

/// The queue for operators and for monitoring.
#[derive(Clone)]
pub struct Operations(Arc<Inner>);

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

    pub fn work(&self) -> WorkQueue {
        WorkQueue(Arc::clone(&self.0))
    }

    pub fn operations(&self) -> Operations {
        Operations(Arc::clone(&self.0))
    }
}

/// The first half of a SHA-256: no two texts are known to share even that.
fn digest(bytes: &[u8]) -> [u8; 16] {
    let whole = sha256(&[bytes]);
    std::array::from_fn(|place| whole[place])
}

/// Adds what tells the caller's jobs from others without reading them.
fn add_caller_digest(filter: &mut JobFilter) {
    filter.caller_digest = filter.caller.as_deref().and_then(caller::named);
}

#[cfg(test)]
mod tests;
