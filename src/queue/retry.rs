//! The retry policy: which event a disposition becomes, by the job's history. Pure; the only place that counts retries and
//! makes delays.

use std::{sync::Arc, time::Duration};

use crate::{
    clock::Timestamp,
    job::{AttemptError, AttemptReport, FailureClass, FailureCode, Job, JobEvent, disposition::Disposition},
};

/// First step of the backoff, doubled with each attempt: the official SDKs' own.
const BACKOFF_BASE: Duration = Duration::from_millis(500);

/// No backoff is longer. A queue can wait longer than an SDK's caller, but a person may be waiting for the job.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// First pause of a job that may be the only one to fail, doubled with each attempt. Long enough for others to be tried
/// meanwhile.
const ASIDE_BASE: Duration = Duration::from_secs(2);

/// A job that may be the only one to fail is set aside for no longer.
const ASIDE_MAX: Duration = Duration::from_mins(5);

/// A job that lets others go first waits for no longer: when a person has ended the cause, it is to go on soon.
const DEMOTED_MAX: Duration = Duration::from_mins(1);

/// How often a job may fail in a way that may be its own alone: two minutes in all, and many times as many as a rate limit
/// that is everyone's leaves to chance.
const MAX_SUSPECT_RETRIES: u32 = 6;

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
            FailureClass::Suspect => MAX_SUSPECT_RETRIES,
            // The agent knows how many models there are to ask.
            FailureClass::Refused => u32::MAX,
            FailureClass::Other => self.other,
        };
        job.failures.count(class) < bound
    }
}

/// The event that settles attempt `job.attempt`. `random` in 0..1 is the jitter.
pub fn event_after(
    job: &Job,
    disposition: &Disposition,
    report: AttemptReport,
    bounds: &RetryBounds,
    random: f64,
    now: Timestamp,
) -> JobEvent {
    let attempt = job.attempt;
    match *disposition {
        Disposition::Succeed => JobEvent::Succeed { attempt, report: Arc::new(report) },
        Disposition::Retry { code, class, after } => {
            let report = Arc::new(report);
            if !bounds.allow(job, class) {
                let code = if class == FailureClass::Suspect { FailureCode::Poisoned } else { code };
                return JobEvent::Fail { attempt, code, report };
            }
            let delay = after.unwrap_or_else(|| pause(job, class, random));
            let run_at = now.plus(delay);
            // A job that could not start again in time ends with what went wrong, not with its deadline.
            if job.deadline_at.is_some_and(|deadline| deadline <= run_at) {
                return JobEvent::Fail { attempt, code, report };
            }
            JobEvent::Retry { attempt, run_at, class, report }
        }
        Disposition::Fail { code } => JobEvent::Fail { attempt, code, report: Arc::new(report) },
        // A stop of ours is no reason to give a job up.
        Disposition::Release { code, .. }
            if code != FailureCode::Shutdown && now.since(job.due_at) > bounds.give_back_for =>
        {
            JobEvent::Fail { attempt, code, report: Arc::new(report) }
        }
        Disposition::Release { after, is_demoted, .. } => {
            let aside = if is_demoted { aside(job.failures.demotions(), DEMOTED_MAX) } else { Duration::ZERO };
            let run_at = now.plus(after.max(aside));
            JobEvent::Release { attempt, run_at, is_demoted, report: Arc::new(report) }
        }
        // Nobody was asked whether others met it.
        Disposition::Block { ref alone, .. } => event_after(job, alone, report, bounds, random, now),
    }
}

/// How long a job waits before it is tried again after a failure of this class.
fn pause(job: &Job, class: FailureClass, random: f64) -> Duration {
    match class {
        // Nothing has to recover first: another model is asked, or this one gets a repair prompt.
        FailureClass::InvalidOutput | FailureClass::Refused => Duration::ZERO,
        FailureClass::Suspect => aside(job.failures.count(class), ASIDE_MAX),
        FailureClass::Connect | FailureClass::Overload | FailureClass::Other => {
            backoff(job.failures.count(class), random)
        }
    }
}

/// Exponential backoff of a job that lets others go first.
fn aside(times: u32, most: Duration) -> Duration {
    ASIDE_BASE.saturating_mul(1 << times.min(16)).min(most)
}

/// Exponential backoff with full jitter: anywhere between nothing and base · 2^failures, so that jobs that failed
/// together do not come back together.
fn backoff(failures: u32, random: f64) -> Duration {
    let ceiling = BACKOFF_BASE.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
    ceiling.mul_f64(random.clamp(0.0, 1.0))
}

