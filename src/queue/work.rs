//! The way of a job to its attempt: ready, proposed, claimed; its lease meanwhile, and its end.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{
    board::{Pick, Proposal},
    claim::{Claim, Reserved, Standby},
    draft::Draft,
    elsewhere::earlier_failures,
    error::QueueError,
    fair_queue::{Lanes, List},
    handles::{Inner, WorkQueue},
    hint::Hint,
    retry::{event_after, unreadable},
    service_time::{Kind, Observed},
};
use crate::{
    clock::Timestamp,
    digest::Lane,
    job::{AtRisk, Attempt, AttemptReport, FailureClass, Job, JobEvent, JobId, JobRequest, disposition::Disposition},
    process,
    store::{ClaimedJob, StoreError},
};

/// Longest pause between two tries to settle an attempt while the store is unavailable.
const SETTLE_RETRY_MAX: Duration = Duration::from_secs(5);

impl Inner {
    /// Room for an attempt of this lane, if its call may be made at this moment.
    pub(super) fn reserve(&self, lane: Lane) -> Option<Box<dyn Reserved>> {
        let standby = self.standby.lock().as_ref().and_then(Weak::upgrade)?;
        standby.reserve(lane)
    }

    /// Whether no job may be claimed at all.
    pub(super) fn holds_all(&self) -> bool {
        self.is_paused() || self.is_folder_gone()
    }

    /// Begins an attempt's stay in this process.
    pub(super) async fn begin(&self, job: Job, request: Arc<JobRequest>, rejected: Option<Arc<Attempt>>) -> Claim {
        if job.attempt == 1 {
            let waited = self.now().since(job.due_at);
            self.metrics.time_to_claim_seconds.observe(waited.as_secs_f64());
        }
        let (lost, draft) = (CancellationToken::new(), Arc::new(Draft::new(job.attempt)));
        let stay = self.running.begin(&job, Arc::clone(&request), lost.clone(), Arc::clone(&draft));
        if job.owner != Some(self.owner()) {
            // The node lapsed after the claim: a lapse stops only attempts that are under way.
            lost.cancel();
        }
        // Its followers heard of the claim before there was a draft to read.
        self.followers.notify(job.id);
        // A cancel in between did not find the token yet.
        if let Ok(current) = self.find(job.id).await {
            self.running.check(&current);
        }
        Claim { job, request, rejected, refused_by: Vec::new(), lost, draft, slot: stay }
    }
}

impl WorkQueue {
    /// Names who takes jobs at their submission.
    pub fn set_standby(&self, standby: Weak<dyn Standby>) {
        *self.0.standby.lock() = Some(standby);
    }

    /// Exchanges the text of running attempts with the other nodes, until the service shuts down and no attempt is left.
    pub async fn relay_texts(&self) {
        if let Some(relay) = &self.0.relay {
            relay.run(&self.0.running, &self.0.closing).await;
        }
    }

    /// Whether the store can't be used at the moment: then the end of a call could not be stored, and another node may be
    /// about to take over.
    pub fn is_store_down(&self) -> bool {
        self.0.store.trouble().is_some()
    }

    /// What the attempt of a running job may cost.
    pub async fn at_risk(&self, id: JobId) -> Option<AtRisk> {
        self.0.at_risk(id).await
    }

    /// Whether an operator has paused the queue.
    pub fn is_paused(&self) -> bool {
        self.0.is_paused()
    }

    /// The service time.
    pub fn now(&self) -> Timestamp {
        self.0.now()
    }

    /// Waits until a job is ready. For one caller at a time.
    pub async fn until_ready(&self) {
        loop {
            let changed = self.0.ready.notified();
            if !self.0.holds_all() && self.0.board.ready(None) > 0 {
                return;
            }
            changed.await;
        }
    }

    /// The models that ready jobs name, and `None` if some name none.
    pub fn ready_lanes(&self) -> Vec<Lane> {
        if self.0.holds_all() { Vec::new() } else { self.0.board.ready_lanes() }
    }

    /// Signalled when more jobs are ready.
    pub fn ready(&self) -> &Notify {
        &self.0.ready
    }

    /// Picks the first job of these lanes for [`WorkQueue::claim`], if one is ready.
    pub fn propose(&self, lanes: &Lanes) -> Option<Proposal> {
        if self.0.holds_all() {
            return None;
        }
        let (now, board) = (self.0.now(), &self.0.board);
        let pick = self.pick(now, lanes);
        #[cfg(test)]
        board.picks.lock().push(pick);
        let proposal = board.propose(pick, lanes);
        if let Pick::Job(id) = pick
            && proposal.as_ref().is_none_or(|proposal| proposal.job.id != id)
            && let Some(job) = board.get(id)
        {
            // It was not ready, and must not lose its place.
            self.0.place(&job, now);
        }
        proposal
    }

