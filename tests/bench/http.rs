//! The service measured from outside, by its own binary over real HTTP: `cargo bench --bench http`, or parts of it:
//! `cargo bench --bench http -- submits` (`start`, `reads`, `latency`, `end-to-end`, `memory`, `take-over`, `waiters`,
//! `abuse`). See `measure` for PostgreSQL and for other binaries. `take-over` is for PostgreSQL alone.
//!
//! Load generator and simulated Claude share the machine with the service, and machines differ: judge by the ratios,
//! above all by `/health` of the same server in the same run, which costs all of HTTP and nothing of the queue.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a benchmark for people"
)]

mod measure;

use std::{
    fs,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ceoagent::claude::simulator::{Latency, Simulator, SimulatorConfig};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};

use self::measure::{Connection, Latencies, Service, binary, get, post};

/// How long each load runs.
const ROUND: Duration = Duration::from_secs(4);

/// The size of a question, as in the comparison with other queues.
const QUERY_BYTES: usize = 256;

/// The same request from `clients` connections, each as fast as it is answered. Gives requests a second.
async fn closed_loop(address: &str, clients: usize, request: Vec<u8>, status: u16) -> (f64, Latencies) {
    let stop = Arc::new(AtomicBool::new(false));
    let request = Arc::new(request);
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    for _ in 0..clients {
        let (stop, request, address) = (Arc::clone(&stop), Arc::clone(&request), address.to_owned());
        tasks.spawn(async move {
            let mut connection = Connection::open(&address).await.unwrap();
            let mut latencies = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let sent = Instant::now();
                assert_eq!(connection.ask(&request).await.0, status);
                latencies.push(sent.elapsed());
            }
            latencies
        });
    }
    tokio::time::sleep(ROUND).await;
    stop.store(true, Ordering::Relaxed);
    let latencies = Latencies::new(tasks.join_all().await.concat());
    (latencies.len() as f64 / started.elapsed().as_secs_f64(), latencies)
}

/// Starts without jobs, one after the other.
async fn starts() {
    const STARTS: usize = 15;
    let claude = Simulator::start(SimulatorConfig::default()).await.unwrap();
    let mut took = Vec::new();
    for _ in 0..STARTS {
        took.push(Service::start(&claude.base_url(), &[]).await.started_in);
    }
    let took = Latencies::new(took);
    println!(
        "start to first 200, {STARTS} times       p50 {:.1}  least {:.1}  most {:.1} ms",
        took.ms(0.5),
        took.ms(0.0),
        took.ms(1.0)
    );
}

