//! The retry policy: what becomes of a job after an attempt. Pure; the only place that decides on a retry.

use std::{sync::Arc, time::Duration};

use crate::{
    clock::Timestamp,
    job::{AttemptError, AttemptReport, FailureCode, Job, JobEvent},
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
        /// Not before so much time has passed; the gate does the waiting, so usually zero.
        retry_after: Duration,
    },
}

/// The event that settles attempt `job.attempt`. `random` in 0..1 is the jitter.
pub fn event_after(
    job: &Job,
    settlement: &Settlement,
    report: AttemptReport,
    max_retries: u32,
    random: f64,
    now: Timestamp,
) -> JobEvent {
    let attempt = job.attempt;
    let report = Arc::new(report);
    match *settlement {
        Settlement::Succeeded => JobEvent::Succeed { attempt, report },
        Settlement::Retryable { code, retry_after } => {
            if job.spent > max_retries {
                return JobEvent::Fail { attempt, code, report };
            }
            let delay = retry_after.unwrap_or_else(|| backoff(job.spent, random));
            JobEvent::Retry { attempt, run_at: now.plus(delay), report }
        }
        Settlement::Terminal { code } => JobEvent::Fail { attempt, code, report },
        Settlement::Released { retry_after } => JobEvent::Release { attempt, run_at: now.plus(retry_after), report },
    }
}

/// Exponential backoff with full jitter: anywhere between nothing and base · 2^(spent − 1), so that jobs that failed
/// together do not come back together.
fn backoff(spent: u32, random: f64) -> Duration {
    let ceiling = BACKOFF_BASE.saturating_mul(1 << spent.saturating_sub(1).min(16)).min(BACKOFF_MAX);
    ceiling.mul_f64(random.clamp(0.0, 1.0))
}

/// The report of an attempt that failed before or beside the call.
pub fn failure_report(code: FailureCode, message: String) -> AttemptReport {
    AttemptReport { error: Some(AttemptError { code, message }), ..AttemptReport::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Priority;

    fn job(spent: u32) -> Job {
        let mut job = Job::new(uuid::Uuid::nil(), Priority::Normal, now());
        (job.attempt, job.spent) = (spent, spent);
        job
    }

    fn now() -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000)
    }

    fn after(spent: u32, settlement: &Settlement, random: f64) -> JobEvent {
        event_after(&job(spent), settlement, AttemptReport::default(), 3, random, now())
    }

    #[test]
    fn a_job_gets_one_attempt_more_than_its_retries_and_then_fails_with_the_last_code() {
        let again = Settlement::Retryable { code: FailureCode::Overloaded, retry_after: None };
        assert!(matches!(after(3, &again, 0.5), JobEvent::Retry { attempt: 3, .. }));
        assert!(matches!(after(4, &again, 0.5), JobEvent::Fail { attempt: 4, code: FailureCode::Overloaded, .. }));
    }

    #[test]
    fn the_backoff_doubles_to_its_ceiling_and_jitter_spans_all_of_it() {
        let delays: Vec<u128> = (1..=9).map(|spent| backoff(spent, 1.0).as_millis()).collect();
        assert_eq!(delays, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(backoff(5, 0.0), Duration::ZERO);
    }

    #[test]
    fn the_upstreams_retry_after_outranks_the_backoff() {
        let retry_after = Some(Duration::from_secs(90));
        let event = after(1, &Settlement::Retryable { code: FailureCode::UpstreamError, retry_after }, 0.0);
        let JobEvent::Retry { run_at, .. } = event else { panic!("{event:?}") };
        assert_eq!(run_at, now().plus(Duration::from_secs(90)));
    }

    #[test]
    fn a_terminal_failure_is_not_tried_again() {
        let event = after(1, &Settlement::Terminal { code: FailureCode::Refused }, 0.5);
        assert!(matches!(event, JobEvent::Fail { code: FailureCode::Refused, .. }));
    }
}
