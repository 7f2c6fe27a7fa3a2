//! What the dispatcher knows, shared with the other nodes through settings: they show it, and the next dispatcher starts with
//! it. Only with a database.

use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex as AsyncMutex, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    agent::models::{ModelMemo, Models},
    clock::{Clock, Moments, Timestamp},
    limits::{self, Limits},
    queue::{self, Operations, Times},
    registry::{Live, Registry, Unavailable},
};

const PREFIX: &str = "node/dispatcher/";

/// Gates, limits and attempts under way, stored at most so often if they have changed.
const STATE: &str = "node/dispatcher/state";
const STATE_PAUSE: Duration = Duration::from_secs(1);

/// How long attempts last: larger, and changes slowly.
const TIMES: &str = "node/dispatcher/times";
const TIMES_PAUSE: u32 = 10;

/// Precision of the stored time of the dispatcher's last work: an idle dispatcher stores its state this often.
const AT_WORK: Duration = Duration::from_secs(5);

/// A node that stops does not wait longer for a database that does not answer.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Without work of a dispatcher for so long, operators should know.
const MISSING: Duration = Duration::from_secs(10);

pub(super) struct Memo {
    registry: Registry,
    operations: Operations,
    pub(super) limits: Limits,
    pub(super) models: Models,
    pub(super) clock: Clock,
    started_at: Instant,
    /// Whether this node hands out the calls. Held while it adopts what another one knows.
    is_dispatcher: Mutex<bool>,
    /// When a dispatcher last was at work, as far as this node knows.
    at_work: Mutex<Timestamp>,
    /// What is stored. Held until a newer state is, so that no older one comes after it.
    stored: AsyncMutex<(State, Times)>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    /// When the dispatcher last was at work, to [`AT_WORK`].
    at_work: Option<Timestamp>,
    limits: limits::Memo,
    queue: queue::Memo,
    models: Vec<ModelMemo>,
}

impl Memo {
    pub(super) fn new(
        registry: Registry,
        operations: Operations,
        limits: Limits,
        models: Models,
        clock: Clock,
    ) -> Memo {
        let at_work = Mutex::new(clock.now());
        Memo {
            registry,
            operations,
            limits,
            models,
            clock,
            started_at: Instant::now(),
            is_dispatcher: Mutex::new(false),
            at_work,
            stored: AsyncMutex::default(),
        }
    }

    /// Whether this node hands out the calls.
    pub(super) fn is_dispatcher(&self) -> bool {
        *self.is_dispatcher.lock()
    }

    /// Starts with what the former dispatcher knew. Before the first claim.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub(super) async fn take_over(&self) -> Result<(), Unavailable> {
        self.reload(PREFIX).await?;
        let mut is_dispatcher = self.is_dispatcher.lock();
        *is_dispatcher = true;
        self.limits.take_over();
        Ok(())
    }

    /// Stores what this node knows, from its take-over until [`Memo::leave`]. It is at work until `closing` is cancelled.
    pub(super) async fn run(&self, closing: CancellationToken) {
        let mut moments = Moments::now(&self.clock);
        let mut tick = tokio::time::interval(STATE_PAUSE);
        for round in 0_u32.. {
            tick.tick().await;
            moments = moments.renewed(&self.clock);
            if !closing.is_cancelled() {
                *self.at_work.lock() = self.clock.now();
            }
            self.save(&moments, round.is_multiple_of(TIMES_PAUSE)).await;
            if !self.is_dispatcher() {
                return;
            }
        }
    }

    /// Stores what this node knows for the next dispatcher, and ends as the dispatcher.
    pub(super) async fn leave(&self) {
        let moments = Moments::now(&self.clock);
        let _ = tokio::time::timeout(LEAVE_TIMEOUT, self.save(&moments, true)).await;
        *self.is_dispatcher.lock() = false;
    }

    /// Since when no dispatcher has been at work, if none has been for [`MISSING`].
    pub(super) fn missing_since(&self) -> Option<Timestamp> {
        let at_work = *self.at_work.lock();
        // A node that has just started may not have heard of it yet.
        let is_missing = self.clock.now().since(at_work) > MISSING && self.started_at.elapsed() > MISSING;
        is_missing.then_some(at_work)
    }

    /// Stores what has changed, if this node is the dispatcher.
    async fn save(&self, moments: &Moments, with_times: bool) {
        let mut stored = self.stored.lock().await;
        if !self.is_dispatcher() {
            return;
        }
        let (state, times) = &mut *stored;
        self.save_one(STATE, state, self.state(moments)).await;
        if with_times {
            self.save_one(TIMES, times, self.operations.times()).await;
        }
    }

    fn state(&self, moments: &Moments) -> State {
        let at_work = self.at_work.lock().as_millis();
        let step = i64::try_from(AT_WORK.as_millis()).unwrap_or(1);
        State {
            at_work: Some(Timestamp::from_millis(at_work - at_work.rem_euclid(step))),
            limits: self.limits.memo(moments),
            queue: self.operations.memo(moments),
            models: self.models.memo(moments),
        }
    }

    /// Stores what has changed since it was `stored`.
    async fn save_one<T: PartialEq + Serialize>(&self, name: &str, stored: &mut T, current: T) {
        if *stored == current {
            return;
        }
        match self.registry.put(name.to_owned(), &current).await {
            Ok(()) => *stored = current,
            Err(error) => warn!(%error, "other nodes do not hear of the limits at the moment"),
        }
    }
}

