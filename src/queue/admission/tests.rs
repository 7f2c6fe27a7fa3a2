use std::{num::NonZeroU32, sync::Arc, time::Duration};

use super::*;
use crate::{
    audit::{AuditAction, AuditLog},
    clock::Clock,
    job::{Job, JobFilter, JobId, JobRecord, JobRequest, JobState},
    metrics::Metrics,
    queue::{
        Policy, Queue, QueueError, Submission,
        bulk::{Action, Bulk},
    },
    store::memory::MemoryStore,
};

const MIB: u64 = 1 << 20;

fn bounds() -> Bounds {
    Bounds {
        max_pending: 1_000,
        max_scheduled: 500,
        max_pending_per_caller: 100,
        rates: Rates::new(NonZeroU32::new(10), None),
        disk_space: DiskSpace::default(),
        is_folder_gone: AtomicBool::new(false),
    }
}

#[test]
fn the_used_share_is_that_of_the_scarcer_places() {
    assert_eq!(bounds().used(800, 100), 0.8);
    assert_eq!(bounds().used(460, 450), 0.9);
}

fn unnamed(n: u8) -> Caller {
    caller::unnamed([192, 0, 2, n].into())
}

#[test]
fn each_bound_refuses_what_goes_beyond_it_and_nothing_else() {
    let (alice, anyone, operator) = (caller::named("alice"), unnamed(1), caller::operator());
    let one = |by, pending| Admission { by, owner: by, submits: 1, jobs: 1, pending, ..Admission::default() };
    let scheduled = |pending_scheduled| Admission { scheduled: 1, pending_scheduled, ..one(alice, 0) };
    let owned = |by, pending_of_owner| Admission { owner: alice, pending_of_owner, ..one(by, 0) };
    for (asked, code) in [
        (one(anyone, 899), ""),
        (one(anyone, 900), "full"),
        (one(alice, 989), ""),
        (one(alice, 990), "full"),
        (one(operator, 999), ""),
        (one(operator, 1_000), "full"),
        (scheduled(499), ""),
        (scheduled(500), "scheduled"),
        (owned(alice, 99), ""),
        (owned(alice, 100), "caller"),
        (owned(operator, 100), "caller"),
        (Admission { owner: None, pending_of_owner: 100, ..one(operator, 0) }, ""),
        (Admission { submits: 11, jobs: 0, ..one(alice, 0) }, "batch"),
        (Admission { submits: 11, ..one(operator, 0) }, ""),
    ] {
        let refused = bounds().admit(&asked).err().map_or("", |refused| match refused {
            Refused::Full { .. } => "full",
            Refused::ScheduledFull { .. } => "scheduled",
            Refused::CallerFull { .. } => "caller",
            Refused::BatchTooLarge { .. } => "batch",
            Refused::TooFast { .. } | Refused::StorageLow(_) | Refused::FolderGone => "other",
        });
        assert_eq!(refused, code, "{asked:?}");
    }
    let bounds = bounds();
    bounds.disk_space.note(0, 80 * MIB);
    assert!(matches!(bounds.admit(&one(operator, 0)), Err(Refused::StorageLow(_))));
}

#[test]
fn a_refused_submission_costs_no_quota() {
    let bounds = bounds();
    let mut asked =
        Admission { by: unnamed(1), owner: unnamed(1), submits: 10, jobs: 10, pending: 1_000, ..Default::default() };
    assert!(matches!(bounds.admit(&asked), Err(Refused::Full { .. })));
    asked.pending = 0;
    assert_eq!(bounds.admit(&asked), Ok(()));
    assert!(matches!(bounds.admit(&asked), Err(Refused::TooFast { .. })));
}

#[test]
fn space_is_short_below_the_floor_and_until_there_is_a_margin_above_it() {
    let space = DiskSpace::default();
    let mut short = |free_mib| space.note(free_mib * MIB, 80 * MIB).1.is_some();
    let seen = [100, 80, 79, 80, 89, 90, 80, 0].map(&mut short);
    assert_eq!(seen, [false, false, true, true, true, false, false, true]);
}

