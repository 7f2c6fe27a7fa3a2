//! How fast Claude may be called: the account's limits per minute by `governor`, calls at once, and the gates.
//!
//! - `bucket`: one limit per minute
//! - `budget`: what may be spent a day
//! - `gate`: stops calls while all of them would fail alike
//! - `memo`: what the dispatcher knows, for the other nodes
//! - `model`: the limits, the gate and the calls of one model
//! - `observation`: what a call shows of Claude's state
//! - `permit`: permission to make one call
//! - `reach`: whether Claude can be reached
//! - `state`: what the handles share
//!
//! Anthropic's limits, overloads and most failures concern one model, so each model has its own. Only the account's gate,
//! the number of workers and the budget are common to all. Jobs whose model can't be called are passed over.
//!
//! A job is claimed only once there is a [`Permit`] for its call, so jobs wait in the queue. A permit reserves a call of each model
//! that ready jobs need and that may be called ([`Permit::lanes`]): first the tokens that a call usually needs, then the likely
//! need of its text. At the end it is settled with what was used.
//!
//! If claims take long compared with calls, a few more permits are given ([`Limits::claim_ahead`]). Their jobs are claimed
//! meanwhile, and their calls wait until another ends ([`Permit::ready`]).

mod bucket;
pub mod budget;
pub mod gate;
mod memo;
mod model;
mod observation;
mod permit;
pub mod reach;
mod state;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    sync::{Notify, broadcast, oneshot},
    time::Instant,
};
use utoipa::ToSchema;

use self::{
    budget::{Budget, Status},
    gate::{Closed, GateMemo, Refusal, Ruling},
    model::{Model, ModelMemo},
    observation::Observations,
    reach::Unreachable,
    state::{Admitted, Inner, Reserved, State, Waiting},
};
pub use self::{
    memo::Memo,
    model::{PerMinute, Tokens},
    observation::{Call, Observation, Seen},
    permit::{BudgetShare, Permit},
};
use crate::{
    clock::Moments,
    config::values::RateCaps,
    digest::{Lane, ModelKey},
    job::{
        AtRisk, FailureCode,
        disposition::{Scope, SharedFailure},
    },
    process,
};

/// How often a used up budget is checked: the day may turn at any moment, as the wall clock can be set.
const BUDGET_POLL: Duration = Duration::from_secs(1);

pub const MAX_CALLS_AT_ONCE: usize = 512;

#[derive(Clone, Debug)]
pub struct Limits(Arc<Inner>);

/// The limits on calls of one model.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelLimits {
    /// Its id.
    pub model: String,
    #[serde(rename = "in_force")]
    pub per_minute: PerMinute,
    pub calls_at_once: usize,
    /// Why no calls of the model are made; null while calls are possible.
    pub gate: Option<Closed>,
}

impl Limits {
    pub fn new(
        caps: RateCaps,
        workers: usize,
        budget: Option<Budget>,
        in_use: Arc<dyn Fn() -> ModelKey + Send + Sync>,
    ) -> Limits {
        Limits(Arc::new(Inner {
            in_use,
            budget: budget.map(Arc::new),
            state: Mutex::new(State { caps, workers, ..State::default() }),
            reach: Mutex::default(),
            changed: Notify::new(),
            observations: Observations::default(),
        }))
    }

    /// A call of this question found no connection. Returns whether Claude counts as unreachable from now on.
    pub fn connection_failed(&self, question: u64, code: FailureCode, detail: &str) -> bool {
        self.0.reach.lock().failed(question, code, detail, Instant::now())
    }

    /// A call was answered, if only by an error. Returns whether Claude counted as unreachable until now.
    pub fn connected(&self) -> bool {
        self.0.reach.lock().answered(Instant::now())
    }

    pub fn unreachable(&self) -> Option<Unreachable> {
        self.0.reach.lock().unreachable(Instant::now()).cloned()
    }

