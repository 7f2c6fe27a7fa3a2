//! The real binary for a long time, under mixed load and a Claude that fails in every way the simulator knows:
//! `cargo bench --bench soak -- --minutes 60`.
//!
//! Nothing may grow (memory, threads, open files, tasks, waiters) and nothing may be lost or stuck: every accepted job
//! is followed to its end. Exits with 1 if anything is. The load is moderate on purpose, so that it can run beside
//! other work; it is no measure of speed.
//!
//! - `--minutes N`: how long, 1 if absent
//! - `--service PATH`: another binary than the one built with it, so that a later build does not replace it

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a benchmark for people"
)]

mod measure;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use ceoagent::{
    claude::simulator::{ErrorAnswer, Fault, Latency, Simulator, SimulatorConfig},
    clock::Clock,
};
use rand::{RngExt, seq::IndexedRandom};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use self::measure::{ADMIN_TOKEN, Home, Process, Service, folder_mb};

/// Questions a second that nobody waits for, on average; bursts and waiting clients come on top.
const SUBMITS_PER_SECOND: f64 = 12.0;

/// Questions at once, each minute: more than the queue has room for.
const BURST: usize = 500;

/// Room in the queue.
const MAX_QUEUED_JOBS: usize = 4_000;

/// Kept finished jobs: some minutes' worth, so that retention is at work for most of the run, and yet no job goes
/// before it was seen to have ended.
const MAX_FINISHED_JOBS: usize = 3_000;

/// Clients that ask and wait.
const WAITING_CLIENTS: usize = 8;

/// Clients that ask, wait, and hang up after a moment.
const IMPATIENT_CLIENTS: usize = 3;

/// Clients that look at jobs of others, some of them waiting for the end.
const POLLING_CLIENTS: usize = 6;

/// How long ago a job may have ended that is tried again.
const RETRIED_WITHIN: Duration = Duration::from_secs(60);

/// Between two looks at the process.
const SAMPLE: Duration = Duration::from_secs(10);

/// All jobs must have ended so long after the last was submitted, retries and backoff included.
const DRAIN: Duration = Duration::from_secs(180);

/// Faults ready for the next calls: more than can be used up between two refills.
const SCRIPTED: usize = 64;

/// What is known of the jobs, from the outside.
#[derive(Default)]
struct Book {
    /// Accepted and not yet seen to have ended.
    open: HashMap<String, Instant>,
    accepted: usize,
    /// Ended jobs by status.
    ended: BTreeMap<String, usize>,
    /// Some that failed or were cancelled, and when that was seen.
    unsuccessful: VecDeque<(String, Instant)>,
    /// Answers by what was asked and their status.
    answers: BTreeMap<(&'static str, u16), usize>,
    /// What must not be.
    faults: Vec<String>,
}

/// A client's hold on the service and the book.
#[derive(Clone)]
struct Customer {
    client: Client,
    base: String,
    book: Arc<Mutex<Book>>,
}

/// What was asked, and the answers that it may get.
type Ask = (&'static str, &'static [u16]);

/// A question: accepted, or its caller has a tenth of the queue already.
const SUBMIT: Ask = ("submit", &[202, 429]);
/// A question with a wait: besides, it may fail in its ways, or be cancelled by somebody.
const SUBMIT_AND_WAIT: Ask = ("submit and wait", &[200, 202, 409, 422, 429, 502, 503, 504]);
const GET: Ask = ("get", &[200]);
const WAIT: Ask = ("get and wait", &[200]);
const CANCEL: Ask = ("cancel", &[200, 409]);
const RETRY: Ask = ("retry", &[202, 409, 429]);
const LIST: Ask = ("list", &[200]);
const MONITOR: Ask = ("monitor", &[200]);
const NONSENSE: Ask = ("nonsense", &[422]);

impl Customer {
    /// Notes what must not be, and tells it at once: whoever watches may want to look.
    fn fault(&self, fault: String) {
        println!("FAULT: {fault}");
        self.book().faults.push(fault);
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    /// Asks and notes the answer; none if it was a fault, which is noted too.
    async fn ask(&self, (name, expected): Ask, method: Method, path: &str, body: Option<Value>) -> Option<Value> {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).bearer_auth(ADMIN_TOKEN);
        if let Some(body) = &body {
            request = request.json(body);
        }
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => {
                self.fault(format!("{name} {path}: {error:?}"));
                return None;
            }
        };
        let status = answer.status().as_u16();
        // Whatever else the answer says: a job of that address is accepted.
        let job = answer.headers().get("location").map(|location| location.to_str().unwrap().to_owned());
        let text = answer.text().await;
        let mut book = self.book();
        *book.answers.entry((name, status)).or_default() += 1;
        if let Some(job) = job {
            book.accepted += 1;
            book.open.insert(job, Instant::now());
        }
        match text {
            Ok(text) if expected.contains(&status) => Some(serde_json::from_str(&text).unwrap_or(Value::String(text))),
            text => {
                drop(book);
                self.fault(format!("{name} {path}: {status} {text:?}"));
                None
            }
        }
    }