#[test]
fn without_a_floor_nothing_is_short() {
    let space = DiskSpace::default();
    assert_eq!(space.note(0, 0), (None, None));
    assert_eq!(space.shortage(), None);
}

/// A way for jobs to become pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Submit,
    Ask,
    Batch,
    Retry,
    OperatorsRetry,
    BulkRetry,
    Import,
}

/// A bound that is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    MaxPending,
    MaxScheduled,
    PerCaller,
    SubmitsPerMinute,
    DiskFloor,
}

/// A queue in which `alice` has a job that was cancelled, and a bound is met.
struct World {
    queue: Queue,
    cancelled: JobId,
}

fn submission(later: bool) -> Submission {
    let request = JobRequest { caller: Some("alice".to_owned()), ..JobRequest::default() };
    let run_at = later.then(|| Clock::system().now().plus(Duration::from_hours(1)));
    Submission { request, run_at, ..Submission::default() }
}

impl World {
    async fn new(met: Met) -> World {
        let policy = match met {
            Met::MaxPending => Policy { max_pending: 3, ..Policy::plain() },
            Met::MaxScheduled => Policy { max_scheduled: 1, ..Policy::plain() },
            Met::PerCaller => Policy { max_pending_per_caller: 1, ..Policy::plain() },
            Met::SubmitsPerMinute => Policy { submits_per_minute: NonZeroU32::new(2), ..Policy::plain() },
            Met::DiskFloor => Policy::plain(),
        };
        let queue = Queue::over(Arc::<MemoryStore>::default(), &Clock::system(), &policy, &Metrics::new()).await;
        let cancelled = queue.enqueue(submission(false)).await.unwrap().record.job.id;
        queue.cancel(cancelled).await.unwrap();
        let others = |later| Submission { by: caller::operator(), ..submission(later) };
        match met {
            Met::MaxPending => {
                queue.enqueue_all((0..3).map(|_| others(false)).collect(), None).await.unwrap();
            }
            Met::MaxScheduled => drop(queue.enqueue(others(true)).await.unwrap()),
            Met::PerCaller | Met::SubmitsPerMinute => drop(queue.enqueue(submission(false)).await.unwrap()),
            Met::DiskFloor => queue.work().record_disk_space(0, 80 * MIB),
        }
        World { queue, cancelled }
    }

    /// Takes the route; jobs that it brings are for later if `later`.
    async fn take(&self, route: Route, later: bool) -> Result<(), QueueError> {
        let queue = &self.queue;
        match route {
            Route::Submit => queue.enqueue(submission(later)).await.map(drop),
            Route::Ask => {
                let until = Instant::now() + Duration::from_secs(1);
                queue.ask(submission(later), until, || (Policy::plain().allowance)(None)).await.map(drop)
            }
            Route::Batch => queue.enqueue_all(vec![submission(later)], None).await.map(drop),
            Route::Retry => queue.requeue(self.cancelled, caller::named("alice")).await.map(drop),
            Route::OperatorsRetry => queue.requeue(self.cancelled, caller::operator()).await.map(drop),
            Route::BulkRetry => {
                let action = AuditAction { actor: "operator", action: "retry", detail: None };
                let audit = AuditLog::new(Arc::<MemoryStore>::default(), Clock::system(), None);
                let entry = audit.record(action, None).await.unwrap();
                let until = Instant::now() + Duration::from_secs(30);
                let bulk = Bulk { action: Action::Retry, filter: JobFilter::default(), cursor: None, until };
                queue.operations().apply(&bulk, (&audit, &entry)).await.map(drop)
            }
            Route::Import => {
                let Submission { request, run_at, .. } = submission(later);
                let mut job = Job::new(JobId::from_u128(7), crate::job::Priority::Normal, queue.now());
                job.caller = caller::named("alice");
                job.state = JobState::Queued { run_at: run_at.unwrap_or(job.created_at) };
                job.is_timed = later;
                queue.operations().import(vec![JobRecord::fresh(job, Arc::new(request))], Vec::new()).await.map(drop)
            }
        }
    }
}

