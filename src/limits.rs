//! How fast Claude may be called: the account's limits per minute by `governor`, how many calls may be under way while
//! a model is overloaded, and the gates that stop calls.
//!
//! - `bucket`: one limit per minute
//! - `budget`: what may be spent a day
//! - `reach`: whether Claude can be reached
//! - `gate`: stops calls while every one of them would fail alike
//! - `model`: all of this for one model
//! - `permit`: permission to make one call
//!
//! Anthropic's limits, overloads and most failures concern one model, so each model has its own, by its key. Only the
//! account's gate, the number of workers and the budget are common to all. Jobs whose model can't be called are passed over.
//!
//! A [`Permit`] is good for one call. A job waits for one in the queue, not in a worker: a worker asks for the permit
//! first and claims afterwards. As it is not known then which job that will be, a permit reserves a call of each model that
//! ready jobs need and that may be called, and the claim takes a job of one of these ([`Permit::lanes`]). A reservation takes
//! as many tokens as a call usually needs, then, once it is known which call it is, as many as its text is likely to need, and at
//! the end is settled with what it did need.
//!
//! Where a claim takes long compared with a call, a few permits more are given while as many calls are under way as may
//! be ([`Limits::claim_ahead`]). Their jobs are claimed meanwhile, and their calls wait until one of the others ends
//! ([`Permit::turn`]).

mod bucket;
pub mod budget;
pub mod gate;
mod model;
mod permit;
pub mod reach;

use std::{collections::HashMap, num::NonZeroU32, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use utoipa::ToSchema;

pub use self::permit::{Kept, Permit, Room};
use self::{
    budget::{Budget, Status},
    gate::{Admission, Block, Closed, Gate, Ruling},
    model::{Model, Refusal, whole},
    permit::Reserved,
    reach::{Reach, Unreachable},
};
use crate::{
    config::values::RateCaps,
    digest::{Lane, ModelKey},
};

/// How often a budget that is used up is looked at: the wall clock can be set, and a suspended machine wakes on another
/// day.
const BUDGET_POLL: Duration = Duration::from_secs(1);

/// Most calls at once where nothing else is set: the most that the connections and the memory are made for.
pub const MAX_CALLS_AT_ONCE: usize = 512;

/// Most models that are known at a time; old jobs can name any.
const MAX_MODELS: usize = 64;

/// Limits per minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PerMinute {
    /// Calls.
    #[schema(value_type = u32, minimum = 1)]
    #[serde(rename = "requests_per_minute")]
    pub requests: NonZeroU32,
    /// Input tokens; those read from the prompt cache do not count.
    #[schema(value_type = u32, minimum = 1)]
    #[serde(rename = "input_tokens_per_minute")]
    pub input_tokens: NonZeroU32,
    /// Output tokens.
    #[schema(value_type = u32, minimum = 1)]
    #[serde(rename = "output_tokens_per_minute")]
    pub output_tokens: NonZeroU32,
}

/// Tokens of one call that count against the limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Input tokens, without those read from the prompt cache.
    pub input: u32,
    /// Output tokens.
    pub output: u32,
}

/// Tells which model is asked for jobs that name none.
pub type InUse = Arc<dyn Fn() -> ModelKey + Send + Sync>;

/// The limits on calls. Clones are handles to the same ones.
#[derive(Clone)]
pub struct Limits(Arc<Inner>);

struct Inner {
    in_use: InUse,
    budget: Option<Arc<Budget>>,
    state: Mutex<State>,
    reach: Mutex<Reach>,
    /// Signalled when somebody who waits should look again.
    changed: Notify,
}

struct State {
    /// The operator's caps, on each model.
    caps: RateCaps,
    /// Stops the calls of all models.
    account: Gate,
    models: HashMap<ModelKey, Model>,
    /// Permits given and not yet dropped.
    permits: usize,
    /// How many of them may wait for another call to end.
    most_ahead: usize,
    /// Most calls under way, whatever the limits allow.
    workers: usize,
    /// How many callers a limit keeps waiting for a permit.
    waiting: usize,
}

/// The limits of one model.
#[derive(Clone, Debug)]
pub struct ModelLimits {
    /// Its name.
    pub model: String,
    /// The limits in force.
    pub per_minute: PerMinute,
    /// Most calls at once at the moment.
    pub calls_at_once: usize,
    /// Its gate, if that is closed.
    pub gate: Option<Closed>,
}

/// Somebody whom a limit keeps waiting for a permit; counted until this is dropped.
struct Waiting<'a>(&'a Inner);

