//! Starts the real binary in a folder of its own and talks to it. Everything ends with the test, whatever its end.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use ceoagent::{
    app::App,
    claude::simulator::{Simulator, SimulatorConfig},
    config::Settings,
};
use clap::Parser;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};

/// The admin token of services under test.
pub(crate) const ADMIN_TOKEN: &str = "a-token-for-tests-only";

/// A test that waits longer than this for anything has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A simulated Claude at no latency.
pub(crate) async fn simulator() -> Simulator {
    Simulator::start(SimulatorConfig::default()).await.unwrap()
}

/// How the binary is started.
pub(crate) struct Setup {
    folder: Arc<tempfile::TempDir>,
    settings: Vec<(String, String)>,
}

impl Setup {
    /// In a new folder, against Claude at `base_url`.
    pub(crate) fn new(base_url: &str) -> Setup {
        let setup = Setup { folder: Arc::new(tempfile::tempdir().unwrap()), settings: Vec::new() };
        let prompts = Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts");
        setup
            .with("ANTHROPIC_API_KEY", "sk-test-secret")
            .with("ANTHROPIC_BASE_URL", base_url)
            .with("ADMIN_TOKEN", ADMIN_TOKEN)
            .with("HOST", "127.0.0.1")
            .with("PORT", "0")
            .with("PROMPTS_DIR", &prompts.display().to_string())
            .with("DATA_DIR", "data")
            .with("RATE_LIMITS", "1000000 requests, 1000000000 input tokens, 1000000000 output tokens")
    }

    /// With an environment variable; the last one of a name counts.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Setup {
        self.set(name, value);
        self
    }

    /// As [`Setup::with`], in place.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// Without a variable that is otherwise set.
    pub(crate) fn without(mut self, name: &str) -> Setup {
        self.settings.retain(|(known, _)| known != name);
        self
    }

    /// The folder that the binary runs in.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The command, ready for arguments.
    pub(crate) fn command(&self) -> Command {
        self.command_of(env!("CARGO_BIN_EXE_ceoagent"))
    }

    /// As [`Setup::command`], of another program.
    pub(crate) fn command_of(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.folder()).env_clear().envs(self.settings.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs `ceoagent ARGS` to its end; for starts that fail. Gives the exit status and what it said.
    pub(crate) fn run(&self, args: &[&str]) -> (ExitStatus, String) {
        let output = self.command().args(args).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status, String::from_utf8_lossy(&said).into_owned())
    }

    /// Starts the service and waits until it is ready.
    pub(crate) fn start(&self) -> Service {
        let mut command = self.command();
        self.start_as(command.arg("serve"))
    }

    /// Starts the service by a command of the caller's making.
    pub(crate) fn start_as(&self, command: &mut Command) -> Service {
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            if log.read_line(&mut line).unwrap() == 0 {
                let _ = child.kill();
                panic!("the service ended before it was ready:\n{said}");
            }
            said.push_str(&line);
            // As text, or as a member of a JSON object.
            let ready = line.split_once("ceoagent is ready address=");
            let ready = ready.or_else(|| line.split_once(r#""ceoagent is ready","address":""#));
            if let Some((_, rest)) = ready {
                break rest.split([' ', '"', '\n']).next().unwrap().to_owned();
            }
        };
        // Its log must be read, or it would stop at a full pipe.
        let said = Arc::new((Mutex::new(said), Condvar::new()));
        let log = std::thread::spawn({
            let said = Arc::clone(&said);
            move || {
                let mut line = String::new();
                while log.read_line(&mut line).is_ok_and(|length| length > 0) {
                    said.0.lock().unwrap().push_str(&line);
                    said.1.notify_all();
                    line.clear();
                }
                std::mem::take(&mut *said.0.lock().unwrap())
            }
        });
        let folder = Some(Arc::clone(&self.folder));
        let base = format!("http://{address}");
        Service { child: Some(child), base, client: client(), said, log: Some(log), _folder: folder }
    }
}

/// The command line of a service within the test.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    settings: Settings,
}

/// The settings of a service within the test, with its data in `data_dir`; `more` are flags.
pub(crate) fn settings(base_url: &str, data_dir: &Path, more: &[&str]) -> Settings {
    let flags = [
        format!("--anthropic-base-url={base_url}"),
        format!("--data-dir={}", data_dir.display()),
        format!("--prompts-dir={}/prompts", env!("CARGO_MANIFEST_DIR")),
        format!("--admin-token={ADMIN_TOKEN}"),
    ];
    let fixed = ["test", "--anthropic-api-key=sk-test-secret", "--host=127.0.0.1", "--port=0"];
    Line::parse_from(fixed.into_iter().chain(flags.iter().map(String::as_str)).chain(more.iter().copied())).settings
}

