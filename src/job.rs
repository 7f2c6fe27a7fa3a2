//! A job and its life: pure data and one pure function, [`Job::apply`], that owns every transition.
//!
//! ```text
//! enqueue ─▶ Queued{run_at} ──Claim──▶ Running{lease} ──Succeed──▶ Succeeded
//!               ▲ ▲   Retry, Release     │ │  ├─ Fail ─────────────▶ Failed{code}
//!               │ └──────────────────────┘ │  └─ Cancel ───────────▶ Cancelled
//!               │        Expire (lease over, outcome unknown) ─▶ Queued | Failed
//! Queued ─Cancel─▶ Cancelled · Queued ─MissDeadline─▶ Failed(deadline_exceeded)
//! Failed, Cancelled ─Requeue─▶ Queued · Failed ─Reparse (a kept answer reads after all)─▶ Succeeded
//! Queued ─Share (another job's answer is its answer too)─▶ Succeeded
//! ```
//!
//! Every event of a worker carries the number of its attempt, the *fence*: an event of an attempt that is not the
//! running one is [`TransitionError::LeaseLost`] and changes nothing. Numbers are never used twice in a job's life, a
//! released attempt keeps its own.
//!
//! Nothing here reads a clock, touches a disk or knows how an answer is made. Stores make transitions atomic and
//! durable; `queue` decides which event to send.

pub mod archive;
mod attempt;
pub mod callback;
pub mod caller;
pub mod delivery;
pub mod disposition;
mod filter;
mod record;

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use self::caller::Caller;
pub use self::{
    attempt::{
        AtRisk, Attempt, AttemptError, AttemptOutcome, AttemptReport, Cached, FailureClass, FailureCode, Failures,
        MAX_ATTEMPTS, TokenUsage,
    },
    filter::{Cursor, JobFilter, JobPage, JobSelection, Listing, Order, Side, UnfinishedSearch},
    record::{Depth, IdempotencyKey, JobRecord, JobRequest, JobStatus, StatusCounts},
};
use crate::{
    clock::Timestamp,
    digest::{ModelKey, sha256},
};

/// Names a job for clients: a UUID of version 7, so ids sort by time of creation.
pub type JobId = Uuid;

/// Who makes an attempt: a node, and which start of it (its *incarnation*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner(NonZeroU64);

impl Owner {
    /// One of the tests'.
    #[cfg(test)]
    pub(crate) const ANY: Owner = Owner(NonZeroU64::MIN);

    /// The node of this name. Its next start must come with another number.
    pub fn new(node: &str, incarnation: u32) -> Owner {
        let [a, b, c, d, ..] = sha256(&[node.as_bytes()]);
        let node = u64::from(u32::from_be_bytes([a, b, c, d]).max(1));
        Owner(NonZeroU64::new(node << 32 | u64::from(incarnation)).unwrap_or(NonZeroU64::MIN))
    }

    /// Whether `other` is an earlier start of this node: then its attempts are nobody's.
    pub fn follows(self, other: Owner) -> bool {
        self != other && self.0.get() >> 32 == other.0.get() >> 32
    }
}

/// The life-cycle part of a job: small, kept in memory for every job there is.
///
/// What was asked is the [`JobRequest`], what came of it are the [`Attempt`]s.
///
/// Stores write it as it is here, by the position of its fields: do not reorder them once this is released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Given at submission, never reused.
    #[serde(with = "uuid::serde::compact")]
    pub id: JobId,
    /// Moves the job in the order of claiming, see [`Job::effective_at`].
    pub priority: Priority,
    /// Its client asked to be held for the answer. While it is held, the job goes first. After that it takes its turn
    /// with the others, but while other clients are held it gets a smaller share than jobs that nobody waited for.
    pub waited_for: bool,
    /// Who submitted it, by name or by network: callers take turns, and bounds count for each.
    // Digests, and no wider than this, since all jobs are in memory.
    pub caller: Caller,
    /// A digest of all that makes its answer, and of who asks: jobs that share it may share an answer. None if this one
    /// wants its own, or has got another's, which is not passed on.
    pub question: Option<NonZeroU64>,
    /// The model that its request names; `None` if the service chooses.
    pub model: Option<ModelKey>,
    /// Where in its life the job is.
    pub state: JobState,
    /// Number of the running or last attempt: 0 before the first claim, one more with each claim and each reparse, never
    /// less. The fence.
    pub attempt: u32,
    /// Attempts that failed, since the submission or the last requeue.
    pub failures: Failures,
    /// Attempts given back unspent (rate limit, shutdown), since the submission or the last requeue.
    pub releases: u32,
    /// The client's own name for this submission, if it gave one.
    // Boxed: most jobs have none, and all jobs are in memory.
    pub idempotency: Option<Box<IdempotencyKey>>,
    /// When the job was accepted.
    pub created_at: Timestamp,
    /// When it was first meant to run, at its submission or the last requeue.
    pub due_at: Timestamp,
    /// It waits for a `run_at` of its client, which the wall clock must reach. Pauses between attempts are service time.
    pub is_timed: bool,
    /// If still queued then, the job fails with `deadline_exceeded`.
    pub deadline_at: Option<Timestamp>,
    /// Who makes the running attempt; set exactly while there is one.
    pub owner: Option<Owner>,
    /// When the running or last attempt was claimed.
    pub started_at: Option<Timestamp>,
    /// When the job reached its end; set exactly in the final states.
    pub finished_at: Option<Timestamp>,
}

