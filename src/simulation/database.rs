//! The database of all nodes, with what `store::postgres` makes of one: write transactions take turns, each adds a row to the
//! feed, and the node with the seat writes only as long as no other has raised the epoch. It is over a [`MemoryStore`].

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use rand::{RngExt, rngs::StdRng};
use tokio::time::{Instant, sleep};

use super::journal::Journal;
use crate::{
    clock::SavedTime,
    job::{Job, JobId},
    limits::Limits,
    store::{Feed, JobStore, StoreError, Totals, memory::MemoryStore, postgres::Row as NodeRow},
};

/// A transaction whose node is silent for so long is rolled back.
const IDLE_LIMIT: Duration = Duration::from_secs(2);

/// A notification comes no later.
const LATEST_NEWS: Duration = Duration::from_secs(3);

pub(super) struct Database {
    pub(super) store: Arc<MemoryStore>,
    pub(super) journal: Arc<Journal>,
    pub(super) feed: Arc<Log>,
    pub(super) seat: Mutex<SeatRow>,
    pub(super) weather: Mutex<Weather>,
    /// The table of nodes.
    pub(super) nodes: Mutex<Vec<NodeRow>>,
    /// Who hands out calls, by the process.
    pub(super) dispatcher: Mutex<Option<Limits>>,
    connections: Mutex<Vec<Weak<dyn Peer>>>,
    /// Held from the start of a write transaction to its end.
    turn: tokio::sync::Mutex<()>,
    random: Mutex<StdRng>,
}

/// A process, as the database sees it.
pub(super) trait Peer: Send + Sync {
    /// Its number among all processes.
    fn number(&self) -> u32;
    fn is_reachable(&self) -> bool;
    /// The server hears nothing of it.
    fn is_silent(&self) -> bool;
    /// The server knows that the process has ended.
    fn is_gone(&self) -> bool;
    fn has_link(&self, link: u64) -> bool;
    /// Ends the connections. The node connects again.
    fn fail(&self);
    /// There are so many rows, and the node hears of it at this moment.
    fn hear(&self, rows: usize, at: Instant);
}

/// The lock and the row of the seat.
#[derive(Default)]
pub(super) struct SeatRow {
    pub(super) lock: Option<Arc<dyn Peer>>,
    /// The process that raised the epoch.
    pub(super) owner: Option<u32>,
    pub(super) epoch: u64,
    pub(super) beats: u64,
    pub(super) time: Option<SavedTime>,
}

/// What goes wrong at the moment.
#[derive(Clone, Copy, Default)]
pub(super) struct Weather {
    pub(super) is_down: bool,
    /// This part of the answers to commits is lost, and as many notifications are late.
    pub(super) loss: f64,
    /// Round trips take so many times longer.
    pub(super) slowness: u32,
    /// Nothing is answered before.
    pub(super) stalls_until: Option<Instant>,
}

/// All commits in their order.
pub(super) struct Log {
    journal: Arc<Journal>,
    state: Mutex<LogState>,
}

#[derive(Default)]
struct LogState {
    rows: Vec<Row>,
    pending: BTreeMap<JobId, Arc<Job>>,
    totals: Totals,
}

#[derive(Clone)]
pub(super) struct Row {
    pub(super) jobs: Vec<Arc<Job>>,
    pub(super) totals: Totals,
}

impl Feed for Log {
    fn reset(&self, _: Vec<Arc<Job>>, totals: Totals) {
        self.state.lock().totals = totals;
    }

    fn changed(&self, jobs: &[Arc<Job>], totals: Totals) {
        let mut state = self.state.lock();
        for job in jobs {
            self.journal.committed(job, &state.pending);
            if job.state.is_final() {
                state.pending.remove(&job.id);
            } else {
                state.pending.insert(job.id, Arc::clone(job));
            }
        }
        if jobs.is_empty() && totals == state.totals {
            return;
        }
        state.totals = totals;
        state.rows.push(Row { jobs: jobs.to_vec(), totals });
    }
}

impl Log {
    pub(super) fn len(&self) -> usize {
        self.state.lock().rows.len()
    }

    pub(super) fn rows(&self, from: usize, to: usize) -> Vec<Row> {
        self.state.lock().rows.get(from..to).unwrap_or_default().to_vec()
    }

    /// All pending jobs, the sums, and how many rows they come from.
    pub(super) fn all(&self) -> (Vec<Arc<Job>>, Totals, usize) {
        let state = self.state.lock();
        (state.pending.values().cloned().collect(), state.totals, state.rows.len())
    }
}

