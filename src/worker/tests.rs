//! A worker with an attempt of the test's own making: attempts that panic, and that lose their job.

mod nodes;

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex},
};

use futures_util::future::{BoxFuture, pending};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::TaskTracker;

use super::*;
use crate::{
    claude::message::MessageRequest,
    clock::{Clock, Timestamp},
    config::values::RateCaps,
    digest::ModelKey,
    dispatch::Dispatcher,
    job::{
        AtRisk, AttemptOutcome, Job, JobEvent, JobId, JobRecord, JobRequest, JobState, JobStatus, Listing, Owner,
        disposition::{Scope, SharedFailure},
    },
    ledger::Spending,
    queue::{Policy, Queue, Submission},
    store::{
        JobStore as _,
        fault::{FaultStore, Moment},
        memory::MemoryStore,
    },
};

/// It ends by the manual clock.
const LEASE: Duration = Duration::from_secs(30);

/// A test that waits longer for anything has failed.
const PATIENCE: Duration = Duration::from_secs(30);

type Act = BoxFuture<'static, (Disposition, AttemptReport)>;

/// Does as the question says.
#[derive(Clone)]
struct Scripted {
    script: Arc<dyn Fn(&str) -> Act + Send + Sync>,
    /// The model that it asks.
    model: &'static str,
}

impl Analyst for Scripted {
    fn plan(&self, assignment: Assignment<'_>) -> Result<Plan, Box<AttemptReport>> {
        let call = MessageRequest {
            model: self.model.to_owned(),
            prompt: assignment.request.query.clone(),
            time_limit: PATIENCE,
            ..MessageRequest::default()
        };
        let at_risk = AtRisk { input_tokens: 1, output_tokens: 2, nanodollars: None };
        Ok(Plan::stand_in(call, at_risk, assignment.now))
    }