/// The states of a job; the drawing is at the top of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobState {
    /// Waits to be claimed, not before `run_at`.
    Queued {
        /// Earliest moment of the next claim.
        run_at: Timestamp,
    },
    /// An attempt is under way and owns the job until its lease is over.
    Running {
        /// The worker is taken for dead if it has not extended the lease by then.
        lease_until: Timestamp,
    },
    /// Final: there is a result.
    Succeeded,
    /// Final, but for a requeue or a reparse.
    Failed {
        /// Why.
        code: FailureCode,
    },
    /// Final, but for a requeue.
    Cancelled,
}

impl JobState {
    /// True where no event changes anything any more, but for a requeue or, of a failed job, a reparse.
    pub fn is_final(self) -> bool {
        match self {
            JobState::Queued { .. } | JobState::Running { .. } => false,
            JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => true,
        }
    }
}

/// Priority of a job: a fixed head start in the queue, so that no priority starves another.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    ToSchema,
    strum::Display,
    strum::EnumString,
    strum::VariantNames,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Priority {
    /// As if submitted ten minutes earlier.
    High,
    /// In the order of submission.
    #[default]
    Normal,
    /// As if submitted ten minutes later.
    Low,
}

/// What a step of priority is worth in waiting time: longer than a usual backlog, short enough that low priority work
/// still runs on a busy day.
pub const PRIORITY_OFFSET: Duration = Duration::from_mins(10);

/// Something that happens to a job. Those of workers carry the attempt that they speak for.
#[derive(Clone, Debug)]
pub enum JobEvent {
    /// A worker takes the job; its attempt gets the next number.
    Claim {
        /// Who makes the attempt.
        owner: Owner,
        /// First end of the lease.
        lease_until: Timestamp,
    },
    /// The heartbeat of a worker.
    Extend {
        /// The attempt that is still alive.
        attempt: u32,
        /// New end of the lease.
        lease_until: Timestamp,
    },
    /// The attempt brought the result.
    Succeed {
        /// The attempt.
        attempt: u32,
        /// What it saw, with the result.
        report: Arc<AttemptReport>,
    },
    /// The attempt failed and the job is to be tried again.
    Retry {
        /// The attempt.
        attempt: u32,
        /// Not before.
        run_at: Timestamp,
        /// What the failure counts as.
        class: FailureClass,
        /// What it saw.
        report: Arc<AttemptReport>,
    },
    /// The attempt gives the job back without having spent anything.
    Release {
        /// The attempt.
        attempt: u32,
        /// Not before.
        run_at: Timestamp,
        /// All jobs that are queued by then go first.
        is_demoted: bool,
        /// What it saw.
        report: Arc<AttemptReport>,
    },
    /// The attempt failed and so does the job.
    Fail {
        /// The attempt.
        attempt: u32,
        /// Why.
        code: FailureCode,
        /// What it saw.
        report: Arc<AttemptReport>,
    },
    /// A client or an operator gives the job up.
    Cancel {
        /// What an attempt under way may cost all the same. Without it, a running job is not cancelled.
        at_risk: Option<AtRisk>,
    },
    /// The lease is over, or the process that held it has died: whether the call was answered, nobody knows.
    Expire {
        /// The attempt whose lease it is.
        attempt: u32,
        /// The end of the lease as it was seen: it may have been extended since.
        lease_until: Timestamp,
        /// Try again at this moment, or fail with `outcome_unknown`.
        retry_at: Option<Timestamp>,
        /// What it may have cost.
        at_risk: Option<AtRisk>,
    },
    /// The job's deadline passed while it was queued.
    MissDeadline,
    /// What the queued job asks can't be read any more. It makes an entry of the history, as an attempt that called nobody.
    FindUnreadable {
        /// Why not.
        report: Arc<AttemptReport>,
    },
    /// An answer that was kept has been read after all. It makes an entry of the history, as an attempt that called
    /// nobody.
    Reparse {
        /// The newest attempt that was known when it was read.
        attempt: u32,
        /// The result, and where it is from.
        report: Arc<AttemptReport>,
    },
    /// Another job's answer is this one's too. It makes an entry of the history, as an attempt that called nobody.
    Share {
        /// The result, and whose it is.
        report: Arc<AttemptReport>,
    },
    /// A client or an operator wants a failed or cancelled job tried again, with a fresh count of attempts.
    Requeue {
        /// Not before.
        run_at: Timestamp,
    },
}

