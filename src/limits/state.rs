//! What the handles of the limits share, under one lock.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{
    budget::Budget,
    gate::{Gate, Refusal},
    model::{Model, TOKEN_BURST, Tokens},
    observation::Observations,
    reach::Reach,
};
use crate::{config::values::RateCaps, digest::ModelKey};

/// Most models that are known at a time; jobs can name any.
pub(super) const MAX_MODELS: usize = 64;

pub(super) type InUse = Arc<dyn Fn() -> ModelKey + Send + Sync>;

pub(super) struct Inner {
    pub(super) in_use: InUse,
    pub(super) budget: Option<Arc<Budget>>,
    pub(super) state: Mutex<State>,
    pub(super) reach: Mutex<Reach>,
    pub(super) changed: Notify,
    pub(super) observations: Observations,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) caps: RateCaps,
    pub(super) account: Gate,
    pub(super) models: HashMap<ModelKey, Model>,
    pub(super) permits: usize,
    /// How many of them may wait for another call to end.
    pub(super) most_ahead: usize,
    pub(super) workers: usize,
    /// Callers that a limit keeps waiting for a permit.
    pub(super) waiting: usize,
    /// When this node took over from another one that made calls.
    pub(super) taken_over_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Reserved {
    pub(super) key: ModelKey,
    pub(super) taken: Tokens,
    pub(super) is_probe: bool,
}

pub(super) struct Waiting<'a>(&'a Inner);

pub(super) struct Admitted {
    pub(super) models: Vec<(ModelKey, bool)>,
    /// The call of the one model waits for another to end.
    pub(super) is_ahead: bool,
    pub(super) refusal: Refusal,
}

impl State {
    pub(super) fn model(&mut self, key: ModelKey) -> &mut Model {
        if self.models.len() >= MAX_MODELS && !self.models.contains_key(&key) {
            let now = Instant::now();
            let idle = self.models.iter_mut().filter_map(|(key, model)| Some((model.idle_since(now)?, *key)));
            if let Some((_, oldest)) = idle.min() {
                self.models.remove(&oldest);
            }
        }
        // Another node may have called it just before, without having told.
        let is_drained = self.taken_over_at.is_some_and(|at| at.elapsed() < TOKEN_BURST);
        self.models.entry(key).or_insert_with(|| {
            let mut model = Model::new(self.caps, self.workers);
            if is_drained {
                model.drain();
            }
            model
        })
    }

    pub(super) fn named(&mut self, name: &str) -> &mut Model {
        let model = self.model(ModelKey::of(name));
        if model.name.is_empty() {
            name.clone_into(&mut model.name);
        }
        model
    }

    pub(super) fn calling(&self) -> usize {
        self.permits.saturating_sub(self.ahead())
    }

    pub(super) fn ahead(&self) -> usize {
        self.models.values().map(|model| model.ahead.len()).sum()
    }

    pub(super) fn admit(&mut self, keys: &BTreeSet<ModelKey>, is_account_probe: bool, now: Instant) -> Admitted {
        let is_full = self.calling() >= self.workers;
        let (mut models, mut busy, mut refusal) = (Vec::new(), None, Refusal::UntilChanged);
        for &key in keys {
            let one = match self.model(key).admit(is_account_probe, now) {
                Ok(false) if is_full && !is_account_probe => Refusal::Busy,
                Ok(is_probe) => {
                    models.push((key, is_probe));
                    continue;
                }
                Err(one) => one,
            };
            if one == Refusal::Busy {
                busy.get_or_insert((key, false));
            }
            refusal = refusal.min(one);
        }
        let ahead = busy.filter(|_| models.is_empty() && self.ahead() < self.most_ahead);
        models.extend(ahead);
        Admitted { models, is_ahead: ahead.is_some(), refusal }
    }

    pub(super) fn reserve(&mut self, key: ModelKey, is_probe: bool) -> Result<Reserved, Duration> {
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

    /// Lets permits given ahead make their calls, as far as more calls may be under way.
    pub(super) fn release_ahead(&mut self) {
        // Closed ones belong to attempts that ended.
        self.models.values_mut().for_each(|model| model.ahead.retain(|signal| !signal.is_closed()));
        let mut room = self.workers.saturating_sub(self.calling());
        for model in self.models.values_mut() {
            while room > 0 && !model.ahead.is_empty() && model.has_room() {
                model.ahead.pop_front().map(|signal| signal.send(()));
                room -= 1;
            }
        }
    }

    pub(super) fn end(&mut self, reserved: &Reserved, used: Option<Tokens>, was_made: bool, now: Instant) {
        let model = self.model(reserved.key);
        match used {
            Some(used) => model.settle(reserved.taken, used),
            None => model.give_back(reserved.taken),
        }
        model.under_way -= 1;
        if reserved.is_probe {
            model.gate.end_probe(was_made, now);
        }
    }
}

impl<'a> Waiting<'a> {
    pub(super) fn new(inner: &'a Inner) -> Waiting<'a> {
        inner.state.lock().waiting += 1;
        Waiting(inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state.lock().waiting -= 1;
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits").finish_non_exhaustive()
    }
}
