//! Clients that mean harm or know no better: the service's memory stays bounded, and others are served meanwhile.

use std::{process::Command, time::Duration};

use reqwest::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use crate::harness::{PATIENCE, Service, Setup, send, simulator};

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
    assert_eq!(service.submit("And what of me?").await.status, 202);
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
