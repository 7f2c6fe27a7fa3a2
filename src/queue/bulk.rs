//! One action for many jobs: every job that a filter means, oldest first, a step at a time and within a bound of time,
//! so that neither the client nor anybody's submission waits long for it.

use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use strum::IntoEnumIterator;
use tokio::time::Instant;
use tracing::warn;
use utoipa::ToSchema;

use super::{core::add_caller_digest, error::QueueError, handles::Operations, outlook::Allowance};
use crate::{
    audit::{AuditLog, OpenEntry},
    job::{AtRisk, Cursor, JobFilter, JobId, JobStatus, Listing, Order, StatusCounts, caller},
};

/// Jobs changed at once: they share one group commit, which is short enough for a submission to wait for.
const STEP: usize = 256;

/// Jobs counted at once.
const COUNT_STEP: usize = 10_000;

/// So many jobs are read for the estimate of a trial, which takes the others to be like them.
const SAMPLE: usize = 500;

/// An action on jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Action {
    /// Cancel queued, scheduled and running jobs.
    Cancel,
    /// Return failed and cancelled jobs to the queue.
    Retry,
    /// Delete ended jobs.
    Delete,
}

impl Action {
    /// The jobs that it can be done to.
    fn applies_to(self) -> &'static [JobStatus] {
        match self {
            Action::Cancel => &[JobStatus::Queued, JobStatus::Scheduled, JobStatus::Running],
            Action::Retry => &[JobStatus::Failed, JobStatus::Cancelled],
            Action::Delete => &[JobStatus::Succeeded, JobStatus::Failed, JobStatus::Cancelled],
        }
    }
}

/// An action that is wanted.
#[derive(Clone, Debug)]
pub struct Bulk {
    /// What.
    pub action: Action,
    /// To which jobs.
    pub filter: JobFilter,
    /// Where an earlier part of it left off.
    pub cursor: Option<Cursor>,
    /// When to leave off; at least one step is made.
    pub until: Instant,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Jobs that the filter means and the action can be done to.
    pub matched: usize,
    /// Jobs that it was done to. Others moved on meanwhile.
    pub changed: usize,
    /// Where to go on; none at the end.
    pub next: Option<Cursor>,
}

/// What an action would be about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DryRun {
    /// Jobs that the filter means and the action can be done to.
    pub matched: usize,
    /// Where to go on counting; none at the end.
    pub next: Option<Cursor>,
    /// What a call for each costs at most, estimated from the first of them.
    pub at_risk: AtRisk,
    /// How long they take at what the limits and workers allow at the moment, in seconds; none if no call can be made.
    pub seconds: Option<f64>,
}

impl Bulk {
    /// The next step's jobs. None is new: an action that fed on what comes in would never end.
    fn listing(&self, queue: &Operations, cursor: Option<Cursor>, limit: usize) -> Option<Listing> {
        let can = self.action.applies_to();
        let mut filter = self.filter.clone();
        add_caller_digest(&mut filter);
        let wanted = |status: &JobStatus| filter.statuses.is_empty() || filter.statuses.contains(status);
        filter.statuses = can.iter().copied().filter(wanted).collect();
        let next_moment = queue.now().plus(Duration::from_millis(1));
        filter.created_before = Some(filter.created_before.map_or(next_moment, |before| before.min(next_moment)));
        let is_possible = !filter.statuses.is_empty();
        is_possible.then_some(Listing { filter, order: Order::OldestFirst, cursor, limit })
    }
}

impl Operations {
    /// Does the action until all is done or the time is over, and counts the changed jobs in `entry` after each step.
    ///
    /// # Errors
    /// [`QueueError::Refused`] where a bound lets no more jobs become pending, [`QueueError::Unavailable`]; the counted part
    /// is done.
    pub async fn apply(&self, bulk: &Bulk, (audit, entry): (&AuditLog, &OpenEntry)) -> Result<Outcome, QueueError> {
        let mut outcome = Outcome { next: bulk.cursor, ..Outcome::default() };
        loop {
            let Some(listing) = bulk.listing(self, outcome.next, STEP) else { return Ok(outcome) };
            let step = self.0.store.select(listing, self.0.now()).await?;
            outcome.matched += step.ids.len();
            let (changed, stopped) = self.apply_to(bulk.action, step.ids).await?;
            outcome.changed += changed;
            outcome.next = step.next;
            if let Err(error) = audit.record_jobs(entry, changed).await {
                warn!(audit.jobs = outcome.changed, %error, "failed to update an audit entry");
            }
            if let Some(refused) = stopped {
                return Err(refused);
            }
            if outcome.next.is_none() || Instant::now() >= bulk.until || self.0.is_closing() {
                return Ok(outcome);
            }
        }
    }

