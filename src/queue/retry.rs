//! The retry policy: what becomes of a job after an attempt. Pure; the only place that decides on a retry.

use std::{sync::Arc, time::Duration};

use crate::{
    clock::Timestamp,
    job::{AttemptError, AttemptReport, FailureClass, FailureCode, Job, JobEvent},
};

/// First step of the backoff, doubled with each attempt: the official SDKs' own.
const BACKOFF_BASE: Duration = Duration::from_millis(500);

/// No backoff is longer. A queue can wait longer than an SDK's caller, but a person may be waiting for the job.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// How an attempt ended, as the worker tells the queue.
#[derive(Debug)]
pub enum Settlement {
    /// With a result, in the report.
    Succeeded,
    /// With a failure that another attempt may not meet.
    Retryable {
        /// Why.
        code: FailureCode,
        /// The upstream's own wish, which outranks the backoff.
        retry_after: Option<Duration>,
    },
    /// With a failure that every attempt would meet.
    Terminal {
        /// Why.
        code: FailureCode,
    },
    /// It gives the job back unspent: the account's limit, a held queue, a shutdown.
    Released {
        /// Why.
        code: FailureCode,
        /// Not before so much time has passed; the gate does the waiting, so usually zero.
        retry_after: Duration,
    },
}

impl Settlement {
    /// The job is given back at once; what keeps it from running does the waiting.
    pub fn given_back(code: FailureCode) -> Settlement {
        Settlement::Released { code, retry_after: Duration::ZERO }
    }
}

/// How often an attempt is tried again, by the class of its failure, and for how long a job may be given back.
#[derive(Clone, Copy, Debug)]
pub struct RetryBounds {
    /// After failures that have no bound of their own.
    pub other: u32,
    /// After failed connections: they cost nothing.
    pub connect: u32,
    /// After the upstream turned the call away for its load.
    pub overload: u32,
    /// After answers that were cut or could not be read: each was paid for.
    pub invalid_output: u32,
    /// A job that is given back unspent so long after it was due fails instead.
    pub give_back_for: Duration,
}

impl RetryBounds {
    /// Whether a job may fail once more in this way and still be tried again.
    pub fn allow(&self, job: &Job, class: FailureClass) -> bool {
        let bound = match class {
            FailureClass::Connect => self.connect,
            FailureClass::Overload => self.overload,
            FailureClass::InvalidOutput => self.invalid_output,
            FailureClass::Other => self.other,
        };
        job.failures.count(class) < bound
    }
}

/// What a failure counts as. An overload in the middle of an answer may be billed, so it is bounded as what costs.
fn class_of(code: FailureCode, may_have_been_billed: bool) -> FailureClass {
    match code {
        FailureCode::ConnectFailed => FailureClass::Connect,
        FailureCode::Overloaded if !may_have_been_billed => FailureClass::Overload,
        FailureCode::InvalidOutput | FailureCode::AnswerTruncated | FailureCode::TimeLimit => {
            FailureClass::InvalidOutput
        }
        FailureCode::DeadlineExceeded
        | FailureCode::OutcomeUnknown
        | FailureCode::Refused
        | FailureCode::InvalidRequest
        | FailureCode::RequestTooLarge
        | FailureCode::AuthenticationFailed
        | FailureCode::BillingFailed
        | FailureCode::PermissionDenied
        | FailureCode::ModelNotFound
        | FailureCode::RateLimited
        | FailureCode::Overloaded
        | FailureCode::UpstreamError
        | FailureCode::ConnectionLost
        | FailureCode::Timeout
        | FailureCode::MalformedResponse
        | FailureCode::Internal
        | FailureCode::Shutdown
        | FailureCode::StreamCut
        | FailureCode::StreamError
        | FailureCode::ContextWindowExceeded
        | FailureCode::PromptVersionUnknown
        | FailureCode::BudgetReached
        | FailureCode::ModelUnpriced => FailureClass::Other,
    }
}

/// The event that settles attempt `job.attempt`. `random` in 0..1 is the jitter.
pub fn event_after(
    job: &Job,
    settlement: &Settlement,
    report: AttemptReport,
    bounds: &RetryBounds,
    random: f64,
    now: Timestamp,
) -> JobEvent {
    let attempt = job.attempt;
    let billed = report.may_have_been_billed;
    let report = Arc::new(report);
    match *settlement {
        Settlement::Succeeded => JobEvent::Succeed { attempt, report },
        Settlement::Retryable { code, retry_after } => {
            let class = class_of(code, billed);
            if !bounds.allow(job, class) {
                return JobEvent::Fail { attempt, code, report };
            }
            let delay = match (retry_after, class) {
                (Some(wish), _) => wish,
                // Nothing has to recover first: the model is told what was wrong and does better.
                (None, FailureClass::InvalidOutput) => Duration::ZERO,
                (None, _) => backoff(job.failures.count(class), random),
            };
            let run_at = now.plus(delay);
            // A job that could not start again in time ends with what went wrong, not with its deadline.
            if job.deadline_at.is_some_and(|deadline| deadline <= run_at) {
                return JobEvent::Fail { attempt, code, report };
            }
            JobEvent::Retry { attempt, run_at, class, report }
        }
        Settlement::Terminal { code } => JobEvent::Fail { attempt, code, report },
        // A stop of ours is no reason to give a job up.
        Settlement::Released { code, .. }
            if code != FailureCode::Shutdown && now.since(job.due_at) > bounds.give_back_for =>
        {
            JobEvent::Fail { attempt, code, report }
        }
        Settlement::Released { retry_after, .. } => {
            JobEvent::Release { attempt, run_at: now.plus(retry_after), report }
        }
    }
}

