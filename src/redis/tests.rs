//! What nodes share, on a real server: what it holds, and that nothing but text and counts is lost with it.

use std::time::Instant;

use self::redis_server::RedisServer;
use super::*;
use crate::{
    clock::{Clock, Timestamp},
    job::{AttemptReport, JobRequest, JobStatus, Owner, caller, disposition::Disposition},
    ledger::Spending,
    queue::{Claim, Lanes, News, Policy, Queue, QueueError, Refused, Seen, Submission},
    store::{Alone, memory::MemoryStore},
};

#[allow(dead_code, reason = "tests of the whole service use the rest")]
#[path = "../../tests/it/redis_server.rs"]
mod redis_server;

/// Longest wait for anything here.
const PATIENCE: Duration = Duration::from_secs(60);

/// More than a command may take, on a machine that does other things too.
const MUCH: Duration = Duration::from_secs(2);

const SECRET: &str = "0123456789abcdef";

/// On a busy machine an answer may take longer than a service waits for it.
const SLOW: Times = Times { limit: PATIENCE, connect: PATIENCE, pause: Duration::from_millis(200) };

const QUICK: Times = Times { limit: TIMES.limit, ..SLOW };

async fn open(server: &RedisServer, times: Times) -> Arc<Redis> {
    Redis::open_with(&server.url().into(), &SECRET.into(), Metrics::new(), times).await.unwrap()
}

/// A node: its queue, its connection, and the tasks that are aborted with it.
struct Node {
    queue: Queue,
    redis: Arc<Redis>,
    closing: CancellationToken,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

async fn node(server: &RedisServer, store: &Arc<MemoryStore>, number: u32) -> Node {
    node_with(server, store, number, SLOW).await
}

async fn node_with(server: &RedisServer, store: &Arc<MemoryStore>, number: u32, times: Times) -> Node {
    let (redis, closing) = (open(server, times).await, CancellationToken::new());
    let policy = Policy {
        nodes: Arc::new(Alone::new(Owner::new(&number.to_string(), 1))),
        max_pending: 1_000,
        submits_per_minute: NonZeroU32::new(6),
        shared_rates: Some(Arc::clone(&redis) as _),
        text_relay: Some(Arc::clone(&redis) as _),
        ..Policy::plain()
    };
    let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
    let (store, spending) = (Arc::clone(store), Spending::default());
    let queue = Queue::open(store, clock, policy, Metrics::new(), spending, closing.clone()).await.unwrap();
    let work = queue.work();
    tokio::spawn(async move { work.relay_texts().await });
    tokio::spawn(Arc::clone(&redis).run(closing.clone()));
    Node { queue, redis, closing }
}

impl Node {
    async fn submit(&self, name: &str) -> Result<JobId, QueueError> {
        let request = JobRequest { query: "Buy or build?".to_owned(), ..JobRequest::default() };
        let submission = Submission { request, by: caller::named(name), ..Submission::default() };
        Ok(self.queue.enqueue(submission).await?.record.job.id)
    }

    async fn claim(&self) -> Claim {
        let proposal = self.queue.work().propose(&Lanes::All).unwrap();
        self.queue.work().claim(proposal).await.unwrap().unwrap()
    }

    async fn settle(&self, claim: &Claim) {
        let report = AttemptReport { result: serde_json::value::to_raw_value("memo").ok(), ..AttemptReport::default() };
        self.queue.work().settle(&claim.job, &Disposition::Succeed, report).await;
    }

    async fn until_connected(&self) {
        let connected = async {
            while self.redis.trouble().is_some() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, connected).await.unwrap();
    }