    /// What [`Operations::apply`] would do, and what calls for those jobs would take.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn dry_run(&self, bulk: &Bulk, allowance: Allowance) -> Result<DryRun, QueueError> {
        let (mut matched, mut next) = (0, bulk.cursor);
        let mut sample: Vec<AtRisk> = Vec::new();
        while let Some(listing) = bulk.listing(self, next, COUNT_STEP) {
            let step = self.0.store.select(listing, self.0.now()).await?;
            matched += step.ids.len();
            next = step.next;
            for id in step.ids.into_iter().take(SAMPLE - sample.len()) {
                let record = self.0.store.get(id).await?;
                sample.extend(record.map(|record| (self.0.policy.estimate_risk)(&record.request)));
            }
            if next.is_none() || Instant::now() >= bulk.until {
                break;
            }
        }
        let rate = self.0.claims_per_second(allowance);
        let seconds = (rate > 0.0).then(|| matched as f64 / rate);
        Ok(DryRun { matched, next, at_risk: extrapolate(&sample, matched), seconds })
    }

    /// How many jobs match the filter, by status; `None` if counting takes until `until`.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn count(&self, mut filter: JobFilter, until: Instant) -> Result<Option<StatusCounts>, QueueError> {
        add_caller_digest(&mut filter);
        let mut statuses = std::mem::take(&mut filter.statuses);
        if statuses.is_empty() {
            statuses.extend(JobStatus::iter());
        }
        let (mut all, mut counts) = (self.0.counts(), StatusCounts::default());
        for status in statuses {
            // Without other conditions, the counters have the answer.
            if filter == JobFilter::default() {
                *counts.of(status) = *all.of(status);
                continue;
            }
            let mut cursor = None;
            loop {
                let filter = JobFilter { statuses: vec![status], ..filter.clone() };
                let listing = Listing { filter, cursor, limit: COUNT_STEP, ..Listing::default() };
                let step = self.0.store.select(listing, self.0.now()).await?;
                *counts.of(status) += step.ids.len();
                cursor = step.next;
                if cursor.is_none() {
                    break;
                }
                if Instant::now() >= until {
                    return Ok(None);
                }
            }
        }
        Ok(Some(counts))
    }

    /// Does the action to these jobs. Gives how many it changed, and why a bound stopped it: a job that has moved on meanwhile
    /// stays as it is.
    async fn apply_to(&self, action: Action, ids: Vec<JobId>) -> Result<(usize, Option<QueueError>), QueueError> {
        if let Action::Delete = action {
            return Ok((self.0.store.remove(ids, self.0.now()).await?, None));
        }
        let (mut changed, mut stopped) = (0, None);
        for result in join_all(ids.into_iter().map(|id| self.apply_to_one(action, id))).await {
            match result {
                Ok(()) => changed += 1,
                Err(QueueError::Conflict(_) | QueueError::NotFound(_)) => {}
                Err(refused @ QueueError::Refused(_)) => stopped = Some(refused),
                Err(error) => return Err(error),
            }
        }
        Ok((changed, stopped))
    }

    async fn apply_to_one(&self, action: Action, id: JobId) -> Result<(), QueueError> {
        if let Action::Retry = action {
            self.0.put_back(id, caller::operator()).await
        } else {
            Ok(self.0.give_up(id).await.map(drop)?)
        }
    }
}

/// What `jobs` jobs cost if they are like those of the sample. A cost is known only if that of all of them is.
fn extrapolate(sample: &[AtRisk], jobs: usize) -> AtRisk {
    let scaled = |sum: u64| {
        let share = u128::from(sum) * jobs as u128 / sample.len().max(1) as u128;
        u64::try_from(share).unwrap_or(u64::MAX)
    };
    let costs: Option<Vec<u64>> = sample.iter().map(|risk| risk.nanodollars).collect();
    AtRisk {
        input_tokens: scaled(sample.iter().map(|risk| risk.input_tokens).sum()),
        output_tokens: scaled(sample.iter().map(|risk| risk.output_tokens).sum()),
        nanodollars: costs.map(|costs| scaled(costs.iter().sum())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_speaks_for_all_and_an_unknown_price_for_none() {
        let risk = |tokens, nanodollars| AtRisk { input_tokens: tokens, output_tokens: 10, nanodollars };
        let all = extrapolate(&[risk(100, Some(4)), risk(200, Some(6))], 10);
        assert_eq!(all, AtRisk { input_tokens: 1_500, output_tokens: 100, nanodollars: Some(50) });
        assert_eq!(extrapolate(&[risk(1, Some(4)), risk(1, None)], 2).nanodollars, None);
        assert_eq!(extrapolate(&[], 0), AtRisk { input_tokens: 0, output_tokens: 0, nanodollars: Some(0) });
    }
}
