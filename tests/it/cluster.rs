//! Several nodes on one PostgreSQL, each under a supervisor that starts it again, with load on all of them. What must hold
//! after any fault: no accepted job is lost, each ends once, and Claude is called once for each attempt.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::{BufRead, BufReader},
    process::Command,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use ceoagent::claude::simulator::{Latency, Simulator, SimulatorConfig};
use futures_util::{StreamExt, stream};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::harness::{Answer, Service, Setup, client};

/// A test that waits longer than this for anything has failed. The machine may be slow.
const PATIENCE: Duration = Duration::from_secs(180);

const CLIENTS_PER_NODE: usize = 3;

/// Pause of a client between two questions.
const PACE: Duration = Duration::from_millis(60);

/// How long a supervisor waits before it starts a node again.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// A node's settings.
pub(crate) fn setup(base_url: &str, database_url: &str) -> Setup {
    Setup::new(base_url)
        .with("DATABASE_URL", database_url)
        .with("WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=")
        .with("WORKERS", "16")
        .with("MAX_RETRIES", "20")
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

    pub(crate) fn log(&self) -> String {
        self.life.lock().unwrap().log.clone()
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
        let _ = child.wait();
        thread::sleep(RESTART_PAUSE);
    }
}

/// What clients were answered.
#[derive(Default)]
struct Told {
    /// Each accepted job with its question, and the end that a client saw.
    accepted: BTreeMap<String, (String, Option<Value>)>,
    answers: Vec<Sent>,
}

/// A question that was sent. `status` is missing if there was no answer.
#[derive(Clone)]
struct Sent {
    node: usize,
    at: Instant,
    answered_at: Instant,
    status: Option<u16>,
}

/// The calls that Claude received: the question, and when.
type Calls = Vec<(String, SystemTime)>;

pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Arc<Node>>,
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
        let latency = Latency::Fixed(Duration::from_millis(30));
        let claude = Simulator::start(SimulatorConfig { latency, writes: 2, ..SimulatorConfig::default() });
        let claude = Arc::new(claude.await.unwrap());
        let mut nodes = Vec::new();
        for (number, url) in urls.iter().enumerate() {
            let node = Arc::new(Node::start(more(number, setup(&claude.base_url(), url))));
            node.ready().await;
            nodes.push(node);
        }
        let calls = Arc::<Mutex<Calls>>::default();
        let collecting = AbortOnDropHandle::new(tokio::spawn(collect(claude, Arc::clone(&calls))));
        let mut cluster = Cluster {
            nodes,
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
        let nodes = self.nodes.clone();
        let (told, stop) = (Arc::clone(&self.told), self.stop.clone());
        self.clients.spawn(async move { ask(number, &nodes, &told, &stop).await });
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
        let at = calls.iter().map(|(_, at)| *at).filter(|at| *at > from.1);
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
            let query = format!("Is there room on node {node}? {count}");
            let answer = Service::at(self.nodes[node].base().unwrap()).submit(&query).await;
            if answer.status != 202 {
                return answer;
            }
            assert!(Instant::now() < deadline, "node {node} refuses nothing");
            self.told.lock().unwrap().accepted.insert(answer.body["id"].as_str().unwrap().to_owned(), (query, None));
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
    pub(crate) async fn assert_marks(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        for node in &self.nodes {
            node.ready().await;
        }
        let (accepted, client) = (self.told.lock().unwrap().accepted.clone(), client());
        let jobs = stream::iter(accepted.iter().enumerate()).map(|(n, (id, (query, seen)))| {
            let (client, node) = (client.clone(), &self.nodes[n % self.nodes.len()]);
            async move {
                let job = end(&client, node, id).await;
                assert_eq!(job["query"], **query, "a job kept its question");
                assert_eq!(job["status"], "succeeded", "{job:#}");
                if let Some(finished_at) = seen {
                    assert_eq!(job["finished_at"], *finished_at, "a job ended twice: {job:#}");
                }
                job
            }
        });
        let jobs: Vec<Value> = jobs.buffer_unordered(8).collect().await;
        // The collector has seen the last calls.
        sleep(COLLECT_PAUSE * 3).await;
        let mut calls = HashMap::<String, usize>::new();
        for (question, _) in &*self.calls.lock().unwrap() {
            *calls.entry(question.clone()).or_default() += 1;
        }
        let mut second_calls = 0;
        for job in &jobs {
            second_calls += assert_one_call_an_attempt(job, &calls);
        }
        let (calls, starts) = (self.calls.lock().unwrap().len(), self.nodes.iter().map(|node| node.starts()));
        let starts: Vec<_> = starts.collect();
        println!(
            "  {} accepted jobs, {calls} calls, {second_calls} of them second ones; starts {starts:?}",
            jobs.len()
        );
    }
}

