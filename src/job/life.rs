//! The life of a job: [`Job::apply`] owns every transition. The drawing is in [`crate::job`].

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    attempt::{Attempt, AttemptOutcome, AttemptReport, FailureClass, FailureCode, Failures},
    caller::Caller,
    event::{JobEvent, TransitionError},
    id::{JobId, Owner},
    request::{IdempotencyKey, Priority},
    status::JobStatus,
};
use crate::{clock::Timestamp, digest::ModelKey};

/// What a step of priority is worth in waiting time: longer than a usual backlog, short enough that low priority work
/// still runs on a busy day.
pub const PRIORITY_OFFSET: Duration = Duration::from_mins(10);

/// The life-cycle part of a job. All jobs are in memory, so it is small: digests, and boxes for what most jobs lack.
///
/// Stores write it by the position of its fields: do not reorder them once this is released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    #[serde(with = "uuid::serde::compact")]
    pub id: JobId,
    /// Moves the job in the order of claiming, see [`Job::effective_at`].
    pub priority: Priority,
    /// Its client asked to be held for the answer. While it is held, the job goes first. After that it takes its turn
    /// with the others, but while other clients are held it gets a smaller share than jobs that nobody waited for.
    pub waited_for: bool,
    /// Who submitted it: callers take turns, and bounds count for each.
    pub caller: Caller,
    /// A digest of all that makes its answer, and of who asks: jobs that share it may share an answer. Unset if this job
    /// wants its own, or has got another's, which is not passed on.
    pub question: Option<NonZeroU64>,
    /// The model that its request names.
    pub model: Option<ModelKey>,
    pub state: JobState,
    /// Number of the running or last attempt: 0 before the first claim, one more with each claim and each reparse, never
    /// less. The fence.
    pub attempt: u32,
    /// Since the submission or the last requeue; so are the releases, which spent no attempt.
    pub failures: Failures,
    pub releases: u32,
    pub idempotency: Option<Box<IdempotencyKey>>,
    pub created_at: Timestamp,
    /// When it was first meant to run, at its submission or the last requeue.
    pub due_at: Timestamp,
    /// It waits for a `run_at` of its client, which the wall clock must reach. Pauses between attempts are service time.
    pub is_timed: bool,
    /// If still queued then, the job fails with `deadline_exceeded`.
    pub deadline_at: Option<Timestamp>,
    /// Who makes the running attempt; set exactly while there is one.
    pub owner: Option<Owner>,
    /// The model that the running attempt asks, where another node than the dispatcher makes it: the limits and the budget
    /// have room for a call of this model.
    pub asks: Option<ModelKey>,
    /// When the running or last attempt was claimed.
    pub started_at: Option<Timestamp>,
    /// Set exactly in the final states.
    pub finished_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobState {
    /// Waits to be claimed, not before `run_at`.
    Queued { run_at: Timestamp },
    /// An attempt owns the job.
    Running,
    /// Final: there is a memo.
    Succeeded,
    /// Final, but for a requeue or a reparse.
    Failed { code: FailureCode },
    /// Final, but for a requeue.
    Cancelled,
}

impl JobState {
    pub fn is_final(self) -> bool {
        match self {
            JobState::Queued { .. } | JobState::Running => false,
            JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => true,
        }
    }
}

impl Job {
    /// A job that has just been accepted.
    pub fn new(id: JobId, priority: Priority, created_at: Timestamp) -> Job {
        Job {
            id,
            priority,
            waited_for: false,
            caller: None,
            question: None,
            model: None,
            state: JobState::Queued { run_at: created_at },
            attempt: 0,
            failures: Failures::default(),
            releases: 0,
            idempotency: None,
            created_at,
            due_at: created_at,
            is_timed: false,
            deadline_at: None,
            owner: None,
            asks: None,
            started_at: None,
            finished_at: None,
        }
    }