    /// An accepted job that is not known to have ended, any.
    fn any_open(&self) -> Option<String> {
        let book = self.book();
        let place = rand::random_range(0..book.open.len().max(1));
        book.open.keys().nth(place).cloned()
    }

    /// Looks at every open job and notes those that have ended.
    async fn check(&self) {
        let open: Vec<String> = self.book().open.keys().cloned().collect();
        for job in open {
            let Some(found) = self.ask(GET, Method::GET, &job, None).await else { continue };
            let status = found["status"].as_str().unwrap_or_default().to_owned();
            if matches!(status.as_str(), "queued" | "scheduled" | "running") {
                continue;
            }
            if status == "succeeded" && !found["result"].is_object() {
                self.fault(format!("{job} succeeded without a result"));
            }
            let mut book = self.book();
            book.open.remove(&job);
            if status != "succeeded" {
                book.unsuccessful.push_back((job, Instant::now()));
                if book.unsuccessful.len() > 50 {
                    book.unsuccessful.pop_front();
                }
            }
            *book.ended.entry(status).or_default() += 1;
        }
    }

    /// The service's own gauges.
    async fn gauges(&self) -> HashMap<String, f64> {
        let text = self.ask(MONITOR, Method::GET, "/metrics", None).await.unwrap_or_default();
        let lines = text.as_str().unwrap_or_default().lines().filter(|line| !line.starts_with('#'));
        let pairs = lines.filter_map(|line| line.rsplit_once(' '));
        pairs.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
    }
}

/// A question of any kind.
fn question() -> Value {
    let mut random = rand::rng();
    let length = *[20, 200, 1_000, 8_000].choose(&mut random).unwrap();
    let priority = *["high", "normal", "normal", "low"].choose(&mut random).unwrap();
    let mut body = json!({
        "query": format!("Should we proceed with plan {}? {}", random.random::<u32>(), "x".repeat(length)),
        "priority": priority,
    });
    // Never both: a job can't have to end before it may start.
    if random.random_bool(0.1) {
        body["deadline_seconds"] = json!(random.random_range(1..10));
    } else if random.random_bool(0.1) {
        let delay = Duration::from_millis(random.random_range(1..5_000));
        body["run_at"] = json!(Clock::system().now().plus(delay).to_string());
    }
    body
}

/// What happens to a call: one in five goes wrong, in all the ways there are.
fn fault() -> Fault {
    let mut random = rand::rng();
    if random.random_bool(0.8) {
        return Fault::Normal;
    }
    let event = random.random_range(0..40);
    match random.random_range(0..30) {
        // Rare, since it holds all workers for a second.
        0 => ErrorAnswer::status(429).header("retry-after", "1").into(),
        1..5 => ErrorAnswer::status(529).into(),
        5..8 => ErrorAnswer::status(500).into(),
        8 => ErrorAnswer::status(502).html("<html>bad gateway</html>").into(),
        9 => ErrorAnswer::status(400).into(),
        10..12 => Fault::CutAfter(event),
        12..14 => Fault::DropAfter(event),
        14 => Fault::StallAfter(event),
        15..18 => Fault::SlowBytes { bytes: 64, pause: Duration::from_millis(10) },
        18..20 => Fault::Malformed,
        20..22 => Fault::ErrorEvent("overloaded_error".to_owned()),
        22 => Fault::Refusal,
        23 => Fault::MaxTokens,
        24 => Fault::ThinkingFirst,
        25..27 => Fault::Answer("I would rather not answer in JSON.".to_owned()),
        27 => Fault::Takes(Duration::from_secs(10)),
        _ => Fault::CloseBeforeAnswer,
    }
}

