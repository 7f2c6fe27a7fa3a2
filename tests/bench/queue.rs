//! The queue measured in process, on a real store on disk, without HTTP: `cargo bench --bench queue`, or one part of
//! it: `cargo bench --bench queue -- cycles` (`settle`, `million`, `churn`, `recovery`, and
//! `horizon` for PostgreSQL alone).
//!
//! All go through [`Queue`], as the service does. Each figure stands beside its target. The disk decides most of them
//! and machines differ: judge by what one run says of another on the same machine. See `measure` for PostgreSQL.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a benchmark for people"
)]

mod measure;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ceoagent::{
    claude::simulator::{Latency, Simulator, SimulatorConfig},
    clock::Clock,
    job::{
        AtRisk, AttemptReport, Cursor, FailureCode, JobFilter, JobRequest, JobStatus, Listing, Owner, Side, TokenUsage,
        disposition::Disposition,
    },
    ledger::Spending,
    metrics::Metrics,
    queue::{Allowance, Claim, Lanes, Policy, Queue, Submission, retry::RetryBounds},
    store::{
        Alone, Store,
        postgres::{Member, PostgresStore},
        sled::{SledConfig, SledStore},
    },
    sweeper,
};
use plotters::prelude::*;
use serde_json::value::RawValue;
use tokio::{
    sync::{Mutex, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::measure::{Connection, Home, Latencies, Process, Service, binary, post, used_mb};

/// The size of a question.
const QUERY_BYTES: usize = 1_000;

/// The size of a result.
const RESULT_BYTES: usize = 4_000;

/// How long each load runs.
const ROUND: Duration = Duration::from_secs(5);

/// Jobs that wait in `million`.
const MILLION: usize = 1_000_000;

/// Jobs that go through in `churn`, those kept of them, and how many lie between two looks.
const CHURN: (usize, usize, usize) = (2_000_000, 10_000, 50_000);

/// Jobs that wait in `recovery`, and how often it is killed.
const RECOVERY: (usize, usize) = (100_000, 5);

/// The store in a folder, or in the database of a URL.
async fn open_store(place: &str, metrics: Metrics) -> Arc<dyn Store> {
    if place.starts_with("postgres") {
        return Arc::new(PostgresStore::open(&place.into(), &Member::COMMAND, Clock::system(), metrics).await.unwrap());
    }
    // The service's own cache.
    let config = SledConfig { path: Path::new(place).join("store"), cache_bytes: 64 << 20, keep_answers: false };
    Arc::new(SledStore::open(config, Clock::system(), metrics).unwrap())
}

/// A queue over a store, as the service has it, with room for more jobs than it takes by default.
async fn open(place: &str, max_finished: usize) -> (Queue, Arc<dyn Store>, CancellationToken) {
    let metrics = Metrics::new();
    let store = open_store(place, metrics.clone()).await;
    let policy = Policy {
        node: "node".to_owned(),
        allowance: Arc::new(|_| Allowance {
            calls_per_second: 1e6,
            calls_at_once: 1_000,
            is_exhausted: false,
            hold: None,
        }),
        nodes: Arc::new(Alone::new(Owner::new("bench", std::process::id()))),
        workers: 64,
        deadlines_first: true,
        max_pending: usize::MAX,
        max_scheduled: usize::MAX,
        max_pending_per_caller: usize::MAX,
        submits_per_minute: None,
        shared_rates: None,
        text_relay: None,
        background_share: 5,
        retries: RetryBounds {
            other: 3,
            connect: 30,
            overload: 10,
            invalid_output: 1,
            give_back_for: Duration::from_hours(72),
        },
        estimate_risk: Arc::new(|_| AtRisk { input_tokens: 0, output_tokens: 0, nanodollars: None }),
        dedup_key: Arc::new(|_, _, _| None),
        cache_for: Duration::ZERO,
        idempotency_window: Duration::from_hours(24),
        lease: Duration::from_secs(600),
        retry_unknown_outcome: true,
        keep_finished_for: Duration::from_hours(24),
        max_finished,
    };
    let closing = CancellationToken::new();
    let queue = Queue::open(Arc::clone(&store), Clock::system(), policy, metrics, Spending::default(), closing.clone())
        .await
        .unwrap();
    (queue, store, closing)
}

fn question() -> Submission {
    let request = JobRequest { query: "x".repeat(QUERY_BYTES), ..JobRequest::default() };
    Submission { request, ..Submission::default() }
}

fn answer() -> AttemptReport {
    let result = RawValue::from_string(format!("\"{}\"", "x".repeat(RESULT_BYTES))).unwrap();
    let usage = TokenUsage { input_tokens: 2_000, output_tokens: 1_500, ..TokenUsage::default() };
    AttemptReport {
        http_status: Some(200),
        model: Some("claude-sonnet-5-5".to_owned()),
        usage: Some(usage),
        nanodollars: Some(19_000_000),
        result: Some(result),
        ..AttemptReport::default()
    }
}

/// The next job. Several tasks may wait for one.
async fn claim(queue: &Queue, turn: &Mutex<()>) -> Claim {
    timed_claim(queue, turn).await.0
}

/// The next job, and how long its claim took.
async fn timed_claim(queue: &Queue, turn: &Mutex<()>) -> (Claim, Duration) {
    loop {
        let proposal = {
            let _turn = turn.lock().await;
            queue.work().until_ready().await;
            queue.work().propose(&Lanes::All)
        };
        let begun = Instant::now();
        if let Some(proposal) = proposal
            && let Some(claim) = queue.work().claim(proposal).await.unwrap()
        {
            return (claim, begun.elapsed());
        }
    }
}

/// Tasks that take job after job and answer each at once; they end with the set. `settled` counts.
fn work(tasks: &mut JoinSet<()>, queue: &Queue, workers: usize, settled: &Arc<AtomicUsize>) {
    let turn = Arc::new(Mutex::new(()));
    for _ in 0..workers {
        let (queue, turn, settled) = (queue.clone(), Arc::clone(&turn), Arc::clone(settled));
        tasks.spawn(async move {
            loop {
                let claim = claim(&queue, &turn).await;
                queue.work().settle(&claim.job, &Disposition::Succeed, answer()).await;
                settled.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
}

/// Enqueues `jobs` from `clients` tasks, each as fast as it is answered.
async fn submit(queue: &Queue, clients: usize, jobs: usize) {
    let left = Arc::new(Semaphore::new(jobs));
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let (queue, left) = (queue.clone(), Arc::clone(&left));
        tasks.spawn(async move {
            while let Ok(one) = left.try_acquire() {
                one.forget();
                queue.enqueue(question()).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
}

/// What the disk alone does at this moment: appends of 64 KB, each synced, as a group of some 60 questions makes them.
fn bare_syncs() -> f64 {
    let mut file = tempfile::tempfile().unwrap();
    let (started, mut syncs) = (Instant::now(), 0.0);
    while started.elapsed() < Duration::from_secs(1) {
        file.write_all(&[b'x'; 64 << 10]).unwrap();
        file.sync_data().unwrap();
        syncs += 1.0;
    }
    syncs / started.elapsed().as_secs_f64()
}

async fn until(settled: &AtomicUsize, jobs: usize) {
    while settled.load(Ordering::Relaxed) < jobs {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn cycles() {
    const JOBS: usize = 100_000;
    for tasks in [16, 64, 256] {
        println!("the disk alone                    {:8.0} syncs/s", bare_syncs());
        let home = Home::new();
        let (queue, store, _) = open(&home.place(), usize::MAX).await;
        let (mut workers, settled) = (JoinSet::new(), Arc::default());
        work(&mut workers, &queue, tasks, &settled);
        let (started, ticks) = (Instant::now(), Process::own().cpu_ticks());
        submit(&queue, tasks, JOBS).await;
        until(&settled, JOBS).await;
        let seconds = started.elapsed().as_secs_f64();
        let cores = (Process::own().cpu_ticks() - ticks) as f64 / 100.0 / seconds;
        println!(
            "cycles, {tasks:3} clients, {tasks:3} workers  {:8.0} /s   target 8000   ({cores:.2} cores)",
            JOBS as f64 / seconds
        );
        workers.shutdown().await;
        store.close().await;
    }
}

async fn settle() {
    for clients in [64, 256] {
        println!("the disk alone                    {:8.0} syncs/s", bare_syncs());
        let home = Home::new();
        let (queue, store, _) = open(&home.place(), usize::MAX).await;
        let stop = Arc::new(AtomicBool::new(false));
        let mut submitters = JoinSet::new();
        for _ in 0..clients {
            let (queue, stop) = (queue.clone(), Arc::clone(&stop));
            submitters.spawn(async move {
                let mut submitted = 0;
                while !stop.load(Ordering::Relaxed) {
                    queue.enqueue(question()).await.unwrap();
                    submitted += 1;
                }
                submitted
            });
        }
        let mut workers = JoinSet::new();
        let turn = Arc::new(Mutex::new(()));
        for _ in 0..16 {
            let (queue, turn, stop) = (queue.clone(), Arc::clone(&turn), Arc::clone(&stop));
            workers.spawn(async move {
                let mut latencies = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let claim = claim(&queue, &turn).await;
                    let report = answer();
                    let started = Instant::now();
                    queue.work().settle(&claim.job, &Disposition::Succeed, report).await;
                    latencies.push(started.elapsed());
                }
                latencies
            });
        }
        tokio::time::sleep(ROUND).await;
        stop.store(true, Ordering::Relaxed);
        let latencies = Latencies::new(workers.join_all().await.concat());
        let submitted: usize = submitters.join_all().await.iter().sum();
        println!(
            "settle under {clients:3} clients' submits  p50 {:.2}  p99 {:.2}  max {:.2} ms   target p99 20   \
             ({:.0} submits/s, {:.0} settles/s)",
            latencies.ms(0.5),
            latencies.ms(0.99),
            latencies.ms(1.0),
            submitted as f64 / ROUND.as_secs_f64(),
            latencies.len() as f64 / ROUND.as_secs_f64()
        );
        store.close().await;
    }
}

/// A store with a million waiting jobs, filled and looked at by processes of their own: memory that filling took must
/// not count.
async fn million() {
    let home = Home::new();
    for part in ["--fill", "--look", "--look", "--claim", "--look"] {
        let own = std::env::current_exe().unwrap();
        assert!(Command::new(own).arg(part).arg(home.place()).status().unwrap().success());
    }
}

async fn fill(place: &str) {
    let (queue, store, _) = open(place, usize::MAX).await;
    sparse(&queue).await;
    let started = Instant::now();
    submit(&queue, 512, MILLION).await;
    let seconds = started.elapsed().as_secs_f64();
    println!("1 M queued: fill, 512 clients     {:8.0} /s", MILLION as f64 / seconds);
    println!("1 M queued: resident when filled  {:8.0} MB   target 500", Process::own().resident_mb());
    sparse(&queue).await;
    store.close().await;
    println!("1 M queued: on disk               {:8.0} MB", used_mb(place));
}

/// A few jobs of every other status: the hardest to find are the rarest.
async fn sparse(queue: &Queue) {
    let turn = Mutex::new(());
    for n in 0..400 {
        queue.enqueue(question()).await.unwrap();
        let claim = claim(queue, &turn).await;
        match n % 4 {
            0 => queue.work().settle(&claim.job, &Disposition::Succeed, answer()).await,
            1 => {
                let disposition = Disposition::Fail { code: FailureCode::Refused };
                queue.work().settle(&claim.job, &disposition, AttemptReport::default()).await;
            }
            2 => drop(queue.cancel(claim.job.id).await.unwrap()),
            _ => {}
        }
        if n % 4 == 3 {
            let run_at = Some(queue.now().plus(Duration::from_hours(24)));
            queue.enqueue(Submission { run_at, ..question() }).await.unwrap();
        }
    }
}

/// Opens the filled store and tells what that takes.
async fn open_full(place: &str) -> (Queue, Arc<dyn Store>) {
    let (started, ticks) = (Instant::now(), Process::own().cpu_ticks());
    let (queue, store, _) = open(place, usize::MAX).await;
    let seconds = started.elapsed().as_secs_f64();
    let cpu = (Process::own().cpu_ticks() - ticks) as f64 / 100.0;
    println!("1 M queued: open and index        {seconds:8.2} s    target 3   ({cpu:.2} s of CPU)");
    println!("1 M queued: resident after that   {:8.0} MB   target 500", Process::own().resident_mb());
    (queue, store)
}

async fn look(place: &str) {
    let (queue, store) = open_full(place).await;
    let statuses: [&[JobStatus]; 8] = [
        &[],
        &[JobStatus::Queued],
        &[JobStatus::Scheduled],
        &[JobStatus::Running],
        &[JobStatus::Succeeded],
        &[JobStatus::Failed],
        &[JobStatus::Cancelled],
        &[JobStatus::Scheduled, JobStatus::Failed],
    ];
    for wanted in statuses {
        let name = if wanted.is_empty() {
            "all".to_owned()
        } else {
            wanted.iter().map(ToString::to_string).collect::<Vec<_>>().join(" + ")
        };
        let first = || None;
        // The jobs of other statuses than queued are the first 500 or so, and the last.
        let last = || Some(201);
        let anywhere = || Some(rand::random_range(1..MILLION as u64));
        let pages: [(&str, &dyn Fn() -> Option<u64>); 3] = [("first", &first), ("last", &last), ("any", &anywhere)];
        let mut line = String::new();
        for (page, before) in pages {
            let mut latencies = Vec::new();
            for _ in 0..300 {
                let filter = JobFilter { statuses: wanted.to_vec(), ..JobFilter::default() };
                let cursor = before().map(|from| Cursor { side: Side::Older, from });
                let started = Instant::now();
                queue.list(Listing { filter, cursor, limit: 200, ..Listing::default() }).await.unwrap();
                latencies.push(started.elapsed());
            }
            let latencies = Latencies::new(latencies);
            line += &format!("   {page} p50 {:6.2} p99 {:6.2} ms", latencies.ms(0.5), latencies.ms(0.99));
        }
        println!("page of 200, {name:20}{line}   target p99 50");
    }
    // None of a million meets these: the first is answered from memory, the second from records.
    let rare = JobFilter { codes: vec![FailureCode::Refused], ..JobFilter::default() };
    let unheard = JobFilter::default().with_text(Some("a text that no question holds"));
    for (name, filter) in [("a rare code", rare), ("a rare text", unheard)] {
        let mut latencies = Vec::new();
        let mut cursor = Some(Cursor { side: Side::Older, from: MILLION as u64 });
        while latencies.len() < 300 {
            let started = Instant::now();
            let page = queue.list(Listing { filter: filter.clone(), cursor, limit: 200, ..Listing::default() }).await;
            latencies.push(started.elapsed());
            cursor = page.unwrap().next.or(Some(Cursor { side: Side::Older, from: MILLION as u64 }));
        }
        let latencies = Latencies::new(latencies);
        println!("page of {name:13} p50 {:6.2} p99 {:6.2} ms   bound 500", latencies.ms(0.5), latencies.ms(0.99));
    }
    println!("1 M queued: resident after lists  {:8.0} MB   target 500", Process::own().resident_mb());
    store.close().await;
}

async fn claims(place: &str) {
    let (queue, store) = open_full(place).await;
    let (mut workers, claimed) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    let turn = Arc::new(Mutex::new(()));
    for _ in 0..64 {
        let (queue, turn, claimed) = (queue.clone(), Arc::clone(&turn), Arc::clone(&claimed));
        workers.spawn(async move {
            loop {
                drop(claim(&queue, &turn).await);
                claimed.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    tokio::time::sleep(ROUND).await;
    let claims = claimed.load(Ordering::Relaxed) as f64 / ROUND.as_secs_f64();
    workers.shutdown().await;
    println!("1 M queued: claims, 64 workers    {claims:8.0} /s");
    println!("1 M queued: resident after claims {:8.0} MB   target 500", Process::own().resident_mb());
    store.close().await;
}

async fn churn() {
    const TASKS: usize = 64;
    let (jobs, kept, step) = CHURN;
    let home = Home::new();
    let (queue, store, closing) = open(&home.place(), kept).await;
    let sweeper = tokio::spawn(sweeper::run(queue.work(), closing.clone()));
    let (mut workers, settled) = (JoinSet::new(), Arc::default());
    work(&mut workers, &queue, TASKS, &settled);
    let mut looks: Vec<Look> = Vec::new();
    println!("{:>10} {:>10} {:>12} {:>12} {:>12}", "jobs", "jobs/s", "finished", "folder MB", "resident MB");
    for through in (step..=jobs).step_by(step) {
        let started = Instant::now();
        submit(&queue, TASKS, step).await;
        until(&settled, through).await;
        let look = Look { jobs: through, folder_mb: used_mb(&home.place()), resident_mb: Process::own().resident_mb() };
        println!(
            "{through:10} {:10.0} {:12} {:12.1} {:12.1}",
            step as f64 / started.elapsed().as_secs_f64(),
            queue.counts().succeeded,
            look.folder_mb,
            look.resident_mb
        );
        looks.push(look);
    }
    workers.shutdown().await;
    let started = Instant::now();
    while queue.counts().succeeded > kept {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("retention caught up {:.1} s after the last job", started.elapsed().as_secs_f64());
    let largest = |figure: fn(&Look) -> f64, looks: &[Look]| looks.iter().map(figure).fold(0.0, f64::max);
    let (early, late) = looks.split_at(looks.len() / 2);
    for (name, figure) in
        [("folder", (|look| look.folder_mb) as fn(&Look) -> f64), ("resident", |look| look.resident_mb)]
    {
        println!(
            "{name:8} largest of the first half {:.1} MB, of the second {:.1} MB   target: no growth",
            largest(figure, early),
            largest(figure, late)
        );
    }
    closing.cancel();
    sweeper.await.unwrap();
    store.close().await;
    let plot = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/retention.svg");
    draw(&looks, &plot);
    println!("drawn in {}", plot.display());
}

/// A look at the process and its folder during `churn`.
struct Look {
    jobs: usize,
    folder_mb: f64,
    resident_mb: f64,
}

fn draw(looks: &[Look], path: &PathBuf) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let area = SVGBackend::new(path, (860, 420)).into_drawing_area();
    area.fill(&WHITE).unwrap();
    let top = looks.iter().map(|look| look.folder_mb.max(look.resident_mb)).fold(0.0, f64::max) * 1.15;
    let title = format!("{} jobs through, {} kept", CHURN.0, CHURN.1);
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..CHURN.0 as f64 / 1e6, 0.0..top)
        .unwrap();
    let mesh = || ("sans-serif", 14);
    chart
        .configure_mesh()
        .x_desc("jobs finished, millions")
        .y_desc("MB")
        .label_style(mesh())
        .axis_desc_style(mesh())
        .light_line_style(WHITE)
        .draw()
        .unwrap();
    let folder = ("folder on disk", RGBColor(31, 119, 180), (|look| look.folder_mb) as fn(&Look) -> f64);
    for (name, colour, figure) in [folder, ("resident memory", RGBColor(214, 96, 20), |look| look.resident_mb)] {
        let points = looks.iter().map(|look| (look.jobs as f64 / 1e6, figure(look)));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))
            .unwrap()
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .label_font(mesh())
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .draw()
        .unwrap();
    area.present().unwrap();
}

/// Claims while an old transaction keeps all versions of all rows.
async fn horizon() {
    const SECONDS: u64 = 60;
    const JOBS_PER_SECOND: usize = 1_000;
    let home = Home::new();
    if !home.place().starts_with("postgres") {
        return println!("horizon: set DATABASE_URL");
    }
    println!("the disk alone                    {:8.0} syncs/s", bare_syncs());
    let (queue, store, _) = open(&home.place(), usize::MAX).await;
    let mut old = Command::new("psql").arg(home.place()).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let begin = b"begin isolation level repeatable read; select pg_current_xact_id();\n";
    old.stdin.as_mut().unwrap().write_all(begin).unwrap();
    let (mut workers, claims) = (JoinSet::new(), Arc::new(std::sync::Mutex::new(Vec::new())));
    let (turn, started) = (Arc::new(Mutex::new(())), Instant::now());
    for _ in 0..64 {
        let (queue, turn, claims) = (queue.clone(), Arc::clone(&turn), Arc::clone(&claims));
        workers.spawn(async move {
            loop {
                let (claim, took) = timed_claim(&queue, &turn).await;
                claims.lock().unwrap().push((started.elapsed().as_secs(), took));
                queue.work().settle(&claim.job, &Disposition::Succeed, answer()).await;
            }
        });
    }
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    for _ in 0..SECONDS * 50 {
        tick.tick().await;
        for _ in 0..JOBS_PER_SECOND / 50 {
            let queue = queue.clone();
            tokio::spawn(async move { queue.enqueue(question()).await.unwrap() });
        }
    }
    workers.shutdown().await;
    old.kill().unwrap();
    old.wait().unwrap();
    let claims = std::mem::take(&mut *claims.lock().unwrap());
    let of = |seconds: std::ops::Range<u64>| {
        Latencies::new(claims.iter().filter(|(at, _)| seconds.contains(at)).map(|(_, took)| *took).collect())
    };
    let (first, last) = (of(0..10), of(SECONDS - 10..SECONDS));
    println!(
        "a claim beside an old transaction, p50: first 10 s {:.2} ms, last 10 s {:.2} ms   target 1.5 times   ({:.0} \
         jobs/s at last)",
        first.ms(0.5),
        last.ms(0.5),
        last.len() as f64 / 10.0
    );
    store.close().await;
}

async fn recovery() {
    const CLIENTS: usize = 64;
    let (jobs, kills) = RECOVERY;
    // Calls that are never answered: the queue only fills, and every worker has one under way when it is killed.
    let unanswered =
        SimulatorConfig { latency: Latency::Fixed(Duration::from_secs(600)), ..SimulatorConfig::default() };
    let claude = Simulator::start(unanswered).await.unwrap();
    let settings = [("REQUEST_TIMEOUT", "3600"), ("MAX_RETRIES", "20")];
    let mut service = Service::start(&claude.base_url(), &settings).await;
    let mut tasks = JoinSet::new();
    for _ in 0..CLIENTS {
        let address = service.address.clone();
        tasks.spawn(async move {
            let mut connection = Connection::open(&address).await.unwrap();
            let request = post(&"x".repeat(QUERY_BYTES), false);
            for _ in 0..jobs.div_ceil(CLIENTS) {
                assert_eq!(connection.ask(&request).await.0, 202);
            }
        });
    }
    tasks.join_all().await;
    let (mut first_calls, mut healthy) = (Vec::new(), Vec::new());
    for _ in 0..kills {
        let home = service.home();
        drop(service); // SIGKILL
        let before = claude.counters().calls;
        let started = Instant::now();
        let binary = binary();
        let upstream = claude.base_url();
        let (restarted, called) = tokio::join!(Service::start_in(home, &binary, &upstream, &settings), async {
            claude.wait_for_calls(before + 1).await;
            started.elapsed()
        });
        healthy.push(restarted.started_in);
        first_calls.push(called);
        service = restarted;
        // Some life before the next death.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (first_calls, healthy) = (Latencies::new(first_calls), Latencies::new(healthy));
    println!(
        "SIGKILL at {jobs} queued, {kills} times: start to first call  p50 {:.0} max {:.0} ms   target 1000   \
         (to /health: p50 {:.0} max {:.0} ms)",
        first_calls.ms(0.5),
        first_calls.ms(1.0),
        healthy.ms(0.5),
        healthy.ms(1.0)
    );
}

fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
        if let [part, place] = args.as_slice() {
            match part.as_str() {
                "--fill" => return fill(place).await,
                "--look" => return look(place).await,
                "--claim" => return claims(place).await,
                _ => {}
            }
        }
        let wanted = |name: &str| args.is_empty() || args.iter().any(|arg| arg == name);
        if wanted("cycles") {
            cycles().await;
        }
        if wanted("settle") {
            settle().await;
        }
        if wanted("million") {
            million().await;
        }
        if wanted("recovery") {
            recovery().await;
        }
        if wanted("horizon") {
            horizon().await;
        }
        if wanted("churn") {
            churn().await;
        }
    });
}
