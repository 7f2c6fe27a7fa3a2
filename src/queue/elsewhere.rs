//! Attempts that the dispatcher has another node make. The claim names that node, which hears of it by the feed and begins. It
//! settles the attempt by itself, so that an answer is stored whatever becomes of the dispatcher.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::mpsc, time::Instant};
use tracing::{info, warn};

use super::{
    board::Proposal,
    claim::Claim,
    core::WAIT_POLL,
    error::QueueError,
    handles::{Inner, WorkQueue},
    listener,
    retry::unreadable,
    service_time::Kind,
};
use crate::{
    digest::ModelKey,
    job::{Attempt, FailureCode, Job, JobId, JobRecord, JobRequest, Owner, disposition::Disposition},
    store::StoreError,
};

/// How long a node that released what it was given is given nothing more.
const PASS_OVER: Duration = Duration::from_secs(10);

/// Pause between two tries to read what a job asks while the store is unavailable.
const READ_RETRY: Duration = Duration::from_millis(500);

/// What an attempt needs to know of its job before the claim.
#[derive(Debug)]
pub struct Preview {
    pub job: Arc<Job>,
    pub request: Arc<JobRequest>,
    /// As in [`Claim`].
    pub rejected: Option<Arc<Attempt>>,
    /// As in [`Claim`].
    pub refused_by: Vec<String>,
}

/// The node that is to make an attempt. Counts as busy with it until this is dropped, which is to be once the claim is stored.
#[derive(Debug)]
pub struct Choice {
    node: Owner,
    own: Owner,
    /// The node of each choice.
    all: Arc<Mutex<Vec<Owner>>>,
}

impl Choice {
    /// `None` is this node.
    pub fn elsewhere(&self) -> Option<Owner> {
        Some(self.node).filter(|node| *node != self.own)
    }

    /// This node makes the attempt after all.
    pub fn keep(&mut self) {
        self.replace(Some(self.own));
        self.node = self.own;
    }

    fn replace(&self, by: Option<Owner>) {
        let mut all = self.all.lock();
        if let Some(place) = all.iter().position(|node| *node == self.node) {
            all.swap_remove(place);
        }
        all.extend(by);
    }
}

impl Drop for Choice {
    fn drop(&mut self) {
        self.replace(None);
    }
}

impl Inner {
    fn assign(&self, job: &Arc<Job>) {
        listener::assign(&self.assigned, &self.running, self.owner(), job);
    }

    /// A claim by this node failed. If it is stored all the same, its attempt is released.
    pub(super) fn give_back(&self, id: JobId) {
        self.running.give_back(id);
        self.board.get(id).iter().for_each(|job| self.assign(job));
    }
}

impl WorkQueue {
    /// The node that is to make the next attempt: of those that are ready, the one with the fewest under way. Where no node is
    /// ready, this one makes the calls, so that a node that is alone goes on.
    pub fn least_busy_node(&self) -> Choice {
        let (own, mut ready) = (self.0.owner(), self.0.policy.nodes.ready());
        let mut passed_over = self.0.passed_over.lock();
        passed_over.retain(|(_, at)| at.elapsed() < PASS_OVER);
        ready.retain(|node| *node == own || passed_over.iter().all(|(over, _)| over != node));
        drop(passed_over);
        let mut all = self.0.choices.lock();
        let node = if ready.iter().all(|node| *node == own) {
            own
        } else {
            let running = self.0.board.running();
            let under_way = || running.iter().filter_map(|job| job.owner).chain(all.iter().copied());
            let load = |node| under_way().filter(|owner| *owner == node).count();
            ready.into_iter().min_by_key(|node| (load(*node), *node != own)).unwrap_or(own)
        };
        all.push(node);
        Choice { node, own, all: Arc::clone(&self.0.choices) }
    }

    /// Whether this node is ready to make calls.
    pub fn may_call(&self) -> bool {
        self.0.policy.nodes.ready().contains(&self.0.owner())
    }

    /// Gives a node no calls for a while: it released what it was given, because it stops or has other settings.
    pub fn pass_over(&self, node: Owner) {
        self.0.passed_over.lock().push((node, Instant::now()));
    }

    /// What a proposed job asks. `None` if it needs no call, or can't be read: the claim finds out.
    pub async fn preview(&self, proposal: &Proposal) -> Option<Preview> {
        if proposal.answered_by.is_some() {
            return None;
        }
        let record = self.0.store.get(proposal.job.id).await.ok()??;
        let (rejected, refused_by) = earlier_failures(&record, &proposal.job);
        Some(Preview { job: Arc::clone(&proposal.job), request: record.request, rejected, refused_by })
    }