    async fn attempt(&self, plan: &Plan, _: &(dyn Fn(Progress<'_>) + Send + Sync)) -> (Disposition, AttemptReport) {
        (self.script)(&plan.call.prompt).await
    }
}

fn success() -> (Disposition, AttemptReport) {
    let result = serde_json::value::to_raw_value("the memo").ok();
    (Disposition::Succeed, AttemptReport { result, ..AttemptReport::default() })
}

/// A pool for one call at once, and all that it works with.
struct Shop {
    clock: Clock,
    store: Arc<FaultStore<MemoryStore>>,
    queue: Queue,
    limits: Limits,
    metrics: Metrics,
    closing: CancellationToken,
    tracker: TaskTracker,
    worker: Worker<Scripted>,
}

impl Shop {
    async fn open(script: impl Fn(&str) -> Act + Send + Sync + 'static) -> Shop {
        Shop::open_with(script, Arc::new(|| ModelKey::of("scripted"))).await
    }

    /// `in_use` is the model of jobs that name none.
    async fn open_with(
        script: impl Fn(&str) -> Act + Send + Sync + 'static,
        in_use: Arc<dyn Fn() -> ModelKey + Send + Sync>,
    ) -> Shop {
        let store = Arc::new(FaultStore::over(MemoryStore::default()));
        let policy = Policy { lease: LEASE, ..Policy::plain() };
        let shop = Shop::over(store, policy, script, in_use).await;
        Dispatcher::start(shop.worker.clone(), 1, &shop.tracker, &TaskTracker::new());
        // From then on it takes jobs at their submission.
        tokio::task::yield_now().await;
        shop
    }

    /// One that does not dispatch yet.
    async fn over(
        store: Arc<FaultStore<MemoryStore>>,
        policy: Policy,
        script: impl Fn(&str) -> Act + Send + Sync + 'static,
        in_use: Arc<dyn Fn() -> ModelKey + Send + Sync>,
    ) -> Shop {
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
        let metrics = Metrics::new();
        let (closing, policy_workers) = (CancellationToken::new(), policy.workers);
        let (spending, clocked) = (Spending::default(), clock.clone());
        let queue =
            Queue::open(store.clone(), clocked, policy, metrics.clone(), spending, closing.clone()).await.unwrap();
        let most = Some(NonZeroU32::MAX);
        let per_minute = RateCaps { requests: most, input_tokens: most, output_tokens: most };
        let limits = Limits::new(per_minute, policy_workers, None, in_use);
        let worker = Worker {
            queue: queue.work(),
            limits: limits.clone(),
            agent: Scripted { script: Arc::new(script), model: "scripted" },
            metrics: metrics.clone(),
            closing: closing.clone(),
        };
        Shop { clock, store, queue, limits, metrics, closing, tracker: TaskTracker::new(), worker }
    }

    async fn ask(&self, query: &str) -> JobId {
        let request = JobRequest { query: query.to_owned(), ..JobRequest::default() };
        let submission = Submission { request, ..Submission::default() };
        self.queue.enqueue(submission).await.unwrap().record.job.id
    }

    async fn ended(&self, id: JobId) -> JobRecord {
        let record = self.queue.wait(id, Instant::now() + PATIENCE).await.unwrap();
        assert!(record.job.state.is_final(), "{record:?}");
        record
    }

    /// Takes the job from its worker, as the sweeper of another process would.
    async fn end_attempt(&self, id: JobId) {
        let job = self.store.find(id).await.unwrap().unwrap();
        let event = JobEvent::Expire { attempt: job.attempt, retry_at: None, at_risk: None };
        self.store.transition(id, event, self.queue.now()).await.unwrap();
    }

    /// The job once it is as wanted, which nothing signals.
    async fn until(&self, id: JobId, wanted: impl Fn(&Job) -> bool) -> Job {
        let look = async {
            loop {
                let job = self.store.find(id).await.unwrap().unwrap();
                if wanted(&job) {
                    return job;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, look).await.expect("it never came to that")
    }

    /// Stops, and asserts that the worker comes to its end.
    async fn close(self) {
        self.closing.cancel();
        self.tracker.close();
        timeout(PATIENCE, self.tracker.wait()).await.expect("the attempt ends");
    }
}

/// Tells when it is dropped: how an attempt notices that it is stopped.
struct Stopped(mpsc::UnboundedSender<&'static str>);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.send("stopped");
    }
}

/// A shop whose attempts never end by themselves, and what they tell.
async fn endless() -> (Shop, mpsc::UnboundedReceiver<&'static str>) {
    let (sender, told) = mpsc::unbounded_channel();
    let shop = Shop::open(move |query| {
        let sender = sender.clone();
        if query != "endless" {
            return async { success() }.boxed();
        }
        async move {
            let _stopped = Stopped(sender.clone());
            let _ = sender.send("started");
            pending().await
        }
        .boxed()
    })
    .await;
    (shop, told)
}

async fn next(told: &mut mpsc::UnboundedReceiver<&'static str>) -> &'static str {
    timeout(PATIENCE, told.recv()).await.expect("the attempt tells").unwrap()
}

#[tokio::test]
async fn an_attempt_that_panics_fails_and_its_worker_lives_on() {
    let shop = Shop::open(|query| match query {
        "at once" => panic!("by script, at once"),
        "later" => async {
            tokio::task::yield_now().await;
            panic!("by script, after a while")
        }
        .boxed(),
        _ => async { success() }.boxed(),
    })
    .await;
    for query in ["at once", "later"] {
        let failed = shop.ended(shop.ask(query).await).await;
        assert_eq!(failed.job.state, JobState::Failed { code: FailureCode::Internal });
        let [attempt] = &failed.attempts[..] else { panic!("{failed:?}") };
        assert_eq!(attempt.outcome, AttemptOutcome::Failed);
        assert!(attempt.report.may_have_been_billed, "the call may have been under way");
    }
    assert_eq!(shop.metrics.panics.get(), 2);
    let done = shop.ended(shop.ask("a third").await).await;
    assert_eq!(done.job.state, JobState::Succeeded, "no place of the two is lost");
    shop.close().await;
}

#[tokio::test]
async fn the_late_settle_of_an_attempt_that_has_lost_its_job_changes_nothing() {
    let (shop, mut told) = endless().await;
    let id = shop.ask("endless").await;
    assert_eq!(next(&mut told).await, "started");
    let mine = shop.store.find(id).await.unwrap().unwrap();
    shop.end_attempt(id).await;
    assert_eq!(next(&mut told).await, "stopped");
    let lost = shop.queue.get(id).await.unwrap();
    assert_eq!(lost.job.state, JobState::Failed { code: FailureCode::OutcomeUnknown });

    let (_, report) = success();
    shop.queue.work().settle(&mine, &Disposition::Succeed, report).await;
    let after = shop.queue.get(id).await.unwrap();
    assert_eq!((after.job, after.attempts.len()), (lost.job, 1));
    assert_eq!(shop.metrics.leases_lost.get(), 1);

    let done = shop.ended(shop.ask("another").await).await;
    assert_eq!(done.job.state, JobState::Succeeded, "others are called for");
    shop.close().await;
}

#[tokio::test]
async fn an_attempt_stops_at_once_when_its_job_is_cancelled_or_taken_from_it() {
    let (shop, mut told) = endless().await;
    let cancelled = shop.ask("endless").await;
    assert_eq!(next(&mut told).await, "started");
    shop.queue.cancel(cancelled).await.unwrap();
    assert_eq!(next(&mut told).await, "stopped");
    let expired = shop.ask("endless").await;
    assert_eq!(next(&mut told).await, "started");
    shop.end_attempt(expired).await;
    assert_eq!(next(&mut told).await, "stopped");
    shop.close().await;
}

#[tokio::test]
async fn an_attempt_goes_on_where_the_clock_jumps_beyond_its_lease() {
    let (shop, mut told) = endless().await;
    let id = shop.ask("endless").await;
    assert_eq!(next(&mut told).await, "started");
    for _ in 0..3 {
        shop.clock.advance(LEASE * 100);
        shop.queue.work().sweep().await.unwrap();
    }
    assert!(told.try_recv().is_err(), "neither stopped nor started again");
    assert_eq!(shop.store.find(id).await.unwrap().unwrap().attempt, 1);
    shop.queue.cancel(id).await.unwrap();
    shop.close().await;
}

#[tokio::test]
async fn a_claim_that_comes_as_the_service_stops_is_released_unspent() {
    let calls = Arc::new(Mutex::new(0));
    let count = Arc::clone(&calls);
    let shop = Shop::open(move |_| {
        *count.lock().unwrap() += 1;
        async { success() }.boxed()
    })
    .await;
    tokio::task::yield_now().await;
    // Room is reserved for the attempt; before the job is on disk its client hangs up and the service stops.
    assert!(shop.ask("too late").now_or_never().is_none());
    shop.closing.cancel();
    shop.tracker.close();
    timeout(PATIENCE, shop.tracker.wait()).await.expect("the attempt ends");
    let page = shop.queue.list(Listing { limit: 2, ..Listing::default() }).await.unwrap();
    let [record] = &page.jobs[..] else { panic!("{page:?}") };
    assert_eq!((record.job.status(shop.queue.now()), record.job.releases), (JobStatus::Queued, 1));
    assert_eq!(record.attempts[0].outcome, AttemptOutcome::Released);
    assert_eq!(*calls.lock().unwrap(), 0);
}

fn block(shop: &Shop, code: FailureCode, opens_after: Option<Duration>) {
    let failure = SharedFailure { code, scope: Scope::Account, signature: 1, witnesses: 1, opens_after };
    shop.limits.block("scripted", &failure, 1, "no");
}

/// A shop where a call is under way and the job behind it is claimed already, in this order.
async fn claimed_ahead() -> (Shop, mpsc::UnboundedReceiver<&'static str>, JobId, JobId) {
    let (shop, mut told) = endless().await;
    let called = shop.ask("endless").await;
    assert_eq!(next(&mut told).await, "started");
    shop.limits.claim_ahead(1);
    let ahead = shop.ask("endless").await;
    shop.until(ahead, Job::is_running).await;
    (shop, told, called, ahead)
}

#[tokio::test]
async fn a_job_that_was_claimed_ahead_is_called_for_when_another_call_ends() {
    let (shop, mut told, called, ahead) = claimed_ahead().await;
    shop.clock.advance(LEASE * 3);
    shop.queue.work().sweep().await.unwrap();
    assert!(told.try_recv().is_err(), "one call at a time");
    shop.queue.cancel(called).await.unwrap();
    assert_eq!([next(&mut told).await, next(&mut told).await], ["stopped", "started"]);
    shop.queue.cancel(ahead).await.unwrap();
    assert_eq!(next(&mut told).await, "stopped");
    shop.close().await;
}

#[tokio::test]
async fn a_job_that_was_claimed_ahead_is_released_unspent_when_it_must_not_be_called_for() {
    for (why, code) in [
        ("stop", FailureCode::Shutdown),
        ("pause", FailureCode::Shutdown),
        ("gate", FailureCode::RateLimited),
        ("hold", FailureCode::BillingFailed),
        ("overload", FailureCode::Overloaded),
    ] {
        let (shop, mut told, called, ahead) = claimed_ahead().await;
        match why {
            "stop" => shop.closing.cancel(),
            "pause" => {
                shop.queue.operations().pause("ann").await.unwrap();
                shop.queue.cancel(called).await.unwrap();
            }
            "gate" => block(&shop, code, Some(PATIENCE)),
            "hold" => block(&shop, code, None),
            _ => [1, 2].into_iter().for_each(|question| shop.limits.overloaded("scripted", question)),
        }
        let job = shop.until(ahead, |job| !job.is_running()).await;
        assert_eq!((job.status(shop.queue.now()), job.releases), (JobStatus::Queued, 1), "{why}");
        let record = shop.queue.get(ahead).await.unwrap();
        assert_eq!(record.attempts[0].report.error.as_ref().map(|error| error.code), Some(code), "{why}");
        shop.closing.cancel();
        if why != "pause" {
            shop.queue.cancel(called).await.unwrap();
        }
        assert_eq!(next(&mut told).await, "stopped");
        assert!(told.try_recv().is_err(), "{why}: it was never called for");
        shop.close().await;
    }
}

#[tokio::test]
async fn a_permit_of_a_job_that_was_not_accepted_keeps_no_other_from_its_call() {
    let shop = Shop::open(|_| async { success() }.boxed()).await;
    tokio::task::yield_now().await;
    shop.store.fail_after(0, Moment::Before);
    shop.queue.enqueue(Submission::default()).await.unwrap_err();
    // Those of a batch are not handed over, so the dispatcher needs the permit.
    let (jobs, _) = shop.queue.enqueue_all(vec![Submission::default()], None).await.unwrap();
    assert_eq!(shop.ended(jobs[0].id).await.job.state, JobState::Succeeded);
    shop.close().await;
}

/// Jobs of a batch, which are not handed over at their submission.
async fn batch(shop: &Shop, requests: impl IntoIterator<Item = JobRequest>) -> Vec<Job> {
    let submission = |request| Submission { request, ..Submission::default() };
    shop.queue.enqueue_all(requests.into_iter().map(submission).collect(), None).await.unwrap().0
}

#[tokio::test]
async fn a_submission_starts_its_attempt_only_where_its_call_may_be_made() {
    let (shop, mut told) = endless().await;
    let submit = async || {
        let request = JobRequest { query: "endless".to_owned(), ..JobRequest::default() };
        shop.queue.enqueue(Submission { request, ..Submission::default() }).await.unwrap().record.job
    };
    let (first, second) = (submit().await, submit().await);
    assert_eq!([first.is_running(), second.is_running()], [true, false], "one call at a time");
    assert_eq!(next(&mut told).await, "started");
    shop.queue.cancel(first.id).await.unwrap();
    assert_eq!([next(&mut told).await, next(&mut told).await], ["stopped", "started"]);
    shop.queue.cancel(second.id).await.unwrap();
    assert_eq!(next(&mut told).await, "stopped");
    block(&shop, FailureCode::RateLimited, Some(PATIENCE));
    assert!(!submit().await.is_running(), "the gate is closed");
    shop.close().await;
}

#[tokio::test]
async fn a_claim_that_fails_is_made_again_and_keeps_no_place_or_permit() {
    let shop = Shop::open(|_| async { success() }.boxed()).await;
    for moment in [Moment::Before; 3] {
        shop.store.fail_after(1, moment);
        let jobs = batch(&shop, [JobRequest::default()]).await;
        assert_eq!(shop.ended(jobs[0].id).await.job.state, JobState::Succeeded);
        assert_eq!(shop.store.take_fired().len(), 1);
    }
    shop.close().await;
}

#[tokio::test]
async fn a_model_that_is_blocked_holds_up_no_job_of_another() {
    let shop = Shop::open(|_| async { success() }.boxed()).await;
    let failure = SharedFailure {
        code: FailureCode::Overloaded,
        scope: Scope::Model,
        signature: 1,
        witnesses: 1,
        opens_after: Some(PATIENCE),
    };
    shop.limits.block("blocked", &failure, 1, "no");
    let of = |model: &str| JobRequest { model: Some(model.to_owned()), ..JobRequest::default() };
    let jobs = batch(&shop, [of("blocked"), of("scripted")]).await;
    assert_eq!(shop.ended(jobs[1].id).await.job.state, JobState::Succeeded);
    assert_eq!(shop.queue.find(jobs[0].id).await.unwrap().attempt, 0);
    shop.close().await;
}

#[tokio::test]
async fn a_dispatcher_that_panics_goes_on() {
    let panics = Mutex::new(1);
    let in_use = move || {
        let panics = std::mem::take(&mut *panics.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        assert_eq!(panics, 0, "by script");
        ModelKey::of("scripted")
    };
    let shop = Shop::open_with(|_| async { success() }.boxed(), Arc::new(in_use)).await;
    let jobs = batch(&shop, [JobRequest::default()]).await;
    assert_eq!(shop.ended(jobs[0].id).await.job.state, JobState::Succeeded);
    assert_eq!(shop.metrics.panics.get(), 1);
    shop.close().await;
}

#[tokio::test]
async fn a_job_that_was_claimed_ahead_can_be_cancelled() {
    let (shop, mut told, called, ahead) = claimed_ahead().await;
    shop.queue.cancel(ahead).await.unwrap();
    // It gives its place up by itself, while the other's call goes on.
    let given_up = async {
        while shop.queue.operations().running_attempts() > 1 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, given_up).await.expect("it notices");
    shop.queue.cancel(called).await.unwrap();
    assert_eq!(next(&mut told).await, "stopped");
    let done = shop.ended(shop.ask("another").await).await;
    assert_eq!(done.job.state, JobState::Succeeded);
    assert!(told.try_recv().is_err(), "it was never called for");
    shop.close().await;
}
