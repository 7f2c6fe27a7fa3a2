//! Several nodes on one PostgreSQL, each under a supervisor that starts it again, with load on all of them. What must hold
//! after any fault: see `cluster_marks`.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    io::{BufRead, BufReader},
    process::{Command, ExitStatus},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use ceoagent::claude::{
    message::Usage,
    simulator::{Latency, Simulator, SimulatorConfig},
};
use futures_util::{StreamExt, stream};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    cluster_marks::{self, Figures},
    database::free_port,
    harness::{ADMIN_TOKEN, Answer, Service, Setup, client},
};

/// A test that waits longer than this for anything has failed. The machine may be slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

const CLIENTS_PER_NODE: usize = 3;

/// The most calls at once.
pub(crate) const WORKERS: usize = 16;

/// More than any test spends.
const DAILY_BUDGET: &str = "1000000000 tokens";

/// With [`Load::Greedy`], each of these callers has a client on each node, and always jobs that wait.
pub(crate) const GREEDY: [&str; CLIENTS_PER_NODE] = ["ann", "bob", "cyd"];

/// With [`Load::Greedy`], Claude is called so often at most. The clients submit more.
pub(crate) const CALLS_PER_MINUTE: u32 = 1_800;

/// How many jobs a client of each greedy caller has that wait for their call. In the order of submission, the last caller would
/// get four times as many calls as the first.
const GREED: [usize; GREEDY.len()] = [4, 8, 16];

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Load {
    /// One caller submits as fast as it is answered, and Claude's limits are high.
    Free,
    /// [`GREEDY`] callers share [`CALLS_PER_MINUTE`].
    Greedy,
}

/// Pause of a client between two questions.
const PACE: Duration = Duration::from_millis(60);

/// How long a supervisor waits before it starts a node again.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// A node's settings.
pub(crate) fn setup(base_url: &str, database_url: &str) -> Setup {
    Setup::new(base_url)
        .with("DATABASE_URL", database_url)
        .with("WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=")
        .with("WORKERS", &WORKERS.to_string())
        .with("MAX_RETRIES", "20")
        .with("DAILY_BUDGET", DAILY_BUDGET)
}

/// A node whose process is started again whenever it ends.
pub(crate) struct Node {
    life: Arc<Mutex<Life>>,
    supervisor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Life {
    pid: Option<u32>,
    /// Its address, once it is ready.
    base: Option<String>,
    log: String,
    starts: usize,
    /// How its last process ended.
    exit: Option<ExitStatus>,
    is_over: bool,
}

impl Node {
    fn start(setup: Setup) -> Node {
        let life = Arc::<Mutex<Life>>::default();
        let supervisor = thread::spawn({
            let life = Arc::clone(&life);
            move || supervise(&setup, &life)
        });
        Node { life, supervisor: Some(supervisor) }
    }

    pub(crate) fn base(&self) -> Option<String> {
        self.life.lock().unwrap().base.clone()
    }

    pub(crate) fn signal(&self, name: &str) {
        // Under the lock: the supervisor clears the id before it reaps the process.
        let life = self.life.lock().unwrap();
        let Some(pid) = life.pid else { return };
        assert!(Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap().success());
    }

    pub(crate) fn starts(&self) -> usize {
        self.life.lock().unwrap().starts
    }

    pub(crate) fn exit(&self) -> Option<ExitStatus> {
        self.life.lock().unwrap().exit
    }

    pub(crate) fn log(&self) -> String {
        self.life.lock().unwrap().log.clone()
    }

