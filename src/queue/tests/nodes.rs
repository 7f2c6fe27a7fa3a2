//! Several queues over one store, as the nodes of a cluster stand over one database.

use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::registry::Registry;

/// A node, and the task in which it follows what others change.
struct Node {
    queue: Queue,
    _following: AbortOnDropHandle<()>,
}

async fn node(store: &Arc<MemoryStore>, clock: &Clock) -> Node {
    named_node("node", store, clock).await
}

async fn named_node(name: &str, store: &Arc<MemoryStore>, clock: &Clock) -> Node {
    let policy = Policy { node: name.to_owned(), ..Policy::plain() };
    let queue = Queue::over(Arc::clone(store) as _, clock, &policy, &Metrics::new()).await;
    let (registry, copies) = (Registry::new(Arc::clone(store) as _), queue.operations().live());
    let following = AbortOnDropHandle::new(tokio::spawn(async move { registry.follow(copies, &Metrics::new()).await }));
    Node { queue, _following: following }
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_pause_on_one_node_holds_on_all_and_so_does_its_end() {
    let (store, clock) = (Arc::<MemoryStore>::default(), Clock::manual(Timestamp::from_millis(1_800_000_000_000)));
    let (one, other) = (node(&store, &clock).await, node(&store, &clock).await);
    other.queue.enqueue(Submission::default()).await.unwrap();
    one.queue.operations().pause("ops").await.unwrap();
    until(|| other.queue.work().is_paused()).await;
    assert!(other.queue.work().propose(&Lanes::All).is_none());
    let work = other.queue.work();
    let ready = tokio::spawn(async move { work.until_ready().await });
    tokio::task::yield_now().await;
    assert!(!ready.is_finished());
    one.queue.operations().resume().await.unwrap();
    ready.await.unwrap();
    assert_eq!(other.queue.operations().paused(), None);
}

/// Brings the hints that `one` has sent to `other`.
fn deliver(hints: &mut tokio::sync::broadcast::Receiver<Hint>, from: &str, to: &Node) -> usize {
    let sent: Vec<Hint> = std::iter::from_fn(|| hints.try_recv().ok()).collect();
    let text = serde_json::to_string(&sent).unwrap();
    to.queue.hear(from, serde_json::from_str(&text).unwrap());
    sent.len()
}

fn at_start() -> (Arc<MemoryStore>, Clock) {
    (Arc::default(), Clock::manual(Timestamp::from_millis(1_800_000_000_000)))
}

/// A client that waits on this node for so long.
async fn ask(node: &Node, seconds: u64) -> (JobId, Waiting) {
    let until = Instant::now() + Duration::from_secs(seconds);
    let allowance = (Policy::plain().allowance)(None);
    let (accepted, waiting) = node.queue.ask(Submission::default(), until, || allowance).await.unwrap();
    (accepted.record.job.id, waiting.unwrap())
}

fn pick(node: &Node) -> Pick {
    node.queue.work().pick(node.queue.now(), &Lanes::All)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_on_another_node_goes_first_as_long_as_it_waits() {
    let (store, clock) = at_start();
    let (dispatcher, other) = (named_node("a", &store, &clock).await, named_node("b", &store, &clock).await);
    let mut hints = other.queue.hints();
    for _ in 0..2 {
        dispatcher.queue.enqueue(Submission::default()).await.unwrap();
    }
    let (job, waiting) = ask(&other, 25).await;
    assert_eq!(pick(&dispatcher), Pick::First, "it has not heard of the client");
    deliver(&mut hints, "b", &other);
    assert_eq!(deliver(&mut hints, "b", &dispatcher), 0, "a node does not hear itself");
    other.queue.repeat_hints();
    assert_eq!(deliver(&mut hints, "b", &dispatcher), 1);
    other.queue.repeat_hints();
    deliver(&mut hints, "b", &dispatcher);
    assert_eq!(pick(&dispatcher), Pick::Job(job));
    assert_eq!(pick(&dispatcher), Pick::First, "once, however often it was told");
    let place = |node: &Node| node.queue.0.place(&node.queue.0.board.get(job).unwrap(), clock.now());
    place(&dispatcher);
    drop(waiting);
    deliver(&mut hints, "b", &dispatcher);
    assert_eq!(pick(&dispatcher), Pick::First, "the client has hung up");
}

#[tokio::test(start_paused = true)]
async fn a_hint_that_comes_before_its_job_counts_and_one_of_a_dead_node_ends_by_itself() {
    let (store, clock) = at_start();
    let dispatcher = named_node("a", &store, &clock).await;
    let kind = Kind::of(&JobRequest::default(), true);
    let job = Job { waited_for: true, ..Job::new(JobId::from_u128(1), Priority::Normal, clock.now()) };
    let hint = Hint::Waits { client: 7, job: job.id, caller: None, kind, left_ms: 25_000 };
    dispatcher.queue.hear("b", vec![hint]);
    store.insert(job.clone(), Arc::default()).await.unwrap();
    assert_eq!(dispatcher.queue.0.order.ahead_of_job(job.id), Some(0));
    tokio::time::advance(Duration::from_secs(25)).await;
    assert_eq!((dispatcher.queue.0.order.ready(), pick(&dispatcher)), (0, Pick::First));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_the_dispatcher_can_not_serve_in_time_hears_of_it_on_its_node() {
    let (store, clock) = at_start();
    let (dispatcher, other) = (named_node("a", &store, &clock).await, named_node("b", &store, &clock).await);
    let (mut hints, mut back) = (other.queue.hints(), dispatcher.queue.hints());
    let (_, waiting) = ask(&other, 60).await;
    let _second = ask(&other, 60).await;
    deliver(&mut hints, "b", &dispatcher);
    for (left, is_demoted) in [(60, false), (2, true)] {
        tokio::time::advance(waiting.until() - Instant::now() - Duration::from_secs(left)).await;
        pick(&dispatcher);
        deliver(&mut back, "a", &other);
        assert_eq!(waiting.is_demoted(), is_demoted, "{left} s left");
        let job = dispatcher.queue.0.board.get(waiting.job()).unwrap();
        dispatcher.queue.0.place(&job, clock.now());
    }
}
