//! What can happen to a job.

use std::sync::Arc;

use super::{
    attempt::{AtRisk, AttemptReport, FailureClass, FailureCode},
    id::Owner,
    status::JobStatus,
};
use crate::{clock::Timestamp, digest::ModelKey};

/// Something that happens to a job. Those of workers carry the attempt that they speak for.
///
/// `FindUnreadable`, `Reparse` and `Share` make an entry of the history as an attempt that called nobody.
#[derive(Clone, Debug)]
pub enum JobEvent {
    /// A node takes the job; its attempt gets the next number. `asks`: see [`super::Job::asks`].
    Claim { owner: Owner, asks: Option<ModelKey> },
    /// The attempt brought the memo.
    Succeed { attempt: u32, report: Arc<AttemptReport> },
    /// The attempt failed and the job is to be tried again.
    Retry { attempt: u32, run_at: Timestamp, class: FailureClass, report: Arc<AttemptReport> },
    /// The attempt gives the job back without having spent anything. If demoted, all jobs queued by then go first.
    Release { attempt: u32, run_at: Timestamp, is_demoted: bool, report: Arc<AttemptReport> },
    /// The attempt failed and so does the job.
    Fail { attempt: u32, code: FailureCode, report: Arc<AttemptReport> },
    /// By a client or an operator. For a running job, `at_risk` is what its attempt may cost; without it the event is refused.
    Cancel { at_risk: Option<AtRisk> },
    /// Nobody makes the attempt any more. It is not known whether the call was answered. Without `retry_at` the job fails.
    Expire { attempt: u32, retry_at: Option<Timestamp>, at_risk: Option<AtRisk> },
    /// The job's deadline passed while it was queued.
    MissDeadline,
    /// The queued job's request can't be read any more.
    FindUnreadable { report: Arc<AttemptReport> },
    /// The stored answer of a failed job could be parsed after all. `attempt` was the newest when it was read.
    Reparse { attempt: u32, report: Arc<AttemptReport> },
    /// Another job's answer is this one's too.
    Share { report: Arc<AttemptReport> },
    /// A client or an operator wants a failed or cancelled job tried again, with a fresh count of attempts.
    Requeue { run_at: Timestamp },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransitionError {
    /// The event speaks for an attempt that does not own the job (any more).
    #[error("attempt {attempt} does not own the job: {status} at attempt {current}")]
    LeaseLost { attempt: u32, current: u32, status: JobStatus },
    /// The event has no meaning in the job's state. `wanted` is the change as a participle.
    #[error("the job is {status}, so it can't be {wanted}")]
    Illegal { status: JobStatus, wanted: &'static str },
}

impl JobEvent {
    pub(super) fn fence(&self) -> Option<u32> {
        match self {
            JobEvent::Succeed { attempt, .. }
            | JobEvent::Retry { attempt, .. }
            | JobEvent::Release { attempt, .. }
            | JobEvent::Fail { attempt, .. }
            | JobEvent::Expire { attempt, .. } => Some(*attempt),
            JobEvent::Claim { .. }
            | JobEvent::Cancel { .. }
            | JobEvent::MissDeadline
            | JobEvent::FindUnreadable { .. }
            | JobEvent::Reparse { .. }
            | JobEvent::Share { .. }
            | JobEvent::Requeue { .. } => None,
        }
    }

    pub fn report(&self) -> Option<&AttemptReport> {
        match self {
            JobEvent::Succeed { report, .. }
            | JobEvent::Retry { report, .. }
            | JobEvent::Release { report, .. }
            | JobEvent::Fail { report, .. }
            | JobEvent::FindUnreadable { report }
            | JobEvent::Reparse { report, .. }
            | JobEvent::Share { report } => Some(report),
            JobEvent::Claim { .. }
            | JobEvent::Cancel { .. }
            | JobEvent::Expire { .. }
            | JobEvent::MissDeadline
            | JobEvent::Requeue { .. } => None,
        }
    }
}