async fn submits() {
    // One worker that never gets an answer: the queue only fills.
    let latency = Latency::Fixed(Duration::from_secs(600));
    let claude = Simulator::start(SimulatorConfig { latency, ..SimulatorConfig::default() }).await.unwrap();
    let service = Service::start(&claude.base_url(), &[("WORKERS", "1"), ("REQUEST_TIMEOUT", "3600")]).await;
    println!("start to first 200 on /health     {:8.1} ms", service.started_in.as_secs_f64() * 1_000.0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ticks = service.process().cpu_ticks();
    tokio::time::sleep(Duration::from_secs(10)).await;
    println!("idle                              {:8.1} MB resident", service.process().resident_mb());
    println!(
        "idle                              {:8.2} % of a core",
        (service.process().cpu_ticks() - ticks) as f64 / 10.0
    );
    let query = "x".repeat(QUERY_BYTES);
    for clients in [1, 64, 256] {
        let (health, health_latency) = closed_loop(&service.address, clients, get("/health"), 200).await;
        let (submits, latency) = closed_loop(&service.address, clients, post(&query, false), 202).await;
        println!(
            "{clients:4} clients  /health {health:8.0}/s p50 {:.3} p99 {:.3} ms   durable submits {submits:8.0}/s \
             p50 {:.3} p99 {:.3} ms   ratio {:.2}",
            health_latency.ms(0.5),
            health_latency.ms(0.99),
            latency.ms(0.5),
            latency.ms(0.99),
            submits / health
        );
    }
    println!("after the submits                 {:8.1} MB resident", service.process().resident_mb());
}

/// Reads of a job that has its memo, by 64 clients, and of what they have already.
async fn reads() {
    let claude = Simulator::start(SimulatorConfig::default()).await.unwrap();
    let service = Service::start(&claude.base_url(), &[]).await;
    let mut connection = Connection::open(&service.address).await.unwrap();
    let (_, job) = connection.ask(&post(&"x".repeat(QUERY_BYTES), true)).await;
    let id = id_of(&job);
    let path = format!("/api/v1/jobs/{id}");
    let tag = {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.get(format!("http://{}{path}", service.address)).send().await.unwrap();
        answer.headers()["etag"].to_str().unwrap().to_owned()
    };
    let known = format!("GET {path} HTTP/1.1\r\nhost: bench\r\nif-none-match: {tag}\r\n\r\n").into_bytes();
    for (what, request, status) in [("/health", get("/health"), 200), ("the job", get(&path), 200), ("304", known, 304)]
    {
        let (rate, latency) = closed_loop(&service.address, 64, request, status).await;
        println!(
            "reads, 64 clients, {what:8}       {rate:8.0}/s p50 {:.3} p99 {:.3} ms   ({} bytes)",
            latency.ms(0.5),
            latency.ms(0.99),
            job.len()
        );
    }
}

fn id_of(job: &[u8]) -> String {
    let job: serde_json::Value = serde_json::from_slice(job).unwrap();
    job["id"].as_str().unwrap().to_owned()
}

/// A service that only takes questions in: one worker that never gets an answer. And the ids of `jobs` of them.
async fn filled(jobs: usize, query_bytes: usize) -> (Simulator, Service, Vec<String>) {
    const CLIENTS: usize = 64;
    let latency = Latency::Fixed(Duration::from_secs(600));
    let claude = Simulator::start(SimulatorConfig { latency, ..SimulatorConfig::default() }).await.unwrap();
    let service = Service::start(&claude.base_url(), &[("WORKERS", "1"), ("REQUEST_TIMEOUT", "3600")]).await;
    println!("before any job                    {:8.1} MB resident", service.process().resident_mb());
    let mut tasks = JoinSet::new();
    for client in 0..CLIENTS {
        let address = service.address.clone();
        tasks.spawn(async move {
            let mut connection = Connection::open(&address).await.unwrap();
            let request = post(&"x".repeat(query_bytes), false);
            let mut ids = Vec::new();
            for _ in (client..jobs).step_by(CLIENTS) {
                let (status, job) = connection.ask(&request).await;
                assert_eq!(status, 202);
                ids.push(id_of(&job));
            }
            ids
        });
    }
    let ids = tasks.join_all().await.concat();
    println!("with {jobs:7} jobs queued         {:8.1} MB resident", service.process().resident_mb());
    (claude, service, ids)
}

async fn memory() {
    let (claude, service, _) = filled(100_000, 1_000).await;
    let home = service.home();
    assert!(service.terminate().success());
    let service = Service::start_in(home, &binary(), &claude.base_url(), &[("WORKERS", "1")]).await;
    println!("the same after a restart          {:8.1} MB resident", service.process().resident_mb());
}

/// A second node joins, and hands out the calls when the first one is killed.
async fn take_over() {
    let (claude, first, _) = filled(100_000, 1_000).await;
    let second = Service::start_in(first.home(), &binary(), &claude.base_url(), &[("WORKERS", "1")]).await;
    println!("second node: start to first 200   {:8.0} ms", second.started_in.as_secs_f64() * 1_000.0);
    println!("second node                       {:8.1} MB resident", second.process().resident_mb());
    let calls = claude.counters().calls;
    let killed = Instant::now();
    drop(first);
    claude.wait_for_calls(calls + 1).await;
    println!("take-over: SIGKILL to first call  {:8.0} ms", killed.elapsed().as_secs_f64() * 1_000.0);
    println!("after the take-over               {:8.1} MB resident", second.process().resident_mb());
}

/// Clients that wait at the same time, each on a connection of its own and for a job of its own.
async fn waiters() {
    const WAITERS: usize = 10_000;
    const WATCHED: Duration = Duration::from_secs(10);
    let (_claude, service, ids) = filled(WAITERS, QUERY_BYTES).await;
    let process = service.process();
    for (what, query) in [("long polls", "?wait=30"), ("followers", "/events")] {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (before, ticks) = (process.resident_mb(), process.cpu_ticks());
        tokio::time::sleep(WATCHED).await;
        let idle = process.cpu_ticks() - ticks;
        let mut waiting = Vec::new();
        for id in &ids {
            let mut waiter = Connection::open(&service.address).await.unwrap();
            waiter.send(&get(&format!("/api/v1/jobs/{id}{query}"))).await;
            waiting.push(waiter);
        }
        let mut connection = Connection::open(&service.address).await.unwrap();
        loop {
            let (_, metrics) = connection.ask(&get("/metrics")).await;
            if String::from_utf8(metrics).unwrap().contains(&format!("\nceoagent_waiters {WAITERS}\n")) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let ticks = process.cpu_ticks();
        tokio::time::sleep(WATCHED).await;
        let busy = process.cpu_ticks() - ticks;
        println!(
            "{WAITERS} {what:10}                  {:8.1} KB each   {:.2} % of a core, {:.2} % without them",
            (process.resident_mb() - before) * 1_024.0 / WAITERS as f64,
            busy as f64 / WATCHED.as_secs_f64(),
            idle as f64 / WATCHED.as_secs_f64(),
        );
    }
}

/// A relay to `claude` that tells when a question's first bytes came by: the moment it left the service.
async fn tap(claude: &Simulator) -> (String, mpsc::UnboundedReceiver<Instant>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let upstream = claude.base_url().trim_start_matches("http://").to_owned();
    let (seen, left) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut service, _)) = listener.accept().await {
            let mut claude = TcpStream::connect(&upstream).await.unwrap();
            let seen = seen.clone();
            tokio::spawn(async move {
                let (mut sent, mut answered) = (vec![0; 64 << 10], vec![0; 64 << 10]);
                let mut idle = true;
                loop {
                    tokio::select! {
                        read = service.read(&mut sent) => {
                            let Ok(bytes @ 1..) = read else { break };
                            // The look at the model, at the start, is a GET.
                            if std::mem::take(&mut idle) && sent.starts_with(b"POST ") {
                                let _ = seen.send(Instant::now());
                            }
                            claude.write_all(&sent[..bytes]).await.unwrap();
                        }
                        read = claude.read(&mut answered) => {
                            let Ok(bytes @ 1..) = read else { break };
                            idle = true;
                            if service.write_all(&answered[..bytes]).await.is_err() {
                                break;
                            }
                        }
                    }
                }
            });
        }
    });
    (address, left)
}

