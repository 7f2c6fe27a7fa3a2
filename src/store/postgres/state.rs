//! What the writer has in memory: sums over all jobs, and the ledger, as of the newest row of the feed that this node knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    batch::{Batch, Entry},
    columns::LedgerRows,
};
use crate::{
    job::JobState,
    ledger::{self, ByModel, DAYS_KEPT, Day, DaySums, OTHER_MODELS, Spent},
    store::traits::{EndedCounts, Totals},
};

/// Most models of a day that have sums of their own. Clients name models, so their number must be bounded.
const MAX_MODELS: usize = 48;

/// Longest name of a model in the ledger, in bytes.
const MAX_MODEL_BYTES: usize = 64;

#[derive(Clone, Default)]
pub(super) struct State {
    /// The newest row of the feed.
    pub(super) n: i64,
    pub(super) counts: Counts,
    pub(super) days: Arc<BTreeMap<Day, ByModel>>,
}

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) ended: EndedCounts,
    /// Ended jobs whose message is still to be sent.
    pub(super) unnotified: usize,
    pub(super) audit_bytes: i64,
    /// The number of the next job.
    pub(super) next_seq: i64,
}

impl State {
    pub(super) fn totals(&self) -> Totals {
        let newest = self.days.last_key_value();
        let spent = newest.map(|(day, models)| Spent { day: *day, sums: ledger::total(models.values()) });
        Totals { ended: self.counts.ended, spent: spent.unwrap_or_default() }
    }

    pub(super) fn newest(&self, most: usize) -> Vec<DaySums> {
        let days = self.days.iter().rev().take(most.min(DAYS_KEPT));
        days.map(|(day, models)| DaySums { day: *day, models: models.clone() }).collect()
    }

    /// Ended jobs, those whose message is still to be sent included.
    pub(super) fn ended(&self) -> usize {
        let EndedCounts { succeeded, failed, cancelled } = self.counts.ended;
        succeeded + failed + cancelled
    }

    /// Counts a changed job as what it is now.
    pub(super) fn count(&mut self, entry: &Entry) {
        if let Some((state, is_unnotified)) = entry.before.filter(|(state, _)| state.is_final()) {
            self.counter(state).into_iter().for_each(|count| *count = count.saturating_sub(1));
            self.counts.unnotified = self.counts.unnotified.saturating_sub(usize::from(is_unnotified));
        }
        if let Some(job) = entry.job.as_ref().filter(|job| job.state.is_final()) {
            self.counter(job.state).into_iter().for_each(|count| *count += 1);
            self.counts.unnotified += usize::from(entry.is_unnotified());
        }
    }

    fn counter(&mut self, state: JobState) -> Option<&mut usize> {
        match state {
            JobState::Succeeded => Some(&mut self.counts.ended.succeeded),
            JobState::Failed { .. } => Some(&mut self.counts.ended.failed),
            JobState::Cancelled => Some(&mut self.counts.ended.cancelled),
            JobState::Queued { .. } | JobState::Running => None,
        }
    }

    /// Adds what the batch cost. Returns the rows that this changes.
    pub(super) fn add_costs(&mut self, batch: &Batch) -> LedgerRows {
        let mut changed = BTreeSet::new();
        if batch.costs.is_empty() {
            return LedgerRows::default();
        }
        let days = Arc::make_mut(&mut self.days);
        for (day, model, sums) in &batch.costs {
            let models = days.entry(*day).or_default();
            let is_bounded = models.len() < MAX_MODELS - 1 && model.len() <= MAX_MODEL_BYTES && !model.contains('\0');
            let model = if is_bounded || models.contains_key(model) { model } else { OTHER_MODELS };
            models.entry(model.to_owned()).or_default().add(sums);
            changed.insert((*day, model.to_owned()));
        }
        LedgerRows::new(days, changed)
    }

    /// The oldest day that stays.
    pub(super) fn first_kept_day(&self) -> i64 {
        let surplus = self.days.len().saturating_sub(DAYS_KEPT);
        self.days.keys().nth(surplus).map_or(0, |day| i64::from(day.number()))
    }

    pub(super) fn forget_days(&mut self) {
        if self.days.len() > DAYS_KEPT {
            let days = Arc::make_mut(&mut self.days);
            while days.len() > DAYS_KEPT {
                days.pop_first();
            }
        }
    }
}
