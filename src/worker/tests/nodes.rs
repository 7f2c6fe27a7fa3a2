//! Several nodes: one hands out the calls, and others make a part of them.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::{
    dispatch::assigned,
    store::{
        fault::Outage,
        nodes::{Live, OneOfMany},
    },
};

/// Two nodes: the first hands out the calls, and the second makes its part of them. They tell what their attempts do.
struct Pair {
    first: Shop,
    second: Shop,
    second_node: Arc<OneOfMany>,
    /// Those that are ready.
    live: Live,
    told: mpsc::UnboundedReceiver<(&'static str, &'static str)>,
    _together: AbortOnDropHandle<()>,
}

async fn pair() -> Pair {
    let (sender, told) = mpsc::unbounded_channel();
    let (store, live) = (Arc::new(FaultStore::over(MemoryStore::default())), Live::default());
    let open = async |name: &'static str| {
        let node = Arc::new(OneOfMany::new(Owner::new(name, 1), &live));
        let policy = Policy { nodes: Arc::clone(&node) as _, workers: 2, lease: LEASE, ..Policy::plain() };
        let sender = sender.clone();
        let script = move |query: &str| {
            let _ = sender.send((name, "started"));
            match query {
                "endless" => pending().boxed(),
                _ => async { success() }.boxed(),
            }
        };
        (Shop::over(Arc::clone(&store), policy, script, Arc::new(|| ModelKey::of("scripted"))).await, node)
    };
    let ((first, _), (second, second_node)) = (open("first").await, open("second").await);
    let (worker, tracker, following) = (second.worker.clone(), second.tracker.clone(), second.queue.work());
    let together = AbortOnDropHandle::new(tokio::spawn(async move {
        tokio::join!(assigned::run(worker, tracker), following.follow_own_node());
    }));
    Dispatcher::start(first.worker.clone(), 2, &first.tracker, &TaskTracker::new());
    Pair { first, second, second_node, live, told, _together: together }
}

#[tokio::test]
async fn the_less_busy_node_makes_a_call_and_its_end_makes_room_for_the_next() {
    let mut pair = pair().await;
    let queue = pair.first.queue.clone();
    let [own, other] = [pair.first.ask("endless").await, pair.second.ask("endless").await];
    let mut told = [pair.told.recv().await.unwrap(), pair.told.recv().await.unwrap()];
    told.sort_unstable();
    assert_eq!(told, [("first", "started"), ("second", "started")]);
    let asks = async |id| queue.find(id).await.unwrap().asks;
    assert_eq!([asks(own).await, asks(other).await], [None, Some(ModelKey::of("scripted"))]);
    let waiting = pair.first.ask("waits for room").await;
    assert!(pair.told.try_recv().is_err(), "two calls at once");

    pair.second.queue.cancel(other).await.unwrap();
    let done = pair.first.ended(waiting).await;
    assert_eq!(pair.told.recv().await, Some(("second", "started")));
    assert_eq!((done.job.state, done.attempts.len()), (JobState::Succeeded, 1));
    pair.first.queue.cancel(own).await.unwrap();
    pair.first.close().await;
    pair.second.close().await;
}