/// Why an event changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransitionError {
    /// The event speaks for an attempt that does not own the job (any more).
    #[error("attempt {attempt} does not own the job: {status} at attempt {current}")]
    LeaseLost {
        /// The attempt that the event speaks for.
        attempt: u32,
        /// The job's newest attempt.
        current: u32,
        /// Where the job is instead.
        status: JobStatus,
    },
    /// The event has no meaning in the job's state.
    #[error("the job is {status}, so it can't be {wanted}")]
    Illegal {
        /// Where the job is.
        status: JobStatus,
        /// The requested change, as a participle.
        wanted: &'static str,
    },
}

impl JobEvent {
    /// What an attempt that ends with it leaves behind.
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
            | JobEvent::Extend { .. }
            | JobEvent::Cancel { .. }
            | JobEvent::Expire { .. }
            | JobEvent::MissDeadline
            | JobEvent::Requeue { .. } => None,
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
            started_at: None,
            finished_at: None,
        }
    }

    /// The job after `event`, or why it stays as it is. The one place that knows the life cycle.
    ///
    /// # Errors
    /// [`TransitionError::LeaseLost`] for an event of a worker that does not own the job, [`TransitionError::Illegal`]
    /// for any other event that has no meaning in this state.
    pub fn apply(&self, event: &JobEvent, now: Timestamp) -> Result<Job, TransitionError> {
        let mut job = self.clone();
        match event {
            JobEvent::Claim { owner, lease_until } => {
                let JobState::Queued { run_at } = self.state else { return Err(self.illegal("claimed")) };
                if run_at > now {
                    return Err(self.illegal("claimed before its run_at"));
                }
                if self.is_overdue(now) {
                    return Err(self.illegal("claimed after its deadline"));
                }
                job.state = JobState::Running { lease_until: *lease_until };
                job.is_timed = false;
                job.attempt = self.next_attempt()?;
                (job.owner, job.started_at) = (Some(*owner), Some(now));
            }
            JobEvent::Extend { attempt, lease_until } => {
                self.check_fence(*attempt)?;
                job.state = JobState::Running { lease_until: *lease_until };
            }
            JobEvent::Succeed { attempt, .. } => {
                self.check_fence(*attempt)?;
                job.finish(JobState::Succeeded, now);
            }
            JobEvent::Retry { attempt, run_at, class, .. } => {
                self.check_fence(*attempt)?;
                job.state = JobState::Queued { run_at: *run_at };
                job.failures.add(*class);
            }
            JobEvent::Release { attempt, run_at, is_demoted, .. } => {
                self.check_fence(*attempt)?;
                job.state = JobState::Queued { run_at: *run_at };
                job.releases = self.releases.saturating_add(1);
                if *is_demoted {
                    job.failures.demote();
                }
            }
            JobEvent::Fail { attempt, code, .. } => {
                self.check_fence(*attempt)?;
                job.finish(JobState::Failed { code: *code }, now);
            }
            JobEvent::Cancel { at_risk } => match self.state {
                // It was claimed since the caller looked.
                JobState::Running { .. } if at_risk.is_none() => {
                    return Err(self.illegal("cancelled before the cost of its attempt is estimated"));
                }
                JobState::Queued { .. } | JobState::Running { .. } => job.finish(JobState::Cancelled, now),
                JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => {
                    return Err(self.illegal("cancelled"));
                }
            },
            JobEvent::Expire { attempt, lease_until, retry_at, .. } => {
                self.check_fence(*attempt)?;
                if self.state != (JobState::Running { lease_until: *lease_until }) {
                    return Err(self.illegal("expired, because its lease was extended"));
                }
                match retry_at {
                    Some(run_at) => {
                        job.state = JobState::Queued { run_at: *run_at };
                        job.failures.add(FailureClass::Other);
                    }
                    None => job.finish(JobState::Failed { code: FailureCode::OutcomeUnknown }, now),
                }
            }
            JobEvent::MissDeadline => {
                let JobState::Queued { .. } = self.state else { return Err(self.illegal("failed by its deadline")) };
                if !self.is_overdue(now) {
                    return Err(self.illegal("failed before its deadline"));
                }
                job.finish(JobState::Failed { code: FailureCode::DeadlineExceeded }, now);
            }
            JobEvent::FindUnreadable { .. } => {
                let JobState::Queued { .. } = self.state else { return Err(self.illegal("failed as unreadable")) };
                job.attempt = self.next_attempt()?;
                job.finish(JobState::Failed { code: FailureCode::Internal }, now);
            }
            JobEvent::Reparse { attempt, .. } => {
                let JobState::Failed { .. } = self.state else { return Err(self.illegal("reparsed")) };
                if self.attempt != *attempt {
                    return Err(self.illegal("reparsed, because it was retried in the meantime"));
                }
                job.attempt = self.next_attempt()?;
                job.finish(JobState::Succeeded, now);
            }
            JobEvent::Share { .. } => {
                let JobState::Queued { .. } = self.state else { return Err(self.illegal("given a shared answer")) };
                // Between attempts it may be, but never before the time that its client set; a clock that was set back since
                // the submission is no such time.
                if self.due_at > now.max(self.created_at) {
                    return Err(self.illegal("given a shared answer before its run_at"));
                }
                job.attempt = self.next_attempt()?;
                job.question = None;
                job.finish(JobState::Succeeded, now);
            }
            JobEvent::Requeue { run_at } => {
                let (JobState::Failed { .. } | JobState::Cancelled) = self.state else {
                    return Err(self.illegal("retried"));
                };
                job.state = JobState::Queued { run_at: *run_at };
                (job.due_at, job.is_timed) = (*run_at, false);
                job.failures = Failures::default();
                job.releases = 0;
                // An operator's decision outranks a deadline that has already passed.
                job.deadline_at = self.deadline_at.filter(|deadline| *deadline > now);
                job.finished_at = None;
            }
        }
        job.owner = job.owner.filter(|_| job.is_running());
        Ok(job)
    }

    /// The history entry of the attempt that `event` ends, if it ends one. Pure, as [`Job::apply`]; only for events that
    /// `apply` accepts.
    pub fn closed_attempt(&self, event: &JobEvent, now: Timestamp) -> Option<Attempt> {
        let without_a_call = match event {
            JobEvent::Reparse { report, .. } => Some((AttemptOutcome::Reparsed, report)),
            JobEvent::Share { report } => Some((AttemptOutcome::Shared, report)),
            JobEvent::FindUnreadable { report } => Some((AttemptOutcome::Failed, report)),
            _ => None,
        };
        if let Some((outcome, report)) = without_a_call {
            let (number, report) = (self.attempt.saturating_add(1), Arc::clone(report));
            return Some(Attempt { number, started_at: now, finished_at: now, outcome, folded: 0, report });
        }
        let JobState::Running { .. } = self.state else { return None };
        let (outcome, report) = match event {
            JobEvent::Succeed { report, .. } => (AttemptOutcome::Succeeded, Arc::clone(report)),
            JobEvent::Retry { report, .. } | JobEvent::Fail { report, .. } => {
                (AttemptOutcome::Failed, Arc::clone(report))
            }
            JobEvent::Release { report, .. } => (AttemptOutcome::Released, Arc::clone(report)),
            JobEvent::Cancel { at_risk } => {
                (AttemptOutcome::Cancelled, Arc::new(AttemptReport::unknown("the job was cancelled", *at_risk)))
            }
            JobEvent::Expire { at_risk, .. } => {
                let message = "the worker stopped during the call, which may have been billed";
                (AttemptOutcome::OutcomeUnknown, Arc::new(AttemptReport::unknown(message, *at_risk)))
            }
            JobEvent::Claim { .. }
            | JobEvent::Extend { .. }
            | JobEvent::MissDeadline
            | JobEvent::FindUnreadable { .. }
            | JobEvent::Reparse { .. }
            | JobEvent::Share { .. }
            | JobEvent::Requeue { .. } => return None,
        };
        Some(Attempt {
            number: self.attempt,
            started_at: self.started_at.unwrap_or(self.created_at),
            finished_at: now,
            outcome,
            folded: 0,
            report,
        })
    }

    /// The job's place among those that are ready: its age, moved by its priority. Earlier goes first; first in, first
    /// out among equals. A job that may be the only one to fail goes behind all that were queued before its next attempt is
    /// due: it must not be the first to be tried each time.
    pub fn effective_at(&self) -> Timestamp {
        let since = match self.state {
            JobState::Queued { run_at } if self.is_set_aside() => run_at.max(self.created_at),
            _ => self.created_at,
        };
        match self.priority {
            Priority::High => since.minus(PRIORITY_OFFSET),
            Priority::Normal => since,
            Priority::Low => since.plus(PRIORITY_OFFSET),
        }
    }

    /// Whether it failed in a way that may be its own alone.
    fn is_set_aside(&self) -> bool {
        self.failures.demotions() > 0 || self.failures.count(FailureClass::Suspect) > 0
    }

    /// The name of the state as clients see it at `now`.
    pub fn status(&self, now: Timestamp) -> JobStatus {
        match self.state {
            JobState::Queued { run_at } if run_at > now => JobStatus::Scheduled,
            JobState::Queued { .. } => JobStatus::Queued,
            JobState::Running { .. } => JobStatus::Running,
            JobState::Succeeded => JobStatus::Succeeded,
            JobState::Failed { .. } => JobStatus::Failed,
            JobState::Cancelled => JobStatus::Cancelled,
        }
    }

    /// True once its deadline has passed; it counts while the job is queued.
    pub fn is_overdue(&self, now: Timestamp) -> bool {
        self.deadline_at.is_some_and(|deadline| deadline <= now)
    }

    /// The job of another store, whose clock may have been ahead: none of its times is in the future, but for a deadline and
    /// the `run_at` of a client.
    pub fn arrive(&mut self, now: Timestamp) {
        self.created_at = self.created_at.min(now);
        self.started_at = self.started_at.map(|at| at.min(now));
        self.finished_at = self.finished_at.map(|at| at.min(now));
        if !self.is_timed {
            self.due_at = self.due_at.min(now);
        }
        match &mut self.state {
            JobState::Queued { run_at } if !self.is_timed => *run_at = now.min(*run_at),
            // Over at once: the sweeper ends it as it ends the attempts of the dead.
            JobState::Running { lease_until } => *lease_until = now,
            JobState::Queued { .. } | JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => {}
        }
    }

    /// True while an attempt owns the job.
    pub fn is_running(&self) -> bool {
        matches!(self.state, JobState::Running { .. })
    }

    /// How many attempts are history: the newest one is, unless it still runs.
    pub fn closed_attempts(&self) -> u32 {
        if self.is_running() { self.attempt.saturating_sub(1) } else { self.attempt }
    }

    fn finish(&mut self, state: JobState, now: Timestamp) {
        self.state = state;
        self.finished_at = Some(now);
    }

    /// The number of the next attempt. It is a fence, so none is given twice.
    fn next_attempt(&self) -> Result<u32, TransitionError> {
        self.attempt.checked_add(1).ok_or(self.illegal("attempted once more"))
    }

    fn check_fence(&self, attempt: u32) -> Result<(), TransitionError> {
        match self.state {
            JobState::Running { .. } if self.attempt == attempt => Ok(()),
            _ => Err(TransitionError::LeaseLost { attempt, current: self.attempt, status: self.settled_status() }),
        }
    }

    fn illegal(&self, wanted: &'static str) -> TransitionError {
        TransitionError::Illegal { status: self.settled_status(), wanted }
    }

    /// The status without regard to the hour: a job queued for later counts as queued.
    fn settled_status(&self) -> JobStatus {
        self.status(Timestamp::from_millis(i64::MAX))
    }
}

#[cfg(test)]
mod tests;
