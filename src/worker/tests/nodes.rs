//! Several nodes: one hands out the calls, and others make a part of them.

use std::{
    path::Path,
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
};

use futures_util::future::join_all;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::{
    agent::plan::{AgentConfig, Planner},
    claude::{Claude, ClientConfig, price::Prices},
    config::Effort,
    dispatch::assigned,
    prompts::Prompts,
    queue::Lanes,
    registry::Registry,
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

/// The nodes of one store, before they work.
struct Nodes {
    store: Arc<FaultStore<MemoryStore>>,
    live: Live,
    calls_at_once: usize,
    sender: mpsc::UnboundedSender<(&'static str, &'static str)>,
}

impl Nodes {
    fn new() -> (Nodes, mpsc::UnboundedReceiver<(&'static str, &'static str)>) {
        let (sender, told) = mpsc::unbounded_channel();
        let store = Arc::new(FaultStore::over(MemoryStore::default()));
        (Nodes { store, live: Live::default(), calls_at_once: 2, sender }, told)
    }

    async fn open(&self, name: &'static str) -> (Shop, Arc<OneOfMany>) {
        let node = Arc::new(OneOfMany::new(Owner::new(name, 1), &self.live));
        let policy =
            Policy { nodes: Arc::clone(&node) as _, workers: self.calls_at_once, lease: LEASE, ..Policy::plain() };
        let sender = self.sender.clone();
        let script = move |query: &str| {
            let _ = sender.send((name, "started"));
            match query {
                "endless" => pending().boxed(),
                _ => async { success() }.boxed(),
            }
        };
        (Shop::over(Arc::clone(&self.store), policy, script, Arc::new(|| ModelKey::of("scripted"))).await, node)
    }
}

/// Has a node make the calls that it is given.
fn make_calls(shop: &Shop) -> AbortOnDropHandle<()> {
    let (worker, tracker, following) = (shop.worker.clone(), shop.tracker.clone(), shop.queue.work());
    AbortOnDropHandle::new(tokio::spawn(async move {
        tokio::join!(assigned::run(worker, tracker), following.follow_own_node());
    }))
}

async fn pair() -> Pair {
    pair_with(2).await
}

async fn pair_with(calls_at_once: usize) -> Pair {
    let (nodes, told) = Nodes::new();
    let nodes = Nodes { calls_at_once, ..nodes };
    let ((first, _), (second, second_node)) = (nodes.open("first").await, nodes.open("second").await);
    let together = make_calls(&second);
    Dispatcher::start(first.worker.clone(), calls_at_once, &first.tracker, &TaskTracker::new());
    Pair { first, second, second_node, live: nodes.live, told, _together: together }
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

#[tokio::test(start_paused = true)]
async fn a_burst_is_spread_over_the_nodes_while_its_claims_are_on_their_way() {
    let mut pair = pair_with(4).await;
    pair.first.store.break_down(Outage::Slow(Duration::from_secs(1)));
    let asked = || join_all((0..4).map(|_| pair.first.ask("endless")));
    let jobs = asked().await;
    let mut told = Vec::new();
    for _ in &jobs {
        told.push(pair.told.recv().await.unwrap().0);
    }
    told.sort_unstable();
    assert_eq!(told, ["first", "first", "second", "second"]);
    pair.first.store.repair();
    for job in jobs {
        pair.first.queue.cancel(job).await.unwrap();
    }
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

#[tokio::test]
async fn an_attempt_that_is_lost_before_its_call_makes_none() {
    let (nodes, mut told) = Nodes::new();
    let (shop, _) = nodes.open("only").await;
    let (id, worker) = (shop.ask("endless").await, &shop.worker);
    let proposal = worker.queue.propose(&Lanes::All).unwrap();
    let preview = worker.queue.preview(&proposal).await.unwrap();
    let (owner, asks) = (Owner::new("only", 1), ModelKey::of("scripted"));
    let job = worker.queue.claim_for(owner, asks, proposal, &preview.request).await.unwrap().unwrap();
    let claim = worker.queue.begin(&job).await.unwrap();
    shop.queue.cancel(id).await.unwrap();
    worker.assigned(&claim).await;
    assert!(told.try_recv().is_err(), "it would be paid for");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_lapses_during_its_claim_makes_no_call_and_its_permit_is_unused() {
    let (nodes, mut told) = Nodes::new();
    let (shop, node) = nodes.open("only").await;
    let worker = &shop.worker;
    let tokens = NonZeroU32::new(1_000_000_000);
    let per_minute = RateCaps { requests: NonZeroU32::new(60), input_tokens: tokens, output_tokens: tokens };
    let limits = Limits::new(per_minute, 1, None, Arc::new(|| ModelKey::of("scripted")));

    shop.ask("endless").await;
    let mut permit = limits.try_permit(None).unwrap();
    let proposal = worker.queue.propose(&Lanes::All).unwrap();
    nodes.store.break_down(Outage::Slow(Duration::from_secs(1)));
    let mut claiming = pin!(worker.queue.claim(proposal));
    assert!(timeout(Duration::from_millis(500), &mut claiming).await.is_err(), "it is slow");
    node.start_afresh(Owner::new("only", 2));
    let claim = claiming.await.unwrap().unwrap();
    nodes.store.repair();
    let plan = worker.plan(&claim).await.unwrap();
    permit.expect(plan.model(), plan.input_bytes).unwrap();
    assert_eq!(worker.ask(&claim, &plan, Some(permit)).await, None);
    assert!(limits.try_permit(None).is_some(), "no call was made");

    shop.ask("endless").await;
    let proposal = worker.queue.propose(&Lanes::All).unwrap();
    let preview = worker.queue.preview(&proposal).await.unwrap();
    let (owner, asks) = (Owner::new("only", 2), ModelKey::of("scripted"));
    let job = worker.queue.claim_for(owner, asks, proposal, &preview.request).await.unwrap().unwrap();
    node.start_afresh(Owner::new("only", 3));
    assert!(worker.queue.begin(&job).await.is_none());
    assert!(told.try_recv().is_err(), "it would be paid for");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_stored_claimed_without_an_answer_is_released_at_once() {
    let (nodes, mut told) = Nodes::new();
    let (shop, _) = nodes.open("only").await;
    let _together = make_calls(&shop);
    Dispatcher::start(shop.worker.clone(), 1, &shop.tracker, &TaskTracker::new());
    tokio::task::yield_now().await;
    nodes.store.fail_after(0, Moment::After);
    let request = JobRequest { query: "stored".to_owned(), ..JobRequest::default() };
    assert!(shop.queue.enqueue(Submission { request, ..Submission::default() }).await.is_err());
    let id = shop.worker.queue.running()[0].id;
    let asked_at = Instant::now();
    let done = shop.ended(id).await;
    let outcomes: Vec<_> = done.attempts.iter().map(|attempt| attempt.outcome).collect();
    assert_eq!(outcomes, [AttemptOutcome::Released, AttemptOutcome::Succeeded]);
    assert!(asked_at.elapsed() < LEASE && told.recv().await.is_some() && told.try_recv().is_err());
    shop.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_stopped_attempt_keeps_its_part_of_the_budget_until_its_job_shows_its_end() {
    let (nodes, mut told) = Nodes::new();
    let (shop, node) = nodes.open("only").await;
    let (id, worker) = (shop.ask("endless").await, &shop.worker);
    let permit = shop.limits.permit(|| worker.queue.ready_lanes(), worker.queue.ready()).await;
    let proposal = worker.queue.propose(&Lanes::All).unwrap();
    let claim = worker.queue.claim(proposal).await.unwrap().unwrap();
    let mut attempt = pin!(worker.attempt(&claim, permit));
    tokio::select! {
        _ = &mut attempt => panic!("the call is endless"),
        _ = told.recv() => {}
    }
    claim.lost.cancel();
    let minute = Duration::from_mins(1);
    assert!(timeout(minute, &mut attempt).await.is_err(), "what it may have cost is nowhere else");
    let _following = make_calls(&shop);
    tokio::task::yield_now().await;
    node.start_afresh(Owner::new("only", 2));
    assert_eq!(timeout(minute, attempt).await, Ok(None));
    assert_eq!(shop.ended(id).await.job.state, JobState::Failed { code: FailureCode::OutcomeUnknown });
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

#[tokio::test(start_paused = true)]
async fn calls_count_through_a_stall_of_the_store_and_no_longer_once_their_node_is_silent() {
    let mut pair = pair().await;
    let jobs = [pair.first.ask("endless").await, pair.first.ask("endless").await];
    for _ in 0..2 {
        pair.told.recv().await.unwrap();
    }
    pair.first.store.break_down(Outage::Hangs);
    // In virtual time.
    tokio::time::sleep(Duration::from_secs(4)).await;
    pair.first.store.repair();
    let waiting = pair.first.ask("waits for room").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(pair.told.try_recv().is_err(), "two calls at once");

    pair.live.lock().retain(|node| *node != Owner::new("second", 1));
    assert_eq!(pair.first.ended(waiting).await.job.state, JobState::Succeeded);
    assert_eq!(pair.told.recv().await, Some(("first", "started")));
    for job in jobs {
        pair.second.queue.cancel(job).await.unwrap();
    }
    pair.first.close().await;
    pair.second.close().await;
}

#[tokio::test]
async fn a_node_without_the_model_releases_a_claim_and_those_that_have_it_make_the_calls() {
    let (nodes, mut told) = Nodes::new();
    let ((first, _), (mut second, _), (third, _)) =
        (nodes.open("first").await, nodes.open("second").await, nodes.open("third").await);
    second.worker.agent.model = "another";
    let _together = [make_calls(&second), make_calls(&third)];
    Dispatcher::start(first.worker.clone(), 2, &first.tracker, &TaskTracker::new());
    let busy = first.ask("endless").await;
    assert_eq!(told.recv().await, Some(("first", "started")));

    use AttemptOutcome::{Released, Succeeded};
    let tried = [Released, Succeeded];
    for expected in [&tried[..], &tried[1..], &tried[1..]] {
        let done = first.ended(first.ask("for any node with the model").await).await;
        let outcomes: Vec<_> = done.attempts.iter().map(|attempt| attempt.outcome).collect();
        assert_eq!(outcomes, expected);
        assert_eq!(told.recv().await, Some(("third", "started")));
        if let [released, _] = &done.attempts[..] {
            let message = &released.report.error.as_ref().unwrap().message;
            assert!(message.contains("does not have the model"), "{message}");
        }
    }
    first.queue.cancel(busy).await.unwrap();
    for shop in [first, second, third] {
        shop.close().await;
    }
}

/// A folder of prompts with these versions.
fn prompts_of(versions: &[&str]) -> tempfile::TempDir {
    let (folder, ours) = (tempfile::tempdir().unwrap(), Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts/v1"));
    for version in versions {
        let to = folder.path().join(version);
        std::fs::create_dir(&to).unwrap();
        for file in std::fs::read_dir(&ours).unwrap().map(Result::unwrap) {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
    folder
}

#[tokio::test]
async fn a_version_of_prompts_that_another_node_has_just_loaded_is_known_before_its_job_fails() {
    let shop = Shop::over(
        Arc::new(FaultStore::over(MemoryStore::default())),
        Policy::plain(),
        |_| async { success() }.boxed(),
        Arc::new(|| ModelKey::of("scripted")),
    );
    let shop = shop.await;
    let registry = Registry::new(Arc::clone(&shop.store) as _);
    let (old, new) = (prompts_of(&["v1"]), prompts_of(&["v1", "v2"]));
    let [own, elsewhere] = [&old, &new].map(|folder| Prompts::load(folder.path()).unwrap());
    own.share(registry.clone()).await.unwrap();
    elsewhere.share(registry).await.unwrap();
    elsewhere.reload().await.unwrap();
    own.check("v2").expect_err("this node has not heard of it");

    let claude = Claude::new(ClientConfig {
        base_url: "http://127.0.0.1:9".to_owned(),
        api_key: None,
        auth_token: None,
        custom_headers: None,
        connect_timeout: PATIENCE,
        idle_timeout: PATIENCE,
    });
    let config = AgentConfig {
        model: "scripted".to_owned(),
        allowed_models: Vec::new(),
        max_tokens: 1_000,
        effort: Effort::High,
        interactive_timeout: PATIENCE,
        request_timeout: None,
    };
    let planner = Planner::new(own, config, Vec::new(), Prices::new([]));
    let Worker { queue, limits, metrics, closing, .. } = shop.worker.clone();
    let worker = Worker { agent: Agent { claude: claude.unwrap(), planner }, queue, limits, metrics, closing };
    let claim = async |version: &str| {
        let request = JobRequest { prompt_version: Some(version.to_owned()), ..JobRequest::default() };
        shop.queue.enqueue(Submission { request, ..Submission::default() }).await.unwrap();
        let proposal = worker.queue.propose(&Lanes::All).unwrap();
        worker.queue.claim(proposal).await.unwrap().unwrap()
    };
    let known = claim("v2").await;
    assert_eq!(worker.plan(&known).await.unwrap().prompt_version, "v2");
    assert!(shop.queue.find(known.job.id).await.unwrap().is_running());
    let unknown = claim("v3").await;
    assert!(worker.plan(&unknown).await.is_none());
    let code = FailureCode::PromptVersionUnknown;
    assert_eq!(shop.queue.find(unknown.job.id).await.unwrap().state, JobState::Failed { code });
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
