//! Several nodes of one database in one process, in virtual time, with everything that can fail: nodes are killed, paused,
//! cut off and stopped in order, the database goes down or stalls, commits are not answered, clocks jump, Claude refuses. Queue, dispatcher, worker and
//! sweeper are the real ones; the database, its seat and Claude are simulated.
//!
//! Everything follows from a seed. After each run all faults end, all jobs have to end, and what was promised must hold:
//! see [`journal`]. `CEOAGENT_TEST_SEEDS=10000 cargo test --lib simulation` runs more seeds,
//! `CEOAGENT_TEST_SEED=7` one of them, and `CEOAGENT_TEST_TRACE=1` with it prints what happens.
//!
//! - `claude`: answers and counts calls
//! - `clients`: what they do
//! - `connection`: a process and its connection to the database
//! - `database`: the database
//! - `faults`: what goes wrong
//! - `journal`: what was promised, and whether it holds
//! - `machine`: a machine with one process after the other
//! - `store`: the store as a node sees it

mod claude;
mod clients;
mod connection;
mod database;
mod faults;
mod journal;
mod machine;
mod store;

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep};

use self::{
    claude::{AT_RISK, Claude},
    clients::Client,
    database::Database,
    faults::{Faults, Kinds},
    journal::{GREEDY, Journal},
    machine::{Machine, Settings, World},
};
use crate::{
    clock::Timestamp,
    job::{AttemptOutcome, Job, JobId, JobRecord, JobState},
    ledger,
    limits::budget::Need,
    metrics::Metrics,
    process,
    store::{JobStore, LEASE, Ledger},
};

const SEEDS: u64 = 200;

/// With faults that cost no attempt.
const MILD_SEEDS: u64 = 40;
const NODES: usize = 3;
const CLIENTS: usize = 4;

/// How long things go wrong.
const FAULTS_LAST: Range<u64> = 12..32;

/// A run that needs longer afterwards has failed.
const PATIENCE: Duration = Duration::from_hours(2);

/// So long after the last change, a run waits for the next day's budget.
const BUDGET_WAIT: Duration = Duration::from_mins(3);

/// After so many, no more seeds are run.
const MOST_FAILURES: usize = 5;

/// What a run comes to.
struct Outcome {
    violations: Vec<String>,
    /// A digest of all that happened.
    trace: u64,
    figures: (usize, usize, usize, u32),
}

struct Simulation {
    world: Arc<World>,
    machines: Vec<Arc<Machine>>,
    kinds: Kinds,
}

fn run(seed: u64, kinds: Kinds) -> Outcome {
    process::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut random = StdRng::seed_from_u64(seed);
        let simulation = Simulation::start(&mut random, kinds).await;
        simulation.live(&mut random).await;
        let journal = &simulation.world.database.journal;
        Outcome { violations: journal.violations(), trace: journal.trace(), figures: journal.figures() }
    })
}

impl Simulation {
    async fn start(random: &mut StdRng, kinds: Kinds) -> Simulation {
        let mut stream = || StdRng::seed_from_u64(random.random());
        let database = Database::open(Arc::new(Journal::new()), stream()).await;
        let state = Mutex::new(claude::State {
            random: stream(),
            is_healed: false,
            calls: Vec::new(),
            under_way: 0,
            most_at_once: 0,
            day: 0,
            billed: BTreeMap::new(),
        });
        let (world_random, mut random) = (Mutex::new(stream()), stream());
        let per_minute = NonZeroU32::new([60, 120, 240][random.random_range(0..3)]).unwrap();
        let settings = Settings {
            calls_at_once: random.random_range(2..9),
            daily_tokens: random.random_bool(0.3).then(|| random.random_range(500..4_000)),
            cache_for: Duration::from_secs(random.random_range(0..2) * 10),
            lease: if kinds == Kinds::All { Duration::from_secs(random.random_range(3..30)) } else { LEASE },
        };
        let claude = Arc::new(Claude { database: Arc::clone(&database), per_minute, state });
        let metrics = Metrics::new();
        let world = World { database, claude, settings, metrics, random: world_random, processes: Default::default() };
        let world = Arc::new(world);
        let start = Timestamp::from_millis(1_800_000_000_000);
        let machines: Vec<Arc<Machine>> =
            (0..NODES).map(|place| Machine::new(format!("node {place}"), start)).collect();
        for machine in &machines {
            tokio::spawn(Arc::clone(machine).supervise(Arc::clone(&world)));
        }
        Simulation { world, machines, kinds }
    }

    async fn live(&self, random: &mut StdRng) {
        let until = Instant::now() + Duration::from_secs(random.random_range(FAULTS_LAST));
        let mut client = |name: String| Client {
            world: Arc::clone(&self.world),
            machines: self.machines.clone(),
            random: StdRng::seed_from_u64(random.random()),
            name,
            until,
        };
        let mut tasks = tokio::task::JoinSet::new();
        for place in 0..GREEDY.len() {
            tasks.spawn(client(format!("greedy {place}")).run_greedy(place));
        }
        for place in 0..CLIENTS {
            tasks.spawn(client(format!("client {place}")).run());
        }
        let random = StdRng::seed_from_u64(random.random());
        let (world, machines) = (Arc::clone(&self.world), self.machines.clone());
        Faults { kinds: self.kinds, world, machines, random, until }.run().await;
        tasks.join_all().await;
        self.wait_for_ends().await;
        self.check().await;
    }

    fn stored(&self, id: JobId) -> Option<JobRecord> {
        self.world.database.store.get(id).now_or_never()?.ok()?
    }