impl Limits {
    /// At most so much a minute of each model; never more than `workers` calls at once, and no more a day than the budget has.
    pub fn new(caps: RateCaps, workers: usize, budget: Option<Budget>, in_use: InUse) -> Limits {
        Limits(Arc::new(Inner {
            in_use,
            budget: budget.map(Arc::new),
            state: Mutex::new(State {
                caps,
                account: Gate::default(),
                models: HashMap::new(),
                permits: 0,
                most_ahead: 0,
                workers,
                waiting: 0,
            }),
            reach: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    /// A call of this question found no connection. Returns whether Claude counts as unreachable from now on.
    pub fn connection_failed(&self, question: u64, reason: &'static str, detail: &str) -> bool {
        self.0.reach.lock().failed(question, reason, detail, Instant::now())
    }

    /// A call was answered, if only by an error. Returns whether Claude counted as unreachable until now.
    pub fn connected(&self) -> bool {
        self.0.reach.lock().answered(Instant::now())
    }

    /// The calls that found no connection, if Claude counts as unreachable.
    pub fn unreachable(&self) -> Option<Unreachable> {
        self.0.reach.lock().unreachable(Instant::now()).cloned()
    }

    /// Waits until one call may be made for a job of one of the lanes that `ready` gives, which is asked again when `more` is
    /// signalled.
    pub async fn permit(&self, ready: impl Fn() -> Vec<Lane>, more: &Notify) -> Permit {
        let mut waiting = None;
        loop {
            let (changed, more) = (self.0.changed.notified(), more.notified());
            tokio::pin!(changed, more);
            changed.as_mut().enable();
            more.as_mut().enable();
            let wait = match self.take(&ready()) {
                Ok(permit) => return permit,
                Err(Refusal::For(wait)) => Some(wait),
                Err(Refusal::UntilChanged) => None,
                Err(Refusal::Busy) => {
                    waiting = None;
                    tokio::select! {
                        () = changed => {}
                        () = more => {}
                    }
                    continue;
                }
            };
            waiting.get_or_insert_with(|| Waiting::new(&self.0));
            tokio::select! {
                () = async {
                    match wait {
                        Some(wait) => tokio::time::sleep(wait).await,
                        None => std::future::pending().await,
                    }
                } => {}
                () = changed => {}
                () = more => {}
            }
        }
    }

    /// A permit for one call of a lane, if one can be had at this moment.
    pub fn try_permit(&self, lane: Lane) -> Option<Permit> {
        self.take(&[lane]).ok()
    }

    /// A permit for a job of one of these lanes, or the reason for the refusal.
    fn take(&self, ready: &[Lane]) -> Result<Permit, Refusal> {
        let (inner, now, in_use) = (&self.0, Instant::now(), (self.0.in_use)());
        let mut state = inner.state.lock();
        let is_account_probe = match state.account.admit(now) {
            Admission::Open => false,
            Admission::Probe => true,
            Admission::Wait(wait) => return Err(Refusal::For(wait)),
            Admission::Probing => return Err(Refusal::UntilChanged),
        };
        // Where another worker took the last job, whoever comes next for the service's own model finds out.
        let ready = if ready.is_empty() { &[None][..] } else { ready };
        let mut keys: Vec<ModelKey> = ready.iter().map(|lane| lane.unwrap_or(in_use)).collect();
        keys.sort_unstable();
        keys.dedup();
        let Admitted { mut models, is_ahead, mut refusal } = state.admit(&keys, is_account_probe, now);
        if models.is_empty() {
            return Err(refusal);
        }
        let kept = match &inner.budget {
            None => None,
            Some(budget) => Some(budget.reserve().ok_or(Refusal::For(BUDGET_POLL))?),
        };
        let mut reserved = Vec::with_capacity(models.len());
        for (key, is_probe) in models.drain(..) {
            match state.reserve(key, is_probe) {
                Ok(one) => reserved.push(one),
                Err(wait) => refusal = refusal.or(Refusal::For(wait)),
            }
        }
        if reserved.is_empty() {
            return Err(refusal);
        }
        state.permits += 1;
        if is_account_probe {
            state.account.begin_probe();
        }
        let turn = is_ahead.then(|| {
            let (give, turn) = oneshot::channel();
            let key = reserved.first().map_or(in_use, |one| one.key);
            state.model(key).ahead.push_back(give);
            turn
        });
        drop(state);
        let has = |lane: &Lane| reserved.iter().any(|one| one.key == lane.unwrap_or(in_use));
        let lanes = ready.iter().copied().filter(has).collect();
        Ok(Permit::new(self.clone(), reserved, lanes, turn, is_account_probe, kept))
    }

    /// Has up to `most` permits more given while as many calls are under way as may be; none while the model is overloaded
    /// or its gate is closed.
    pub fn claim_ahead(&self, most: usize) {
        let mut state = self.0.state.lock();
        let is_more = most > state.most_ahead;
        state.most_ahead = most;
        drop(state);
        if is_more {
            self.0.changed.notify_waiters();
        }
    }

    /// The limits that count for a lane: what the upstream told, or the operator's cap where that is less.
    pub fn per_minute(&self, lane: Lane) -> PerMinute {
        self.with_model(lane, |model, _| model.per_minute())
    }

    /// The operator's caps.
    pub fn caps(&self) -> RateCaps {
        self.0.state.lock().caps
    }

    /// Changes the operator's caps.
    pub fn set_caps(&self, caps: RateCaps) {
        let in_use = (self.0.in_use)();
        let mut state = self.0.state.lock();
        // What was allowed until now may have been used: the new limits begin with nothing.
        state.model(in_use);
        state.caps = caps;
        state.models.values().for_each(|model| model.set(caps));
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// Records the limits of a model that the head of an answer named: requests, input tokens and output tokens. Its call
    /// began at `called_at`: answers overtake each other, and what the later call heard counts.
    pub fn learn(&self, model: &str, limits: [Option<u64>; 3], called_at: Instant) {
        if limits.iter().all(Option::is_none) {
            return;
        }
        let mut state = self.0.state.lock();
        let known = state.named(model);
        let was_told = known.is_told();
        known.learn(limits, called_at);
        drop(state);
        if !was_told {
            self.0.changed.notify_waiters();
        }
    }

    /// A model is overloaded: fewer of its calls at once, until it answers again.
    pub fn overloaded(&self, model: &str, question: u64) {
        let mut state = self.0.state.lock();
        let workers = state.workers;
        state.named(model).overloaded(question, workers, Instant::now());
    }

    /// A model answered a call.
    pub fn answered(&self, model: &str) {
        let mut state = self.0.state.lock();
        let workers = state.workers;
        let known = state.named(model);
        let was_told = known.is_told();
        known.answered(workers);
        state.give_turns();
        drop(state);
        if was_told { self.0.changed.notify_one() } else { self.0.changed.notify_waiters() }
    }

    /// Most calls of a lane at once at the moment.
    pub fn calls_at_once(&self, lane: Lane) -> usize {
        self.with_model(lane, |model, workers| usize::try_from(whole(model.at_once(workers))).unwrap_or(workers))
    }

    /// Calls of a lane allowed a second, over time, by whichever limit is the narrowest.
    pub fn calls_per_second(&self, lane: Lane) -> f64 {
        self.with_model(lane, |model, _| model.rate())
    }

    /// True while a limit keeps somebody waiting who wants to call.
    pub fn is_exhausted(&self) -> bool {
        self.0.state.lock().waiting > 0
    }

    /// A call met a failure that may concern others: closes the gate of `model`, or without one that of the account, if enough
    /// different questions met it.
    pub fn block(&self, model: Option<&str>, block: &Block<'_>) -> Ruling {
        let (mut state, now, random) = (self.0.state.lock(), Instant::now(), rand::random());
        let ruling = match model {
            Some(model) => {
                let known = state.named(model);
                let ruling = known.gate.block(block, now, random);
                if ruling != Ruling::Alone {
                    known.ahead.clear();
                }
                ruling
            }
            None => {
                let ruling = state.account.block(block, now, random);
                if ruling != Ruling::Alone {
                    state.models.values_mut().for_each(|model| model.ahead.clear());
                }
                ruling
            }
        };
        drop(state);
        if ruling != Ruling::Alone {
            self.0.changed.notify_waiters();
        }
        ruling
    }

    /// A call of `model` that began at `begun` is being answered. Returns whether that opened a gate.
    pub fn reached(&self, model: &str, question: u64, begun: Instant) -> bool {
        let mut state = self.0.state.lock();
        let account = state.account.answered(question, begun);
        let has_opened = state.named(model).gate.answered(question, begun) || account;
        drop(state);
        if has_opened {
            self.0.changed.notify_waiters();
        }
        has_opened
    }

    /// The daily budget, if there is one.
    pub fn budget(&self) -> Option<Status> {
        self.0.budget.as_ref().map(|budget| budget.status())
    }

    /// The gate that stops the calls of a lane, if one does.
    pub fn gate(&self, lane: Lane) -> Option<Closed> {
        let key = lane.unwrap_or_else(|| (self.0.in_use)());
        let (mut state, now) = (self.0.state.lock(), Instant::now());
        let account = state.account.closed(now).cloned();
        account.or_else(|| state.models.get_mut(&key)?.gate.closed(now).cloned())
    }

    /// The limits of each model that was called, by name.
    pub fn models(&self) -> Vec<ModelLimits> {
        let (mut state, now) = (self.0.state.lock(), Instant::now());
        let workers = state.workers;
        let named = state.models.values_mut().filter(|model| !model.name.is_empty());
        let limits = |model: &mut Model| ModelLimits {
            model: model.name.clone(),
            per_minute: model.per_minute(),
            calls_at_once: usize::try_from(whole(model.at_once(workers))).unwrap_or(workers),
            gate: model.gate.closed(now).cloned(),
        };
        let mut models: Vec<ModelLimits> = named.map(limits).collect();
        models.sort_unstable_by(|one, other| one.model.cmp(&other.model));
        models
    }

    fn with_model<T>(&self, lane: Lane, read: impl FnOnce(&Model, usize) -> T) -> T {
        let key = lane.unwrap_or_else(|| (self.0.in_use)());
        let mut state = self.0.state.lock();
        let workers = state.workers;
        read(state.model(key), workers)
    }
}

/// Which models may be called.
struct Admitted {
    /// Each with whether its call is a probe.
    models: Vec<(ModelKey, bool)>,
    /// The call of the one model waits for another to end.
    is_ahead: bool,
    /// Why the others may not.
    refusal: Refusal,
}

impl State {
    fn model(&mut self, key: ModelKey) -> &mut Model {
        if self.models.len() >= MAX_MODELS && !self.models.contains_key(&key) {
            let now = Instant::now();
            let idle = self.models.iter_mut().filter_map(|(key, model)| Some((model.idle_since(now)?, *key)));
            if let Some((_, oldest)) = idle.min() {
                self.models.remove(&oldest);
            }
        }
        let caps = self.caps;
        self.models.entry(key).or_insert_with(|| Model::new(caps))
    }

    fn named(&mut self, name: &str) -> &mut Model {
        let model = self.model(ModelKey::of(name));
        if model.name.is_empty() {
            name.clone_into(&mut model.name);
        }
        model
    }

    /// Calls that may be made now, or are being made.
    fn calling(&self) -> usize {
        self.permits.saturating_sub(self.ahead())
    }

    fn ahead(&self) -> usize {
        self.models.values().map(|model| model.ahead.len()).sum()
    }

    /// Which of these models may be called, as far as gates and the calls under way allow it.
    fn admit(&mut self, keys: &[ModelKey], is_account_probe: bool, now: Instant) -> Admitted {
        let (workers, is_full) = (self.workers, self.calling() >= self.workers);
        let (mut models, mut busy, mut refusal) = (Vec::new(), Vec::new(), None::<Refusal>);
        for key in keys {
            let admitted = self.model(*key).admit(is_account_probe, workers, now);
            let admitted = match admitted {
                Ok(false) if is_full && !is_account_probe => Err(Refusal::Busy),
                admitted => admitted,
            };
            match admitted {
                Ok(is_probe) => models.push((*key, is_probe)),
                Err(one) => {
                    if matches!(one, Refusal::Busy) {
                        busy.push((*key, false));
                    }
                    refusal = Some(refusal.map_or(one, |before| before.or(one)));
                }
            }
        }
        let is_ahead = models.is_empty() && self.ahead() < self.most_ahead;
        if is_ahead {
            models.extend(busy.first());
        }
        Admitted { is_ahead: is_ahead && !models.is_empty(), models, refusal: refusal.unwrap_or(Refusal::UntilChanged) }
    }

    /// Reserves a call of a model, or tells how long to wait for its limits.
    fn reserve(&mut self, key: ModelKey, is_probe: bool) -> Result<Reserved, Duration> {
        let model = self.model(key);
        let taken = model.usual();
        model.take(taken)?;
        model.under_way += 1;
        model.used_at = Instant::now();
        if is_probe {
            model.gate.begin_probe();
        }
        Ok(Reserved { key, taken, is_probe })
    }

    /// Lets the permits given ahead make their calls, as far as more calls may be under way.
    fn give_turns(&mut self) {
        let workers = self.workers;
        // A worker that gave up has dropped its permit, or is about to.
        self.models.values_mut().for_each(|model| model.ahead.retain(|turn| !turn.is_closed()));
        let mut room = workers.saturating_sub(self.calling());
        for model in self.models.values_mut() {
            while room > 0 && !model.ahead.is_empty() && model.has_turn(workers) {
                model.ahead.pop_front().map(|turn| turn.send(()));
                room -= 1;
            }
        }
    }
}

impl Refusal {
    /// Of two lanes: what ends first counts, and a busy one is no limit that keeps anybody waiting.
    fn or(self, other: Refusal) -> Refusal {
        match (self, other) {
            (Refusal::For(one), Refusal::For(other)) => Refusal::For(one.min(other)),
            (Refusal::For(wait), _) | (_, Refusal::For(wait)) => Refusal::For(wait),
            (Refusal::Busy, _) | (_, Refusal::Busy) => Refusal::Busy,
            (Refusal::UntilChanged, Refusal::UntilChanged) => Refusal::UntilChanged,
        }
    }
}

impl<'a> Waiting<'a> {
    fn new(inner: &'a Inner) -> Waiting<'a> {
        inner.state.lock().waiting += 1;
        Waiting(inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state.lock().waiting -= 1;
    }
}

impl std::fmt::Debug for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limits").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