    /// Waits until a call may be made for a job of one of the lanes of `ready`, which is called again when `more` is signalled.
    pub async fn permit(&self, ready: impl Fn() -> Vec<Lane>, more: &Notify) -> Permit {
        let mut waiting = None;
        loop {
            let (changed, more) = (self.0.changed.notified(), more.notified());
            tokio::pin!(changed, more);
            changed.as_mut().enable();
            more.as_mut().enable();
            let wait = match self.take(&ready()) {
                Ok(permit) => return permit,
                Err(Refusal::Busy) => {
                    waiting = None;
                    Duration::MAX
                }
                Err(refusal) => {
                    waiting.get_or_insert_with(|| Waiting::new(&self.0));
                    if let Refusal::For(wait) = refusal { wait } else { Duration::MAX }
                }
            };
            tokio::select! {
                biased;
                () = tokio::time::sleep(wait) => {}
                () = changed => {}
                () = more => {}
            }
        }
    }

    pub fn try_permit(&self, lane: Lane) -> Option<Permit> {
        self.take(&[lane]).ok()
    }

    fn take(&self, ready: &[Lane]) -> Result<Permit, Refusal> {
        let (inner, now, in_use) = (&self.0, Instant::now(), (self.0.in_use)());
        let mut state = inner.state.lock();
        let is_account_probe = state.account.admit(now)?;
        // The last job may have been cancelled.
        let ready = if ready.is_empty() { &[None][..] } else { ready };
        let keys: BTreeSet<ModelKey> = ready.iter().map(|lane| lane.unwrap_or(in_use)).collect();
        let Admitted { models, is_ahead, mut refusal } = state.admit(&keys, is_account_probe, now);
        if models.is_empty() {
            return Err(refusal);
        }
        let reserve = |budget: &Arc<Budget>| budget.reserve().ok_or(Refusal::For(BUDGET_POLL));
        let reservation = inner.budget.as_ref().map(reserve).transpose()?;
        let mut reserved = Vec::with_capacity(models.len());
        for (key, is_probe) in models {
            match state.reserve(key, is_probe) {
                Ok(one) => reserved.push(one),
                Err(wait) => refusal = refusal.min(Refusal::For(wait)),
            }
        }
        if reserved.is_empty() {
            return Err(refusal);
        }
        state.permits += 1;
        if is_account_probe {
            state.account.begin_probe();
        }
        let signal = is_ahead.then(|| {
            let (sender, signal) = oneshot::channel();
            state.model(reserved[0].key).ahead.push_back(sender);
            signal
        });
        drop(state);
        let has = |lane: &Lane| reserved.iter().any(|one| one.key == lane.unwrap_or(in_use));
        Ok(Permit {
            shared: Arc::clone(inner),
            lanes: ready.iter().copied().filter(has).collect(),
            reserved,
            signal,
            used: None,
            bytes: None,
            is_account_probe,
            share: reservation.map(|one| BudgetShare { shared: Arc::clone(inner), reservation: Some(one) }),
        })
    }

    /// Allows up to `most` more permits than calls, but not for a model that is overloaded or whose gate is closed.
    pub fn claim_ahead(&self, most: usize) {
        self.change(|state| most > std::mem::replace(&mut state.most_ahead, most));
    }

    /// The limits in force for a lane: the upstream's, or the operator's cap if that is lower.
    pub fn per_minute(&self, lane: Lane) -> PerMinute {
        self.with_model(lane, Model::per_minute)
    }

    pub fn caps(&self) -> RateCaps {
        self.0.state.lock().caps
    }

    pub fn set_caps(&self, caps: RateCaps) {
        let in_use = (self.0.in_use)();
        self.change(|state| {
            // Creates the model, so that its new limits begin with nothing: the old ones may be used up.
            state.model(in_use);
            state.caps = caps;
            state.models.values_mut().for_each(|model| model.set(caps));
            true
        });
    }

    /// Records the requests, input tokens and output tokens a minute that the head of an answer named. Answers overtake each
    /// other: the later call counts.
    pub fn learn(&self, model: &str, limits: [Option<u64>; 3], called_at: Instant) {
        if limits.iter().all(Option::is_none) {
            return;
        }
        self.change(|state| {
            let known = state.named(model);
            let was_known = known.is_known;
            known.learn(limits, called_at);
            !was_known
        });
    }

