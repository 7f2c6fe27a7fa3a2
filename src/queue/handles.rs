//! The handles of the queue, by use, and what they share.

use std::sync::{Arc, Weak, atomic::AtomicBool};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    admission::{Bounds, DiskSpace},
    board::Board,
    claim::Standby,
    error::QueueError,
    listener::{Assigned, Listener},
    order::Order,
    pause::Switch,
    policy::Policy,
    rates::Rates,
    relay::Relay,
    running::Running,
    service_time::ServiceTime,
    wait::Waiters,
};
use crate::{
    clock::Clock,
    history::History,
    ids::Ids,
    job::Owner,
    ledger::Spending,
    metrics::Metrics,
    registry::Registry,
    store::{JobStore, Outbox, Store},
};

/// The queue for clients: they submit questions, read jobs and wait for them. Clones are handles to the same queue, and so are
/// [`WorkQueue`] and [`Operations`].
#[derive(Clone)]
pub struct Queue(pub(super) Arc<Inner>);

/// The queue for those who work on jobs: the dispatcher, the workers and the sweeper.
#[derive(Clone)]
pub struct WorkQueue(pub(super) Arc<Inner>);

/// The queue for operators and for monitoring.
#[derive(Clone)]
pub struct Operations(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) store: Arc<dyn JobStore>,
    pub(super) outbox: Arc<dyn Outbox>,
    pub(super) ids: Ids,
    pub(super) clock: Clock,
    pub(super) policy: Policy,
    pub(super) metrics: Metrics,
    /// All pending jobs.
    pub(super) board: Arc<Board>,
    /// For a job's end.
    pub(super) waiters: Arc<Waiters>,
    /// For every change of a job.
    pub(super) followers: Arc<Waiters>,
    pub(super) order: Arc<Order>,
    pub(super) running: Arc<Running>,
    /// This node, as the owner of attempts.
    pub(super) own: watch::Receiver<Owner>,
    pub(super) assigned: Assigned,
    /// Nodes that lately released what they were given.
    pub(super) passed_over: Mutex<Vec<(Owner, Instant)>>,
    /// The node of each claim that is on its way.
    pub(super) choices: Arc<Mutex<Vec<Owner>>>,
    /// Text of attempts on other nodes, and the way of ours to them.
    pub(super) relay: Option<Relay>,
    /// Signalled when a job is ready.
    pub(super) ready: Arc<Notify>,
    pub(super) standby: Mutex<Option<Weak<dyn Standby>>>,
    pub(super) service_time: ServiceTime,
    pub(super) history: Arc<History>,
    pub(super) spending: Spending,
    pub(super) bounds: Bounds,
    /// Signalled when a job has ended that may owe a message to its callback URL.
    pub(super) ended: Arc<Notify>,
    pub(super) paused: Arc<Switch>,
    /// Signalled when something became due earlier than the sweeper may expect.
    pub(super) due: Arc<Notify>,
    pub(super) closing: CancellationToken,
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
        let history = History::load(registry.clone(), clock.clone(), metrics.clone(), policy.node.clone()).await?;
        let (outbox, store): (Arc<dyn Outbox>, Arc<dyn JobStore>) = (Arc::clone(&store) as _, store);
        let bounds = Bounds {
            max_pending: policy.max_pending,
            max_scheduled: policy.max_scheduled,
            max_pending_per_caller: policy.max_pending_per_caller,
            rates: Rates::new(policy.submits_per_minute, policy.shared_rates.clone()),
            disk_space: DiskSpace::default(),
            is_folder_gone: AtomicBool::new(false),
        };
        let own = policy.nodes.own();
        let relay = policy.text_relay.clone().map(Relay::new);
        let ready = Arc::<Notify>::default();
        let paused = Arc::new(Switch::load(registry, Arc::clone(&ready)).await?);
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
            own,
            assigned: Arc::default(),
            passed_over: Mutex::default(),
            choices: Arc::default(),
            relay,
            ready,
            standby: Mutex::default(),
            service_time: ServiceTime::default(),
            history: Arc::new(history),
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
            own: inner.own.clone(),
            assigned: Arc::clone(&inner.assigned),
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

    /// Panics unless the board has exactly these jobs.
    #[cfg(test)]
    pub(crate) fn assert_board_has(&self, pending: Vec<Arc<crate::job::Job>>) {
        self.0.board.assert_consistent(pending);
    }

    pub fn work(&self) -> WorkQueue {
        WorkQueue(Arc::clone(&self.0))
    }

    pub fn operations(&self) -> Operations {
        Operations(Arc::clone(&self.0))
    }
}