/// The report of an attempt at a job whose request can't be read.
pub(super) fn unreadable(reason: &str) -> AttemptReport {
    let message = format!("no call was made: the stored request can't be read ({reason}); submit it again");
    failure_report(FailureCode::Internal, message)
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

    fn after(failures: Failures, disposition: &Disposition, random: f64) -> JobEvent {
        event_after(&job(failures), disposition, AttemptReport::default(), &BOUNDS, random, now())
    }

    fn again(code: FailureCode, class: FailureClass) -> Disposition {
        Disposition::Retry { code, class, after: None }
    }

    #[test]
    fn each_class_of_failure_has_a_bound_of_its_own_and_then_the_job_fails_with_the_last_code() {
        for (code, class, bound) in [
            (FailureCode::Timeout, FailureClass::Other, 3),
            (FailureCode::ConnectFailed, FailureClass::Connect, 5),
            (FailureCode::Overloaded, FailureClass::Overload, 4),
            (FailureCode::InvalidOutput, FailureClass::InvalidOutput, 1),
        ] {
            let last = after(Failures::of(class, bound - 1), &again(code, class), 0.5);
            assert!(matches!(last, JobEvent::Retry { class: counted, .. } if counted == class), "{code}: {last:?}");
            let over = after(Failures::of(class, bound), &again(code, class), 0.5);
            assert!(matches!(over, JobEvent::Fail { code: told, .. } if told == code), "{code}: {over:?}");
        }
        let outage = Failures::of(FailureClass::Connect, 4);
        let event = after(outage, &again(FailureCode::Timeout, FailureClass::Other), 0.5);
        assert!(matches!(event, JobEvent::Retry { .. }), "counted apart");
    }

    #[test]
    fn a_job_that_may_be_the_only_one_to_fail_is_set_aside_for_longer_each_time_and_ends_as_poisoned() {
        let again = again(FailureCode::PermissionDenied, FailureClass::Suspect);
        let pauses = (0..6).map(|count| match after(Failures::of(FailureClass::Suspect, count), &again, 0.5) {
            JobEvent::Retry { run_at, .. } => run_at.since(now()).as_secs(),
            other => panic!("{other:?}"),
        });
        assert_eq!(pauses.collect::<Vec<_>>(), [2, 4, 8, 16, 32, 64]);
        let over = after(Failures::of(FailureClass::Suspect, 6), &again, 0.5);
        assert!(matches!(over, JobEvent::Fail { code: FailureCode::Poisoned, .. }), "{over:?}");
    }

    #[test]
    fn a_job_that_lets_others_go_first_waits_for_a_minute_at_most() {
        let release = |after| Disposition::Release { code: FailureCode::BillingFailed, after, is_demoted: true };
        let mut job = job(Failures::default());
        let mut waits = Vec::new();
        for _ in 0..7 {
            let event =
                event_after(&job, &release(Duration::from_secs(1)), AttemptReport::default(), &BOUNDS, 0.5, now());
            let JobEvent::Release { run_at, is_demoted: true, .. } = event else { panic!("{event:?}") };
            waits.push(run_at.since(now()).as_secs());
            job.failures.demote();
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn the_backoff_doubles_to_its_ceiling_and_jitter_spans_all_of_it() {
        let delays: Vec<u128> = (0..9).map(|failures| backoff(failures, 1.0).as_millis()).collect();
        assert_eq!(delays, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(backoff(5, 0.0), Duration::ZERO);
    }

    #[test]
    fn a_job_is_given_back_for_so_long_after_it_was_due_and_then_fails() {
        let released = Disposition::released(FailureCode::RateLimited);
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
        let retry =
            Disposition::Retry { code: FailureCode::UpstreamError, class: FailureClass::Other, after: retry_after };
        let event = after(Failures::default(), &retry, 0.0);
        let JobEvent::Retry { run_at, .. } = event else { panic!("{event:?}") };
        assert_eq!(run_at, now().plus(Duration::from_secs(90)));
    }

    #[test]
    fn an_answer_of_no_use_is_asked_for_again_at_once_if_the_deadline_allows() {
        for code in [FailureCode::InvalidOutput, FailureCode::AnswerTruncated, FailureCode::TimeLimit] {
            let with_deadline = |deadline| {
                let mut job = job(Failures::default());
                job.deadline_at = Some(deadline);
                event_after(
                    &job,
                    &again(code, FailureClass::InvalidOutput),
                    AttemptReport::default(),
                    &BOUNDS,
                    0.9,
                    now(),
                )
            };
            let event = with_deadline(now().plus(Duration::from_millis(1)));
            assert!(matches!(event, JobEvent::Retry { run_at, .. } if run_at == now()), "{event:?}");
            let late = with_deadline(now());
            assert!(matches!(late, JobEvent::Fail { code: told, .. } if told == code), "{late:?}");
        }
    }

    #[test]
    fn a_terminal_failure_is_not_tried_again() {
        let event = after(Failures::default(), &Disposition::Fail { code: FailureCode::Refused }, 0.5);
        assert!(matches!(event, JobEvent::Fail { code: FailureCode::Refused, .. }));
    }
}
