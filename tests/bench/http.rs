//! The service measured from outside, by its own binary over real HTTP: `cargo bench --bench http`, or one part of it:
//! `cargo bench --bench http -- submits` (`latency`, `end-to-end`).
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

use self::measure::{Connection, Latencies, Service, get, post};

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

/// A relay to `claude` that tells when a request's first bytes came by: the moment it left the service.
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
                            if std::mem::take(&mut idle) {
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

fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let wanted = |name: &str| std::env::args().skip(1).all(|arg| arg == "--bench" || arg == name);
        if wanted("submits") {
            submits().await;
        }
        if wanted("latency") {
            latency().await;
        }
        if wanted("end-to-end") {
            end_to_end().await;
        }
    });
}
