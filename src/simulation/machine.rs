//! A machine on which one process after another is a node.

use std::{
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rand::{RngExt, rngs::StdRng};
use tokio::{
    sync::{Notify, oneshot},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    claude::{AT_RISK, Caller, Claude, MODEL},
    connection::Connection,
    database::Database,
    store::NodeStore,
};
use crate::{
    clock::{Clock, Moments, Timestamp},
    config::values::{DailyBudget, RateCaps},
    digest::{ModelKey, sha256},
    dispatch::{Dispatcher, assigned},
    job::JobRequest,
    ledger::Spending,
    limits::{
        self, Limits,
        budget::{Budget, Need},
    },
    metrics::Metrics,
    process::Node,
    queue::{Policy, Queue, QueueError, WorkQueue, retry::RetryBounds},
    registry::{Registry, Unavailable},
    store::Store,
    sweeper,
    worker::Worker,
};

/// No client waits longer for an answer to its HTTP request.
const REQUEST_LIMIT: Duration = Duration::from_secs(35);

/// As `app` has them.
const CLAIM_GRACE: Duration = Duration::from_secs(3);
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Calls that run when a node stops may take so long.
const GRACE: Duration = Duration::from_secs(60);

/// Questions that begin so are asked by several clients.
pub(super) const SHARED: &str = "shared";

/// What is the same on all nodes.
pub(super) struct Settings {
    pub(super) calls_at_once: usize,
    pub(super) daily_tokens: Option<u64>,
    pub(super) cache_for: Duration,
    pub(super) lease: Duration,
}

/// All that there is besides the nodes.
pub(super) struct World {
    pub(super) database: Arc<Database>,
    pub(super) claude: Arc<Claude>,
    pub(super) settings: Settings,
    pub(super) metrics: Metrics,
    pub(super) random: Mutex<StdRng>,
    pub(super) processes: AtomicU32,
}

pub(super) struct Machine {
    name: String,
    pub(super) clock: Clock,
    pub(super) is_cut: Arc<AtomicBool>,
    pub(super) run: Mutex<Option<Run>>,
    pub(super) kill: Notify,
    /// Stops the process in order.
    pub(super) stop: Notify,
}

/// A process.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) process: Node,
    pub(super) connection: Arc<Connection>,
    pub(super) queue: Option<Queue>,
    ended: CancellationToken,
}

impl Machine {
    pub(super) fn new(name: String, start: Timestamp) -> Arc<Machine> {
        Arc::new(Machine {
            name,
            clock: Clock::running(start),
            is_cut: Arc::default(),
            run: Mutex::default(),
            kill: Notify::new(),
            stop: Notify::new(),
        })
    }

    /// Starts a process again and again.
    pub(super) async fn supervise(self: Arc<Self>, world: Arc<World>) {
        loop {
            let (process, clock) = (Node::default(), self.clock.restarted());
            clock.resume(world.database.seat.lock().time.as_ref());
            let number = world.processes.fetch_add(1, Ordering::Relaxed);
            let is_cut = Arc::clone(&self.is_cut);
            let named = (self.name.clone(), world.settings.lease);
            let connection = Connection::open(&world.database, number, &process, clock, is_cut, named);
            let (ended, exit) = (CancellationToken::new(), CancellationToken::new());
            let run = Run { process: process.clone(), connection, queue: None, ended: ended.clone() };
            *self.run.lock() = Some(run.clone());
            process.spawn(Arc::clone(&self).start(Arc::clone(&world), run.clone(), exit.clone()));
            tokio::select! {
                biased;
                () = run.connection.lost.cancelled() => {}
                () = exit.cancelled() => {}
                () = self.kill.notified() => {}
            }
            process.kill();
            ended.cancel();
            *self.run.lock() = None;
            world.database.journal.event(&format!("process {number} ended"));
            let pause = Duration::from_millis(world.random.lock().random_range(50..3_000));
            sleep(pause).await;
        }
    }

    /// A process from its start on, as `app` does it.
    async fn start(self: Arc<Self>, world: Arc<World>, run: Run, exit: CancellationToken) {
        let Run { process, connection, .. } = &run;
        process.spawn(Arc::clone(connection).run_owner());
        let store: Arc<dyn Store> = Arc::new(NodeStore(Arc::clone(connection)));
        let (clock, spending, closing) = (connection.clock.clone(), Spending::default(), CancellationToken::new());
        let policy = policy(&world.settings, connection);
        let queue = loop {
            let (clock, metrics) = (clock.clone(), world.metrics.clone());
            let queue =
                Queue::open(Arc::clone(&store), clock, policy.clone(), metrics, spending.clone(), closing.clone());
            match queue.await {
                Ok(queue) => break queue,
                Err(_) => sleep(Duration::from_millis(500)).await,
            }
        };
        if let Some(run) = self.run.lock().as_mut().filter(|run| run.connection.number == connection.number) {
            run.queue = Some(queue.clone());
        }
        let (work, limits) = (queue.work(), limits(&world, clock.clone(), spending));
        let memo = Arc::new(Memo::new(Registry::new(Arc::clone(&store) as _), limits.clone(), clock));
        let stop = Stop {
            closing: closing.clone(),
            claims: TaskTracker::new(),
            tracker: TaskTracker::new(),
            memo: Arc::clone(&memo),
            connection: Arc::clone(connection),
        };
        let (claims, tracker) = (stop.claims.clone(), stop.tracker.clone());
        let (this, stopped) = (Arc::clone(&self), exit.clone());
        process.spawn(async move {
            this.stop.notified().await;
            stop.run().await;
            stopped.cancel();
        });
        let worker = Worker {
            queue: work.clone(),
            limits: limits.clone(),
            agent: Caller { claude: Arc::clone(&world.claude), process: connection.number },
            metrics: world.metrics.clone(),
            closing: closing.clone(),
        };
        let (beating, assigning, following) = (Arc::clone(connection), worker.clone(), queue.work());
        process.spawn(Arc::clone(connection).run_beats());
        process.spawn(async move { beating.nodes.watch_lease().await });
        process.spawn(Arc::clone(connection).run_letters(limits.clone()));
        process.spawn(assigned::run(assigning, tracker.clone()));
        process.spawn(async move { following.follow_own_node().await });
        process.spawn(Arc::clone(connection).run_seat());
        if closing.run_until_cancelled(connection.seated()).await.is_none() {
            return;
        }
        if memo.take_over().await.is_err() || recover(&work).await.is_err() {
            return exit.cancel();
        }
        *world.database.dispatcher.lock() = Some(limits);
        process.spawn(async move { memo.run().await });
        process.spawn(sweeper::run(work.clone(), closing.clone()));
        Dispatcher::start(worker, world.settings.calls_at_once, &tracker, &claims);
        // What was started above lives as long as the process.
        std::future::pending::<()>().await;
    }