/// Exponential backoff with full jitter: anywhere between nothing and base · 2^failures, so that jobs that failed
/// together do not come back together.
fn backoff(failures: u32, random: f64) -> Duration {
    let ceiling = BACKOFF_BASE.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
    ceiling.mul_f64(random.clamp(0.0, 1.0))
}

/// The report of an attempt that failed before or beside the call.
pub fn failure_report(code: FailureCode, message: String) -> AttemptReport {
    AttemptReport { error: Some(AttemptError { code, message }), ..AttemptReport::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Failures, Priority};

    const BOUNDS: RetryBounds =
        RetryBounds { other: 3, connect: 5, overload: 4, invalid_output: 1, give_back_for: Duration::from_hours(1) };

    fn job(failures: Failures) -> Job {
        let mut job = Job::new(uuid::Uuid::nil(), Priority::Normal, now());
        (job.attempt, job.failures) = (1, failures);
        job
    }

    fn now() -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000)
    }

    fn after(failures: Failures, settlement: &Settlement, random: f64) -> JobEvent {
        event_after(&job(failures), settlement, AttemptReport::default(), &BOUNDS, random, now())
    }

    fn again(code: FailureCode) -> Settlement {
        Settlement::Retryable { code, retry_after: None }
    }

    #[test]
    fn each_class_of_failure_has_a_bound_of_its_own_and_then_the_job_fails_with_the_last_code() {
        for (code, class, bound) in [
            (FailureCode::Timeout, FailureClass::Other, 3),
            (FailureCode::ConnectFailed, FailureClass::Connect, 5),
            (FailureCode::Overloaded, FailureClass::Overload, 4),
            (FailureCode::InvalidOutput, FailureClass::InvalidOutput, 1),
        ] {
            let last = after(Failures::of(class, bound - 1), &again(code), 0.5);
            assert!(matches!(last, JobEvent::Retry { class: counted, .. } if counted == class), "{code}: {last:?}");
            let over = after(Failures::of(class, bound), &again(code), 0.5);
            assert!(matches!(over, JobEvent::Fail { code: told, .. } if told == code), "{code}: {over:?}");
        }
        assert_eq!(class_of(FailureCode::Overloaded, true), FailureClass::Other, "overloaded in mid-answer");
        let outage = Failures::of(FailureClass::Connect, 4);
        assert!(matches!(after(outage, &again(FailureCode::Timeout), 0.5), JobEvent::Retry { .. }), "counted apart");
    }

    #[test]
    fn the_backoff_doubles_to_its_ceiling_and_jitter_spans_all_of_it() {
        let delays: Vec<u128> = (0..9).map(|failures| backoff(failures, 1.0).as_millis()).collect();
        assert_eq!(delays, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(backoff(5, 0.0), Duration::ZERO);
    }

    #[test]
    fn a_job_is_given_back_for_so_long_after_it_was_due_and_then_fails() {
        let released = Settlement::Released { code: FailureCode::RateLimited, retry_after: Duration::ZERO };
        let give_back = |since_due: Duration| {
            let mut job = job(Failures::default());
            job.due_at = now().minus(since_due);
            job.created_at = now().minus(Duration::from_hours(100));
            event_after(&job, &released, AttemptReport::default(), &BOUNDS, 0.5, now())
        };
        assert!(matches!(give_back(Duration::from_hours(1)), JobEvent::Release { .. }));
        let over = give_back(Duration::from_secs(3_601));
        assert!(matches!(over, JobEvent::Fail { code: FailureCode::RateLimited, .. }), "{over:?}");
    }

    #[test]
    fn the_upstreams_retry_after_outranks_the_backoff() {
        let retry_after = Some(Duration::from_secs(90));
        let event =
            after(Failures::default(), &Settlement::Retryable { code: FailureCode::UpstreamError, retry_after }, 0.0);
        let JobEvent::Retry { run_at, .. } = event else { panic!("{event:?}") };
        assert_eq!(run_at, now().plus(Duration::from_secs(90)));
    }

    #[test]
    fn an_answer_of_no_use_is_asked_for_again_at_once_if_the_deadline_allows() {
        for code in [FailureCode::InvalidOutput, FailureCode::AnswerTruncated, FailureCode::TimeLimit] {
            let with_deadline = |deadline| {
                let mut job = job(Failures::default());
                job.deadline_at = Some(deadline);
                event_after(&job, &again(code), AttemptReport::default(), &BOUNDS, 0.9, now())
            };
            let event = with_deadline(now().plus(Duration::from_millis(1)));
            assert!(matches!(event, JobEvent::Retry { run_at, .. } if run_at == now()), "{event:?}");
            let late = with_deadline(now());
            assert!(matches!(late, JobEvent::Fail { code: told, .. } if told == code), "{late:?}");
        }
    }

    #[test]
    fn a_terminal_failure_is_not_tried_again() {
        let event = after(Failures::default(), &Settlement::Terminal { code: FailureCode::Refused }, 0.5);
        assert!(matches!(event, JobEvent::Fail { code: FailureCode::Refused, .. }));
    }
}