#[async_trait]
impl Live for Memo {
    fn prefix(&self) -> &'static str {
        PREFIX
    }

    async fn reload(&self, changed: &str) -> Result<(), Unavailable> {
        if self.is_dispatcher() {
            return Ok(());
        }
        let state = if STATE.starts_with(changed) { self.registry.get::<State>(STATE).await? } else { None };
        let times = if TIMES.starts_with(changed) { self.registry.get::<Times>(TIMES).await? } else { None };
        let is_dispatcher = self.is_dispatcher.lock();
        // It may have become the dispatcher during the read, and knows better.
        if *is_dispatcher {
            return Ok(());
        }
        if let Some(State { at_work, limits, queue, models }) = state {
            let mut moments = Moments::now(&self.clock);
            if let Some(at_work) = at_work {
                *self.at_work.lock() = at_work.min(self.clock.now());
                // By the dispatcher's clock, if that is ahead: a gate would stay closed for the difference.
                moments = moments.no_earlier(at_work);
            }
            self.limits.adopt(limits, &moments);
            self.operations.adopt(queue, &moments);
            self.models.adopt(models, &moments);
        }
        if let Some(times) = times {
            self.operations.adopt_times(times);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, sync::Arc};

    use tokio::sync::Notify;

    use super::*;
    use crate::{
        config::values::{DailyBudget, RateCaps},
        digest::ModelKey,
        http::api::allowance,
        job::{
            AtRisk, FailureCode,
            disposition::{Scope, SharedFailure},
        },
        ledger::Spending,
        limits::{
            Tokens,
            budget::{Budget, Need},
        },
        metrics::Metrics,
        queue::{Kind, Lanes, Policy, Queue, Submission, WaitingFor},
        store::memory::MemoryStore,
    };

    struct Node {
        memo: Memo,
        queue: Queue,
    }

    async fn node(store: &Arc<MemoryStore>, clock: &Clock) -> Node {
        let spending = Spending::default();
        let daily = DailyBudget { tokens: Some(1_000), cost: None };
        let budget = Budget::new(daily, Need { tokens: 10, nanodollars: 0 }, clock.clone(), spending.clone());
        let limits = Limits::new(RateCaps::default(), 8, Some(budget), Arc::new(|| ModelKey::of("m")));
        let policy = Policy {
            workers: 8,
            allowance: {
                let limits = limits.clone();
                Arc::new(move |lane| allowance(&limits, lane))
            },
            ..Policy::plain()
        };
        let closing = CancellationToken::new();
        let queue = Queue::open(Arc::clone(store) as _, clock.clone(), policy, Metrics::new(), spending, closing);
        let queue = queue.await.unwrap();
        let registry = Registry::new(Arc::clone(store) as _);
        let models = Models::new("m".to_owned(), vec!["n".to_owned()], Vec::new());
        let memo = Memo::new(registry, queue.operations(), limits, models, clock.clone());
        Node { memo, queue }
    }

    /// Stores what the dispatcher knows, as it does each second, and has the others read it.
    async fn share(dispatcher: &Node, others: &[&Node]) {
        dispatcher.memo.save(&Moments::now(&dispatcher.memo.clock), true).await;
        for other in others {
            other.memo.reload(STATE).await.unwrap();
            other.memo.reload(TIMES).await.unwrap();
        }
    }

    fn failure(code: FailureCode, opens_after: Option<Duration>) -> SharedFailure {
        SharedFailure { code, scope: Scope::Account, signature: 1, witnesses: 1, opens_after }
    }

    /// The outlook of a job that is queued on this node.
    async fn waiting_for(node: &Node) -> (Option<u64>, WaitingFor) {
        let job = node.queue.enqueue(Submission::default()).await.unwrap().record;
        let kind = Kind::of(&job.request, false);
        let outlook = node.queue.outlook(&job.job, &kind, || allowance(&node.memo.limits, None)).unwrap();
        node.queue.cancel(job.job.id).await.unwrap();
        (outlook.eta_seconds, outlook.waiting_for)
    }

    #[tokio::test(start_paused = true)]
    async fn another_node_shows_what_the_dispatcher_knows_and_starts_with_it_as_the_next_one() {
        let (store, clock) = (Arc::<MemoryStore>::default(), Clock::manual(Timestamp::from_millis(1_800_000_000_000)));
        let (dispatcher, other) = (node(&store, &clock).await, node(&store, &clock).await);
        dispatcher.memo.take_over().await.unwrap();
        let limits = &dispatcher.memo.limits;
        // An attempt under way, which the budget counts, and limits that its head named.
        dispatcher.queue.enqueue(Submission::default()).await.unwrap();
        let work = dispatcher.queue.work();
        let mut permit = limits.permit(|| vec![None], &Notify::new()).await;
        let claim = work.claim(work.propose(&Lanes::All).unwrap()).await.unwrap().unwrap();
        permit.expect("m", 100).unwrap();
        permit.make_room(AtRisk { input_tokens: 100, output_tokens: 200, nanodollars: None });
        limits.learn("m", [Some(50), Some(70_000), Some(60_000)], Instant::now());
        claim.draft.push("text");
        dispatcher.memo.models.limit_output("m", 5_000);
        dispatcher.memo.models.pass_over("m", Duration::from_secs(30));
        share(&dispatcher, &[&other]).await;
        assert_eq!(other.memo.limits.per_minute(None).requests, NonZeroU32::new(50).unwrap());
        assert_eq!(other.memo.limits.budget().unwrap().tokens.unwrap().reserved, 300);
        let operations = &other.memo.operations;
        assert_eq!((operations.running_attempts(), operations.own_attempts()), (1, 0));
        assert_eq!(other.memo.models.known(), dispatcher.memo.models.known());
        assert_eq!(other.memo.models.pick(&[]), "n");
        assert_eq!(waiting_for(&other).await, waiting_for(&dispatcher).await);

        // A closed gate, fewer calls at once, and the end of the attempt.
        for question in [1, 2, 3] {
            limits.overloaded("m", question);
        }
        limits.block("m", &failure(FailureCode::RateLimited, Some(Duration::from_secs(100))), 1, "slow down");
        drop(claim);
        share(&dispatcher, &[&other]).await;
        assert_eq!(other.memo.limits.calls_at_once(None), limits.calls_at_once(None));
        assert!(limits.calls_at_once(None) < 8);
        let gate = other.memo.limits.gate(None).unwrap();
        assert_eq!((gate.code, gate.detail.as_str()), (FailureCode::RateLimited, "slow down"));
        assert_eq!((waiting_for(&other).await, operations.running_attempts()), (waiting_for(&dispatcher).await, 0));

        // The dispatcher dies with its call under way.
        let next = node(&store, &clock).await;
        next.memo.take_over().await.unwrap();
        let limits = &next.memo.limits;
        assert!(limits.try_permit(None).is_none(), "the gate is still closed");
        assert_eq!(limits.budget().unwrap().tokens.unwrap().reserved, 0, "its calls have ended");
        tokio::time::advance(Duration::from_secs(111)).await;
        clock.advance(Duration::from_secs(111));
        assert!(limits.gate(None).is_none() && limits.calls_at_once(None) < 8, "the overload is not forgotten");
        let now = limits.memo(&Moments::now(&clock));
        share(&dispatcher, &[&next]).await;
        assert_eq!(limits.memo(&Moments::now(&clock)), now, "what the former dispatcher still writes changes nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn the_limits_of_a_new_dispatcher_begin_with_nothing_left() {
        let (store, clock) = (Arc::<MemoryStore>::default(), Clock::manual(Timestamp::from_millis(1_800_000_000_000)));
        let (dispatcher, next) = (node(&store, &clock).await, node(&store, &clock).await);
        dispatcher.memo.take_over().await.unwrap();
        dispatcher.memo.limits.learn("m", [Some(60), None, None], Instant::now());
        share(&dispatcher, &[]).await;
        next.memo.take_over().await.unwrap();
        let limits = &next.memo.limits;
        assert!(limits.try_permit(None).is_none());
        assert!(limits.try_permit(Some(ModelKey::of("n"))).is_none(), "a model that it has not heard of");
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!([None, Some(ModelKey::of("n"))].into_iter().all(|lane| limits.try_permit(lane).is_some()));
        assert!(limits.try_permit(Some(ModelKey::of("o"))).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_dispatcher_owes_the_tokens_that_calls_used_beyond_their_reservation() {
        let (store, clock) = (Arc::<MemoryStore>::default(), Clock::manual(Timestamp::from_millis(1_800_000_000_000)));
        let (dispatcher, next) = (node(&store, &clock).await, node(&store, &clock).await);
        dispatcher.memo.take_over().await.unwrap();
        dispatcher.memo.limits.learn("m", [None, Some(60_000), None], Instant::now());
        tokio::time::advance(Duration::from_secs(61)).await;
        let permit = dispatcher.memo.limits.try_permit(None).unwrap();
        permit.settle_failed(Some(Tokens { input: 80_000, output: 0 }));
        share(&dispatcher, &[]).await;
        next.memo.take_over().await.unwrap();
        let mut seconds = 0;
        while next.memo.limits.try_permit(None).is_none() {
            tokio::time::advance(Duration::from_secs(1)).await;
            seconds += 1;
        }
        assert!((80..90).contains(&seconds), "{seconds} s for 80,000 tokens, at 980 a second");
    }

    #[tokio::test(start_paused = true)]
    async fn a_dispatcher_whose_clock_was_an_hour_ahead_closes_no_gate_for_an_hour_and_is_missed() {
        let (store, clock) = (Arc::<MemoryStore>::default(), Clock::manual(Timestamp::from_millis(1_800_000_000_000)));
        let wrong = Clock::manual(clock.now().plus(Duration::from_hours(1)));
        let (dispatcher, next) = (node(&store, &wrong).await, node(&store, &clock).await);
        dispatcher.memo.take_over().await.unwrap();
        let limited = failure(FailureCode::RateLimited, Some(Duration::from_secs(100)));
        dispatcher.memo.limits.block("m", &limited, 1, "slow down");
        share(&dispatcher, &[&next]).await;
        assert!(next.memo.limits.gate(None).is_some());
        tokio::time::advance(Duration::from_secs(120)).await;
        clock.advance(Duration::from_secs(120));
        assert!(next.memo.limits.gate(None).is_none());
        assert_eq!(next.memo.missing_since(), Some(Timestamp::from_millis(1_800_000_000_000)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_calls_of_a_stopping_dispatcher_show_is_stored_until_it_leaves_and_not_later() {
        let (store, clock) = (Arc::<MemoryStore>::default(), Clock::manual(Timestamp::from_millis(1_800_000_000_000)));
        let (dispatcher, other) = (node(&store, &clock).await, node(&store, &clock).await);
        dispatcher.memo.take_over().await.unwrap();
        let (memo, closing) = (Arc::new(dispatcher.memo), CancellationToken::new());
        let running = tokio::spawn({
            let (memo, closing) = (Arc::clone(&memo), closing.clone());
            async move { memo.run(closing).await }
        });
        let pass = async |time: Duration| {
            clock.advance(time);
            tokio::time::sleep(time).await;
        };
        pass(Duration::from_secs(30)).await;
        other.memo.reload(STATE).await.unwrap();
        assert_eq!(other.memo.missing_since(), None);

        closing.cancel();
        let requests = |limit| NonZeroU32::new(limit).unwrap();
        memo.limits.learn("m", [Some(70), None, None], Instant::now());
        pass(Duration::from_secs(30)).await;
        other.memo.reload(STATE).await.unwrap();
        assert_eq!(other.memo.limits.per_minute(None).requests, requests(70), "calls that still ran");
        let missing_since = other.memo.missing_since().unwrap();
        assert!(missing_since <= Timestamp::from_millis(1_800_000_030_000), "{missing_since}");
        memo.limits.learn("m", [Some(80), None, None], Instant::now());
        memo.leave().await;
        memo.limits.learn("m", [Some(90), None, None], Instant::now());
        running.await.unwrap();
        other.memo.take_over().await.unwrap();
        assert_eq!(other.memo.limits.per_minute(None).requests, requests(80), "of the last moment");
        let run = other.memo.run(CancellationToken::new());
        assert!(tokio::time::timeout(Duration::from_millis(1), run).await.is_err());
        assert_eq!(other.memo.missing_since(), None);
    }
}