/// Keeps the script ahead of the calls.
async fn faults(claude: Arc<Simulator>) {
    let mut scripted = 0;
    loop {
        let wanted = claude.counters().calls + SCRIPTED;
        claude.script((scripted..wanted).map(|_| fault()));
        scripted = scripted.max(wanted);
        sleep(Duration::from_millis(50)).await;
    }
}

/// Somewhere around `mean`, as independent arrivals are.
async fn pause(mean: Duration) {
    let random: f64 = rand::random_range(1e-9..1.0);
    sleep(mean.mul_f64(-random.ln())).await;
}

async fn submitter(customer: Customer) {
    let mut asked = JoinSet::new();
    loop {
        pause(Duration::from_secs_f64(1.0 / SUBMITS_PER_SECOND)).await;
        let customer = customer.clone();
        asked.spawn(async move { customer.ask(SUBMIT, Method::POST, "/api/v1/analyze", Some(question())).await });
        while asked.try_join_next().is_some() {}
    }
}

async fn bursts(customer: Customer) {
    loop {
        sleep(Duration::from_secs(60)).await;
        let mut asked = JoinSet::new();
        for _ in 0..BURST {
            let customer = customer.clone();
            asked.spawn(async move { customer.ask(SUBMIT, Method::POST, "/api/v1/analyze", Some(question())).await });
        }
        asked.join_all().await;
    }
}

async fn waiting(customer: Customer) {
    loop {
        customer.ask(SUBMIT_AND_WAIT, Method::POST, "/api/v1/analyze?wait=true", Some(question())).await;
        pause(Duration::from_secs(1)).await;
    }
}

/// Hangs up on its questions. Some of their jobs nobody will ask for, but end they must.
async fn impatient(customer: Customer) {
    loop {
        let request = customer.client.post(format!("{}/api/v1/analyze?wait=true", customer.base)).json(&question());
        let patience = Duration::from_millis(rand::random_range(0..500));
        let _ = tokio::time::timeout(patience, request.send()).await;
        pause(Duration::from_secs(1)).await;
    }
}

async fn polling(customer: Customer) {
    loop {
        if let Some(job) = customer.any_open() {
            if rand::random() {
                customer.ask(GET, Method::GET, &job, None).await;
            } else {
                customer.ask(WAIT, Method::GET, &format!("{job}?wait={}", rand::random_range(1..5)), None).await;
            }
        }
        pause(Duration::from_millis(300)).await;
    }
}

/// Cancels jobs that are open, and has some that did not succeed tried again.
async fn undecided(customer: Customer) {
    loop {
        pause(Duration::from_millis(700)).await;
        if let Some(job) = customer.any_open() {
            customer.ask(CANCEL, Method::POST, &format!("{job}/cancel"), None).await;
        }
        let unsuccessful = customer.book().unsuccessful.pop_back();
        // Retention may take an older one meanwhile.
        if let Some((job, _)) = unsuccessful.filter(|(_, seen)| seen.elapsed() < RETRIED_WITHIN) {
            let answer = customer.ask(RETRY, Method::POST, &format!("{job}/retry"), None).await;
            // Accepted once more; the answer has no address to say so.
            if answer.is_some_and(|job| job.get("id").is_some()) {
                let mut book = customer.book();
                book.accepted += 1;
                book.open.insert(job, Instant::now());
            }
        }
    }
}