/// How a transaction ends that was not refused.
pub(super) enum Commit {
    /// Done, with all rows of the feed so far.
    Done(usize),
    /// Nobody knows.
    Unknown,
}

impl Database {
    pub(super) async fn open(journal: Arc<Journal>, random: StdRng) -> Arc<Database> {
        let feed = Arc::new(Log { journal: Arc::clone(&journal), state: Mutex::default() });
        let store = Arc::new(MemoryStore::default());
        store.subscribe(Arc::clone(&feed) as _).await.unwrap();
        Arc::new(Database {
            store,
            journal,
            feed,
            seat: Mutex::default(),
            weather: Mutex::default(),
            nodes: Mutex::default(),
            dispatcher: Mutex::default(),
            connections: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            random: Mutex::new(random),
        })
    }

    pub(super) fn connected(&self, connection: Weak<dyn Peer>) {
        let mut connections = self.connections.lock();
        connections.retain(|other| other.upgrade().is_some_and(|other| !other.is_gone()));
        connections.push(connection);
    }

    pub(super) fn is_lost(&self) -> bool {
        let loss = self.weather.lock().loss;
        self.random.lock().random_bool(loss)
    }

    /// A random time up to `most`.
    pub(super) fn up_to(&self, most: Duration) -> Duration {
        most.mul_f64(self.random.lock().random())
    }

    /// Half a round trip: mostly a few milliseconds, and sometimes much more.
    pub(super) fn latency(&self) -> Duration {
        let Weather { slowness, stalls_until, .. } = *self.weather.lock();
        let stall = stalls_until.map_or(Duration::ZERO, |until| until.duration_since(Instant::now()));
        let mut random = self.random.lock();
        let most = if random.random_ratio(1, 50) { 300 } else { 4 };
        stall + Duration::from_micros(random.random_range(100..most * 1_000)) * slowness.max(1)
    }

    /// Stops and starts again: all connections end, and what was not committed is rolled back.
    pub(super) fn set_down(&self, is_down: bool) {
        self.weather.lock().is_down = is_down;
        if is_down {
            self.seat.lock().lock = None;
            self.connections.lock().iter().filter_map(Weak::upgrade).for_each(|connection| connection.fail());
        }
    }

    /// Makes one transaction for a node. `link` is the connection's number; `check` may refuse it.
    pub(super) async fn transaction<T>(
        &self,
        node: &dyn Peer,
        link: u64,
        check: impl FnOnce(&mut SeatRow) -> Result<(), StoreError>,
        change: impl Future<Output = Result<T, StoreError>>,
    ) -> (Option<Result<T, StoreError>>, Commit) {
        let unknown = (None, Commit::Unknown);
        sleep(self.latency()).await;
        if !node.is_reachable() {
            sleep(self.up_to(IDLE_LIMIT)).await;
            return unknown;
        }
        let turn = self.turn.lock().await;
        let begun = Instant::now();
        sleep(self.latency()).await;
        while node.is_silent() {
            // The end of a process closes its connections.
            if begun.elapsed() > IDLE_LIMIT || node.is_gone() {
                return unknown;
            }
            sleep(Duration::from_millis(50)).await;
        }
        if self.weather.lock().is_down || !node.has_link(link) {
            return unknown;
        }
        let is_allowed = check(&mut self.seat.lock());
        let result = match is_allowed {
            Ok(()) => change.await,
            Err(error) => Err(error),
        };
        let rows = self.feed.len();
        drop(turn);
        self.announce(rows);
        if self.is_lost() {
            return unknown;
        }
        sleep(self.latency()).await;
        if node.is_reachable() { (Some(result), Commit::Done(rows)) } else { unknown }
    }

    /// Notifies all nodes, some of them late.
    fn announce(&self, rows: usize) {
        let nodes: Vec<Arc<dyn Peer>> = self.connections.lock().iter().filter_map(Weak::upgrade).collect();
        for node in nodes.iter().filter(|node| !node.is_gone()) {
            let delay = if self.is_lost() { self.up_to(LATEST_NEWS) } else { self.latency() };
            node.hear(rows, Instant::now() + delay);
        }
    }

    /// Has every node hear of all commits.
    pub(super) fn announce_all(&self) {
        let rows = self.feed.len();
        for node in self.connections.lock().iter().filter_map(Weak::upgrade) {
            node.hear(rows, Instant::now());
        }
    }
}