    /// Claims a job for an attempt of another node, which is to ask this model. `None` if the job was cancelled in this moment.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn claim_for(
        &self,
        node: Owner,
        asks: ModelKey,
        proposal: Proposal,
        request: &JobRequest,
    ) -> Result<Option<Job>, QueueError> {
        let (job, now) = (Arc::clone(&proposal.job), self.0.now());
        let claimed = match self.0.store.claim(job.id, node, Some(asks), now).await {
            Ok(claimed) => {
                proposal.confirm(&claimed.job);
                self.0.running.begin_elsewhere(job.id, Kind::of(request, job.waited_for));
                // It may be over already.
                if self.running_attempt(job.id, claimed.job.attempt).is_none() {
                    self.0.running.end_elsewhere(job.id);
                }
                Ok(Some(claimed.job))
            }
            Err(StoreError::Transition(_) | StoreError::NotFound(_) | StoreError::Corrupt { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        };
        drop(proposal);
        if !matches!(claimed, Ok(Some(_))) {
            self.0.place(&job, self.0.now());
        }
        claimed
    }

    /// The jobs that are running, on any node.
    pub fn running(&self) -> Vec<Arc<Job>> {
        self.0.board.running()
    }

    /// Whether a node most likely makes the calls that it has.
    pub fn is_at_work(&self, node: Owner) -> bool {
        self.0.policy.nodes.is_at_work(node)
    }

    /// The attempt as it is running, if it is.
    pub fn running_attempt(&self, id: JobId, attempt: u32) -> Option<Arc<Job>> {
        self.0.board.get(id).filter(|job| job.is_running() && job.attempt == attempt)
    }

    /// Waits until an attempt is over, and returns it if it can be read.
    pub async fn attempt_over(&self, id: JobId, attempt: u32) -> Option<Arc<Attempt>> {
        self.until_over(id, attempt).await;
        let record = self.0.store.get(id).await.ok()??;
        record.attempts.iter().find(|one| one.number == attempt || one.stands_for(attempt)).cloned()
    }

    /// Waits until an attempt is over. Its cost is in the ledger then.
    pub async fn until_over(&self, id: JobId, attempt: u32) {
        let interest = self.0.followers.register(id);
        loop {
            let changed = interest.signal().notified();
            if self.running_attempt(id, attempt).is_none() {
                return;
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(WAIT_POLL) => {}
            }
        }
    }

    /// Jobs that another node has claimed for this one, each to be begun with [`WorkQueue::begin`]. For one caller.
    pub fn assigned(&self) -> mpsc::UnboundedReceiver<Arc<Job>> {
        let (sender, assigned) = mpsc::unbounded_channel();
        *self.0.assigned.lock() = Some(sender);
        // Those of before.
        self.0.board.running().iter().for_each(|job| self.0.assign(job));
        assigned
    }

    /// Begins an attempt that another node has claimed for this one. `None` if it is not to be made any more.
    pub async fn begin(&self, job: &Job) -> Option<Claim> {
        loop {
            if self.running_attempt(job.id, job.attempt).is_none() || job.owner != Some(self.0.owner()) {
                return None;
            }
            // As the database has it, not the board, which is behind if this process was stopped for a while.
            match self.0.store.get(job.id).await {
                Ok(Some(record)) if record.job.owner == job.owner && record.job.attempt == job.attempt => {
                    let (rejected, refused_by) = earlier_failures(&record, job);
                    let claim = self.0.begin(record.job, record.request, rejected).await;
                    return (!claim.lost.is_cancelled()).then_some(Claim { refused_by, ..claim });
                }
                Ok(_) => return None,
                Err(StoreError::Corrupt { reason, .. }) => {
                    self.settle(job, &Disposition::Fail { code: FailureCode::Internal }, unreadable(&reason)).await;
                    return None;
                }
                Err(error) => {
                    warn!(job.id = %job.id, %error, "an attempt can't begin; trying again");
                    tokio::time::sleep(READ_RETRY).await;
                }
            }
        }
    }

    /// Gives this node's attempts up whenever other nodes may take it for lost, and ends them.
    pub async fn follow_own_node(&self) {
        let mut own = self.0.own.clone();
        own.mark_unchanged();
        loop {
            tokio::select! {
                changed = own.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let attempts = self.0.running.abandon(*own.borrow());
                    warn!(attempts, "this node was cut off from the others for too long: it stops its calls and starts afresh");
                }
                // A task of this process may have ended without a result.
                () = tokio::time::sleep(self.0.policy.lease) => {}
            }
            // Those that just stop, or store their answer, take a moment.
            let own = self.0.owner();
            let is_former = |job: &Arc<Job>| job.owner.is_some_and(|owner| own.follows(owner));
            loop {
                match self.end_lost().await {
                    Ok(_) if !self.0.board.running().iter().any(is_former) => break,
                    Ok(_) => {}
                    Err(error) => info!(%error, "the attempts of before can't be ended yet; trying again"),
                }
                tokio::time::sleep(READ_RETRY).await;
            }
        }
    }
}

/// What the next attempt must know of those before: the newest whose answer was of no use, and the models that declined.
pub(super) fn earlier_failures(record: &JobRecord, job: &Job) -> (Option<Arc<Attempt>>, Vec<String>) {
    use crate::job::FailureClass::{InvalidOutput, Refused};
    let [rejected, refused] = [InvalidOutput, Refused].map(|class| job.failures.count(class) as usize);
    let code = |attempt: &Attempt| attempt.report.error.as_ref().map(|error| error.code);
    let newest_first = || record.attempts.iter().rev();
    let is_rejected = |attempt: &&Arc<Attempt>| {
        matches!(
            code(attempt),
            Some(FailureCode::InvalidOutput | FailureCode::AnswerTruncated | FailureCode::TimeLimit)
        )
    };
    let refused_by = newest_first()
        .filter(|attempt| code(attempt) == Some(FailureCode::Refused))
        .take(refused)
        .filter_map(|attempt| attempt.report.model.clone());
    (newest_first().find(is_rejected).filter(|_| rejected > 0).cloned(), refused_by.collect())
}