async fn operator(customer: Customer) {
    const FILTERS: [&str; 6] =
        ["", "status=queued&", "status=running&", "status=failed&status=cancelled&", "status=scheduled&", "limit=200&"];
    loop {
        pause(Duration::from_secs(1)).await;
        let filter = FILTERS.choose(&mut rand::rng()).unwrap();
        let mut path = format!("/api/v1/admin/jobs?{filter}");
        for _ in 0..4 {
            let Some(page) = customer.ask(LIST, Method::GET, &path, None).await else { break };
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            path = format!("/api/v1/admin/jobs?{filter}cursor={cursor}");
        }
        customer.ask(MONITOR, Method::GET, "/health/ready", None).await;
        customer.ask(NONSENSE, Method::POST, "/api/v1/analyze", Some(json!({ "quarry": 7 }))).await;
    }
}

async fn checking(customer: Customer) {
    loop {
        sleep(SAMPLE).await;
        customer.check().await;
    }
}

/// What must not grow: a name, how to read it, and how much more the last quarter may have than the first. Random load
/// leaves some play, and an allocator a little more.
const FIGURES: [(&str, f64, f64); 5] = [
    ("resident MB", 0.10, 4.0),
    ("threads", 0.0, 2.0),
    ("open files", 0.10, 4.0),
    ("tasks", 0.10, 8.0),
    ("waiters", 0.10, 4.0),
];

/// In a shorter run the first quarter is too early to compare with: caches fill and retention has nothing to do yet.
const SHORTEST_JUDGED_MINUTES: f64 = 10.0;

/// One look at the service, in the order of [`FIGURES`].
type Sample = [f64; FIGURES.len()];

async fn sample(process: Process, customer: &Customer, data: &std::path::Path, minutes: f64) -> Sample {
    let gauges = customer.gauges().await;
    let gauge = |name: &str| gauges.get(name).copied().unwrap_or(f64::NAN);
    let jobs = |status: &str| gauge(&format!("ceoagent_jobs{{kind=\"{status}\"}}"));
    let sample = [
        process.resident_mb(),
        process.threads(),
        process.open_files(),
        gauge("ceoagent_tasks"),
        gauge("ceoagent_waiters"),
    ];
    let book = customer.book();
    let oldest = book.open.values().map(|since| since.elapsed().as_secs()).max().unwrap_or(0);
    println!(
        "{minutes:6.1} min  {:6.1} MB  {:3} threads  {:4} files  {:4} tasks  {:3} waiters  {:3} attempts  {:4} queued  \
         {:4} scheduled  {:6} finished kept  disk {:6.1} MB  {:7} accepted  {:4} open, oldest {oldest} s  {} faults",
        sample[0],
        sample[1],
        sample[2],
        sample[3],
        sample[4],
        gauge("ceoagent_running_attempts"),
        jobs("queued"),
        jobs("scheduled"),
        jobs("succeeded") + jobs("failed") + jobs("cancelled"),
        folder_mb(data),
        book.accepted,
        book.open.len(),
        book.faults.len(),
    );
    sample
}