#[tokio::test]
async fn every_bound_holds_for_every_route_that_makes_jobs_pending() {
    use Route::{Ask, Batch, BulkRetry, Import, OperatorsRetry, Retry, Submit};
    let routes = [Submit, Ask, Batch, Retry, OperatorsRetry, BulkRetry, Import];
    for (met, passes) in [
        (Met::MaxPending, &[][..]),
        // A retry is never for later.
        (Met::MaxScheduled, &[Retry, OperatorsRetry, BulkRetry]),
        // An import brings the jobs of all callers of another service.
        (Met::PerCaller, &[Import]),
        // What an operator does is no caller's submission.
        (Met::SubmitsPerMinute, &[OperatorsRetry, BulkRetry, Import]),
        (Met::DiskFloor, &[]),
    ] {
        for route in routes {
            let world = World::new(met).await;
            let before = world.queue.counts();
            let result = world.take(route, met == Met::MaxScheduled).await;
            let as_expected = match (&result, met) {
                (Ok(()), _) => passes.contains(&route),
                (Err(QueueError::Refused(Refused::Full { .. })), Met::MaxPending)
                | (Err(QueueError::Refused(Refused::ScheduledFull { .. })), Met::MaxScheduled)
                | (Err(QueueError::Refused(Refused::CallerFull { .. })), Met::PerCaller)
                | (Err(QueueError::Refused(Refused::TooFast { .. })), Met::SubmitsPerMinute)
                | (Err(QueueError::Refused(Refused::StorageLow(_))), Met::DiskFloor) => {
                    !passes.contains(&route) && world.queue.counts() == before
                }
                (Err(_), _) => false,
            };
            assert!(as_expected, "{met:?}, {route:?}: {result:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_bound_is_passed_however_many_requests_come_at_once() {
    let policy = Policy { max_pending: 10, ..Policy::plain() };
    let queue = Queue::over(Arc::<MemoryStore>::default(), &Clock::system(), &policy, &Metrics::new()).await;
    let batches = (0..20).map(|_| {
        let queue = queue.clone();
        tokio::spawn(async move { queue.enqueue_all(vec![Submission::default(); 2], None).await })
    });
    let mut accepted = 0;
    for batch in batches.collect::<Vec<_>>() {
        match batch.await.unwrap() {
            Ok(_) => accepted += 2,
            Err(error) => assert!(matches!(error, QueueError::Refused(Refused::Full { .. })), "{error}"),
        }
    }
    // A place in ten is for callers with a name.
    assert_eq!((accepted, queue.counts().queued), (8, 8));
}

#[tokio::test]
async fn a_question_whose_client_hangs_up_is_stored_and_counts_from_the_first_moment() {
    let policy = Policy { max_pending: 1, ..Policy::plain() };
    let queue = Queue::over(Arc::<MemoryStore>::default(), &Clock::system(), &policy, &Metrics::new()).await;
    let mut submission = Box::pin(queue.enqueue(Submission::default()));
    assert!(futures_util::poll!(&mut submission).is_pending(), "it is on its way to the disk");
    drop(submission);
    let second = queue.enqueue(Submission::default()).await.unwrap_err();
    assert!(matches!(second, QueueError::Refused(Refused::Full { pending: 1, .. })), "{second}");
    while queue.counts().queued == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_caller_that_cancels_and_retries_again_and_again_spends_its_quota() {
    let world = World::new(Met::SubmitsPerMinute).await;
    for _ in 0..3 {
        let refused = world.queue.requeue(world.cancelled, caller::named("alice")).await.unwrap_err();
        assert!(matches!(refused, QueueError::Refused(Refused::TooFast { limit: 2, .. })), "{refused}");
    }
    let quota = world.queue.quota(caller::named("alice")).unwrap();
    assert_eq!((quota.per_minute.get(), quota.left), (2, 0));
}