/// A client that keeps connections and asks no proxy.
pub(crate) fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().timeout(PATIENCE).build().unwrap()
}

/// A running service; killed when dropped.
pub(crate) struct Service {
    /// None: it runs in this process.
    child: Option<Child>,
    base: String,
    client: Client,
    /// What it said so far, and word of every line more.
    said: Arc<(Mutex<String>, Condvar)>,
    log: Option<std::thread::JoinHandle<String>>,
    /// Lasts as long as the process that uses it.
    _folder: Option<Arc<tempfile::TempDir>>,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// A header's text, empty if it is missing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The job's id.
    pub(crate) fn id(&self) -> String {
        self.body["id"].as_str().unwrap_or_else(|| panic!("no id in {self:?}")).to_owned()
    }

    /// Asserts that this is a problem of this status and code, told as RFC 9457 has it.
    #[track_caller]
    pub(crate) fn assert_problem(&self, status: u16, code: &str) -> &Answer {
        assert_eq!((self.status, self.body["code"].as_str()), (status, Some(code)), "{self:#?}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.body["request_id"], self.header("x-request-id"));
        assert_eq!(self.body["status"], status);
        assert!(self.body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{self:#?}");
        self
    }
}

impl Service {
    /// A service in this process.
    pub(crate) fn in_process(app: &App) -> Service {
        Service::at(format!("http://{}", app.address()))
    }

    /// A service that something else starts and ends.
    pub(crate) fn at(base: String) -> Service {
        Service { child: None, base, client: client(), said: Arc::default(), log: None, _folder: None }
    }

    fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("a process")
    }

    /// A request to `path`.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// The process's id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("a process").id()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await
    }

    /// As [`Service::get`], as the operator.
    pub(crate) async fn admin_get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path).bearer_auth(ADMIN_TOKEN)).await
    }

    /// As [`Service::post`], as the operator.
    pub(crate) async fn admin_post(&self, path: &str, body: &Value) -> Answer {
        send(self.request(Method::POST, path).bearer_auth(ADMIN_TOKEN).json(body)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        send(self.request(Method::POST, path).json(body)).await
    }

    /// Asks `query` and gives the answer as it comes at once.
    pub(crate) async fn submit(&self, query: &str) -> Answer {
        self.post("/api/v1/analyze", &json!({ "query": query })).await
    }

    /// A metric, by its name and its labels as they stand there.
    pub(crate) async fn metric(&self, name: &str) -> String {
        let metrics = self.get("/metrics").await.body;
        let mut lines = metrics.as_str().unwrap().lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name}: {metrics}")).to_owned()
    }

    /// The job once it has ended.
    pub(crate) async fn ended(&self, id: &str) -> Answer {
        loop {
            let answer = self.get(&format!("/api/v1/jobs/{id}?wait=20")).await;
            assert_eq!(answer.status, 200, "{answer:#?}");
            if !matches!(answer.body["status"].as_str(), Some("queued" | "scheduled" | "running")) {
                return answer;
            }
        }
    }

    /// Waits until it has said these words.
    pub(crate) fn until_said(&self, words: &str) {
        let said = self.said.0.lock().unwrap();
        let (said, waited) = self.said.1.wait_timeout_while(said, PATIENCE, |said| !said.contains(words)).unwrap();
        assert!(!waited.timed_out(), "{words:?} was never said: {said}");
    }

    /// SIGKILL, and what it said.
    pub(crate) fn kill(mut self) -> String {
        self.child().kill().unwrap();
        self.child().wait().unwrap();
        self.log.take().unwrap().join().unwrap()
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// SIGTERM, and [`Service::wait`].
    pub(crate) fn terminate(self) -> (ExitStatus, String) {
        self.signal("TERM");
        self.wait()
    }

    /// Waits for the end of its own. Gives the exit status and the log.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        let status = self.child().wait().unwrap();
        (status, self.log.take().unwrap().join().unwrap())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sends and reads the whole answer; a body that isn't JSON is given as a string.
pub(crate) async fn send(request: RequestBuilder) -> Answer {
    let answer = request.send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let text = answer.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Answer { status, headers, body }
}

/// A path that can't be a folder, since it lies beneath a file.
pub(crate) fn below_a_file(setup: &Setup) -> PathBuf {
    let file = setup.folder().join("a-file");
    std::fs::write(&file, "not a folder").unwrap();
    file.join("below")
}