    /// Follows a job until its text has this length. Gives what came, and from where the newest text starts.
    async fn text(&self, id: JobId, seen: Seen, length: usize) -> (String, bool) {
        let mut follower = self.queue.follow(id, seen).await.unwrap();
        let (mut got, mut is_reset) = (String::new(), false);
        let reading = async {
            while follower.seen().bytes < length {
                if let Some(News::Text { text, from_start, .. }) = follower.next().await.unwrap() {
                    is_reset |= from_start;
                    if from_start {
                        got.clear();
                    }
                    got.push_str(&text);
                }
            }
        };
        timeout(PATIENCE, reading).await.unwrap_or_else(|_| panic!("at {:?}", follower.seen()));
        (got, is_reset)
    }
}

async fn refusal(url: &str) -> String {
    match Redis::open(&url.into(), &SECRET.into(), Metrics::new()).await {
        Ok(redis) => panic!("{url} is taken: {:?}", redis.trouble()),
        Err(refused) => refused.to_string(),
    }
}

fn too_fast(result: Result<JobId, QueueError>) -> Duration {
    match result {
        Err(QueueError::Refused(Refused::TooFast { limit: 6, retry_after })) => retry_after,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_will_never_accept_is_an_error_and_one_that_is_away_is_not() {
    let server = RedisServer::start_with_password("s3cret");
    let port = server.url().rsplit_once(':').unwrap().1.to_owned();
    for (url, why) in [
        (format!("redis://127.0.0.1:{port}"), "NOAUTH"),
        (format!("redis://:wr0ng@127.0.0.1:{port}"), "password"),
        (format!("redis://nobody:s3cret@127.0.0.1:{port}"), "password"),
        (format!("{}99", server.url()), "DB index is out of range"),
        ("redis://127.0.0.1:6379/zero".to_owned(), "database number"),
        ("redis://0.0.0.0:6379".to_owned(), "wildcard"),
    ] {
        let refused = refusal(&url).await;
        assert!(refused.contains("REDIS_URL") && refused.contains(why), "{refused}");
        assert!(!refused.contains("s3cret") && !refused.contains("wr0ng"), "{refused}");
    }
    let needed = "eval get set getrange setrange strlen expire unlink time ping";
    for missing in needed.split(' ').filter(|name| *name != "ping") {
        let allowed = needed.split(' ').filter(|name| *name != missing).map(|name| format!("+{name}"));
        let mut user: Vec<String> = ["acl", "setuser", missing, "on", ">s3cret", "~*"].map(str::to_owned).into();
        user.extend(allowed);
        server.command(&user.iter().map(String::as_str).collect::<Vec<_>>());
        let refused = refusal(&format!("redis://{missing}:s3cret@127.0.0.1:{port}")).await;
        assert!(refused.contains("refuses to serve"), "without {missing}: {refused}");
    }
    let metrics = Metrics::new();
    let away = Redis::open(&"redis://127.0.0.1:9".into(), &SECRET.into(), metrics.clone()).await.unwrap();
    assert!(away.trouble().is_some());
    assert_eq!(metrics.redis_unavailable.get(), 1);
    let metrics = Metrics::new();
    let there = Redis::open(&server.url().into(), &SECRET.into(), metrics.clone()).await.unwrap();
    assert_eq!((there.trouble(), metrics.redis_unavailable.get()), (None, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_tried_and_stays() {
    let server = RedisServer::start();
    let redis = open(&server, Times { pause: Duration::from_millis(1), ..SLOW }).await;
    let calls = |name: &str| {
        let stats = server.command(&["info", "commandstats"]);
        let count = |line: &str| line.strip_prefix(&format!("cmdstat_{name}:calls="))?.split(',').next()?.parse().ok();
        stats.lines().find_map(count).unwrap_or(0_u64)
    };
    let of_connecting = calls("eval");
    let closing = CancellationToken::new();
    let running = tokio::spawn(Arc::clone(&redis).run(closing.clone()));
    let tried = async {
        while calls("ping") < 5 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, tried).await.unwrap();
    closing.cancel();
    running.await.unwrap();
    assert_eq!((redis.trouble(), calls("eval")), (None, of_connecting), "it is the same connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_cluster_mode_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (nodes, port) = (folder.path().join("nodes.conf"), redis_server::free_port().to_string());
    let options = ["--cluster-enabled", "yes", "--cluster-port", &port];
    let server = RedisServer::start_with(&[&options[..], &["--cluster-config-file", nodes.to_str().unwrap()]].concat());
    let refused = refusal(&server.url()).await;
    assert!(refused.contains("cluster mode") && refused.contains("ClusterDown"), "{refused}");
    assert_eq!(server.command(&["cluster", "addslotsrange", "0", "16383"]), "OK");
    let up = async {
        while !server.command(&["cluster", "info"]).contains("cluster_state:ok") {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, up).await.unwrap();
    let refused = refusal(&server.url()).await;
    assert!(refused.contains("cluster mode") && refused.contains("CrossSlot"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_has_one_quota_on_all_nodes_and_redis_knows_no_names() {
    let (server, store) = (RedisServer::start(), Arc::<MemoryStore>::default());
    let (first, second) = (node(&server, &store, 1).await, node(&server, &store, 2).await);
    for _ in 0..3 {
        first.submit("alice").await.unwrap();
        second.submit("alice").await.unwrap();
    }
    let quota = second.queue.quota(caller::named("alice")).unwrap();
    assert_eq!(quota.left, 0, "the node shows what both have taken");
    for node in [&first, &second] {
        let retry_after = too_fast(node.submit("alice").await);
        assert!((5..=10).contains(&retry_after.as_secs()), "{retry_after:?}");
    }
    assert_eq!(first.queue.counts().queued, 6);
    first.submit("bob").await.unwrap();
    let keys = server.command(&["keys", "*"]);
    assert_eq!(keys.matches("ceoagent:rate:").count(), 2);
    assert!(!keys.contains("alice"), "{keys}");
    let other = Redis::open(&server.url().into(), &"another secret".into(), Metrics::new()).await.unwrap();
    let alice = caller::named("alice").unwrap().get().to_be_bytes();
    let taken = other.take("submits", &alice, 6, NonZeroU32::new(6).unwrap()).await.unwrap();
    assert!(taken.is_granted, "another service counts for itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_that_another_bound_refuses_costs_no_shared_quota() {
    let (server, store) = (RedisServer::start(), Arc::<MemoryStore>::default());
    let node = node(&server, &store, 1).await;
    node.queue.work().record_disk_space(0, 1);
    for _ in 0..8 {
        let refused = node.submit("alice").await.unwrap_err();
        assert!(matches!(refused, QueueError::Refused(Refused::StorageLow(_))), "{refused}");
    }
    assert_eq!(node.queue.quota(caller::named("alice")).unwrap().left, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_refills_evenly_by_the_clock_of_the_server() {
    let server = RedisServer::start();
    let redis = open(&server, SLOW).await;
    let limit = NonZeroU32::new(7).unwrap();
    let take = async |count| redis.take("test", b"who", count, limit).await.unwrap();
    for taken in 1..=7 {
        let Taken { is_granted, full_in } = take(1).await;
        assert!(is_granted && full_in <= MINUTE.mul_f64(f64::from(taken) / 7.0), "{full_in:?}");
    }
    let refused = take(1).await;
    assert!(!refused.is_granted && refused.full_in <= MINUTE);
    let retry_after = refused.retry_after(1, limit);
    assert!(retry_after <= MINUTE / 7 + Duration::from_millis(1) && retry_after > MINUTE / 14, "{retry_after:?}");
    assert!(take(-2).await.is_granted);
    assert!(!take(3).await.is_granted);
    assert!(take(2).await.is_granted);
    assert_eq!(server.command(&["flushall"]), "OK");
    assert!(take(7).await.is_granted, "counters are lost, and nothing else");
    let left: u64 = server.command(&["pttl", &server.command(&["keys", "ceoagent:rate:*"])]).parse().unwrap();
    assert!(left <= 60_001, "a full bucket is forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_of_a_clock_that_was_set_back_by_an_hour_refills_within_a_minute() {
    let server = RedisServer::start();
    let redis = open(&server, SLOW).await;
    let limit = NonZeroU32::new(7).unwrap();
    assert!(redis.take("test", b"who", 1, limit).await.unwrap().is_granted);
    let key = server.command(&["keys", "ceoagent:rate:*"]);
    let number = |text: String| text.parse::<u128>().unwrap();
    let an_hour_later = number(server.command(&["get", &key])) + 60 * MINUTE.as_micros();
    server.command(&["set", &key, &an_hour_later.to_string(), "px", "3660000"]);
    let refused = redis.take("test", b"who", 1, limit).await.unwrap();
    assert_eq!(refused, Taken { is_granted: false, full_in: MINUTE });
    assert_eq!(refused.retry_after(1, limit), MINUTE.mul_f64(1.0 / 7.0));
    assert!(number(server.command(&["get", &key])) < an_hour_later - 58 * MINUTE.as_micros(), "it refills from now on");
    assert!(number(server.command(&["pttl", &key])) <= 60_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_each_node_counts_for_itself_and_work_goes_on_as_before() {
    let (mut server, store) = (RedisServer::start(), Arc::<MemoryStore>::default());
    let node = node(&server, &store, 1).await;
    for _ in 0..4 {
        node.submit("alice").await.unwrap();
    }
    server.kill();
    node.submit("alice").await.unwrap();
    node.submit("alice").await.unwrap();
    too_fast(node.submit("alice").await);
    assert!(node.redis.trouble().is_some());
    let claim = node.claim().await;
    claim.draft.push("nobody else reads this");
    node.settle(&claim).await;
    assert_eq!(node.queue.counts().succeeded, 1);
    server.start_again();
    node.until_connected().await;
    too_fast(node.submit("alice").await);
    node.submit("bob").await.unwrap();
    assert_eq!(server.command(&["keys", "ceoagent:rate:*"]).lines().count(), 1, "it counts there again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_delays_one_command_for_its_time_limit_and_no_other() {
    let (server, store) = (RedisServer::start(), Arc::<MemoryStore>::default());
    let node = node_with(&server, &store, 1, QUICK).await;
    server.signal("STOP");
    let began = Instant::now();
    let claim = {
        node.submit("alice").await.unwrap();
        node.claim().await
    };
    claim.draft.push("text");
    node.settle(&claim).await;
    for caller in 0..200 {
        node.submit(&caller.to_string()).await.unwrap();
    }
    assert!(began.elapsed() >= QUICK.limit && began.elapsed() < MUCH, "{:?}", began.elapsed());
    assert!(node.redis.trouble().is_some());
    server.signal("CONT");
    node.until_connected().await;
    assert_eq!(node.submit("alice").await.map(drop), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn text_on_another_node_equals_the_text_and_resumes_at_a_place() {
    let (server, store) = (RedisServer::start(), Arc::<MemoryStore>::default());
    let (first, second) = (node(&server, &store, 1).await, node(&server, &store, 2).await);
    let id = first.submit("alice").await.unwrap();
    let claim = first.claim().await;
    // More than is sent or read at once, and characters that such a piece would cut.
    let whole: String = (0..20_000).map(|n| if n % 3 == 0 { "数据" } else { "ab" }).collect();
    let reading = tokio::spawn({
        let (queue, length) = (second.queue.clone(), whole.len());
        let node = Node { queue, redis: Arc::clone(&second.redis), closing: CancellationToken::new() };
        async move { node.text(id, Seen::default(), length).await }
    });
    let mut rest = whole.as_str();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(7_001));
        claim.draft.push(piece);
        rest = after;
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(reading.await.unwrap(), (whole.clone(), true));
    let bytes = whole.floor_char_boundary(whole.len() - 100);
    let seen = Seen { attempt: 1, status: Some(JobStatus::Running), bytes };
    for node in [&first, &second] {
        assert_eq!(node.text(id, seen, whole.len()).await, (whole[bytes..].to_owned(), false));
    }
    first.settle(&claim).await;
    let mut follower = second.queue.follow(id, seen).await.unwrap();
    drop(claim);
    assert!(matches!(follower.next().await.unwrap(), Some(News::Ended(_))));
    let removed = async {
        while !server.command(&["keys", "ceoagent:text:*"]).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, removed).await.expect("the text is removed with its attempt");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_costs_followers_no_text_and_without_redis_they_hear_of_the_end() {
    let (mut server, store) = (RedisServer::start(), Arc::<MemoryStore>::default());
    let (first, second) = (node(&server, &store, 1).await, node(&server, &store, 2).await);
    let id = first.submit("alice").await.unwrap();
    let claim = first.claim().await;
    claim.draft.push("one, ");
    assert_eq!(second.text(id, Seen::default(), 5).await, ("one, ".to_owned(), true));
    assert_eq!(server.command(&["flushall"]), "OK");
    claim.draft.push("two");
    assert_eq!(second.text(id, Seen::default(), 8).await, ("one, two".to_owned(), true));
    server.kill();
    claim.draft.push(", three");
    let seen = Seen { attempt: 1, status: Some(JobStatus::Running), bytes: 8 };
    let mut follower = second.queue.follow(id, seen).await.unwrap();
    first.settle(&claim).await;
    let ended = timeout(PATIENCE, follower.next()).await.unwrap().unwrap();
    assert!(
        matches!(ended, Some(News::Ended(record)) if record.job.status(second.queue.now()) == JobStatus::Succeeded)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_that_comes_twice_or_behind_a_gap_does_not_garble_a_text() {
    let server = RedisServer::start();
    let redis = open(&server, SLOW).await;
    let place = |at| TextPlace { id: JobId::from_u128(7), attempt: 2, at };
    let send =
        async |at, text: &str| redis.send(&[TextPiece { place: place(at), text: text.to_owned() }]).await.unwrap();
    let text = async || String::from_utf8(redis.read(&[place(0)], 100).await.unwrap().remove(0)).unwrap();
    assert_eq!(send(3, "def").await, [0]);
    assert_eq!(text().await, "");
    assert_eq!(send(0, "abc").await, [3]);
    assert_eq!(send(3, "def").await, [6]);
    assert_eq!(send(3, "def").await, [6]);
    assert_eq!(send(7, "h").await, [6]);
    assert_eq!(text().await, "abcdef");
    assert_eq!(redis.read(&[place(4), place(6), place(99)], 100).await.unwrap(), [&b"ef"[..], b"", b""]);
    assert_eq!(redis.read(&[place(1)], 2).await.unwrap(), [b"bc"]);
    assert_eq!(send(0, "x").await, [1], "a text that begins again replaces the former one");
    let lifetime: u64 =
        server.command(&["ttl", "ceoagent:text:00000000-0000-0000-0000-000000000007:2"]).parse().unwrap();
    assert!((590..=600).contains(&lifetime), "{lifetime}");
}