    pub fn overloaded(&self, model: &str, question: u64) {
        self.0.state.lock().named(model).overloaded(question, Instant::now());
    }

    pub fn answered(&self, model: &str) {
        let mut state = self.0.state.lock();
        let known = state.named(model);
        let was_known = known.is_known;
        known.answered();
        state.release_ahead();
        drop(state);
        if was_known { self.0.changed.notify_one() } else { self.0.changed.notify_waiters() }
    }

    pub fn calls_at_once(&self, lane: Lane) -> usize {
        self.with_model(lane, Model::at_once)
    }

    pub fn calls_per_second(&self, lane: Lane) -> f64 {
        self.with_model(lane, Model::rate)
    }

    pub fn is_exhausted(&self) -> bool {
        self.0.state.lock().waiting > 0
    }

    /// Closes the gate of the model or of the account, if enough different questions met the failure.
    pub fn block(&self, model: &str, failure: &SharedFailure, question: u64, detail: &str) -> Ruling {
        let (now, random) = (Instant::now(), process::random_unit());
        let mut ruling = Ruling::Alone;
        self.change(|state| {
            let gate = match failure.scope {
                Scope::Account => &mut state.account,
                Scope::Model => &mut state.named(model).gate,
            };
            ruling = gate.block(failure, question, detail, now, random);
            let is_closed = ruling != Ruling::Alone;
            match failure.scope {
                Scope::Account if is_closed => state.models.values_mut().for_each(|model| model.ahead.clear()),
                Scope::Model if is_closed => state.named(model).ahead.clear(),
                _ => {}
            }
            is_closed
        });
        ruling
    }

    /// A call of `model` that began at `begun` is being answered. Returns whether that opened a gate.
    pub fn reached(&self, model: &str, question: u64, begun: Instant) -> bool {
        self.change(|state| {
            let account = state.account.answered(question, begun);
            state.named(model).gate.answered(question, begun) || account
        })
    }

    pub fn budget(&self) -> Option<Status> {
        self.0.budget.as_ref().map(|budget| budget.status())
    }

    pub fn gate(&self, lane: Lane) -> Option<Closed> {
        let key = lane.unwrap_or_else(|| (self.0.in_use)());
        let (mut state, now) = (self.0.state.lock(), Instant::now());
        let account = state.account.closed(now).cloned();
        account.or_else(|| state.models.get_mut(&key)?.gate.closed(now).cloned())
    }

    pub fn models(&self) -> Vec<ModelLimits> {
        let (mut state, now) = (self.0.state.lock(), Instant::now());
        let named = state.models.values_mut().filter(|model| !model.name.is_empty());
        let limits = |model: &mut Model| ModelLimits {
            model: model.name.clone(),
            per_minute: model.per_minute(),
            calls_at_once: model.at_once(),
            gate: model.gate.closed(now).cloned(),
        };
        let mut models: Vec<ModelLimits> = named.map(limits).collect();
        models.sort_unstable_by(|one, other| one.model.cmp(&other.model));
        models
    }

    pub fn memo(&self, moments: &Moments) -> Memo {
        let mut state = self.0.state.lock();
        let mut models: Vec<(ModelKey, ModelMemo)> =
            state.models.iter_mut().map(|(key, model)| (*key, model.memo(moments))).collect();
        models.sort_unstable_by_key(|(key, _)| *key);
        Memo {
            account: state.account.memo(moments),
            models,
            budget: self.0.budget.as_ref().map(|budget| budget.memo(moments)),
            reach: self.0.reach.lock().memo(moments),
            is_exhausted: state.waiting > 0,
        }
    }

    /// Takes over what the dispatcher knows. For the other nodes.
    pub fn adopt(&self, memo: Memo, moments: &Moments) {
        let mut state = self.0.state.lock();
        state.account.adopt(memo.account, moments);
        for (key, model) in &mut state.models {
            if !memo.models.iter().any(|(known, _)| known == key) {
                model.gate.adopt(GateMemo::default(), moments);
            }
        }
        for (key, model) in memo.models {
            state.model(key).adopt(model, moments);
        }
        state.waiting = usize::from(memo.is_exhausted);
        if let (Some(budget), Some(memo)) = (&self.0.budget, memo.budget) {
            budget.adopt(memo, moments);
        }
        self.0.reach.lock().adopt(memo.reach, moments);
    }

