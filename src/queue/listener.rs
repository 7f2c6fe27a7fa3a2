//! Handles changes in the store: updates the board, then wakes the clients that wait for a job, and the dispatcher.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

use super::{
    board::{Board, Moved},
    order::Order,
    running::Running,
    wait::Waiters,
};
use crate::{
    clock::Clock,
    job::{Job, JobState, Owner},
    ledger::Spending,
    store::{Feed, Totals},
};

pub(super) struct Listener {
    pub(super) clock: Clock,
    pub(super) board: Arc<Board>,
    pub(super) order: Arc<Order>,
    pub(super) running: Arc<Running>,
    /// This node.
    pub(super) own: watch::Receiver<Owner>,
    pub(super) assigned: Assigned,
    pub(super) waiters: Arc<Waiters>,
    pub(super) followers: Arc<Waiters>,
    /// Signalled when a job is ready.
    pub(super) ready: Arc<Notify>,
    /// Signalled when something became due earlier than the sweeper may expect.
    pub(super) due: Arc<Notify>,
    /// Signalled when a job has ended that may owe a message to its callback URL.
    pub(super) ended: Arc<Notify>,
    pub(super) spending: Spending,
}

/// Takes the attempts that other nodes have claimed for this one, once it makes any.
pub(super) type Assigned = Arc<Mutex<Option<mpsc::UnboundedSender<Arc<Job>>>>>;

/// Passes on a job that was claimed for this node, once.
pub(super) fn assign(assigned: &Assigned, running: &Running, own: Owner, job: &Arc<Job>) {
    if job.is_running() && job.owner == Some(own) {
        let assigned = assigned.lock();
        if let Some(assigned) = assigned.as_ref().filter(|_| running.take(job.id, job.attempt)) {
            // It fails when the service stops.
            let _ = assigned.send(Arc::clone(job));
        }
    }
}

impl Listener {
    fn assign(&self, job: &Arc<Job>) {
        assign(&self.assigned, &self.running, *self.own.borrow(), job);
    }
}

impl Feed for Listener {
    fn reset(&self, pending: Vec<Arc<Job>>, totals: Totals) {
        self.spending.set(totals.spent);
        self.board.reset(&pending, totals.ended);
        let times = (self.clock.now(), self.clock.lead());
        self.order.update(pending.iter().map(|job| &**job), times, |job| self.board.is_blocked(job.id));
        self.running.check_all(|id| self.board.get(id));
        pending.iter().for_each(|job| self.assign(job));
        self.waiters.notify_all();
        self.followers.notify_all();
        self.ready.notify_one();
        self.due.notify_one();
        self.ended.notify_one();
    }

    fn changed(&self, jobs: &[Arc<Job>], totals: Totals) {
        self.spending.set(totals.spent);
        let Moved { jobs: moved, blocked, has_new_ready } = self.board.changed(jobs, totals.ended);
        let (now, lead) = (self.clock.now(), self.clock.lead());
        let all = || jobs.iter().chain(&moved).map(|job| &**job);
        // Before the dispatcher wakes.
        self.order.update(all(), (now, lead), |job| blocked.contains(&job.id));
        let mut later = false;
        jobs.iter().for_each(|job| self.assign(job));
        for job in all() {
            self.running.check(job);
            self.followers.notify(job.id);
            match job.state {
                JobState::Queued { run_at } => later |= run_at > if job.is_timed { now.minus(lead) } else { now },
                JobState::Running => {}
                JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => {
                    self.waiters.notify(job.id);
                    self.ended.notify_one();
                }
            }
            later |= job.deadline_at.is_some();
        }
        if has_new_ready {
            self.ready.notify_one();
        }
        if later {
            self.due.notify_one();
        }
    }
}