#[tokio::test]
async fn a_node_that_may_be_taken_for_lost_stops_its_calls_and_ends_their_attempts() {
    let mut pair = pair().await;
    pair.first.ask("endless").await;
    let id = pair.first.ask("endless").await;
    for _ in 0..2 {
        pair.told.recv().await.unwrap();
    }
    pair.second_node.start_afresh(Owner::new("second", 2));
    let lost = pair.first.ended(id).await;
    assert_eq!(lost.job.state, JobState::Failed { code: FailureCode::OutcomeUnknown });
    pair.second.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_dispatcher_that_is_not_ready_gives_all_calls_to_another_node_and_makes_them_if_no_node_is() {
    let mut pair = pair().await;
    let [first, second] = ["first", "second"].map(|name| Owner::new(name, 1));
    pair.live.lock().retain(|node| *node != first);
    pair.first.limits.claim_ahead(1);
    let jobs = [pair.first.ask("endless").await, pair.first.ask("endless").await, pair.first.ask("endless").await];
    for _ in 0..2 {
        assert_eq!(pair.told.recv().await, Some(("second", "started")));
    }
    // In virtual time: until all tasks wait.
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(!pair.first.queue.find(jobs[2]).await.unwrap().is_running(), "it is not claimed ahead");
    pair.second.queue.cancel(jobs[0]).await.unwrap();
    assert_eq!(pair.told.recv().await, Some(("second", "started")));

    pair.live.lock().retain(|node| *node != second);
    let waiting = pair.first.ask("alone").await;
    for job in &jobs[1..] {
        pair.second.queue.cancel(*job).await.unwrap();
    }
    assert_eq!(pair.first.ended(waiting).await.job.state, JobState::Succeeded);
    assert_eq!(pair.told.recv().await, Some(("first", "started")));
    pair.first.close().await;
    pair.second.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_its_node_refused_or_that_was_not_claimed_delays_no_other() {
    for why in ["refused", "not claimed"] {
        let mut pair = pair().await;
        // The second node is the less busy one.
        let busy = pair.first.ask("endless").await;
        assert_eq!(pair.told.recv().await, Some(("first", "started")));
        block(&pair.first, FailureCode::BillingFailed, None);
        if why == "refused" {
            pair.second.closing.cancel();
        } else {
            pair.first.store.fail_after(1, Moment::Before);
        }
        let blocked_at = Instant::now();
        let probe = pair.first.ask("probe").await;
        assert_eq!(pair.first.ended(probe).await.job.state, JobState::Succeeded);
        let took = blocked_at.elapsed();
        assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(2), "{why}: {took:?}");
        assert_eq!(pair.first.store.take_fired().len(), usize::from(why != "refused"));
        pair.first.queue.cancel(busy).await.unwrap();
        pair.first.close().await;
        pair.second.close().await;
    }
}

/// A node that is about to dispatch while another one makes `calls` calls, of at most `workers` at once.
async fn next_dispatcher(
    calls: usize,
    workers: usize,
    on_estimate: impl Fn() + Send + Sync + 'static,
) -> (Shop, Vec<JobId>) {
    let (store, live) = (Arc::new(FaultStore::over(MemoryStore::default())), Live::default());
    let other = Owner::new("other", 1);
    live.lock().push(other);
    let plain = Policy::plain();
    let estimate = Arc::clone(&plain.estimate_risk);
    let policy = Policy {
        nodes: Arc::new(OneOfMany::new(Owner::new("own", 1), &live)),
        workers,
        estimate_risk: Arc::new(move |request| {
            on_estimate();
            estimate(request)
        }),
        ..plain
    };
    let model = ModelKey::of("scripted");
    let shop = Shop::over(store, policy, |_| async { success() }.boxed(), Arc::new(move || model)).await;
    shop.limits.answered("scripted");
    let mut jobs = Vec::new();
    for _ in 0..calls {
        let id = shop.ask("on another node").await;
        shop.store.claim(id, other, Some(model), shop.queue.now()).await.unwrap();
        jobs.push(id);
    }
    (shop, jobs)
}

#[tokio::test]
async fn a_new_dispatcher_that_panics_while_it_counts_the_calls_under_way_counts_each_once() {
    let has_panicked = AtomicBool::new(false);
    let (shop, jobs) =
        next_dispatcher(2, 2, move || assert!(has_panicked.swap(true, Ordering::SeqCst), "by script")).await;
    Dispatcher::start(shop.worker.clone(), 2, &shop.tracker, &TaskTracker::new());
    let counted = async {
        while shop.limits.try_permit(None).is_some() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, counted).await.expect("the calls of the other node count");
    assert_eq!(shop.metrics.panics.get(), 1);
    let waiting = shop.ask("waits for room").await;
    shop.queue.cancel(jobs[0]).await.unwrap();
    assert_eq!(shop.ended(waiting).await.job.state, JobState::Succeeded, "one end makes room for one call");
    shop.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_dispatcher_reads_many_jobs_at_a_time_to_count_the_calls_under_way() {
    let (shop, jobs) = next_dispatcher(64, 65, || {}).await;
    let latency = Duration::from_millis(100);
    shop.store.break_down(Outage::Slow(latency));
    let started_at = Instant::now();
    Dispatcher::start(shop.worker.clone(), 65, &shop.tracker, &TaskTracker::new());
    let first = shop.ask("after the count").await;
    assert_eq!(shop.ended(first).await.job.state, JobState::Succeeded);
    let took = started_at.elapsed();
    assert!(took < 20 * latency, "{took:?} for {} jobs", jobs.len());
    shop.close().await;
}