/// What the disk alone takes to keep a record of a question's size after a pause of `gap`.
fn bare_sync(file: &mut fs::File, gap: Duration) -> Duration {
    std::thread::sleep(gap);
    let started = Instant::now();
    file.write_all(&[b'x'; 2 * QUERY_BYTES]).unwrap();
    file.sync_data().unwrap();
    started.elapsed()
}

async fn latency() {
    let claude = Simulator::start(SimulatorConfig::default()).await.unwrap();
    let (upstream, mut left) = tap(&claude).await;
    let service = Service::start(&upstream, &[]).await;
    let mut connection = Connection::open(&service.address).await.unwrap();
    let mut file = tempfile::tempfile().unwrap();
    let (mut pick_ups, mut syncs) = (Vec::new(), Vec::new());
    for n in 0..300 {
        let gap = Duration::from_millis(rand::random_range(5..25));
        syncs.push(bare_sync(&mut file, gap));
        tokio::time::sleep(gap).await;
        let request = post("Pick-up?", false);
        let sent = Instant::now();
        let (answered, left) = tokio::join!(connection.ask(&request), left.recv());
        assert_eq!(answered.0, 202);
        pick_ups.push(left.unwrap() - sent);
        claude.wait_for_calls(n + 1).await;
    }
    let (pick_ups, syncs) = (Latencies::new(pick_ups), Latencies::new(syncs));
    println!("one record to the idle disk       p50 {:.3} p99 {:.3} ms", syncs.ms(0.5), syncs.ms(0.99));
    println!("pick-up, idle                     p50 {:.3} p99 {:.3} ms", pick_ups.ms(0.5), pick_ups.ms(0.99));

    let own = SimulatorConfig { latency: Latency::Fixed(Duration::from_millis(50)), ..SimulatorConfig::default() };
    let claude = Simulator::start(own).await.unwrap();
    let service = Service::start(&claude.base_url(), &[]).await;
    let mut connection = Connection::open(&service.address).await.unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    // What the service itself would send, so that the difference is the service's own.
    connection.ask(&post("Wait?", true)).await;
    let body = claude.calls()[0].body.clone();
    let (mut waits, mut direct) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        let sent = Instant::now();
        let answer = client
            .post(format!("{}/v1/messages", claude.base_url()))
            .header("x-api-key", "bench")
            .header("anthropic-version", "2026-10-21")
            .header("content-type", "application/json")
            .body(body.clone())
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        answer.bytes().await.unwrap();
        direct.push(sent.elapsed());
        let sent = Instant::now();
        assert_eq!(connection.ask(&post("Wait?", true)).await.0, 200);
        waits.push(sent.elapsed());
    }
    let (waits, direct) = (Latencies::new(waits), Latencies::new(direct));
    println!(
        "wait=true, over upstream's own    p50 {:.3} ms   (upstream {:.3}, through the service {:.3})",
        waits.ms(0.5) - direct.ms(0.5),
        direct.ms(0.5),
        waits.ms(0.5)
    );
}

