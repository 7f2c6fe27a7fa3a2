use std::{num::NonZeroU64, sync::Arc};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::clock::Timestamp;

/// The life cycle once more, as a table of names: what `apply` must agree with.
fn expected(job: &Job, event: &JobEvent, owns: bool, due: bool, wanted: bool, overdue: bool) -> Option<JobStatus> {
    use JobStatus::{Cancelled, Failed, Queued, Running, Succeeded};
    let newest = matches!(event, JobEvent::Reparse { attempt, .. } if *attempt == job.attempt);
    match (job.settled_status(), event) {
        (Queued, JobEvent::Claim { .. }) if due && !overdue => Some(Running),
        (Running, JobEvent::Succeed { .. }) if owns => Some(Succeeded),
        (Running, JobEvent::Retry { .. } | JobEvent::Release { .. }) if owns => Some(Queued),
        (Running, JobEvent::Fail { .. }) if owns => Some(Failed),
        (Running, JobEvent::Expire { retry_at: Some(_), .. }) if owns => Some(Queued),
        (Running, JobEvent::Expire { retry_at: None, .. }) if owns => Some(Failed),
        (Queued, JobEvent::Cancel { .. }) => Some(Cancelled),
        (Running, JobEvent::Cancel { at_risk }) => at_risk.map(|_| Cancelled),
        (Queued, JobEvent::MissDeadline) if overdue => Some(Failed),
        (Queued, JobEvent::FindUnreadable { .. }) => Some(Failed),
        (Failed | Cancelled, JobEvent::Requeue { .. }) => Some(Queued),
        (Failed, JobEvent::Reparse { .. }) if newest => Some(Succeeded),
        (Queued, JobEvent::Share { .. }) if wanted => Some(Succeeded),
        _ => None,
    }
}

/// The attempt that a worker's event speaks for; `None` for everybody else's events.
fn fence(event: &JobEvent) -> Option<u32> {
    match event {
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

/// What a call may cost.
const RISK: AtRisk = AtRisk { input_tokens: 1, output_tokens: 1, nanodollars: None };

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000 + seconds * 1000)
}