    /// Claims a job for an attempt. The claim is on disk when this returns. `None` if the job was cancelled in this moment, or
    /// needs no call.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn claim(&self, proposal: Proposal) -> Result<Option<Claim>, QueueError> {
        let claimed = self.claim_in_store(&proposal).await;
        let id = proposal.job.id;
        drop(proposal);
        if !matches!(claimed, Ok(Some(_)))
            && let Some(job) = self.0.board.get(id)
        {
            self.0.place(&job, self.0.now());
        }
        let Some(ClaimedJob { job, request }) = claimed? else { return Ok(None) };
        let (rejected, refused_by) = self.earlier_failures(&job).await;
        Ok(Some(Claim { refused_by, ..self.0.begin(job, request, rejected).await }))
    }

    async fn claim_in_store(&self, proposal: &Proposal) -> Result<Option<ClaimedJob>, QueueError> {
        let (id, now) = (proposal.job.id, self.0.now());
        if let Some(report) = self.missed_answer(proposal).await?
            && self.0.try_transition(id, JobEvent::Share { report }).await?.is_some()
        {
            return Ok(None);
        }
        let (running, attempt) = (&self.0.running, proposal.job.attempt.saturating_add(1));
        running.take(id, attempt);
        match self.0.store.claim(id, self.0.owner(), None, now).await {
            Ok(claimed) => {
                proposal.confirm(&claimed.job);
                Ok(Some(claimed))
            }
            // It was cancelled in this moment, or its deadline has passed.
            Err(StoreError::Transition(_) | StoreError::NotFound(_)) => {
                running.give_back(id);
                Ok(None)
            }
            Err(StoreError::Corrupt { id, reason }) => {
                running.give_back(id);
                self.fail_unreadable(id, &reason).await?;
                Ok(None)
            }
            Err(error) => {
                self.0.give_back(id);
                Err(error.into())
            }
        }
    }

    /// The answer that a job has missed, so that it is not asked and paid for again.
    async fn missed_answer(&self, proposal: &Proposal) -> Result<Option<Arc<AttemptReport>>, QueueError> {
        let Some(id) = proposal.answered_by else { return Ok(None) };
        let source = match self.0.store.get(id).await {
            Ok(source) => source,
            // The question can still be asked.
            Err(StoreError::Corrupt { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let report = source.as_ref().and_then(|source| source.answer()).map(|answer| &answer.report);
        Ok(report.filter(|report| report.result.is_some()).map(|report| Arc::new(report.shared(id))))
    }

    /// Ends a job that asks what can't be read, or it would be the first to be claimed for ever.
    async fn fail_unreadable(&self, id: JobId, reason: &str) -> Result<(), QueueError> {
        error!(job.id = %id, reason, "failed to read a stored request: its job fails");
        let report = Arc::new(unreadable(reason));
        self.0.try_transition(id, JobEvent::FindUnreadable { report }).await.map(drop)
    }

    /// As the function of this name. Where the history can't be read, the job is asked as if for the first time.
    async fn earlier_failures(&self, job: &Job) -> (Option<Arc<Attempt>>, Vec<String>) {
        if job.failures.count(FailureClass::InvalidOutput) + job.failures.count(FailureClass::Refused) == 0 {
            return (None, Vec::new());
        }
        let Ok(Some(record)) = self.0.store.get(job.id).await else { return (None, Vec::new()) };
        earlier_failures(&record, job)
    }

    /// Which job the next claim is to take.
    pub(super) fn pick(&self, now: Timestamp, lanes: &Lanes) -> Pick {
        let Inner { policy, order, board, service_time, .. } = &*self.0;
        if !policy.deadlines_first {
            return Pick::First;
        }
        let free = self.0.workers().saturating_sub(self.0.running_attempts());
        let is_met =
            |kind: &Kind, left, is_contested| self.0.is_met(&service_time.expectation(kind), left, is_contested);
        order.pick(now, policy.background_share, free, lanes, is_met, || board.ready(Some(List::Background)) > 0)
    }

    /// Settles an attempt, durably. As long as the store is unavailable it tries again: the answer is paid for. A job
    /// that is not the attempt's any more stays as it is.
    pub async fn settle(&self, job: &Job, disposition: &Disposition, report: AttemptReport) {
        let mut pause = Duration::from_millis(100);
        let event = event_after(job, disposition, report, &self.0.policy.retries, process::random_unit(), self.0.now());
        loop {
            match self.0.transition(job.id, event.clone()).await {
                Ok(_) => break self.settled(job, disposition),
                Err(error @ StoreError::Unavailable { .. }) => {
                    warn!(job.id = %job.id, attempt = job.attempt, %error, "failed to store the result of an attempt; trying again");
                    let lost = self.0.store.lost();
                    if lost.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                        // This process can store nothing more.
                        break;
                    }
                    pause = (pause * 2).min(SETTLE_RETRY_MAX);
                }
                Err(error) => {
                    self.0.metrics.leases_lost.inc();
                    warn!(job.id = %job.id, attempt = job.attempt, %error, "the result of an attempt is ignored, because the job is not its own any more");
                    break;
                }
            }
        }
    }

    fn settled(&self, job: &Job, disposition: &Disposition) {
        // From before the claim was written to after the answer was: what a client that waits has to wait.
        if let (Disposition::Succeed, Some(started_at)) = (disposition, job.started_at) {
            let (kind, draft) = (self.0.running.kind(job.id), self.0.running.draft(job.id));
            let kind = kind.unwrap_or_else(|| Kind::of(&JobRequest::default(), job.waited_for));
            let (writing, bytes) = draft.map_or((Duration::ZERO, 0), |draft| draft.written());
            let observed = Observed { took: self.0.now().since(started_at), writing, bytes };
            self.0.service_time.observe(&kind, observed);
            self.0.order.send_hint(Hint::Lasted { kind, observed });
        }
    }
}