    /// Waits until it was started more than `starts` times and is ready.
    pub(crate) async fn started_again(&self, starts: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.starts() <= starts {
            assert!(Instant::now() < deadline, "it did not end: {}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
        self.ready().await;
    }

    /// The node, once it is ready.
    pub(crate) async fn ready(&self) -> Service {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(base) = self.base() {
                let ready = client().get(format!("{base}/health/ready")).timeout(Duration::from_secs(5)).send().await;
                if ready.is_ok_and(|answer| answer.status() == 200) {
                    return Service::at(base);
                }
            }
            assert!(Instant::now() < deadline, "it never became ready: {}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether it hands out the calls.
    async fn is_dispatcher(&self) -> bool {
        let Some(base) = self.base() else { return false };
        let Ok(answer) = client().get(format!("{base}/metrics")).timeout(Duration::from_secs(1)).send().await else {
            return false;
        };
        answer.text().await.is_ok_and(|metrics| metrics.contains("ceoagent_dispatcher 1\n"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.life.lock().unwrap().is_over = true;
        self.signal("KILL");
        let _ = self.supervisor.take().unwrap().join();
        if thread::panicking() {
            println!("the log of a node: {}", self.log());
        }
    }
}

fn supervise(setup: &Setup, life: &Mutex<Life>) {
    loop {
        let mut child = {
            let mut life = life.lock().unwrap();
            if life.is_over {
                return;
            }
            let child = setup.command().arg("serve").spawn().unwrap();
            life.pid = Some(child.id());
            life.starts += 1;
            child
        };
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while log.read_line(&mut line).is_ok_and(|length| length > 0) {
            let mut life = life.lock().unwrap();
            if let Some((_, rest)) = line.split_once("ceoagent is ready address=") {
                life.base = rest.split([' ', '\n']).next().map(|address| format!("http://{address}"));
            }
            life.log.push_str(&line);
            line.clear();
        }
        {
            let mut life = life.lock().unwrap();
            (life.pid, life.base) = (None, None);
        }
        life.lock().unwrap().exit = child.wait().ok();
        thread::sleep(RESTART_PAUSE);
    }
}

/// What clients were answered.
#[derive(Default)]
struct Told {
    accepted: BTreeMap<String, Accepted>,
    answers: Vec<Sent>,
}

/// An accepted job.
#[derive(Clone)]
pub(crate) struct Accepted {
    pub(crate) query: String,
    pub(crate) at: SystemTime,
    /// Which of the [`GREEDY`] callers submitted it.
    pub(crate) caller: Option<usize>,
    /// The end that a client saw.
    finished_at: Option<Value>,
}

impl Accepted {
    fn now(query: String, caller: Option<usize>) -> Accepted {
        Accepted { query, at: SystemTime::now(), caller, finished_at: None }
    }
}

/// A question that was sent. `status` is missing if there was no answer.
#[derive(Clone)]
struct Sent {
    node: usize,
    at: Instant,
    answered_at: Instant,
    status: Option<u16>,
}

/// A call that Claude received.
#[derive(Clone)]
pub(crate) struct Received {
    pub(crate) question: String,
    pub(crate) at: SystemTime,
    pub(crate) usage: Usage,
}

#[derive(Default)]
struct Calls {
    all: Vec<Received>,
    questions: HashSet<String>,
}

pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Arc<Node>>,
    load: Load,
    calls: Arc<Mutex<Calls>>,
    told: Arc<Mutex<Told>>,
    stop: CancellationToken,
    clients: JoinSet<()>,
    _collecting: AbortOnDropHandle<()>,
}

/// A moment by both clocks.
#[derive(Clone, Copy)]
pub(crate) struct Moment(Instant, SystemTime);

impl Moment {
    pub(crate) fn now() -> Moment {
        Moment(Instant::now(), SystemTime::now())
    }
}

impl Cluster {
    /// Starts a node for each URL, in order, and load on each. The first is the dispatcher.
    pub(crate) async fn start(urls: &[String]) -> Cluster {
        Cluster::start_with(urls, |_, setup| setup).await
    }

    /// As [`Cluster::start`], with more settings for each node.
    pub(crate) async fn start_with(urls: &[String], more: impl Fn(usize, Setup) -> Setup) -> Cluster {
        Cluster::start_under(Load::Free, urls, more).await
    }

    /// As [`Cluster::start_with`], under another load. A node has the same name after each restart.
    pub(crate) async fn start_under(load: Load, urls: &[String], more: impl Fn(usize, Setup) -> Setup) -> Cluster {
        let latency = Latency::Fixed(Duration::from_millis(30));
        let claude = Simulator::start(SimulatorConfig { latency, writes: 2, ..SimulatorConfig::default() });
        let claude = Arc::new(claude.await.unwrap());
        let mut nodes = Vec::new();
        for (number, url) in urls.iter().enumerate() {
            let mut setup = setup(&claude.base_url(), url).with("PORT", &free_port().to_string());
            if load == Load::Greedy {
                setup = setup.with("API_KEYS", &GREEDY.map(|name| format!("{name}:{}", key(name))).join(","));
                setup = setup.with("REQUIRE_API_KEY", "false");
                setup = setup.with("RATE_LIMITS", &format!("{CALLS_PER_MINUTE} requests"));
            }
            let node = Arc::new(Node::start(more(number, setup)));
            node.ready().await;
            nodes.push(node);
        }
        let calls = Arc::<Mutex<Calls>>::default();
        let collecting = AbortOnDropHandle::new(tokio::spawn(collect(claude, Arc::clone(&calls))));
        let mut cluster = Cluster {
            nodes,
            load,
            calls,
            told: Arc::default(),
            stop: CancellationToken::new(),
            clients: JoinSet::new(),
            _collecting: collecting,
        };
        for number in 0..cluster.nodes.len() * CLIENTS_PER_NODE {
            cluster.add_client(number);
        }
        cluster.accepted(cluster.nodes.len() * 10).await;
        cluster
    }

    fn add_client(&mut self, number: usize) {
        let caller = (self.load == Load::Greedy).then_some(number / self.nodes.len());
        let (nodes, told, calls) = (self.nodes.clone(), Arc::clone(&self.told), Arc::clone(&self.calls));
        let client = Asker { number, caller, nodes, told, calls };
        let stop = self.stop.clone();
        self.clients.spawn(async move { client.run(&stop).await });
    }

    /// Waits until so many more jobs were accepted.
    pub(crate) async fn accepted(&self, count: usize) {
        let wanted = self.told.lock().unwrap().accepted.len() + count;
        let deadline = Instant::now() + PATIENCE;
        while self.told.lock().unwrap().accepted.len() < wanted {
            assert!(Instant::now() < deadline, "no more jobs are accepted");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// The number of the node that hands out the calls.
    pub(crate) async fn dispatcher(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for (number, node) in self.nodes.iter().enumerate() {
                if node.is_dispatcher().await {
                    return number;
                }
            }
            assert!(Instant::now() < deadline, "no node hands out the calls");
        }
    }

    /// The longest time without an accepted job on a node, from `from` on.
    pub(crate) fn longest_pause(&self, node: usize, from: Moment) -> Duration {
        let told = self.told.lock().unwrap();
        let accepted = told.answers.iter().filter(|sent| sent.node == node && sent.status == Some(202));
        let accepted = accepted.map(|sent| sent.answered_at).filter(|at| *at > from.0);
        longest_gap(accepted.chain([from.0, Instant::now()]).collect(), |a, b| a.duration_since(b))
    }

    /// The longest time without a call, from `from` on.
    pub(crate) fn longest_pause_of_calls(&self, from: Moment) -> Duration {
        let calls = self.calls.lock().unwrap();
        let at = calls.all.iter().map(|call| call.at).filter(|at| *at > from.1);
        longest_gap(at.chain([from.1, SystemTime::now()]).collect(), |a, b| a.duration_since(b).unwrap_or_default())
    }

    /// Answers of a node other than `202` since `from`, with the time they took.
    pub(crate) fn refusals(&self, node: usize, from: Moment) -> Vec<(Option<u16>, Duration)> {
        let told = self.told.lock().unwrap();
        let since = told.answers.iter().filter(|sent| sent.node == node && sent.at > from.0);
        let refused = since.filter(|sent| sent.status != Some(202));
        refused.map(|sent| (sent.status, sent.answered_at - sent.at)).collect()
    }

    /// Asks a node until it refuses a question. What it accepts meanwhile has to end like all other jobs.
    pub(crate) async fn refusal(&self, node: usize) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        let mut count = 0;
        loop {
            let query = format!("Case {count} of room on node {node}: should we proceed?");
            let answer = Service::at(self.nodes[node].base().unwrap()).submit(&query).await;
            if answer.status != 202 {
                return answer;
            }
            assert!(Instant::now() < deadline, "node {node} refuses nothing");
            self.told.lock().unwrap().accepted.insert(answer.id(), Accepted::now(query, None));
            count += 1;
        }
    }

    /// Asserts that a node went on to accept questions, on however slow a machine. Gives its longest pause.
    #[track_caller]
    pub(crate) fn assert_went_on(&self, node: usize, from: Moment) -> Duration {
        let (pause, refusals) = (self.longest_pause(node, from), self.refusals(node, from));
        if !refusals.is_empty() {
            println!("  node {node} refused: {refusals:?}");
        }
        assert!(
            pause < Duration::from_secs(30),
            "node {node} accepted nothing for {pause:?}: {}",
            self.nodes[node].log()
        );
        pause
    }

    /// Ends the load, waits for the end of all jobs, and asserts what must hold whatever happened.
    pub(crate) async fn assert_marks(mut self) -> Figures {
        self.stop.cancel();
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        let mut services = Vec::new();
        for node in &self.nodes {
            services.push(node.ready().await);
        }
        let answers = std::mem::take(&mut self.told.lock().unwrap().answers);
        let refused = answers.iter().filter(|sent| sent.status == Some(429)).count();
        assert_eq!(refused, 0, "questions within the bounds were refused with 429");
        let (accepted, client) = (self.told.lock().unwrap().accepted.clone(), client());
        let jobs = stream::iter(accepted.iter().enumerate()).map(|(n, (id, told))| {
            let (client, node) = (client.clone(), &self.nodes[n % self.nodes.len()]);
            async move {
                let job = end(&client, node, id).await;
                assert_eq!(job["query"], *told.query, "a job kept its question");
                assert_eq!(job["status"], "succeeded", "{job:#}");
                if let Some(finished_at) = &told.finished_at {
                    assert_eq!(job["finished_at"], *finished_at, "a job ended twice: {job:#}");
                }
                job
            }
        });
        let jobs: Vec<Value> = jobs.buffer_unordered(8).collect().await;
        let usage = cluster_marks::settled_usage(&services).await;
        // The collector has seen the last calls.
        sleep(COLLECT_PAUSE * 3).await;
        let calls = std::mem::take(&mut self.calls.lock().unwrap().all);
        let figures = cluster_marks::assert_one_call_an_attempt(&jobs, &calls);
        cluster_marks::assert_ledger(&usage, &calls);
        if self.load == Load::Greedy {
            cluster_marks::assert_calls_a_minute(&calls);
            cluster_marks::assert_fair_turns(accepted.values(), &calls);
        }
        let starts: Vec<_> = self.nodes.iter().map(|node| node.starts()).collect();
        println!("  {figures:?}; starts {starts:?}");
        figures
    }
}

const COLLECT_PAUSE: Duration = Duration::from_millis(100);

/// Notes the calls that Claude receives, which remembers only the newest.
async fn collect(claude: Arc<Simulator>, calls: Arc<Mutex<Calls>>) {
    let mut known = HashSet::new();
    loop {
        for call in claude.calls() {
            if known.insert(call.request_id) {
                let question = call.prompt.find("Case ").map_or("", |start| &call.prompt[start..]);
                let end = question.find('?').map_or(question.len(), |end| end + 1);
                let question = question[..end].to_owned();
                let mut calls = calls.lock().unwrap();
                calls.questions.insert(question.clone());
                calls.all.push(Received { question, at: call.at, usage: call.usage });
            }
        }
        sleep(COLLECT_PAUSE).await;
    }
}

fn longest_gap<T: Ord + Copy>(mut moments: Vec<T>, since: impl Fn(T, T) -> Duration) -> Duration {
    moments.sort_unstable();
    moments.windows(2).map(|pair| since(pair[1], pair[0])).max().unwrap_or_default()
}

/// The API key of a [`GREEDY`] caller.
fn key(name: &str) -> String {
    format!("a-key-of-{name}-1234")
}

/// A client that asks one question after the other on its node, and looks at a job before on the next node.
struct Asker {
    number: usize,
    caller: Option<usize>,
    nodes: Vec<Arc<Node>>,
    told: Arc<Mutex<Told>>,
    calls: Arc<Mutex<Calls>>,
}

impl Asker {
    async fn run(&self, stop: &CancellationToken) {
        let client = client();
        let (own, other) = (self.number % self.nodes.len(), (self.number + 1) % self.nodes.len());
        let most_waiting = self.caller.map_or(1, |caller| GREED[caller]);
        let mut last = VecDeque::<(String, String)>::new();
        for n in 0.. {
            if stop.run_until_cancelled(sleep(PACE)).await.is_none() {
                return;
            }
            let is_called = |query: &String| self.calls.lock().unwrap().questions.contains(query);
            let is_full = self.caller.is_some() && last.len() == most_waiting;
            if is_full && !last.front().is_some_and(|(_, query)| is_called(query)) {
                continue;
            }
            let Some(base) = self.nodes[own].base() else { continue };
            let query = format!("Case {}-{n}: should we proceed?", self.number);
            if let Some(id) = self.submit(&client, own, &base, &query).await {
                last.push_back((id, query));
            }
            if last.len() <= most_waiting {
                continue;
            }
            let Some((seen, _)) = last.pop_front() else { continue };
            if let Some(finished_at) = end_of(&client, &self.nodes[other], &seen).await
                && let Some(job) = self.told.lock().unwrap().accepted.get_mut(&seen)
            {
                job.finished_at = Some(finished_at);
            }
        }
    }

    /// Gives the id of the job if it was accepted.
    async fn submit(&self, client: &Client, node: usize, base: &str, query: &str) -> Option<String> {
        let at = Instant::now();
        let mut request = client.post(format!("{base}/api/v1/analyze"));
        if let Some(caller) = self.caller {
            request = request.bearer_auth(key(GREEDY[caller]));
        }
        let answer = request.json(&json!({ "query": query })).send().await;
        let status = answer.as_ref().ok().map(|answer| answer.status().as_u16());
        let id = match answer {
            Ok(answer) if status == Some(202) => {
                answer.json::<Value>().await.ok().and_then(|job| Some(job["id"].as_str()?.to_owned()))
            }
            _ => None,
        };
        // A 202 whose body was cut off by the end was not received.
        let status = status.filter(|status| *status != 202 || id.is_some());
        let mut told = self.told.lock().unwrap();
        told.answers.push(Sent { node, at, answered_at: Instant::now(), status });
        if let Some(id) = &id {
            told.accepted.insert(id.clone(), Accepted::now(query.to_owned(), self.caller));
        }
        id
    }
}

/// The job once it has ended. A node may be away for a moment, and start again at another address.
async fn end(client: &Client, node: &Node, id: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let base = node.base().unwrap_or_default();
        let look = client.get(format!("{base}/api/v1/jobs/{id}?wait=20")).bearer_auth(ADMIN_TOKEN);
        let answer = look.send().await;
        if let Ok(answer) = answer {
            assert_ne!(answer.status(), 404, "a job that was accepted is lost: {id}");
            let (is_found, job) = (answer.status() == 200, answer.json::<Value>().await.unwrap_or_default());
            let is_open = matches!(job["status"].as_str(), None | Some("queued" | "scheduled" | "running"));
            if is_found && !is_open {
                return job;
            }
        }
        assert!(Instant::now() < deadline, "no node has the end of {id}: {}", node.log());
        sleep(Duration::from_millis(100)).await;
    }
}

/// When a job ended, if a node says that it did.
async fn end_of(client: &Client, node: &Node, id: &str) -> Option<Value> {
    let look = client.get(format!("{}/api/v1/jobs/{id}", node.base()?)).timeout(Duration::from_secs(2));
    let answer = look.bearer_auth(ADMIN_TOKEN).send().await.ok()?;
    assert_ne!(answer.status(), 404, "a job that was accepted is lost: {id}");
    let mut job = answer.json::<Value>().await.ok()?;
    (job["status"] == "succeeded").then(|| job["finished_at"].take())
}