/// Asserts that each call of a job belongs to an attempt, and every one but the last to one whose outcome is unknown. Gives
/// the number of calls after the first.
fn assert_one_call_an_attempt(job: &Value, calls: &HashMap<String, usize>) -> usize {
    let attempts = job["attempts"].as_array().unwrap();
    let calls = calls.get(job["query"].as_str().unwrap()).copied().unwrap_or_default();
    let numbers: Vec<_> = attempts.iter().map(|attempt| attempt["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=attempts.len() as u64).collect::<Vec<_>>(), "the history has no gap");
    let (last, earlier) = attempts.split_last().unwrap();
    assert_eq!(last["outcome"], "succeeded", "{job:#}");
    let mut unknown = 0;
    for attempt in earlier {
        // Released: the store was down before the call was made.
        let is_unknown = attempt["outcome"] == "outcome_unknown";
        assert!(is_unknown || attempt["outcome"] == "released", "only a fault ended attempts: {job:#}");
        assert_eq!(attempt["may_have_been_billed"], is_unknown, "{job:#}");
        unknown += usize::from(is_unknown);
    }
    assert!((1..=unknown + 1).contains(&calls), "{calls} calls for: {job:#}");
    calls - 1
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
                calls.lock().unwrap().push((question[..end].to_owned(), call.at));
            }
        }
        sleep(COLLECT_PAUSE).await;
    }
}

fn longest_gap<T: Ord + Copy>(mut moments: Vec<T>, since: impl Fn(T, T) -> Duration) -> Duration {
    moments.sort_unstable();
    moments.windows(2).map(|pair| since(pair[1], pair[0])).max().unwrap_or_default()
}

/// Asks one question after the other on its node, and looks at the job before on the next node.
async fn ask(number: usize, nodes: &[Arc<Node>], told: &Mutex<Told>, stop: &CancellationToken) {
    let client = client();
    let (own, other) = (number % nodes.len(), (number + 1) % nodes.len());
    let mut last: Option<String> = None;
    for n in 0.. {
        if stop.run_until_cancelled(sleep(PACE)).await.is_none() {
            return;
        }
        let Some(base) = nodes[own].base() else { continue };
        let query = format!("Case {number}-{n}: should we proceed?");
        let at = Instant::now();
        let answer = client.post(format!("{base}/api/v1/analyze")).json(&json!({ "query": query })).send().await;
        let status = answer.as_ref().ok().map(|answer| answer.status().as_u16());
        let id = match answer {
            Ok(answer) if status == Some(202) => {
                answer.json::<Value>().await.ok().and_then(|job| Some(job["id"].as_str()?.to_owned()))
            }
            _ => None,
        };
        {
            // A 202 whose body was cut off by the end was not received.
            let status = status.filter(|status| *status != 202 || id.is_some());
            let mut told = told.lock().unwrap();
            told.answers.push(Sent { node: own, at, answered_at: Instant::now(), status });
            if let Some(id) = &id {
                told.accepted.insert(id.clone(), (query, None));
            }
        }
        let Some(seen) = std::mem::replace(&mut last, id) else { continue };
        if let Some(finished_at) = end_of(&client, &nodes[other], &seen).await
            && let Some(job) = told.lock().unwrap().accepted.get_mut(&seen)
        {
            job.1 = Some(finished_at);
        }
    }
}

/// The job once it has ended. A node may be away for a moment, and start again at another address.
async fn end(client: &Client, node: &Node, id: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let base = node.base().unwrap_or_default();
        let answer = client.get(format!("{base}/api/v1/jobs/{id}?wait=20")).send().await;
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
    let answer = look.send().await.ok()?;
    assert_ne!(answer.status(), 404, "a job that was accepted is lost: {id}");
    let mut job = answer.json::<Value>().await.ok()?;
    (job["status"] == "succeeded").then(|| job["finished_at"].take())
}