    /// The job after `event`, or why it stays as it is.
    pub fn apply(&self, event: &JobEvent, now: Timestamp) -> Result<Job, TransitionError> {
        self.check(event, now)?;
        let mut job = self.clone();
        match *event {
            JobEvent::Claim { owner, asks } => {
                job.state = JobState::Running;
                job.is_timed = false;
                job.attempt = self.next_attempt()?;
                (job.owner, job.asks, job.started_at) = (Some(owner), asks, Some(now));
            }
            JobEvent::Succeed { .. } => job.finish(JobState::Succeeded, now),
            JobEvent::Retry { run_at, class, .. } => {
                job.state = JobState::Queued { run_at };
                job.failures.add(class);
            }
            JobEvent::Release { run_at, is_demoted, .. } => {
                job.state = JobState::Queued { run_at };
                job.releases = self.releases.saturating_add(1);
                if is_demoted {
                    job.failures.demote();
                }
            }
            JobEvent::Fail { code, .. } => job.finish(JobState::Failed { code }, now),
            JobEvent::Cancel { .. } => job.finish(JobState::Cancelled, now),
            JobEvent::Expire { retry_at: Some(run_at), .. } => {
                job.state = JobState::Queued { run_at };
                job.failures.add(FailureClass::Other);
            }
            JobEvent::Expire { retry_at: None, .. } => {
                job.finish(JobState::Failed { code: FailureCode::OutcomeUnknown }, now);
            }
            JobEvent::MissDeadline => job.finish(JobState::Failed { code: FailureCode::DeadlineExceeded }, now),
            JobEvent::FindUnreadable { .. } => {
                job.attempt = self.next_attempt()?;
                job.finish(JobState::Failed { code: FailureCode::Internal }, now);
            }
            JobEvent::Reparse { .. } => {
                job.attempt = self.next_attempt()?;
                job.finish(JobState::Succeeded, now);
            }
            JobEvent::Share { .. } => {
                job.attempt = self.next_attempt()?;
                job.question = None;
                job.finish(JobState::Succeeded, now);
            }
            JobEvent::Requeue { run_at } => {
                job.state = JobState::Queued { run_at };
                (job.due_at, job.is_timed) = (run_at, false);
                (job.failures, job.releases) = (Failures::default(), 0);
                // An operator's decision outranks a deadline that has already passed.
                job.deadline_at = self.deadline_at.filter(|deadline| *deadline > now);
                job.finished_at = None;
            }
        }
        if !job.is_running() {
            (job.owner, job.asks) = (None, None);
        }
        Ok(job)
    }

