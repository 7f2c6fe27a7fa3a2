//! A job that was claimed for an attempt, and who takes jobs that are claimed at their submission.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{draft::Draft, running::AttemptSlot};
use crate::{
    digest::Lane,
    job::{Attempt, Job, JobRequest},
};

/// A job claimed for an attempt, with the token that is cancelled when the attempt has lost it.
#[derive(Debug)]
pub struct Claim {
    /// Running, with the attempt's number.
    pub job: Job,
    /// What is asked.
    pub request: Arc<JobRequest>,
    /// The newest attempt whose answer was of no use, if one was since the submission or the last requeue.
    pub rejected: Option<Arc<Attempt>>,
    /// The models that declined to answer since then.
    pub refused_by: Vec<String>,
    /// Cancelled when the job is cancelled or another attempt owns it: stop at once, nothing is left to settle.
    pub lost: CancellationToken,
    /// Takes the answer's text as it comes, for those who follow the job.
    pub draft: Arc<Draft>,
    /// As long as it lasts, and the attempt has not stopped, the sweeper leaves the attempt alone.
    pub(super) slot: AttemptSlot,
}

impl Claim {
    /// The attempt has stopped: the sweeper may end it.
    pub fn stopped(&self) {
        self.slot.end();
    }
}

/// Takes jobs that are claimed at their submission: stored and claimed in one commit.
pub trait Standby: Send + Sync {
    /// Room for the attempt of a job of this lane, if its call may be made at this moment. Given back when dropped.
    fn reserve(self: Arc<Self>, lane: Lane) -> Option<Box<dyn Reserved>>;
}

/// Room for the attempt of a job that is being stored.
pub trait Reserved: Send {
    /// The job is stored and claimed: its attempt starts.
    fn start(self: Box<Self>, claim: Claim);
}
