//! Clients that mean harm or know no better: the service's memory stays bounded, and others are served meanwhile.

use std::{
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ceoagent::claude::simulator::{Latency, Simulator, SimulatorConfig};
use reqwest::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::timeout,
};

use crate::{
    cgroup::MemoryLimit,
    harness::{ADMIN_TOKEN, PATIENCE, Service, Setup, send, simulator},
};

/// Resident memory of the service, in MiB.
fn resident_mb(service: &Service) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn address(service: &Service) -> &str {
    service.base().trim_start_matches("http://")
}

async fn connect(service: &Service) -> TcpStream {
    TcpStream::connect(address(service)).await.unwrap()
}

/// Sends bytes and gives what comes back until the service closes the connection.
async fn exchange(service: &Service, bytes: &[u8]) -> String {
    let mut stream = connect(service).await;
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    // Either side may be cut off: what counts is what was said before.
    let sent = async { drop(writer.write_all(bytes).await) };
    let read = async { drop(reader.read_to_end(&mut answer).await) };
    timeout(PATIENCE, async { tokio::join!(sent, read) }).await.expect("the service closes the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn serves(service: &Service) {
    let answer = service.submit("And what of me?").await;
    assert_eq!(answer.status, 202, "{answer:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_slow_connections_keep_nobody_out_and_are_closed() {
    const SLOW: usize = 5_000;
    // For their ends here and, inherited, for those in the service. Tests that run beside this one have some too.
    let pid = std::process::id().to_string();
    let raised = Command::new("prlimit").args(["--pid", &pid, "--nofile=16000:"]).status().unwrap();
    assert!(raised.success(), "16,000 open files are not allowed here");
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    serves(&service).await;
    let before = resident_mb(&service);
    let mut slow = Vec::new();
    for n in 0..SLOW {
        let mut stream = connect(&service).await;
        // Nothing at all, half a head, or a head and half a body.
        let sent: &[u8] = match n % 3 {
            0 => b"",
            1 => b"POST /api/v1/analyze HTTP/1.1\r\nHost: x\r\nX-A",
            _ => b"POST /api/v1/analyze HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{",
        };
        stream.write_all(sent).await.unwrap();
        slow.push(stream);
    }
    for _ in 0..20 {
        serves(&service).await;
    }
    let grown = resident_mb(&service).saturating_sub(before);
    assert!(grown < 160, "{grown} MiB for {SLOW} connections");
    let mut closing = JoinSet::new();
    for mut stream in slow {
        closing.spawn(async move {
            let mut answer = Vec::new();
            drop(timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it is closed"));
        });
    }
    closing.join_all().await;
    serves(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_without_end_are_refused_without_being_kept() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    serves(&service).await;
    let before = resident_mb(&service);
    let head = |length: &str| {
        format!("POST /api/v1/analyze HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{length}\r\n\r\n")
    };
    let said = exchange(&service, head("Content-Length: 1073741824").as_bytes()).await;
    assert!(said.starts_with("HTTP/1.1 413"), "{said}");
    let mut stream = connect(&service).await;
    stream.write_all(head("Transfer-Encoding: chunked").as_bytes()).await.unwrap();
    let chunk = [b"100000\r\n", vec![b' '; 1 << 20].as_slice(), b"\r\n"].concat();
    // A gigabyte, if it is let.
    let mut sent = 0;
    while sent < 1_024 && stream.write_all(&chunk).await.is_ok() {
        sent += 1;
    }
    assert!(sent < 100, "{sent} MiB were taken");
    let grown = resident_mb(&service).saturating_sub(before);
    assert!(grown < 64, "{grown} MiB");
    serves(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_json_floods_of_headers_and_nonsense_get_a_plain_answer() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let deep = format!("{{\"query\": \"q\", \"x\": {}", "[".repeat(100_000));
    let post = |body: &str| {
        service
            .request(reqwest::Method::POST, "/api/v1/analyze")
            .header("content-type", "application/json")
            .body(body.to_owned())
    };
    crate::harness::send(post(&deep)).await.assert_problem(400, "invalid_json");
    let deep = format!("{{\"query\": {}", "{\"a\":".repeat(20_000));
    assert!([400, 422].contains(&crate::harness::send(post(&deep)).await.status));
    let long = format!("GET /health HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(200_000));
    let many = format!("GET /health HTTP/1.1\r\nHost: x\r\n{}\r\n", "X-Many: x\r\n".repeat(5_000));
    for flood in [long, many] {
        let said = exchange(&service, flood.as_bytes()).await;
        assert!(said.starts_with("HTTP/1.1 431"), "{said}");
    }
    for nonsense in ["\0\0\0\0\r\n\r\n", "GET\r\n\r\n", "\u{16}\u{3}\u{1}\u{2}\u{0}\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"]
    {
        let said = exchange(&service, nonsense.as_bytes()).await;
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4") || said.starts_with("HTTP/1.1 5"), "{said}");
    }
    serves(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_half_closed_and_hung_up_requests_are_answered_or_let_go() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let one = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    let last = "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let said = exchange(&service, format!("{}{last}", one.repeat(999)).as_bytes()).await;
    assert_eq!(said.matches("HTTP/1.1 200").count(), 1_000, "each in its turn");

    let mut half = connect(&service).await;
    half.write_all(last.as_bytes()).await.unwrap();
    half.shutdown().await.unwrap();
    let mut said = String::new();
    timeout(PATIENCE, half.read_to_string(&mut said)).await.unwrap().unwrap();
    // Nothing tells it from one that has hung up, for whom nothing more is done; whichever is noticed first.
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 200"), "{said}");

    let question = r#"{"query": "Who hangs up?", "wait": true}"#;
    let ask = format!(
        "POST /api/v1/analyze HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{question}",
        question.len()
    );
    for _ in 0..200 {
        let mut stream = connect(&service).await;
        stream.write_all(ask.as_bytes()).await.unwrap();
    }
    // Nobody waits any more once all of them are noticed.
    loop {
        let metrics = service.get("/metrics").await;
        if metrics.body.as_str().unwrap().lines().any(|line| line == "ceoagent_waiters 0") {
            break;
        }
    }
    serves(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_is_closed_and_its_place_is_free_again() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).with("PATH", env!("PATH"));
    let mut few_files = setup.command_of("sh");
    // Half of them are for connections.
    let service =
        setup.start_as(few_files.args(["-c", "ulimit -n 64; exec \"$0\" serve", env!("CARGO_BIN_EXE_ceoagent")]));
    let held: Vec<TcpStream> = futures_util::future::join_all((0..32).map(|_| connect(&service))).await;
    let mut nothing = Vec::new();
    let mut one_more = connect(&service).await;
    drop(timeout(PATIENCE, one_more.read_to_end(&mut nothing)).await.expect("it is closed"));
    assert!(nothing.is_empty());
    drop(held);
    let free = async {
        while reqwest_health(&service).await.is_none() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, free).await.expect("there is room again");
}

/// The status of `/health`, if there is an answer.
async fn reqwest_health(service: &Service) -> Option<u16> {
    let answer = service.request(reqwest::Method::GET, "/health").timeout(Duration::from_secs(5)).send().await;
    answer.ok().map(|answer| answer.status().as_u16())
}

/// The attackers' address: other callers have another one.
const ELSEWHERE: [u8; 4] = [127, 0, 0, 66];

async fn connect_from_elsewhere(service: &Service) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((ELSEWHERE, 0).into())?;
    let to: SocketAddr = address(service).parse().unwrap();
    socket.connect(to).await
}

/// Sends a part of a request from [`ELSEWHERE`], as much as is taken at once, and keeps the connection.
async fn send_part(service: &Service, part: &[u8]) -> Option<TcpStream> {
    let mut stream = connect_from_elsewhere(service).await.ok()?;
    // What fits in the kernel's buffers; the service may read no further, or hang up.
    let (head, rest) = part.split_at(part.len().min(4 << 10));
    stream.write_all(head).await.ok()?;
    let mut rest = rest;
    while !rest.is_empty() {
        match timeout(Duration::from_secs(1), stream.write(rest)).await {
            Ok(Ok(sent)) if sent > 0 => rest = &rest[sent..],
            Ok(Ok(_)) | Err(_) => break,
            Ok(Err(_)) => return None,
        }
    }
    Some(stream)
}

/// Sends `count` parts, sixteen at a time, and looks meanwhile whether others are served.
async fn attack(service: &Service, count: usize, part: &[u8]) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for wave in 0..count.div_ceil(16) {
        let parts = (0..16).map(|_| send_part(service, part));
        held.extend(futures_util::future::join_all(parts).await.into_iter().flatten());
        if wave.is_multiple_of(16) {
            let what = String::from_utf8_lossy(&part[..part.len().min(60)]);
            assert_eq!(reqwest_health(service).await, Some(200), "{what} after {} parts", 16 * wave);
        }
    }
    serves(service).await;
    held
}

/// What others met while something went on: how long `/health` took on new connections, and a question to its memo.
struct Met {
    health: Vec<Duration>,
    questions: Vec<Duration>,
}

impl Met {
    /// The largest of 99 in a hundred.
    fn health_p99(&self) -> Duration {
        let mut sorted = self.health.clone();
        sorted.sort_unstable();
        sorted[sorted.len() * 99 / 100]
    }

    fn question(&self) -> Duration {
        self.questions.iter().sum::<Duration>() / u32::try_from(self.questions.len()).unwrap()
    }
}

/// Looks on from a thread and a runtime of its own, which no attack delays, until `is_over` and some questions later.
fn look_on(base: &str, is_over: Arc<AtomicBool>) -> thread::JoinHandle<Met> {
    const QUESTIONS: usize = 5;
    let base = base.to_owned();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut health, mut questions) = (Vec::new(), Vec::new());
            let client = || reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
            let asked = async {
                while questions.len() < QUESTIONS || !is_over.load(Ordering::Relaxed) {
                    let question = json!({ "query": format!("Question {}?", rand::random::<u64>()), "wait": true });
                    let (began, request) = (Instant::now(), client().post(format!("{base}/api/v1/analyze")));
                    assert_eq!(request.json(&question).send().await.unwrap().status(), 200);
                    questions.push(began.elapsed());
                }
            };
            let probed = async {
                loop {
                    let (client, began) = (client(), Instant::now());
                    let answer = client.get(format!("{base}/health")).send().await.unwrap();
                    assert_eq!(answer.status(), 200);
                    health.push(began.elapsed());
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::select! {
                () = asked => {}
                () = probed => {}
            }
            Met { health, questions }
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn under_256_mib_no_half_sent_request_and_no_unread_answer_ends_or_starves_the_service() {
    let pid = std::process::id().to_string();
    assert!(Command::new("prlimit").args(["--pid", &pid, "--nofile=16000:"]).status().unwrap().success());
    let latency = Latency::Fixed(Duration::from_secs(2));
    let claude = Simulator::start(SimulatorConfig { latency, ..SimulatorConfig::default() }).await.unwrap();
    let setup = Setup::new(&claude.base_url()).with("SUBMITS_PER_MINUTE", "0").with("PATH", env!("PATH"));
    let limit = MemoryLimit::mib(256);
    let service = limit.start(&setup);
    for n in 0..300 {
        let question = json!({ "query": format!("Question {n}?"), "context": "x".repeat(50_000) });
        assert_eq!(service.post("/api/v1/analyze", &question).await.status, 202);
    }
    while service.admin_get("/api/v1/admin/jobs?status=queued&status=running&limit=1").await.body["jobs"][0].is_object()
    {
    }
    let part = |target: &str, kind: &str, size: usize| {
        let head = format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n");
        let head = format!("{head}Content-Length: {}\r\n\r\n", size + 1);
        [head.into_bytes(), vec![b' '; size]].concat()
    };
    let form = part("/admin/login", "application/x-www-form-urlencoded", 1 << 20);
    let batch = part("/api/v1/analyze/batch", "application/json", (8 << 20) - 1_024);
    let head = format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: {}", "x".repeat(63 << 10)).into_bytes();
    let list = "GET /api/v1/admin/jobs?limit=200&include=context,result HTTP/1.1\r\nHost: localhost\r\nAuthorization: \
                Bearer a-token-for-tests-only\r\n\r\n";
    let alone = look_on(service.base(), Arc::new(AtomicBool::new(true))).join().unwrap();
    println!("alone: /health p99 {:?}, a question {:?}", alone.health_p99(), alone.question());
    for (name, count, part) in [
        ("unfinished forms of 1 MiB", 1_400, form.as_slice()),
        ("half-sent batches of 8 MiB", 100, &batch),
        ("half-sent heads of 63 KiB", 2_000, &head),
        ("lists that are not read", 400, list.as_bytes()),
    ] {
        let is_over = Arc::new(AtomicBool::new(false));
        let others = look_on(service.base(), Arc::clone(&is_over));
        let held = attack(&service, count, part).await;
        is_over.store(true, Ordering::Relaxed);
        let met = tokio::task::spawn_blocking(move || others.join().unwrap()).await.unwrap();
        drop(held);
        let (p99, question) = (met.health_p99(), met.question());
        let part = question.as_secs_f64() / alone.question().as_secs_f64();
        println!("{count} {name}: /health p99 {p99:?} of {}, a question {question:?}, {part:.2}×", met.health.len());
        // Figures for docs/security.md; a busy machine must not fail the test.
        assert!(p99 < Duration::from_secs(5) && part < 5.0, "{name}: others are starved");
    }
    println!("resident memory: {} MiB", resident_mb(&service));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_finds_no_memory_gets_503_and_one_of_another_address_finds_it() {
    let claude = simulator().await;
    let limit = MemoryLimit::mib(256);
    let service = limit.start(&Setup::new(&claude.base_url()).with("PATH", env!("PATH")));
    let head = |target: &str, length: usize| {
        let head = format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n");
        format!("{head}Content-Length: {length}\r\n")
    };
    // An address gets half of 32 MiB: room for two of these, which have not sent a byte of their bodies.
    let waiting = head("/api/v1/analyze/batch", 8_000_000) + "Expect: 100-continue\r\n\r\n";
    let mut held = Vec::new();
    for answer in ["HTTP/1.1 100", "HTTP/1.1 100", "HTTP/1.1 503", "HTTP/1.1 503"] {
        let mut stream = send_part(&service, waiting.as_bytes()).await.unwrap();
        let mut said = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut said)).await.expect("it is answered at its head").unwrap();
        assert_eq!(String::from_utf8_lossy(&said), answer);
        held.push(stream);
    }
    // One that sends all of its body without waiting gets to read why it was refused; one that is too large is told so.
    let body = vec![b' '; 7_000_000];
    for (target, answer) in [("/api/v1/analyze/batch", "HTTP/1.1 503"), ("/api/v1/analyze", "HTTP/1.1 413")] {
        let head = head(target, body.len()) + "Connection: close\r\n\r\n";
        let mut stream = connect_from_elsewhere(&service).await.unwrap();
        let mut said = String::new();
        let exchange = async {
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&body).await?;
            stream.read_to_string(&mut said).await
        };
        timeout(PATIENCE, exchange).await.expect("it is answered").unwrap();
        assert!(said.starts_with(answer), "{said}");
        assert_eq!(said.contains("server_busy") && said.contains("retry-after: 2"), answer.ends_with("503"), "{said}");
    }
    let requests = vec![json!({ "query": "And mine?", "context": "x".repeat(40_000) }); 50];
    assert_eq!(service.post("/api/v1/analyze/batch", &json!({ "requests": requests })).await.status, 202);
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_connections_run_out_health_is_still_answered_and_another_address_let_in() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).with("PATH", env!("PATH"));
    let mut few_files = setup.command_of("sh");
    let service =
        setup.start_as(few_files.args(["-c", "ulimit -n 128; exec \"$0\" serve", env!("CARGO_BIN_EXE_ceoagent")]));
    // Half of the files are for connections, three quarters of these for one address.
    let mut held = Vec::new();
    for _ in 0..48 {
        held.push(send_part(&service, b"GET").await.unwrap());
    }
    serves(&service).await;
    let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    for (path, status) in [("/health", "200"), ("/metrics", "200"), ("/api/v1/jobs", "503")] {
        let mut stream = send_part(&service, ask(path).as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("it is closed").unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_browser_that_knows_an_open_service_by_a_foreign_name_is_refused_and_a_program_is_not() {
    let claude = simulator().await;
    let named = "http://ceo.example:8000";
    let open = Setup::new(&claude.base_url()).with("PUBLIC_URL", named).start();
    let ask = async |service: &Service, host: &str, from: &[(&'static str, &str)]| {
        let mut request = service.request(reqwest::Method::POST, "/api/v1/analyze").header("host", host);
        for (name, value) in from {
            request = request.header(*name, *value);
        }
        crate::harness::send(request.json(&json!({ "query": "Whose question is this?" }))).await
    };
    let rebound = [("origin", "http://evil.example"), ("sec-fetch-site", "same-origin")];
    for one in rebound {
        ask(&open, "evil.example", &[one]).await.assert_problem(403, "foreign_host");
    }
    assert_eq!(ask(&open, "evil.example", &[]).await.status, 202, "a program");
    for own in ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "server", "ceo.example:8000"] {
        assert_eq!(ask(&open, own, &rebound).await.status, 202, "{own}");
    }
    let page =
        open.request(reqwest::Method::GET, "/admin").header("host", "evil.example").header("sec-fetch-site", "none");
    crate::harness::send(page).await.assert_problem(403, "foreign_host");
    for (url, cookie) in [(named, "ceoagent_session="), ("https://ceo.example", "__Host-ceoagent_session=")] {
        let service = Setup::new(&claude.base_url()).with("PUBLIC_URL", url).start();
        let form = format!("token={ADMIN_TOKEN}");
        let head = "POST /admin/login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Forwarded-Proto: https\r\n";
        let head =
            format!("{head}Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n", form.len());
        let said = exchange(&service, format!("{head}\r\n{form}").as_bytes()).await;
        let set = said.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap_or_default();
        assert!(set.starts_with(cookie) && set.contains("; Secure") == url.starts_with("https"), "{url}: {said}");
    }
    let closed = Setup::new(&claude.base_url()).with("REQUIRE_API_KEY", "true").start();
    ask(&closed, "ceo.example", &rebound).await.assert_problem(401, "unauthorized");
}

#[tokio::test]
async fn a_request_names_exactly_one_host() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    for hosts in ["", "Host: a\r\nHost: b\r\n", "Host: a b\r\n", "Host: http://a/b\r\n"] {
        let said =
            exchange(&service, format!("GET /health HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n").as_bytes()).await;
        assert!(said.starts_with("HTTP/1.1 400") && said.contains("invalid_host"), "{hosts:?}: {said}");
    }
    let said = exchange(&service, b"GET /health HTTP/1.0\r\n\r\n").await;
    assert!(said.starts_with("HTTP/1.0 200"), "{said}");
}

#[tokio::test]
async fn callers_without_a_key_can_not_fill_the_queue_with_jobs_for_later() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url())
        .with("MAX_QUEUED_JOBS", "100")
        .with("TRUSTED_PROXIES", "127.0.0.0/8")
        .with("API_KEYS", "alice:a-key-of-alice-1234")
        .with("REQUIRE_API_KEY", "false");
    let service = setup.start();
    let submit = async |address: usize, run_at: Option<&str>| {
        let body = json!({ "query": "q", "run_at": run_at });
        let from = format!("192.0.2.{address}");
        let request = service.request(Method::POST, "/api/v1/analyze").header("x-forwarded-for", from);
        send(request.json(&body)).await
    };
    let a_year = (ceoagent::clock::Clock::system().now().plus(Duration::from_hours(364 * 24))).to_string();
    for address in 0..5 {
        for _ in 0..10 {
            assert_eq!(submit(address, Some(&a_year)).await.status, 202);
        }
        submit(address, None).await.assert_problem(429, "too_many_pending");
    }
    submit(5, Some(&a_year)).await.assert_problem(503, "queue_full");
    // Whoever asks for an answer now is served, and callers with a key have room that no stranger can take.
    let answer = submit(6, None).await;
    assert_eq!(service.ended(&answer.id()).await.body["status"], "succeeded");
    service.admin_post("/api/v1/admin/queue/pause", &json!({})).await;
    for address in 10..14 {
        for _ in 0..10 {
            assert_eq!(submit(address, None).await.status, 202);
        }
    }
    submit(20, None).await.assert_problem(503, "queue_full");
    let request = service.request(Method::POST, "/api/v1/analyze").bearer_auth("a-key-of-alice-1234");
    assert_eq!(send(request.json(&json!({ "query": "q" }))).await.status, 202);
}
