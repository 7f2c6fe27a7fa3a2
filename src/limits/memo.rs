//! What the dispatcher knows of the account, as other nodes show it and as the next dispatcher starts with it. Times are
//! service time, so that they mean the same on every node.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::{Limits, budget::Need, gate::GateMemo, model::ModelMemo, reach::ReachMemo};
use crate::{
    clock::{Timestamp, moments::Moments},
    digest::ModelKey,
};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memo {
    account: GateMemo,
    models: Vec<(ModelKey, ModelMemo)>,
    budget: Option<BudgetMemo>,
    reach: Option<ReachMemo>,
    is_exhausted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct BudgetMemo {
    pub(super) reserved: Need,
    /// What the call needs that was put off, and since when.
    pub(super) next: Option<(Need, Timestamp)>,
}

/// A limit that an answer named, and when its call began.
pub(super) type Named = Option<(NonZeroU32, Timestamp)>;

impl Limits {
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

    /// Takes over what the dispatcher knows. For a node that makes no calls.
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

    /// Begins to make calls, after another node did. What that one had under way has ended. How much it used is not known, so
    /// all limits begin with nothing left.
    pub fn take_over(&self) {
        let mut state = self.0.state.lock();
        state.waiting = 0;
        state.models.values_mut().for_each(super::model::Model::drain);
        if let Some(budget) = &self.0.budget {
            budget.release_all();
        }
    }
}