fn any_event() -> impl Strategy<Value = JobEvent> {
    let attempt = 0u32..6;
    let time = (0i64..60).prop_map(at);
    let report = Just(Arc::<AttemptReport>::default());
    prop_oneof![
        4 => Just(JobEvent::Claim { owner: Owner::ANY, asks: None }),
        1 => (attempt.clone(), report.clone()).prop_map(|(attempt, report)| JobEvent::Succeed { attempt, report }),
        2 => (attempt.clone(), time.clone(), report.clone())
            .prop_map(|(attempt, run_at, report)| JobEvent::Retry { attempt, run_at, class: FailureClass::Overload, report }),
        2 => (attempt.clone(), time.clone(), any::<bool>(), report.clone())
            .prop_map(|(attempt, run_at, is_demoted, report)| JobEvent::Release { attempt, run_at, is_demoted, report }),
        2 => (attempt.clone(), report.clone()).prop_map(|(attempt, report)| JobEvent::Reparse { attempt, report }),
        1 => report.clone().prop_map(|report| JobEvent::Share { report }),
        1 => report.clone().prop_map(|report| JobEvent::FindUnreadable { report }),
        1 => (attempt.clone(), report).prop_map(|(attempt, report)| JobEvent::Fail {
            attempt,
            code: FailureCode::InvalidOutput,
            report
        }),
        1 => proptest::option::of(Just(RISK)).prop_map(|at_risk| JobEvent::Cancel { at_risk }),
        4 => (attempt, proptest::option::of(time.clone()))
            .prop_map(|(attempt, retry_at)| JobEvent::Expire { attempt, retry_at, at_risk: None }),
        1 => Just(JobEvent::MissDeadline),
        2 => time.prop_map(|run_at| JobEvent::Requeue { run_at }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_of_events_follows_the_life_cycle(
        deadline in proptest::option::of(0i64..60),
        events in proptest::collection::vec((any_event(), 0i64..5), 1..60),
    ) {
        let mut job = Job::new(Uuid::nil(), Priority::Normal, at(0));
        job.deadline_at = deadline.map(at);
        let mut now = 0;
        let (mut claims, mut history) = (0, Vec::new());
        for (event, passes) in events {
            now += passes;
            let before = job.clone();
            let owns = fence(&event).is_none_or(|attempt| attempt == job.attempt);
            let due = matches!(job.state, JobState::Queued { run_at } if run_at <= at(now));
            let overdue = job.deadline_at.is_some_and(|deadline| deadline <= at(now));
            let want = expected(&job, &event, owns, due, job.due_at <= at(now), overdue);
            match job.apply(&event, at(now)) {
                Ok(after) => {
                    prop_assert_eq!(Some(after.settled_status()), want, "{:?} on {:?}", event, before);
                    claims += u32::from(matches!(
                        event,
                        JobEvent::Claim { .. }
                            | JobEvent::Reparse { .. }
                            | JobEvent::Share { .. }
                            | JobEvent::FindUnreadable { .. }
                    ));
                    history.extend(before.closed_attempt(&event, at(now)));
                    job = after;
                }
                Err(error) => {
                    prop_assert_eq!(want, None, "{:?} on {:?} gave {}", event, before, error);
                    if fence(&event).is_some() {
                        let lost = matches!(error, TransitionError::LeaseLost { .. });
                        prop_assert!(lost, "{error}");
                    }
                }
            }
            prop_assert_eq!(job.attempt, claims, "a number is given once per entry of the history");
            let failed = [FailureClass::Connect, FailureClass::Overload, FailureClass::InvalidOutput, FailureClass::Other];
            let failed: u32 = failed.into_iter().map(|class| job.failures.count(class)).sum();
            prop_assert!(failed + job.releases <= job.attempt);
            prop_assert_eq!(job.finished_at.is_some(), job.state.is_final());
            let running = u32::from(matches!(job.state, JobState::Running));
            let numbers: Vec<u32> = history.iter().map(|attempt| attempt.number).collect();
            prop_assert_eq!(numbers, (1..=claims - running).collect::<Vec<_>>(), "each attempt is closed exactly once");
        }
    }
}

fn running() -> Job {
    Job::new(Uuid::nil(), Priority::Normal, at(0))
        .apply(&JobEvent::Claim { owner: Owner::ANY, asks: None }, at(1))
        .unwrap()
}

#[test]
fn a_late_settle_of_an_expired_attempt_changes_nothing() {
    let second = running()
        .apply(&JobEvent::Expire { attempt: 1, retry_at: Some(at(31)), at_risk: None }, at(31))
        .unwrap()
        .apply(&JobEvent::Claim { owner: Owner::ANY, asks: None }, at(32))
        .unwrap();
    let late = JobEvent::Succeed { attempt: 1, report: Arc::default() };
    assert_eq!(
        second.apply(&late, at(33)),
        Err(TransitionError::LeaseLost { attempt: 1, current: 2, status: JobStatus::Running })
    );
}

#[test]
fn a_release_spends_no_attempt_but_keeps_its_number() {
    let released = running()
        .apply(&JobEvent::Release { attempt: 1, run_at: at(5), is_demoted: false, report: Arc::default() }, at(2))
        .unwrap();
    assert_eq!((released.attempt, released.failures, released.releases), (1, Failures::default(), 1));
}

#[test]
fn an_expired_attempt_is_recorded_as_possibly_billed() {
    let event = JobEvent::Expire { attempt: 1, retry_at: None, at_risk: None };
    let attempt = running().closed_attempt(&event, at(40)).unwrap();
    assert_eq!(attempt.outcome, AttemptOutcome::OutcomeUnknown);
    assert!(attempt.report.may_have_been_billed);
}

#[test]
fn a_success_that_came_first_wins_over_a_cancel() {
    let done = running().apply(&JobEvent::Succeed { attempt: 1, report: Arc::default() }, at(2)).unwrap();
    assert_eq!(
        done.apply(&JobEvent::Cancel { at_risk: None }, at(3)),
        Err(TransitionError::Illegal { status: JobStatus::Succeeded, wanted: "cancelled" })
    );
}

#[test]
fn a_kept_answer_that_reads_after_all_is_an_entry_of_its_own_and_the_end() {
    let fail = JobEvent::Fail { attempt: 1, code: FailureCode::InvalidOutput, report: Arc::default() };
    let failed = running().apply(&fail, at(2)).unwrap();
    let reparse = |attempt| JobEvent::Reparse { attempt, report: Arc::default() };
    let entry = failed.closed_attempt(&reparse(1), at(9)).unwrap();
    assert_eq!((entry.number, entry.outcome, entry.started_at), (2, AttemptOutcome::Reparsed, at(9)));
    let read = failed.apply(&reparse(1), at(9)).unwrap();
    assert_eq!((read.state, read.attempt, read.finished_at), (JobState::Succeeded, 2, Some(at(9))));
    assert_eq!(read.failures, failed.failures);
    assert!(read.apply(&reparse(2), at(9)).is_err(), "a memo once given stays");
    let retried = failed.apply(&JobEvent::Requeue { run_at: at(3) }, at(3)).unwrap();
    assert!(retried.apply(&reparse(1), at(4)).is_err(), "it is tried again already");
}

#[test]
fn anothers_answer_is_an_entry_of_its_own_and_the_end_and_is_not_passed_on() {
    let mut job = Job::new(Uuid::nil(), Priority::Normal, at(0));
    (job.question, job.due_at, job.state) = (NonZeroU64::new(7), at(5), JobState::Queued { run_at: at(5) });
    let share = JobEvent::Share { report: Arc::new(AttemptReport::default().shared(Uuid::max())) };
    assert!(job.apply(&share, at(4)).is_err(), "its client wants it later");
    let between = Job { state: JobState::Queued { run_at: at(60) }, attempt: 1, ..job.clone() };
    for job in [job, between] {
        let entry = job.closed_attempt(&share, at(9)).unwrap();
        assert_eq!((entry.number, entry.outcome, entry.started_at), (job.attempt + 1, AttemptOutcome::Shared, at(9)));
        let shared = job.apply(&share, at(9)).unwrap();
        assert_eq!((shared.state, shared.attempt, shared.question), (JobState::Succeeded, job.attempt + 1, None));
    }
    assert!(running().apply(&share, at(9)).is_err(), "its own call is under way");
}

#[test]
fn priority_is_a_head_start_and_not_a_class() {
    let job = |priority, second| Job::new(Uuid::nil(), priority, at(second)).effective_at();
    assert!(job(Priority::High, 60) < job(Priority::Normal, 0));
    assert!(job(Priority::Low, 0) < job(Priority::Normal, 601), "an old job of low priority goes before a new one");
}

#[test]
fn a_job_that_may_be_the_only_one_to_fail_goes_behind_all_that_were_queued_meanwhile() {
    let report = Arc::<AttemptReport>::default();
    let released =
        |is_demoted| JobEvent::Release { attempt: 1, run_at: at(30), is_demoted, report: Arc::clone(&report) };
    let suspect =
        JobEvent::Retry { attempt: 1, run_at: at(30), class: FailureClass::Suspect, report: Arc::clone(&report) };
    let place = |event| running().apply(&event, at(3)).unwrap().effective_at();
    assert_eq!([place(released(false)), place(released(true)), place(suspect)], [at(0), at(30), at(30)]);
    let again = running().apply(&released(true), at(3)).unwrap();
    assert!(again.effective_at() > Job::new(Uuid::nil(), Priority::Normal, at(29)).effective_at());
}

#[test]
fn a_requeued_job_starts_its_count_of_attempts_afresh() {
    let failed = running()
        .apply(&JobEvent::Fail { attempt: 1, code: FailureCode::Refused, report: Arc::default() }, at(2))
        .unwrap();
    let again = failed.apply(&JobEvent::Requeue { run_at: at(3) }, at(3)).unwrap();
    assert_eq!((again.failures, again.attempt, again.due_at, again.finished_at), (Failures::default(), 1, at(3), None));
}

#[test]
fn a_job_stays_small_as_all_of_them_are_in_memory() {
    assert_eq!(size_of::<Job>(), 136);
}