async fn end_to_end() {
    const JOBS: usize = 20_000;
    const CLIENTS: usize = 64;
    let claude = Simulator::start(SimulatorConfig::default()).await.unwrap();
    let service = Service::start(&claude.base_url(), &[("WORKERS", "64")]).await;
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..CLIENTS {
        let address = service.address.clone();
        tasks.spawn(async move {
            let mut connection = Connection::open(&address).await.unwrap();
            let request = post(&"x".repeat(QUERY_BYTES), false);
            for _ in 0..JOBS / CLIENTS {
                assert_eq!(connection.ask(&request).await.0, 202);
            }
        });
    }
    tasks.join_all().await;
    claude.wait_for_calls(JOBS / CLIENTS * CLIENTS).await;
    let rate = JOBS as f64 / started.elapsed().as_secs_f64();
    println!("end to end, upstream 0 ms         {rate:8.0} jobs/s, 64 at once (the simulator's own cost included)");
}

/// What others wait for their answers while 5,000 connections send next to nothing, against what they wait without.
async fn abuse() {
    const SLOW: usize = 5_000;
    const OTHERS: usize = 8;
    raise_file_limit();
    let latency = Latency::Fixed(Duration::from_secs(600));
    let claude = Simulator::start(SimulatorConfig { latency, ..SimulatorConfig::default() }).await.unwrap();
    let service = Service::start(&claude.base_url(), &[("WORKERS", "1"), ("REQUEST_TIMEOUT", "3600")]).await;
    let question = || post(&"x".repeat(QUERY_BYTES), false);
    closed_loop(&service.address, OTHERS, question(), 202).await;
    let (_, alone) = closed_loop(&service.address, OTHERS, question(), 202).await;
    // Opened anew as fast as they are closed, every one of them half a head.
    let mut slow = JoinSet::new();
    let (opened, mut open) = mpsc::channel(SLOW);
    for _ in 0..SLOW {
        let (address, opened) = (service.address.clone(), opened.clone());
        slow.spawn(async move {
            loop {
                let Ok(mut stream) = TcpStream::connect(&address).await else { continue };
                let _ = stream.write_all(b"POST /api/v1/analyze HTTP/1.1\r\nHost: x\r\nX-A").await;
                let _ = opened.try_send(());
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        });
    }
    for _ in 0..SLOW {
        open.recv().await.unwrap();
    }
    let (_, beside) = closed_loop(&service.address, OTHERS, question(), 202).await;
    for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
        let (alone, beside) = (alone.ms(part), beside.ms(part));
        println!(
            "{OTHERS} clients beside {SLOW} slow ones   {name} {beside:.3} ms   alone {alone:.3} ms   ratio {:.2}",
            beside / alone
        );
    }
}

/// Room for all connections here and in the service, which inherits it.
fn raise_file_limit() {
    let pid = std::process::id().to_string();
    let raised = std::process::Command::new("prlimit").args(["--pid", &pid, "--nofile=12000:"]).status().unwrap();
    assert!(raised.success(), "12,000 open files are not allowed here");
}

fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
        let wanted = |name: &str| args.is_empty() || args.iter().any(|arg| arg == name);
        if wanted("start") {
            starts().await;
        }
        if wanted("submits") {
            submits().await;
        }
        if wanted("reads") {
            reads().await;
        }
        if wanted("latency") {
            latency().await;
        }
        if wanted("end-to-end") {
            end_to_end().await;
        }
        if wanted("memory") {
            memory().await;
        }
        if wanted("take-over") && std::env::var_os("DATABASE_URL").is_some() {
            take_over().await;
        }
        if wanted("waiters") {
            waiters().await;
        }
        if wanted("abuse") {
            abuse().await;
        }
    });
}