    /// Makes an HTTP request to the node. `None` if no answer comes.
    pub(super) async fn request<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        make: impl FnOnce(Queue) -> F,
    ) -> Option<T> {
        let run = self.run.lock().clone()?;
        let (reply, answer) = oneshot::channel();
        let request = make(run.queue?);
        run.process.spawn(async move { drop(reply.send(request.await)) });
        tokio::select! {
            biased;
            answer = answer => answer.ok(),
            () = run.ended.cancelled() => None,
            () = sleep(REQUEST_LIMIT) => None,
        }
    }
}

async fn recover(work: &WorkQueue) -> Result<(), QueueError> {
    work.end_lost().await?;
    while work.end_overdue().await? > 0 {}
    Ok(())
}

fn policy(settings: &Settings, connection: &Connection) -> Policy {
    Policy {
        nodes: Arc::clone(&connection.nodes) as _,
        workers: settings.calls_at_once,
        retries: RetryBounds {
            other: 3,
            connect: 10,
            overload: 6,
            invalid_output: 1,
            give_back_for: Duration::from_hours(72),
        },
        estimate_risk: Arc::new(|_| AT_RISK),
        dedup_key: Arc::new(|request: &JobRequest, _, _| {
            let [a, b, c, d, ..] = sha256(&[request.query.as_bytes()]);
            let key = NonZeroU64::new(u64::from(u32::from_be_bytes([a, b, c, d])));
            key.filter(|_| request.query.starts_with(SHARED))
        }),
        cache_for: settings.cache_for,
        lease: settings.lease,
        retry_unknown_outcome: true,
        ..Policy::plain()
    }
}

fn limits(world: &World, clock: Clock, spending: Spending) -> Limits {
    let caps = RateCaps { requests: Some(world.claude.per_minute), ..RateCaps::default() };
    let daily = DailyBudget { tokens: world.settings.daily_tokens, cost: None };
    let budget = daily.tokens.map(|_| Budget::new(daily, Need::from(AT_RISK), clock, spending));
    Limits::new(caps, world.settings.calls_at_once, budget, Arc::new(|| ModelKey::of(MODEL)))
}

/// What a stop in order takes, as `app` makes it.
struct Stop {
    closing: CancellationToken,
    claims: TaskTracker,
    tracker: TaskTracker,
    memo: Arc<Memo>,
    connection: Arc<Connection>,
}

impl Stop {
    async fn run(self) {
        self.closing.cancel();
        self.tracker.close();
        self.claims.close();
        let _ = timeout(CLAIM_GRACE, self.claims.wait()).await;
        self.memo.leave().await;
        self.connection.drain().await;
        let _ = timeout(GRACE, self.tracker.wait()).await;
    }
}

/// What the dispatcher knows, for the next one.
struct Memo {
    registry: Registry,
    limits: Limits,
    clock: Clock,
    is_dispatcher: AtomicBool,
}

const MEMO: &str = "node/dispatcher/state";

impl Memo {
    fn new(registry: Registry, limits: Limits, clock: Clock) -> Memo {
        Memo { registry, limits, clock, is_dispatcher: AtomicBool::new(false) }
    }

    async fn take_over(&self) -> Result<(), Unavailable> {
        if let Some(memo) = self.registry.get::<limits::Memo>(MEMO).await? {
            self.limits.adopt(memo, &Moments::now(&self.clock));
        }
        self.is_dispatcher.store(true, Ordering::Relaxed);
        self.limits.take_over();
        Ok(())
    }

    async fn leave(&self) {
        if self.is_dispatcher.load(Ordering::Relaxed) {
            let memo = self.limits.memo(&Moments::now(&self.clock));
            let _ = timeout(LEAVE_TIMEOUT, self.registry.put(MEMO.to_owned(), &memo)).await;
            self.is_dispatcher.store(false, Ordering::Relaxed);
        }
    }

    async fn run(&self) {
        let (mut moments, mut stored) = (Moments::now(&self.clock), None);
        while self.is_dispatcher.load(Ordering::Relaxed) {
            moments = moments.renewed(&self.clock);
            let memo = self.limits.memo(&moments);
            if stored.as_ref() != Some(&memo) && self.registry.put(MEMO.to_owned(), &memo).await.is_ok() {
                stored = Some(memo);
            }
            sleep(Duration::from_secs(1)).await;
        }
    }
}
