//! Shared by the benchmarks: the real binary as a process under measurement, figures of a process, a client that costs
//! little, and latencies.
//!
//! With `DATABASE_URL=postgres://…` services and stores under measurement use PostgreSQL: each a new database of that server,
//! which is dropped at its end. `psql` must be installed. With `BENCH_SERVICE=PATH` another binary is measured than the one
//! built with the benchmark.

#![allow(dead_code, reason = "each benchmark uses a part")]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The admin token of measured services.
pub(crate) const ADMIN_TOKEN: &str = "a-token-for-benchmarks-only";

/// The binary under measurement.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("BENCH_SERVICE").unwrap_or_else(|| env!("CARGO_BIN_EXE_ceoagent").into()).into()
}

/// Where a service keeps its data: a folder, and a database if `DATABASE_URL` is set. Removed when dropped.
pub(crate) struct Home {
    folder: TempDir,
    database: Option<Database>,
}

struct Database {
    name: String,
    server: String,
}

impl Home {
    pub(crate) fn new() -> Arc<Home> {
        let database = std::env::var("DATABASE_URL").ok().map(|server| {
            let name = format!("bench_{}", uuid::Uuid::now_v7().simple());
            sql(&server, &format!("create database {name}"));
            Database { name, server }
        });
        Arc::new(Home { folder: tempfile::tempdir().unwrap(), database })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The URL of its database, or else its folder.
    pub(crate) fn place(&self) -> String {
        self.url().unwrap_or_else(|| self.path().display().to_string())
    }

    /// The URL of its database.
    pub(crate) fn url(&self) -> Option<String> {
        let Database { name, server } = self.database.as_ref()?;
        let (server, options) = server.split_once('?').unwrap_or((server, "sslmode=prefer"));
        let server = server.rsplit_once('/').unwrap().0;
        Some(format!("{server}/{name}?{options}"))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(Database { name, server }) = &self.database {
            sql(server, &format!("drop database {name} with (force)"));
        }
    }
}

/// The answer of a database to a statement.
pub(crate) fn sql(url: &str, statement: &str) -> String {
    let answer = Command::new("psql").args(["-XqAt", "-v", "ON_ERROR_STOP=1", url, "-c", statement]).output().unwrap();
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    String::from_utf8(answer.stdout).unwrap().trim().to_owned()
}

/// The service, killed when dropped.
pub(crate) struct Service {
    child: Child,
    pub(crate) address: String,
    /// From the start of the process to the first `200` of `/health`.
    pub(crate) started_in: Duration,
    home: Arc<Home>,
}

impl Service {
    /// Starts it with no jobs, against Claude at `upstream`.
    pub(crate) async fn start(upstream: &str, settings: &[(&str, &str)]) -> Service {
        Service::start_in(Home::new(), &binary(), upstream, settings).await
    }