fn median(samples: &[Sample], figure: usize) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(|sample| sample[figure]).collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Waits for the end of all jobs and tells what is wrong then.
async fn drain(customer: &Customer, claude: &Simulator) -> Vec<String> {
    let drained = async {
        loop {
            let gauges = customer.gauges().await;
            let pending = ["queued", "scheduled", "running"]
                .map(|status| gauges.get(&format!("ceoagent_jobs{{kind=\"{status}\"}}")).copied().unwrap_or(f64::NAN));
            if pending == [0.0; 3] && gauges["ceoagent_waiters"] == 0.0 && gauges["ceoagent_running_attempts"] == 0.0 {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
    };
    let mut wrong = Vec::new();
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        wrong.push(format!("not at rest {DRAIN:?} after the last question: {:#?}", customer.gauges().await));
    }
    customer.check().await;
    let stuck: Vec<String> = customer.book().open.keys().cloned().collect();
    if !stuck.is_empty() {
        wrong.push(format!("{} jobs have not ended: {stuck:?}", stuck.len()));
    }
    if claude.counters().in_flight > 0 {
        wrong.push(format!("{} calls to Claude are still open", claude.counters().in_flight));
    }
    wrong
}

async fn soak(minutes: f64, binary: PathBuf) -> ExitCode {
    let latency = Latency::LogNormal { median: Duration::from_millis(150), sigma: 0.5 };
    let claude = Arc::new(Simulator::start(SimulatorConfig { latency, ..SimulatorConfig::default() }).await.unwrap());
    let settings = [
        ("WORKERS", "16"),
        ("MAX_QUEUED_JOBS", &MAX_QUEUED_JOBS.to_string()),
        ("RETENTION", &format!("{MAX_FINISHED_JOBS} jobs")),
        ("REQUEST_TIMEOUT", "5"),
    ];
    let home = Home::new();
    let service = Service::start_in(home, &binary, &claude.base_url(), &settings).await;
    let client = Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
    let base = format!("http://{}", service.address);
    let customer = Customer { client, base, book: Arc::default() };

    let started = Instant::now();
    let end = CancellationToken::new();
    let mut load = JoinSet::new();
    let mut add = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        load.spawn(end.clone().run_until_cancelled_owned(task));
    };
    add(Box::pin(faults(Arc::clone(&claude))));
    add(Box::pin(submitter(customer.clone())));
    add(Box::pin(bursts(customer.clone())));
    add(Box::pin(undecided(customer.clone())));
    add(Box::pin(operator(customer.clone())));
    add(Box::pin(checking(customer.clone())));
    (0..WAITING_CLIENTS).for_each(|_| add(Box::pin(waiting(customer.clone()))));
    (0..IMPATIENT_CLIENTS).for_each(|_| add(Box::pin(impatient(customer.clone()))));
    (0..POLLING_CLIENTS).for_each(|_| add(Box::pin(polling(customer.clone()))));

    let mut samples = Vec::new();
    let data = service.home();
    while started.elapsed().as_secs_f64() < minutes * 60.0 {
        sleep(SAMPLE).await;
        let at = started.elapsed().as_secs_f64() / 60.0;
        samples.push(sample(service.process(), &customer, data.path(), at).await);
    }
    end.cancel();
    load.join_all().await;
    let mut wrong = drain(&customer, &claude).await;
    sample(service.process(), &customer, data.path(), started.elapsed().as_secs_f64() / 60.0).await;

    println!(
        "\n{:12} {:>10} {:>10} {:>10} {:>10}   medians of the quarters, judged from {SHORTEST_JUDGED_MINUTES} minutes on",
        "", "first", "second", "third", "last"
    );
    let quarter = (samples.len() / 4).max(1);
    for (place, (name, share, play)) in FIGURES.into_iter().enumerate() {
        let quarters: Vec<f64> = samples.chunks(quarter).take(4).map(|samples| median(samples, place)).collect();
        let (first, last) = (quarters[0], *quarters.last().unwrap());
        println!("{name:12} {}", quarters.iter().map(|value| format!("{value:10.1}")).collect::<Vec<_>>().join(" "));
        // A gauge that is missing is not a number.
        let judged = minutes >= SHORTEST_JUDGED_MINUTES;
        if last.is_nan() || judged && last > first * (1.0 + share) + play {
            wrong.push(format!("{name} grew from {first:.1} to {last:.1}"));
        }
    }
    let book = customer.book();
    println!("\n{} jobs accepted, ended as {:?}; {} calls", book.accepted, book.ended, claude.counters().calls);
    for ((name, status), count) in &book.answers {
        println!("{name:16} {status} {count:8}");
    }
    wrong.extend(book.faults.iter().take(20).cloned());
    let ended: usize = book.ended.values().sum();
    if ended != book.accepted {
        wrong.push(format!("{} jobs were accepted, {ended} seen to have ended", book.accepted));
    }
    drop(book);
    let status = service.terminate();
    if !status.success() {
        wrong.push(format!("the service ended with {status}"));
    }
    println!();
    wrong.iter().for_each(|wrong| println!("WRONG: {wrong}"));
    println!("{} after {minutes} minutes", if wrong.is_empty() { "all is well" } else { "failed" });
    ExitCode::from(u8::from(!wrong.is_empty()))
}

fn main() -> ExitCode {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| args.iter().position(|arg| arg == name).map(|place| args[place + 1].clone());
    let minutes = value("--minutes").map_or(1.0, |minutes| minutes.parse().unwrap());
    let binary = value("--service").unwrap_or_else(|| env!("CARGO_BIN_EXE_ceoagent").to_owned());
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
        .block_on(soak(minutes, binary.into()))
}