    /// Begins to give permits, after another node did. How much was used is not known, so all limits begin with nothing left.
    /// Calls that are still under way are to be counted with [`Limits::occupy`].
    pub fn take_over(&self) {
        let mut state = self.0.state.lock();
        state.waiting = 0;
        state.models.values_mut().for_each(Model::drain);
        state.taken_over_at = Some(Instant::now());
        if let Some(budget) = &self.0.budget {
            budget.release_all();
        }
    }

    /// The permit of a call that is under way by another dispatcher's permission.
    pub fn occupy(&self, lane: Lane, most: AtRisk) -> Permit {
        let (inner, key) = (&self.0, lane.unwrap_or_else(|| (self.0.in_use)()));
        let mut state = inner.state.lock();
        state.permits += 1;
        let model = state.model(key);
        model.under_way += 1;
        let reserved = vec![Reserved { key, taken: Tokens::default(), is_probe: false }];
        drop(state);
        let reservation = inner.budget.as_ref().map(|budget| budget.occupy(most));
        Permit {
            shared: Arc::clone(inner),
            lanes: Vec::new(),
            reserved,
            signal: None,
            used: None,
            bytes: None,
            is_account_probe: false,
            share: reservation.map(|one| BudgetShare { shared: Arc::clone(inner), reservation: Some(one) }),
        }
    }

    /// What the calls of this node show.
    pub fn observations(&self) -> broadcast::Receiver<Observation> {
        self.0.observations.0.subscribe()
    }

    /// Notes what a call of this node shows. Returns whether that is news of the gate or of the connection.
    pub fn saw(&self, call: Call<'_>, seen: Seen) -> bool {
        let is_news = self.apply(call, &seen);
        self.tell(call, seen);
        is_news
    }

    /// As [`Limits::block`]. The ruling is by what this node knows: at most a second behind the dispatcher.
    pub fn saw_block(&self, call: Call<'_>, failure: &SharedFailure, detail: &str) -> Ruling {
        self.tell(call, Seen::Blocked { failure: *failure, detail: detail.to_owned() });
        self.block(call.model, failure, call.question, detail)
    }

    /// Notes what a call of another node showed.
    pub fn hear(&self, observation: Observation) {
        let Observation { model, question, age, seen } = observation;
        let now = Instant::now();
        self.apply(Call { model: &model, question, begun: now.checked_sub(age).unwrap_or(now) }, &seen);
    }

    fn tell(&self, call: Call<'_>, seen: Seen) {
        if self.0.observations.0.receiver_count() == 0 {
            return;
        }
        let (model, question, age) = (call.model.to_owned(), call.question, call.begun.elapsed());
        // Fails if the receivers have gone in this moment.
        let _ = self.0.observations.0.send(Observation { model, question, age, seen });
    }

    fn apply(&self, Call { model, question, begun }: Call<'_>, seen: &Seen) -> bool {
        match seen {
            Seen::Reached => return self.reached(model, question, begun),
            Seen::Connected => return self.connected(),
            Seen::Unconnected { code, detail } => return self.connection_failed(question, *code, detail),
            Seen::Answered => self.answered(model),
            Seen::Overloaded => self.overloaded(model, question),
            Seen::Limits(limits) => self.learn(model, *limits, begun),
            Seen::Blocked { failure, detail } => drop(self.block(model, failure, question, detail)),
        }
        false
    }

    /// Changes the state. Wakes the waiting callers if `change` returns true: more may be called than before.
    fn change(&self, change: impl FnOnce(&mut State) -> bool) -> bool {
        let wakes = change(&mut self.0.state.lock());
        if wakes {
            self.0.changed.notify_waiters();
        }
        wakes
    }

    fn with_model<T>(&self, lane: Lane, read: impl FnOnce(&Model) -> T) -> T {
        let key = lane.unwrap_or_else(|| (self.0.in_use)());
        read(self.0.state.lock().model(key))
    }
}

#[cfg(test)]
mod tests;
