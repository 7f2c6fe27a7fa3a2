//! Changes of a job's state. The life cycle is checked here, in the step that applies it.

use std::sync::Arc;

use super::super::{
    batch::Batch,
    codec::write_chunks,
    command_queue::MAX_BYTES,
    error::{Fault, Result},
    keys::{self, Seq},
    ledger::LedgerEntry,
};
use crate::{
    clock::Timestamp,
    job::{Attempt, AttemptOutcome, AttemptReport, Job, JobEvent, JobId, MAX_ATTEMPTS, delivery::Delivery},
    store::{
        change::report_bytes,
        traits::{ClaimedJob, StoreError},
    },
};

/// Most jobs of a batch that take the answer of another, because each gets a copy of it.
const MAX_SHARED: usize = 512;

impl Batch<'_> {
    pub(crate) fn claim(&mut self, id: JobId, claim: &JobEvent, now: Timestamp) -> Result<ClaimedJob> {
        let (seq, job) = self.job(id)?;
        let request = self.shared.request(self.disk, seq, id)?;
        let request = request.ok_or(StoreError::Corrupt { id, reason: "its request is missing".to_owned() })?;
        Ok(ClaimedJob { job: self.apply(seq, &job, claim, now)?, request })
    }

    pub(crate) fn transition(&mut self, id: JobId, event: &JobEvent, now: Timestamp) -> Result<Job> {
        let (seq, job) = self.job(id)?;
        self.apply(seq, &job, event, now)
    }

    /// Returns the job, and the followers that took its answer, as far as a batch has room for it.
    pub(crate) fn succeed(
        &mut self,
        id: JobId,
        attempt: u32,
        report: &Arc<AttemptReport>,
        followers: &[JobId],
        now: Timestamp,
    ) -> Result<Vec<Job>> {
        let mut jobs = vec![self.transition(id, &JobEvent::Succeed { attempt, report: Arc::clone(report) }, now)?];
        let report = report.shared(id);
        let (size, share) = (report_bytes(&report), JobEvent::Share { report: Arc::new(report) });
        for follower in followers {
            let (count, bytes) = self.staged.shared_answers;
            if count == MAX_SHARED || bytes > MAX_BYTES {
                break;
            }
            match self.transition(*follower, &share, now) {
                Ok(job) => {
                    self.staged.shared_answers = (count + 1, bytes + size);
                    jobs.push(job);
                }
                // It is not due, or ended a moment ago.
                Err(StoreError::NotFound(_) | StoreError::Transition(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(jobs)
    }

    /// Stages what an event makes of a job, and writes what belongs to it.
    fn apply(&mut self, seq: Seq, job: &Job, event: &JobEvent, now: Timestamp) -> Result<Job> {
        let after = job.apply(event, now)?;
        if let Some(delivery) = self.delivery_after(seq, job, &after, now)? {
            self.set_delivery(seq, delivery)?;
        }
        if let Some(attempt) = job.closed_attempt(event, now) {
            self.staged.entries.extend(LedgerEntry::from_attempt(seq, &attempt));
            let attempt = Arc::new(self.shorten_history(seq, job.id, attempt)?);
            let bytes = serde_json::to_vec(&attempt).map_err(Fault::from)?;
            write_chunks(self.disk.tree(), &keys::attempt(seq, attempt.number), &bytes)?;
            self.show(move |_, cache| cache.push(seq, attempt, bytes.len()));
        }
        self.stage(seq, Some(after.clone()), now);
        Ok(after)
    }

    /// The webhook of a job after a change, if the change is one for it.
    fn delivery_after(&self, seq: Seq, before: &Job, after: &Job, now: Timestamp) -> Result<Option<Delivery>> {
        Ok(match (before.state.is_final(), after.state.is_final()) {
            (false, false) => None,
            (false, true) => self.open_delivery(seq).map(|delivery| delivery.due(now)),
            (true, false) => self.delivery(seq)?.map(Delivery::withdrawn),
            (true, true) if before.state == after.state => None,
            // An answer read again turned a failure into a success.
            (true, true) => self.delivery(seq)?.map(|delivery| delivery.due(now)),
        })
    }

    /// The attempt as the history gets it. Of releases in a row only the last stays, and of very many attempts the newest.
    fn shorten_history(&mut self, seq: Seq, id: JobId, attempt: Attempt) -> Result<Attempt> {
        let before = attempt.number - 1;
        let attempt = match attempt.outcome {
            AttemptOutcome::Released => match self.disk.attempt(seq, before, id) {
                Ok(Some((before, _))) => attempt.fold(&before),
                Ok(None) | Err(StoreError::Corrupt { .. }) => attempt,
                Err(error) => return Err(error),
            },
            _ => attempt,
        };
        if attempt.folded > 0 {
            self.staged.obsolete.push((seq, before));
        } else if before as usize >= MAX_ATTEMPTS {
            let numbers = self.disk.attempts(seq)?;
            let surplus = (numbers.len() + 1).saturating_sub(MAX_ATTEMPTS);
            self.staged.obsolete.extend(numbers.into_iter().take(surplus).map(|number| (seq, number)));
        }
        Ok(attempt)
    }
}