    /// Whether `event` has a meaning in the job's state.
    fn check(&self, event: &JobEvent, now: Timestamp) -> Result<(), TransitionError> {
        if let Some(attempt) = event.fence().filter(|attempt| !self.is_running() || self.attempt != *attempt) {
            return Err(TransitionError::LeaseLost { attempt, current: self.attempt, status: self.settled_status() });
        }
        let is_queued = matches!(self.state, JobState::Queued { .. });
        let is_failed = matches!(self.state, JobState::Failed { .. });
        let is_due = matches!(self.state, JobState::Queued { run_at } if run_at <= now);
        // What must hold, each with what the job can't be if it does not.
        let conditions: &[(bool, &'static str)] = match event {
            JobEvent::Claim { .. } => &[
                (is_queued, "claimed"),
                (is_due, "claimed before its run_at"),
                (!self.is_overdue(now), "claimed after its deadline"),
            ],
            JobEvent::Succeed { .. }
            | JobEvent::Retry { .. }
            | JobEvent::Release { .. }
            | JobEvent::Fail { .. }
            | JobEvent::Expire { .. } => &[],
            JobEvent::Cancel { at_risk } => &[
                (!self.state.is_final(), "cancelled"),
                // It was claimed since the caller looked.
                (is_queued || at_risk.is_some(), "cancelled before the cost of its attempt is estimated"),
            ],
            JobEvent::MissDeadline => {
                &[(is_queued, "failed by its deadline"), (self.is_overdue(now), "failed before its deadline")]
            }
            JobEvent::FindUnreadable { .. } => &[(is_queued, "failed as unreadable")],
            JobEvent::Reparse { attempt, .. } => &[
                (is_failed, "reparsed"),
                (self.attempt == *attempt, "reparsed, because it was retried in the meantime"),
            ],
            JobEvent::Share { .. } => &[
                (is_queued, "given a shared answer"),
                // Between attempts it may be, but never before the time that its client set; a clock that was set back
                // since the submission is no such time.
                (self.due_at <= now.max(self.created_at), "given a shared answer before its run_at"),
            ],
            JobEvent::Requeue { .. } => &[(is_failed || self.state == JobState::Cancelled, "retried")],
        };
        conditions.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, wanted)| Err(self.illegal(wanted)))
    }

    /// The history entry of the attempt that `event` ends, if it ends one. Only for events that [`Job::apply`] accepts.
    pub fn closed_attempt(&self, event: &JobEvent, now: Timestamp) -> Option<Attempt> {
        let (outcome, report) = match event {
            JobEvent::Succeed { report, .. } => (AttemptOutcome::Succeeded, Arc::clone(report)),
            JobEvent::Retry { report, .. } | JobEvent::Fail { report, .. } | JobEvent::FindUnreadable { report } => {
                (AttemptOutcome::Failed, Arc::clone(report))
            }
            JobEvent::Release { report, .. } => (AttemptOutcome::Released, Arc::clone(report)),
            JobEvent::Reparse { report, .. } => (AttemptOutcome::Reparsed, Arc::clone(report)),
            JobEvent::Share { report } => (AttemptOutcome::Shared, Arc::clone(report)),
            JobEvent::Cancel { at_risk } if self.is_running() => {
                (AttemptOutcome::Cancelled, Arc::new(AttemptReport::unknown("the job was cancelled", *at_risk)))
            }
            JobEvent::Expire { at_risk, .. } => {
                let message = "the worker stopped during the call, which may have been billed";
                (AttemptOutcome::OutcomeUnknown, Arc::new(AttemptReport::unknown(message, *at_risk)))
            }
            JobEvent::Claim { .. } | JobEvent::Cancel { .. } | JobEvent::MissDeadline | JobEvent::Requeue { .. } => {
                return None;
            }
        };
        let (number, started_at) = if self.is_running() {
            (self.attempt, self.started_at.unwrap_or(self.created_at))
        } else {
            (self.attempt.saturating_add(1), now)
        };
        Some(Attempt { number, started_at, finished_at: now, outcome, folded: 0, report })
    }

    /// The job's place among those that are ready: its age, moved by its priority. A job that may be the only one to fail
    /// goes behind all that were queued before its next attempt is due: it must not be the first to be tried each time.
    pub fn effective_at(&self) -> Timestamp {
        let may_fail_alone = self.failures.demotions() > 0 || self.failures.count(FailureClass::Suspect) > 0;
        let since = match self.state {
            JobState::Queued { run_at } if may_fail_alone => run_at.max(self.created_at),
            _ => self.created_at,
        };
        match self.priority {
            Priority::High => since.minus(PRIORITY_OFFSET),
            Priority::Normal => since,
            Priority::Low => since.plus(PRIORITY_OFFSET),
        }
    }

    /// The name of the state as clients see it at `now`.
    pub fn status(&self, now: Timestamp) -> JobStatus {
        match self.state {
            JobState::Queued { run_at } if run_at > now => JobStatus::Scheduled,
            JobState::Queued { .. } => JobStatus::Queued,
            JobState::Running => JobStatus::Running,
            JobState::Succeeded => JobStatus::Succeeded,
            JobState::Failed { .. } => JobStatus::Failed,
            JobState::Cancelled => JobStatus::Cancelled,
        }
    }

    /// Whether its deadline has passed; it counts while the job is queued.
    pub fn is_overdue(&self, now: Timestamp) -> bool {
        self.deadline_at.is_some_and(|deadline| deadline <= now)
    }

    /// Adapts a job of another store, whose clock may have been ahead: only a deadline and the `run_at` of a client may be
    /// in the future.
    pub fn arrive(&mut self, now: Timestamp) {
        self.created_at = self.created_at.min(now);
        self.started_at = self.started_at.map(|at| at.min(now));
        self.finished_at = self.finished_at.map(|at| at.min(now));
        if !self.is_timed {
            self.due_at = self.due_at.min(now);
        }
        match &mut self.state {
            JobState::Queued { run_at } if !self.is_timed => *run_at = now.min(*run_at),
            JobState::Queued { .. }
            | JobState::Running
            | JobState::Succeeded
            | JobState::Failed { .. }
            | JobState::Cancelled => {}
        }
    }

    pub fn is_running(&self) -> bool {
        self.state == JobState::Running
    }

    pub fn closed_attempts(&self) -> u32 {
        if self.is_running() { self.attempt.saturating_sub(1) } else { self.attempt }
    }

    fn finish(&mut self, state: JobState, now: Timestamp) {
        self.state = state;
        self.finished_at = Some(now);
    }

    /// The number of the next attempt. It is a fence, so no number is given twice.
    fn next_attempt(&self) -> Result<u32, TransitionError> {
        self.attempt.checked_add(1).ok_or(self.illegal("attempted once more"))
    }

    fn illegal(&self, wanted: &'static str) -> TransitionError {
        TransitionError::Illegal { status: self.settled_status(), wanted }
    }

    /// The status without regard to the hour: a job queued for later counts as queued.
    pub(super) fn settled_status(&self) -> JobStatus {
        self.status(Timestamp::from_millis(i64::MAX))
    }
}