    /// Waits until all jobs have ended but those that are not due before long after the run.
    async fn wait_for_ends(&self) {
        let (started, mut changed) = (Instant::now(), (0, Instant::now()));
        loop {
            let (pending, _, rows) = self.world.database.feed.all();
            let is_for_later = |job: &Job| job.is_timed && matches!(job.state, JobState::Queued { .. });
            let open: Vec<_> = pending.iter().filter(|job| !is_for_later(job)).collect();
            if open.is_empty() {
                return;
            }
            if started.elapsed() > PATIENCE {
                return self.world.database.journal.violated(format!("these jobs do not end: {open:?}"));
            }
            if changed.0 != rows {
                changed = (rows, Instant::now());
            } else if self.world.settings.daily_tokens.is_some() && changed.1.elapsed() > BUDGET_WAIT {
                self.machines.iter().for_each(|machine| machine.clock.advance(Duration::from_hours(24)));
                self.world.claude.state.lock().day += 1;
                changed.1 = Instant::now();
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    async fn check(&self) {
        let database = &self.world.database;
        database.announce_all();
        sleep(Duration::from_secs(10)).await;
        database.journal.check_end(|id| self.stored(id));
        for machine in &self.machines {
            let queue = machine.run.lock().as_ref().and_then(|run| run.queue.clone());
            queue.expect("every node runs").assert_board_has(database.feed.all().0);
        }
        if let Some(limit) = self.world.settings.daily_tokens {
            self.check_budget(limit).await;
        }
        if self.kinds != Kinds::All {
            self.check_attempts();
        }
        if self.world.metrics.panics.get() > 0 {
            database.journal.violated("a task panicked".to_owned());
        }
    }
}

impl Simulation {
    /// Where no process died and no node was cut off.
    fn check_attempts(&self) {
        let (journal, allowed) = (&self.world.database.journal, self.world.settings.calls_at_once);
        let at_once = self.world.claude.state.lock().most_at_once;
        // A probe waits for no other call.
        if at_once > allowed + 1 {
            journal.violated(format!("{at_once} calls at once, where {allowed} are allowed"));
        }
        for record in journal.acknowledged_jobs().into_iter().filter_map(|id| self.stored(id)) {
            if record.attempts.iter().any(|attempt| attempt.outcome == AttemptOutcome::OutcomeUnknown) {
                journal.violated(format!("an attempt was left without an outcome: {record:?}"));
            }
        }
    }

    async fn check_budget(&self, limit: u64) {
        let database = &self.world.database;
        for (day, billed) in &self.world.claude.state.lock().billed {
            if *billed > limit {
                database.journal.violated(format!("{billed} tokens billed on day {day}, where {limit} are allowed"));
            }
        }
        // What a claim reserved is not known after its commit was not answered.
        let unknown = database.journal.uncalled(|id| self.stored(id)) * Need::from(AT_RISK).tokens;
        for day in database.store.days(usize::MAX).await.unwrap() {
            let spent = ledger::total(day.models.values()).most_tokens();
            if spent > limit + unknown {
                database.journal.violated(format!("{spent} tokens in the ledger, where {limit} are allowed"));
            }
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: {text:?} is not a number")))
}

/// Runs the seed. The error says what it broke.
fn check(seed: u64, kinds: Kinds) -> Result<Outcome, String> {
    let outcome = std::panic::catch_unwind(|| run(seed, kinds));
    let again = format!("CEOAGENT_TEST_SEED={seed} CEOAGENT_TEST_TRACE=1 cargo test --lib {}", kinds.test());
    let outcome = outcome.map_err(|_| format!("seed {seed} panicked. Again: {again}"))?;
    match &outcome.violations[..] {
        [] => Ok(outcome),
        violations => Err(format!("seed {seed}: {violations:#?}\nAgain: {again}")),
    }
}

fn check_all(seeds: u64, kinds: Kinds) {
    if let Some(seed) = number("CEOAGENT_TEST_SEED") {
        let Outcome { trace, figures, .. } = check(seed, kinds).unwrap_or_else(|failure| panic!("{failure}"));
        println!("seed {seed}: {figures:?}, trace {trace:x}");
        return;
    }
    let (next, seeds) = (AtomicU64::new(0), number("CEOAGENT_TEST_SEEDS").unwrap_or(seeds));
    let (sums, failures) = (Mutex::new((0, 0, 0, 0)), Mutex::new(Vec::new()));
    std::thread::scope(|threads| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let work = || loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds || failures.lock().len() >= MOST_FAILURES {
                return;
            }
            let (jobs, calls, terms, turns) = match check(seed, kinds) {
                Ok(outcome) => outcome.figures,
                Err(failure) => {
                    failures.lock().push(failure);
                    continue;
                }
            };
            let mut sums = sums.lock();
            *sums = (sums.0 + jobs, sums.1 + calls, sums.2 + terms, sums.3 + turns);
        };
        (0..cores).for_each(|_| drop(threads.spawn(work)));
    });
    assert!(failures.lock().is_empty(), "{}", failures.lock().join("\n"));
    println!("jobs, calls, seats, claims in turn: {:?}", sums.lock());
}

#[test]
fn nodes_keep_their_promises_whatever_fails() {
    check_all(SEEDS, Kinds::All);
}

#[test]
fn no_more_calls_are_made_at_once_and_no_outcome_is_unknown_where_the_database_stalls() {
    check_all(MILD_SEEDS, Kinds::Stalls);
}

#[test]
fn no_more_calls_are_made_at_once_and_no_outcome_is_unknown_where_nodes_stop_in_order() {
    check_all(MILD_SEEDS, Kinds::Stops);
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..4 {
        assert_eq!(run(seed, Kinds::All).trace, run(seed, Kinds::All).trace, "seed {seed}");
    }
}