    /// As [`Service::start`], with the data and the binary of the caller.
    pub(crate) async fn start_in(home: Arc<Home>, binary: &Path, upstream: &str, settings: &[(&str, &str)]) -> Service {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let started = Instant::now();
        let mut child = Command::new(binary)
            .arg("serve")
            .env_clear()
            .env("ANTHROPIC_API_KEY", "bench")
            .env("ANTHROPIC_BASE_URL", upstream)
            .env("ADMIN_TOKEN", ADMIN_TOKEN)
            .env("PROMPTS_DIR", concat!(env!("CARGO_MANIFEST_DIR"), "/prompts"))
            .env("DATA_DIR", home.path())
            .envs(home.url().map(|url| ("DATABASE_URL", url)))
            .env("WEBHOOK_SECRET", "whsec_YmVuY2htYXJrcy1vZi1jZW9hZ2VudC1vbmx5LTAx")
            .env("HOST", "127.0.0.1")
            .env("PORT", port.to_string())
            .env("RATE_LIMITS", "1000000 requests, 1000000000 input tokens, 1000000000 output tokens")
            .env("MAX_QUEUED_JOBS", "10000000")
            .envs(settings.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Its log is read and thrown away, as by a collector.
        let log = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || log.split(b'\n').for_each(drop));
        let started_in = loop {
            if let Ok(mut connection) = Connection::open(&address).await
                && connection.ask(&get("/health")).await.0 == 200
            {
                break started.elapsed();
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        };
        Service { child, address, started_in, home }
    }

    pub(crate) fn home(&self) -> Arc<Home> {
        Arc::clone(&self.home)
    }

    pub(crate) fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// SIGTERM, and how it ended.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process as the kernel sees it.
#[derive(Clone, Copy)]
pub(crate) struct Process(u32);

impl Process {
    /// The benchmark itself.
    pub(crate) fn own() -> Process {
        Process(std::process::id())
    }

    /// Resident memory in MB.
    pub(crate) fn resident_mb(self) -> f64 {
        self.status("VmRSS:") / 1024.0
    }

    pub(crate) fn threads(self) -> f64 {
        self.status("Threads:")
    }

    pub(crate) fn open_files(self) -> f64 {
        fs::read_dir(format!("/proc/{}/fd", self.0)).unwrap().count() as f64
    }

    /// CPU time so far, user and system, in clock ticks of 10 ms.
    pub(crate) fn cpu_ticks(self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    fn status(self, name: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

/// What the data in a [`Home::place`] take on disk, in MB.
pub(crate) fn used_mb(place: &str) -> f64 {
    if !place.starts_with("postgres") {
        return folder_mb(Path::new(place));
    }
    sql(place, "select pg_database_size(current_database())").parse::<f64>().unwrap() / 1e6
}

/// What the files in `folder` take on disk, in MB: blocks, not lengths, since files may have holes.
pub(crate) fn folder_mb(folder: &Path) -> f64 {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    // A file may go while it is looked at.
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if let Ok(metadata) = entry.metadata() {
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                bytes += (folder_mb(&entry.path()) * 1e6) as u64;
            }
        }
    }
    bytes as f64 / 1e6
}

/// A keep-alive connection that knows just enough of HTTP to be cheap beside the server.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: &str) -> std::io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: Vec::new() })
    }

    /// Sends a whole request and leaves its answer unread.
    pub(crate) async fn send(&mut self, request: &[u8]) {
        self.stream.write_all(request).await.unwrap();
    }

    /// Sends a whole request and reads the whole answer: its status and body.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> (u16, Vec<u8>) {
        self.stream.write_all(request).await.unwrap();
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await.unwrap() == 0 {
                return (0, Vec::new());
            }
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut answer = httparse::Response::new(&mut headers);
            let Ok(httparse::Status::Complete(head)) = answer.parse(&self.buffer) else { continue };
            let length = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
            // A 304 has no body and says no length.
            let length = length.map_or(0, |length| std::str::from_utf8(length.value).unwrap().parse().unwrap());
            let status = answer.code.unwrap();
            while self.buffer.len() < head + length {
                self.stream.read_buf(&mut self.buffer).await.unwrap();
            }
            return (status, self.buffer[head..head + length].to_vec());
        }
    }
}

pub(crate) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n").into_bytes()
}

/// A question to be asked for itself: the same one over and over would be asked once.
pub(crate) fn post(query: &str, wait: bool) -> Vec<u8> {
    post_json(&serde_json::json!({ "query": query, "wait": wait }))
}

/// As [`post`], with this body.
pub(crate) fn post_json(body: &serde_json::Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!(
        "POST /api/v1/analyze HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n\
         cache-control: no-cache\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Latencies of one load, sorted.
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    pub(crate) fn new(mut all: Vec<Duration>) -> Latencies {
        all.sort_unstable();
        Latencies(all)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The quantile `q`, in milliseconds.
    pub(crate) fn ms(&self, q: f64) -> f64 {
        let place = (self.0.len() as f64 * q) as usize;
        self.0[place.min(self.0.len() - 1)].as_secs_f64() * 1_000.0
    }
}
